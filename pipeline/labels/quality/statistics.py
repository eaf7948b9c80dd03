"""Statistics of parsing maps that need no truth: pixels, places, repetitions, fit to the images' colours.

They apply to labels from any source.  The colour fit shows whether labels and images are in the same order: a
map explains the colours of its own image better than those of another image.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Integer, UInt8

from pipeline.core.label_file import Dataset
from pipeline.core.workers import progress_bar
from pipeline.data import parts
from pipeline.data.index import Crop, Images

LABELS = len(parts.SWAPPED)  # background and the K parts
SAMPLE = 200  # images in the colour fit
FIT_SIZE = (64, 32)  # height, width of images in the colour fit
SHUFFLE = 0  # seed of the choice of images, here and on every sheet of pictures


class Survey(NamedTuple):
    """Statistics of N parsing maps."""

    pixels: Int[np.ndarray, "N 8"]  # of each part in each map
    frequency: Float[np.ndarray, "9 H W"]  # share of the maps that show a label at a pixel
    repeated: int  # maps that equal an earlier one, without all-background maps
    surprise: Float[np.ndarray, "N"]  # mean of -log frequency of a map's labels; nats per pixel
    fit: tuple[float, float]  # mean share of colour variance explained by an image's own map, by another's


def survey_labels(maps: Dataset, images: Images | Sequence[Crop]) -> Survey:
    """The statistics of all maps, and the colour fit of a sample of images.  Reads every map twice."""
    pixels, frequency, repeated = _count(maps)
    log_frequency = np.log((frequency * len(maps) + 1) / (len(maps) + LABELS))
    rows, columns = np.indices(maps.shape[1:])
    surprise = np.array([-log_frequency[maps[i], rows, columns].mean() for i in range(len(maps))])
    sample = np.random.default_rng(SHUFFLE).permutation(len(maps))[:SAMPLE].tolist()
    fit = colour_fit([images[i] for i in sample], [maps[i] for i in sample])
    return Survey(pixels, frequency, repeated, surprise, fit)


def _count(maps: Dataset) -> tuple[np.ndarray, np.ndarray, int]:
    # the first three fields of a `Survey`
    pixels = np.zeros((len(maps), LABELS), np.int64)
    counts = np.zeros((LABELS, *maps.shape[1:]), np.int64)
    digests, repeated = set(), 0
    rows, columns = np.indices(maps.shape[1:])
    for i in progress_bar(iterable=range(len(maps)), desc="survey"):
        label = maps[i]
        pixels[i] = np.bincount(label.ravel(), minlength=LABELS)
        counts[label, rows, columns] += 1
        digest = hashlib.sha256(label.tobytes()).digest()
        repeated += digest in digests and bool(label.any())
        digests.add(digest)
    return pixels[:, 1:], counts / max(len(maps), 1), repeated


# ------------------------------------------------------------------ colour fit


def colour_fit(pictures: Sequence[Crop], maps: Sequence[UInt8[np.ndarray, "H W"]]) -> tuple[float, float]:
    """Mean share of colour variance that an image's own map explains, and that the next image's map explains.

    Both in [0, 1].  The first is well above the second if labels and images are in the same order.
    """
    size = FIT_SIZE[::-1]
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    coarse = [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT) for label in maps]
    same = [explained_variance(*pair) for pair in zip(small, coarse, strict=True)]
    next_map = [explained_variance(*pair) for pair in zip(small, coarse[1:] + coarse[:1], strict=True)]
    return float(np.mean(same)), float(np.mean(next_map))


def explained_variance(picture: UInt8[np.ndarray, "H W 3"], label: UInt8[np.ndarray, "H W"]) -> float:
    """Share of an image's colour variance between the parts of a map, in [0, 1]; 0 for a uniform image."""
    colours, labels = picture.reshape(-1, 3).astype(np.float64), label.ravel()
    colours = colours - colours.mean(0)
    count = np.bincount(labels, minlength=LABELS)
    sums = np.stack([np.bincount(labels, channel, LABELS) for channel in colours.T], 1)
    between = (sums**2 / np.maximum(count, 1)[:, None]).sum()
    return float(between / max((colours**2).sum(), 1e-9))


# ------------------------------------------------------------------ occlusion patterns


def count_patterns(index: pd.DataFrame, hidden: Integer[np.ndarray, "N C"]) -> pd.DataFrame:
    """Images of each occlusion pattern z in each split, the most frequent first.

    A pattern is written z_0 z_1 ..., 1 for hidden.
    """
    names = pd.Series(["".join(map(str, row)) for row in hidden.astype(int)], name="z")
    table = pd.crosstab(names, index["split"].to_numpy())
    table = table.reindex(columns=["train", "query", "gallery"], fill_value=0)
    return table.iloc[np.lexsort((table.index, -table.sum(axis=1).to_numpy()))]


def unseen_patterns(table: pd.DataFrame) -> dict[str, int]:
    """Occlusion patterns of query and gallery that no training image has, and how many images have them."""
    new = table[table["train"] == 0]
    return {z: int(count) for z, count in new.sum(axis=1).items()}
