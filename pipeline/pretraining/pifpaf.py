"""Training of the small PifPaf network on rendered people, with openpifpaf's own targets and losses."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openpifpaf
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline.core import weights
from pipeline.core.params import STRICT
from pipeline.labels import pose
from pipeline.pretraining import fit
from pipeline.pretraining.annotations import Scene, annotated_scene

SIZE = (256, 128)  # height, width of rendered pictures in pixels
HIT_RADIUS = 12  # pixels; a keypoint is detected if its confidence peaks within
Sample = tuple[np.ndarray, list[Tensor]]  # picture, the fields of the two heads


@dataclass(frozen=True, config=STRICT)
class Pretrain:
    """How the small PifPaf network is trained."""

    schedule: fit.Schedule
    # of the losses of confidence, vector and scale, first of keypoints, then of limbs
    weights: tuple[float, float, float, float, float, float]


def train(settings: Pretrain, out: str) -> None:
    """Train, and write the weights to `out` and their record beside it (.json)."""
    torch.manual_seed(settings.schedule.seed)
    torch.set_num_threads(1)
    logging.getLogger("openpifpaf").setLevel(logging.ERROR)
    network = pose.build(pose.SMALL)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # openpifpaf's 0.01 is too slow for so short a training
    losses = openpifpaf.network.losses.Factory().factory(network.head_metas)
    losses.lambdas = settings.weights
    held_out = [
        annotated_scene(settings.schedule.seed + 1, i, 1 << 30) for i in range(settings.schedule.held_out)
    ]
    network, history = fit.fit_network(
        network,
        partial(_loss, losses),
        partial(_sample, target_encoders(network), settings.schedule.pool),
        partial(_score, held_out),
        settings.schedule,
        Path(".scratch/pretrain-pose.pt"),
    )
    weights.write(out, network.state_dict(), fit.training_record("pose", settings, history))


class LimbTargets(openpifpaf.encoder.caf.CafGenerator):
    """openpifpaf's targets for limbs, with all cells of a limb at once: six times as fast."""

    def fill_association(self, field_i, joint1, joint2, fill_values):
        """Fill a limb's cells along the line between its joints; the arguments are openpifpaf's."""
        start, direction = joint1[:2], joint2[:2] - joint1[:2]
        length, side = np.linalg.norm(direction), max(self.config.min_size, 0)
        margin = np.clip(side / 2 / (length + np.spacing(1)), 0.25, 0.4)
        shares = np.linspace(margin, 1 - margin, num=max(2, int(np.ceil(length))))
        square = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2), -1).reshape(-1, 2)
        cells = np.rint(start + shares[:, None, None] * direction + square).astype(int).reshape(-1, 2)
        cells = np.unique(cells + self.config.padding, axis=0)
        cells = cells[(cells >= 0).all(1) & (cells < self.field_shape[:0:-1]).all(1)]
        offset = cells - self.config.padding - start
        distance = np.abs(direction[1] * offset[:, 0] - direction[0] * offset[:, 1]) / (length + 0.01)
        nearer = distance <= self.fields_reg_l[field_i, cells[:, 1], cells[:, 0]]
        x, y = cells[nearer].T
        self.fields_reg_l[field_i, y, x] = distance[nearer]
        self.fill_field_values(field_i, (x, y), fill_values)

    def fill_field_values(self, field_i, fij, fill_values):
        """Fill the cells `fij` (columns, rows) of a limb's field; the arguments are openpifpaf's."""
        x, y = fij
        keypoints, scale = fill_values
        self.intensities[field_i, y, x] = 1
        ends = zip(self.skeleton_m1[field_i], *self._ends(), strict=True)
        for joint, offset, smallest, size in ends:
            offset[field_i, :, y, x] = keypoints[joint, :2] - np.stack([x, y], 1) + self.config.padding
            smallest[field_i, y, x] = self.config.bmin / self.config.meta.stride
            size[field_i, y, x] = scale * self.config.meta.sigmas[joint]

    def _ends(self):
        return (
            (self.fields_reg1, self.fields_reg2),
            (self.fields_bmin1, self.fields_bmin2),
            (self.fields_scale1, self.fields_scale2),
        )


def target_encoders(network: pose.Shell) -> list[Callable]:
    """Functions of (picture, annotations) that give the targets of the two heads."""
    cif, caf = network.head_metas
    limbs = openpifpaf.encoder.Caf(caf)
    return [openpifpaf.encoder.Cif(cif), lambda *args: LimbTargets(limbs)(*args)]


def _sample(encoders: list, pool: int, seed: int, i: int) -> Sample:
    scene = annotated_scene(seed, i, pool)
    blank = torch.empty(3, SIZE[0] + 1, SIZE[1] + 1)  # encoders read its size alone; one pixel is the pad
    annotations = [to_annotation(points) for points in scene.keypoints if (points[:, 2] > 0).sum() >= 3]
    return scene.image, [encode(blank, annotations, {}) for encode in encoders]


def to_annotation(keypoints: np.ndarray) -> dict:
    """Keypoints (17, 3) of a person as openpifpaf's annotation."""
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    low, high = labelled.min(0), labelled.max(0)
    return {"keypoints": keypoints, "bbox": np.concatenate([low, high - low]), "iscrowd": False}


def _loss(losses: nn.Module, network: nn.Module, batch: list[Sample]) -> Tensor:
    images, targets = zip(*batch, strict=True)
    left, top, right, bottom = pose.field_grid(network, SIZE).pad
    fields = network(pose.normalise_crops(np.stack(images), (left, top, right, bottom)))
    total, _ = losses(
        [field.float() for field in fields], [torch.stack(head) for head in zip(*targets, strict=True)]
    )
    return total / 1000  # openpifpaf sums over a picture's cells


@torch.inference_mode()
def _score(held_out: list[Scene], network: nn.Module) -> dict[str, float | int]:
    """Share of the targets' visible keypoints whose confidence peaks within `HIT_RADIUS` of any person's."""
    grid, hits = pose.field_grid(network, SIZE), []
    for start in range(0, len(held_out), 16):
        scenes = held_out[start : start + 16]
        pixels = pose.normalise_crops(np.stack([scene.image for scene in scenes]), grid.pad)
        fields = pose.confidences(network, pixels)[:, : pose.KEYPOINTS]
        for scene, maps in zip(scenes, fields, strict=True):
            hits += _keypoint_hits(scene.keypoints, maps, grid.stride)
    return {"keypoints_found": float(np.mean(hits))}


def _keypoint_hits(keypoints: np.ndarray, maps: Tensor, stride: int) -> list[bool]:
    cell = maps.flatten(1).argmax(1).numpy()
    peaks = np.stack([cell % maps.shape[2], cell // maps.shape[2]], 1) * stride
    distance = np.linalg.norm(keypoints[:, :, :2] - peaks, axis=2)
    distance[keypoints[:, :, 2] == 0] = np.inf
    return (distance.min(0) <= HIT_RADIUS)[keypoints[0, :, 2] == 2].tolist()
