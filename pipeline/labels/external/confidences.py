"""Confidences of PifPaf as BPBReID publishes them: one .npy file per image, (36, h, w), already masked.

The channels are 17 keypoints, then 19 limbs; the values are floats in [0, 1] on a coarse grid of the image.
"""

import io

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.core.params import BadInput
from pipeline.labels import parsing

PAD_MULTIPLE, STRIDE = 16, 8  # openpifpaf pads a side to a multiple of 16 plus one; cells are 8 pixels apart
TOLERANCE = 1e-3  # by which rounding may exceed 1


class InvalidLabel(ValueError):
    """The bytes of a file are no label; the message says what they are."""


def load_array(blob: bytes) -> np.ndarray:
    """The array of a .npy file.  Raises `InvalidLabel` for a damaged file or pickled objects."""
    try:
        return np.load(io.BytesIO(blob), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise InvalidLabel("no complete .npy array of numbers") from None


def read_confidences(blob: bytes) -> Float[np.ndarray, "36 h w"]:
    """The confidences in a label file.  Raises `InvalidLabel` for anything else."""
    array = load_array(blob)
    if array.ndim != 3 or len(array) != parsing.CHANNELS or 0 in array.shape:
        raise InvalidLabel(f"shape {array.shape}, not ({parsing.CHANNELS}, h, w)")
    if array.dtype.kind != "f":
        raise InvalidLabel(f"{array.dtype}, not confidences in floating point")
    if not (array.min() >= 0 and array.max() <= 1 + TOLERANCE):  # nan compares false
        raise InvalidLabel(f"values from {array.min():.3g} to {array.max():.3g}, not confidences in [0, 1]")
    return array.astype(np.float32)


def grid_frame(cells: tuple[int, int], size: tuple[int, int]) -> parsing.Frame:
    """Where the cells lie in an image of `size` (height, width).

    A grid of the size that openpifpaf computes for the image has openpifpaf's stride and pad; any other grid
    covers the image.  Departs: usual loaders stretch every grid over the image, with its pad.
    """
    pad_y, pad_x = pads = [-(side - 1) % PAD_MULTIPLE for side in size]
    if tuple((side + pad - 1) // STRIDE + 1 for side, pad in zip(size, pads, strict=True)) != cells:
        return parsing.Frame(cells, 1, cells, (0, 0, 0, 0))
    top, left = pad_y // 2, pad_x // 2
    return parsing.Frame(cells, STRIDE, size, (left, top, pad_x - left, pad_y - top))


def fuse(
    confidence: Float[np.ndarray, "36 h w"], size: tuple[int, int], rule: parsing.Parse
) -> UInt8[np.ndarray, "H W"]:
    """The parsing map by the rule of the stage `parse`; the confidences are masked already."""
    channels = (confidence.clip(0, 1) * 255).round().astype(np.uint8)
    by_part = parsing.part_confidences(channels, rule.grouping)
    mask = np.ones(rule.grid, np.float32)
    return parsing.fuse(by_part, mask, grid_frame(channels.shape[1:], size), rule)


def check_rule(rule: parsing.Parse) -> None:
    """Raise `BadInput` for a rule that needs the person's mask."""
    if rule.fill:
        raise BadInput(
            "params.yaml: parse.fill = true needs the person's mask, which confidences made elsewhere lack. "
            "Set it to false."
        )
