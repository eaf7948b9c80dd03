"""Confidences of PifPaf as BPBReID publishes them: an array of 36 x h x w an image, already masked.

17 keypoints, then 19 limbs, floats in [0, 1], on a coarse grid of the image.
"""

import io

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.core.params import BadInput
from pipeline.labels import parsing

PAD_MULTIPLE, STRIDE = 16, 8  # openpifpaf pads a side to a multiple of 16, plus one; a cell every 8 pixels
TOLERANCE = 1e-3  # what rounding may add to 1


class InvalidLabel(ValueError):
    """What a label's bytes hold is no label; the message says what it is."""


def load_array(blob: bytes) -> np.ndarray:
    """The array of a .npy file; pickled objects are refused."""
    try:
        return np.load(io.BytesIO(blob), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise InvalidLabel("no complete .npy array of numbers") from None


def read_confidences(blob: bytes, name: str) -> Float[np.ndarray, "36 h w"]:
    """The confidences in a label file.  Raises `Unusable` for anything else."""
    found = load_array(blob)
    if found.ndim != 3 or len(found) != parsing.CHANNELS or 0 in found.shape:
        raise InvalidLabel(f"shape {found.shape}, not ({parsing.CHANNELS}, h, w)")
    if found.dtype.kind != "f":
        raise InvalidLabel(f"{found.dtype}, not confidences in floating point")
    if not (found.min() >= 0 and found.max() <= 1 + TOLERANCE):  # nan is neither
        raise InvalidLabel(f"values from {found.min():.3g} to {found.max():.3g}, not confidences in [0, 1]")
    return found.astype(np.float32)


def grid_frame(cells: tuple[int, int], size: tuple[int, int]) -> parsing.Frame:
    """Where the cells lie in an image of `size` (height, width).

    A grid of the size that openpifpaf gives for the image lies as openpifpaf laid it, its pad undone; any
    other covers the image.  Departs: the field's loaders stretch every grid over the image, pad and all.
    """
    over = [-(side - 1) % PAD_MULTIPLE for side in size]
    if tuple((side + pad - 1) // STRIDE + 1 for side, pad in zip(size, over, strict=True)) != cells:
        return parsing.Frame(cells, 1, cells, (0, 0, 0, 0))
    top, left = over[0] // 2, over[1] // 2
    return parsing.Frame(cells, STRIDE, size, (left, top, over[1] - left, over[0] - top))


def fuse(
    confidence: Float[np.ndarray, "36 h w"], size: tuple[int, int], rule: parsing.Parse
) -> UInt8[np.ndarray, "H W"]:
    """The parsing map, by the rule of the stage `parse`; the mask is in the confidences already."""
    coarse = (confidence.clip(0, 1) * 255).round().astype(np.uint8)
    whole = np.ones(rule.grid, np.float32)
    return parsing.fuse(
        parsing.part_confidences(coarse, rule.grouping), whole, grid_frame(coarse.shape[1:], size), rule
    )


def check_rule(rule: parsing.Parse) -> None:
    """Raise `BadInput` for a rule that needs more than confidences."""
    if rule.fill:
        raise BadInput(
            "params.yaml: parse.fill = true needs the person's mask, which confidences made elsewhere lack. "
            "Set it to false."
        )
