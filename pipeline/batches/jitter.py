"""Colour jitter of bytes, in integers: a CPU and a GPU change every byte alike.

The changes are torchvision's `ColorJitter`: brightness, contrast, saturation and hue, each a mixture of the
image with black, its mean grey, its greys, or a turn of the colour circle.
Departs: they follow one another in this order, which torchvision draws for each image; one draw less and one
pass over the whole batch.  Each result is rounded to the nearest byte, where torchvision cuts off, so that a
change of strength 0 changes no byte.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

ONE = 1 << 16  # in fixed point
LUMA = (19595, 38470, 7471)  # share of red, green and blue in a grey (ITU-R 601), of ONE
SECTORS = (5, 3, 1)  # of the colour circle's six, by which red, green and blue are ahead

Strengths = tuple[float, float, float, float]  # of brightness, contrast, saturation and hue
NO_JITTER: Strengths = (0.0, 0.0, 0.0, 0.0)


class Jitter(NamedTuple):
    """The changes of one image: three factors around 1, and a turn in circles."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


def sample_jitter(strengths: Strengths, rng: np.random.Generator) -> Jitter:
    """Factors uniform within their strengths of 1, but not below 0, and a turn within its strength of 0."""
    *factors, turn = strengths
    low, high = [max(0.0, 1 - s) for s in factors], [1 + s for s in factors]
    return Jitter(*rng.uniform([*low, -turn], [*high, turn]).tolist())


def apply_jitter(image: UInt8[Tensor, "B H W 3"], jitters: Sequence[Jitter]) -> UInt8[Tensor, "B H W 3"]:
    """The images, each with its changes; a change that no image needs is left out."""
    amounts = np.rint(np.transpose(jitters) * ONE).astype(np.int32)  # a row for each kind of change
    planes = image.permute(0, 3, 1, 2).to(torch.int32, memory_format=torch.contiguous_format)  # faster
    for change, amount, neutral in zip(CHANGES, amounts, NEUTRAL, strict=True):
        if (amount != neutral).any():
            change(planes, torch.from_numpy(amount).to(image.device)[:, None, None, None])
    return planes.byte().permute(0, 2, 3, 1).contiguous()


def _brighten(image: Int[Tensor, "B 3 H W"], factor: Int[Tensor, "B 1 1 1"]) -> None:
    _round(image.mul_(factor))


def _contrast(image: Int[Tensor, "B 3 H W"], factor: Int[Tensor, "B 1 1 1"]) -> None:
    pixels = image.shape[2] * image.shape[3]
    total = _grey(image).sum((1, 2, 3), keepdim=True)  # in int64
    _mix(image, ((total + pixels // 2) // pixels).int(), factor)


def _saturate(image: Int[Tensor, "B 3 H W"], factor: Int[Tensor, "B 1 1 1"]) -> None:
    _mix(image, _grey(image), factor)


def _turn(image: Int[Tensor, "B 3 H W"], turn: Int[Tensor, "B 1 1 1"]) -> None:
    # a colour keeps its greatest value, its least one and so its saturation; `position` is in sixths
    red, green, blue = image.split(1, 1)
    highest, lowest = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    spread = highest - lowest
    ahead = torch.where(highest == red, green - blue, torch.where(highest == green, blue - red, red - green))
    sector = torch.where(highest == red, 0, torch.where(highest == green, 2, 4))
    position = ahead * ONE // spread.clamp(min=1) + sector * ONE + 6 * turn
    step = (position + position.new_tensor(SECTORS).view(1, 3, 1, 1) * ONE) % (6 * ONE)
    _round(torch.sub(highest * ONE, spread * torch.minimum(step, 4 * ONE - step).clamp_(0, ONE), out=image))


CHANGES = (_brighten, _contrast, _saturate, _turn)  # in place
NEUTRAL = (ONE, ONE, ONE, 0)


def _mix(
    image: Int[Tensor, "B 3 H W"], other: Int[Tensor, "B 1 #H #W"], factor: Int[Tensor, "B 1 1 1"]
) -> None:
    _round(image.mul_(factor).add_(other * (ONE - factor)))


def _grey(image: Int[Tensor, "B 3 H W"]) -> Int[Tensor, "B 1 H W"]:
    red, green, blue = (channel * share for channel, share in zip(image.split(1, 1), LUMA, strict=True))
    return (red + green + blue + ONE // 2) >> 16


def _round(value: Int[Tensor, "B 3 H W"]) -> None:
    # from fixed point to 0..255; sums before it are below 2^27
    value.add_(ONE // 2).bitwise_right_shift_(16).clamp_(0, 255)
