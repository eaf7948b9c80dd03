"""Trains the small PifPaf network on rendered people, with openpifpaf's own targets and losses."""

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

SIZE = (256, 128)  # pixels, of rendered pictures
HIT_RADIUS = 12  # pixels within which a keypoint counts as found
Sample = tuple[np.ndarray, list[Tensor]]  # picture, the fields of the two heads


@dataclass(frozen=True, config=STRICT)
class Pretrain:
    schedule: fit.Schedule
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
    """openpifpaf's targets for limbs, a limb's cells at once instead of one by one: six times as fast."""

    def fill_association(self, field_i, joint1, joint2, fill_values):
        start, along = joint1[:2], joint2[:2] - joint1[:2]
        length, side = np.linalg.norm(along), max(self.config.min_size, 0)
        margin = np.clip(side / 2 / (length + np.spacing(1)), 0.25, 0.4)
        shares = np.linspace(margin, 1 - margin, num=max(2, int(np.ceil(length))))
        square = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2), -1).reshape(-1, 2)
        cells = np.rint(start + shares[:, None, None] * along + square).astype(int).reshape(-1, 2)
        cells = np.unique(cells + self.config.padding, axis=0)
        cells = cells[(cells >= 0).all(1) & (cells < self.field_shape[:0:-1]).all(1)]
        off = cells - self.config.padding - start
        away = np.abs(along[1] * off[:, 0] - along[0] * off[:, 1]) / (length + 0.01)
        nearer = away <= self.fields_reg_l[field_i, cells[:, 1], cells[:, 0]]
        x, y = cells[nearer].T
        self.fields_reg_l[field_i, y, x] = away[nearer]
        self.fill_field_values(field_i, (x, y), fill_values)

    def fill_field_values(self, field_i, fij, fill_values):
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


def target_encoders(network: nn.Module) -> list[Callable]:
    """Picture and annotations -> what the two heads should say."""
    cif, caf = network.head_metas
    limbs = openpifpaf.encoder.Caf(caf)
    return [openpifpaf.encoder.Cif(cif), lambda *given: LimbTargets(limbs)(*given)]


def _sample(encoders: list, pool: int, seed: int, i: int) -> Sample:
    scene = annotated_scene(seed, i, pool)
    blank = torch.empty(3, SIZE[0] + 1, SIZE[1] + 1)  # encoders read its size alone: the pad is one pixel
    annotations = [to_annotation(points) for points in scene.keypoints if (points[:, 2] > 0).sum() >= 3]
    return scene.image, [encode(blank, annotations, {}) for encode in encoders]


def to_annotation(keypoints: np.ndarray) -> dict:
    known = keypoints[keypoints[:, 2] > 0, :2]
    low, high = known.min(0), known.max(0)
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
    """Share of the targets' visible keypoints whose confidence peaks within `NEAR` pixels of any person's."""
    where, hits = pose.field_grid(network, SIZE), []
    for start in range(0, len(held_out), 16):
        some = held_out[start : start + 16]
        pixels = pose.normalise_crops(np.stack([scene.image for scene in some]), where.pad)
        maps = pose.confidences(network, pixels)[:, : pose.KEYPOINTS]
        for scene, found in zip(some, maps, strict=True):
            hits += _keypoint_hits(scene.keypoints, found, where.stride)
    return {"keypoints_found": float(np.mean(hits))}


def _keypoint_hits(keypoints: np.ndarray, maps: Tensor, stride: int) -> list[bool]:
    best = maps.flatten(1).argmax(1).numpy()
    peaks = np.stack([best % maps.shape[2], best // maps.shape[2]], 1) * stride
    away = np.linalg.norm(keypoints[:, :, :2] - peaks, axis=2)
    away[keypoints[:, :, 2] == 0] = np.inf
    return (away.min(0) <= HIT_RADIUS)[keypoints[0, :, 2] == 2].tolist()
