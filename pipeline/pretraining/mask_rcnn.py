"""Training of the small Mask R-CNN on rendered people: every person of a picture is an instance."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from pipeline.core import weights
from pipeline.core.params import STRICT
from pipeline.labels.segmentation import small
from pipeline.pretraining import annotations, fit

# picture (H, W, 3), masks of the persons' visible pixels (P, H, W), the target first
Sample = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, config=STRICT)
class Pretrain:
    """How the small Mask R-CNN is trained."""

    schedule: fit.Schedule
    smallest: int = Field(ge=1)  # least visible pixels of an instance
    proposals: int = Field(ge=1)  # boxes that reach the heads
    sampled: int = Field(ge=1)  # boxes per picture in the losses
    mask_weight: float = Field(gt=0)  # of the mask loss; the other losses have weight 1


def train(settings: Pretrain, out: str) -> None:
    """Train, and write the weights to `out` and their record beside it (.json)."""
    torch.manual_seed(settings.schedule.seed)
    torch.set_num_threads(1)
    make = partial(_sample, settings)
    held_out = [make(settings.schedule.seed + 1, i) for i in range(settings.schedule.held_out)]
    network, history = fit.fit_network(
        _network(settings),
        partial(_loss, settings),
        make,
        partial(_score, held_out),
        settings.schedule,
        Path(".scratch/pretrain-segmentation.pt"),
    )
    weights.write(out, network.state_dict(), fit.training_record("segmentation", settings, history))


def _network(settings: Pretrain) -> nn.Module:
    return small.build(
        min_size=128,
        max_size=256,
        rpn_pre_nms_top_n_train=2 * settings.proposals,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_pre_nms_top_n_test=2 * settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        rpn_batch_size_per_image=settings.sampled,
        box_batch_size_per_image=settings.sampled,
        box_detections_per_img=8,
    )


def _sample(settings: Pretrain, seed: int, i: int) -> Sample:
    scene = annotations.annotated_scene(seed, i, settings.schedule.pool)
    return scene.image, scene.masks[scene.masks.sum((1, 2)) >= settings.smallest]


def _loss(settings: Pretrain, network: nn.Module, batch: list[Sample]) -> Tensor:
    losses = network([_tensor(image) for image, _ in batch], [_target(masks) for _, masks in batch])
    return sum(losses.values()) + (settings.mask_weight - 1) * losses["loss_mask"]


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def _target(masks: np.ndarray) -> dict[str, Tensor]:
    tensor = torch.from_numpy(masks)
    boxes = masks_to_boxes(tensor) + torch.tensor([0.0, 0.0, 1.0, 1.0]) if len(masks) else torch.zeros(0, 4)
    return {"boxes": boxes, "labels": torch.ones(len(masks), dtype=torch.int64), "masks": tensor.byte()}


@torch.inference_mode()
def _score(held_out: list[Sample], network: nn.Module) -> dict[str, float | int]:
    """Mean over the targets of the greatest IoU of an instance with the target, and the share above 0.7."""
    ious = np.array([_best_iou(network, image, masks[0]) for image, masks in held_out if len(masks)])
    return {"mask_iou": float(np.mean(ious)), "above_0.7": float(np.mean(ious > 0.7))}


def _best_iou(network: nn.Module, image: np.ndarray, target: np.ndarray) -> float:
    masks = network([_tensor(image)])[0]["masks"][:, 0].numpy() > 0.5
    return max((float((mask & target).sum() / (mask | target).sum()) for mask in masks), default=0.0)
