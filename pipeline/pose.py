"""PifPaf's confidences for person crops, from openpifpaf's networks.

The stage `pose` runs it once over all images: 17 keypoint and 19 limb confidences on the network's own grid.

Unusual here:
- Only the network is used, no decoder: the parsing maps need confidences, not skeletons.
- The grid's stride is read from the network's heads, and the pad is written beside the fields.
- openpifpaf is AGPL-3.0-or-later; this adapter and its trainer are all that imports it.
"""

import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline import store, weights
from pipeline.params import STRICT, BadInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of deprecations in torch that openpifpaf 0.13 still uses
    import openpifpaf
    from openpifpaf.network import basenetworks, model_migration, nets

SMALL = "small"  # our own: the first three stages of openpifpaf's resnet18, fields at stride 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of openpifpaf's networks, RGB in [0, 1]
KEYPOINTS, LIMBS = 17, 19

Crop = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, config=STRICT)
class Pose:
    """Which network, and how crops reach it."""

    network: str  # `small`, a base network of openpifpaf, or one with its published weights: shufflenetv2k16:cocokp
    weights: str  # the file that dvc.yaml hands to the stage; not read if the network names published weights
    size: tuple[int, int]  # height, width in pixels to which every crop is resized
    batch: int = Field(ge=1)


class Grid(NamedTuple):
    """Where fields lie: cell (r, c) is at y = r * stride - top, x = c * stride - left of the resized crop."""

    stride: int
    size: tuple[int, int]  # height, width of the resized crop
    pad: tuple[int, int, int, int]  # pixels left, top, right, bottom


def build(name: str) -> nn.Module:
    """openpifpaf's network with its COCO heads (17 keypoints, 19 limbs) and random weights, in eval mode.

    `small` is resnet18 without its last stage, its heads doubled in resolution (stride 8), by openpifpaf's
    own options.  Raises `BadInput` for an unknown name.
    """
    small = name == SMALL
    if not small and name not in openpifpaf.network.factory.BASE_FACTORIES:
        known = ", ".join([SMALL, *openpifpaf.network.factory.BASE_FACTORIES])
        raise BadInput(f"params.yaml: pose.network = {name!r} is no network of openpifpaf. Name one of {known}.")
    metas = openpifpaf.plugins.coco.CocoKp().head_metas
    for meta in metas:
        meta.upsample_stride = 2 if small else 1
    with _options(small):
        factory = openpifpaf.network.Factory(base_name="resnet18" if small else name)
        network = factory.factory(head_metas=metas)[0]
    if small:
        network.base_net.block5 = nn.Identity()  # openpifpaf leaves a hole there, and fails on it
    return network


@contextmanager
def _options(small: bool):
    # openpifpaf's options are class attributes; its base networks fetch ImageNet weights unless told not to
    changes = [(c, "pretrained", False) for c in vars(basenetworks).values() if hasattr(c, "pretrained")]
    if small:
        changes += [(basenetworks.Resnet, "remove_last_block", True), (basenetworks.Resnet, "pool0_stride", 2)]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in changes]
    try:
        for owner, key, value in changes:
            setattr(owner, key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision on openpifpaf's positional arguments
            yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


def grid(network: nn.Module, size: tuple[int, int]) -> Grid:
    """Where the network's fields lie on crops of `size`: stride from its heads, pad to a multiple plus one.

    openpifpaf centres its cells on pixels 0, stride, 2 stride, ..., so a side should be a multiple plus one.
    """
    over = [-(-(side - 1) // network.base_net.stride) * network.base_net.stride + 1 - side for side in size]
    top, left = over[0] // 2, over[1] // 2
    return Grid(network.head_metas[0].stride, size, (left, top, over[1] - left, over[0] - top))


def normalised(crops: UInt8[np.ndarray, "B h w 3"], pad: tuple[int, int, int, int]) -> Tensor:
    """Crops of one size as the network wants them, (B, 3, h + pad, w + pad); the pad is the mean colour."""
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    left, top, right, bottom = pad
    return nn.functional.pad(pixels, (left, right, top, bottom))


def confidences(network: nn.Module, pixels: Tensor) -> Tensor:
    """Keypoint, then limb confidences in [0, 1], (B, 36, h, w)."""
    fields = network(pixels)
    found = {type(meta): f for meta, f in zip(reversed(network.head_metas), reversed(fields), strict=True)}
    return torch.cat([found[openpifpaf.headmeta.Cif][:, :, 1], found[openpifpaf.headmeta.Caf][:, :, 1]], 1)
