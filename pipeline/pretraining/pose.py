"""Trains the small PifPaf network on rendered people, with openpifpaf's own targets and losses."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import openpifpaf
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline import pose, weights
from pipeline.params import STRICT
from pipeline.pretraining import loop, people

SIZE = (256, 128)  # pixels, of rendered pictures
NEAR = 12  # pixels within which a keypoint counts as found
Sample = tuple[np.ndarray, list[Tensor]]  # picture, the fields of the two heads


@dataclass(frozen=True, config=STRICT)
class Pretrain:
    schedule: loop.Schedule
    weights: tuple[
        float, float, float, float, float, float
    ]  # of the losses: confidence, vector, scale; keypoints, limbs


def train(settings: Pretrain, out: str) -> None:
    """Write the weights and their record to `out` and its `.json`."""
    torch.manual_seed(settings.schedule.seed)
    torch.set_num_threads(1)
    logging.getLogger("openpifpaf").setLevel(logging.ERROR)
    network = pose.build(pose.SMALL)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # openpifpaf's 0.01 lags behind so short a training
    losses = openpifpaf.network.losses.Factory().factory(network.head_metas)
    losses.lambdas = settings.weights
    held_out = [
        people.scene(settings.schedule.seed + 1, i, 1 << 30) for i in range(settings.schedule.held_out)
    ]
    network, history = loop.fit(
        network,
        partial(_loss, losses),
        partial(_sample, _encoders(network), settings.schedule.pool),
        partial(_score, held_out),
        settings.schedule,
        Path(".scratch/pretrain-pose.pt"),
    )
    weights.write(out, network.state_dict(), loop.record("pose", settings, history))


def _encoders(network: nn.Module) -> list:
    cif, caf = network.head_metas
    return [openpifpaf.encoder.Cif(cif), openpifpaf.encoder.Caf(caf)]


def _sample(encoders: list, pool: int, seed: int, i: int) -> Sample:
    scene = people.scene(seed, i, pool)
    blank = torch.empty(3, SIZE[0] + 1, SIZE[1] + 1)  # encoders read its size alone: the pad is one pixel
    annotations = [_annotation(points) for points in scene.keypoints if (points[:, 2] > 0).sum() >= 3]
    return scene.image, [encode(blank, annotations, {}) for encode in encoders]


def _annotation(keypoints: np.ndarray) -> dict:
    known = keypoints[keypoints[:, 2] > 0, :2]
    low, high = known.min(0), known.max(0)
    return {"keypoints": keypoints, "bbox": np.concatenate([low, high - low]), "iscrowd": False}


def _loss(losses: nn.Module, network: nn.Module, batch: list[Sample]) -> Tensor:
    images, targets = zip(*batch, strict=True)
    left, top, right, bottom = pose.grid(network, SIZE).pad
    fields = network(pose.normalised(np.stack(images), (left, top, right, bottom)))
    total, _ = losses(
        [field.float() for field in fields], [torch.stack(head) for head in zip(*targets, strict=True)]
    )
    return total / 1000  # openpifpaf sums over a picture's cells


@torch.inference_mode()
def _score(held_out: list[people.Scene], network: nn.Module) -> dict[str, float]:
    """Share of the targets' visible keypoints whose confidence peaks within `NEAR` pixels of any person's."""
    where, hits = pose.grid(network, SIZE), []
    for start in range(0, len(held_out), 16):
        some = held_out[start : start + 16]
        pixels = pose.normalised(np.stack([scene.image for scene in some]), where.pad)
        maps = pose.confidences(network, pixels)[:, : pose.KEYPOINTS]
        for scene, found in zip(some, maps, strict=True):
            hits += _hits(scene.keypoints, found, where.stride)
    return {"keypoints_found": float(np.mean(hits))}


def _hits(keypoints: np.ndarray, maps: Tensor, stride: int) -> list[bool]:
    best = maps.flatten(1).argmax(1).numpy()
    peaks = np.stack([best % maps.shape[2], best // maps.shape[2]], 1) * stride
    away = np.linalg.norm(keypoints[:, :, :2] - peaks, axis=2)
    away[keypoints[:, :, 2] == 0] = np.inf
    return list((away.min(0) <= NEAR)[keypoints[0, :, 2] == 2])
