"""A colour histogram of each image: a baseline that is not trained."""

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from pipeline.core.workers import progress_bar
from pipeline.data.index import Images

SIZE = (128, 64)  # height, width that histograms are counted on
STRIPES = 16
BINS = (8, 4, 4)  # hue, a circle of 180 levels; saturation and value
SPREAD = 0.15  # of the width: standard deviation of a pixel's weight around the middle column


def histograms(images: Images, rows: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
    """The colour histogram of each image, as one part (n, 1, D) that is always visible."""
    parts = [histogram(images[int(row)]) for row in progress_bar(iterable=rows, desc="histogram")]
    return {
        "histogram/part": np.stack(parts)[:, None],
        "histogram/visibility": np.ones((len(parts), 1), np.float32),
    }


def histogram(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "D"]:
    """Square roots of the colour shares in horizontal stripes; their Euclidean distance is Hellinger's.

    Colours are balanced first (the mean of an image is taken for gray), since cameras differ.  A pixel
    is shared by the bins around it, and counts less towards the sides, where the background is.
    """
    small = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(_balanced(small), cv2.COLOR_RGB2HSV).reshape(STRIPES, -1, 3)
    hue, saturation, value = (table[hsv[..., i]] for i, table in enumerate(TABLES))
    weighted = (hue * ACROSS[..., None]).swapaxes(1, 2)
    counts = weighted @ (saturation[..., :, None] * value[..., None, :]).reshape(*hsv.shape[:2], -1)
    return np.sqrt(counts / counts.sum((1, 2), keepdims=True) / STRIPES).ravel()


def _balanced(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    means = image.mean((0, 1))
    return (image * (means.mean() / np.maximum(means, 1))).clip(0, 255).astype(np.uint8)


def _table(top: int, bins: int, circle: bool) -> Float32[np.ndarray, "256 bins"]:
    """Share of each level in each bin: 1 in the bin's middle, falling to 0 at its neighbours'."""
    place = np.arange(256)[:, None] * (bins if circle else bins - 1) / top
    apart = np.abs(place - np.arange(bins))
    apart = np.minimum(apart, bins - apart) if circle else apart
    return (1 - apart).clip(0).astype(np.float32)


def _across() -> Float32[np.ndarray, "stripes pixels"]:
    offset = (np.arange(SIZE[1]) - (SIZE[1] - 1) / 2) / SIZE[1]
    weight = np.exp(-((offset / SPREAD) ** 2) / 2).astype(np.float32)
    return np.broadcast_to(weight, SIZE).reshape(STRIPES, -1)


ACROSS = _across()
TABLES = (_table(180, BINS[0], True), _table(255, BINS[1], False), _table(255, BINS[2], False))
