"""What a set of labels looks like, no truth needed: shares, places, repetitions, agreement with the pictures.

Everything here can be counted for labels from anywhere.  `fit` tells whether labels and images are out of
step: a map that belongs to an image follows its colours better than another image's map does.
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
from pipeline.data.index import Images

LABELS = len(parts.SWAPPED)
SAMPLE = 200  # images that `fit` looks at
FIT_SIZE = (64, 32)  # height, width at which it does
SHUFFLE = 0  # seeds the choice of images, here and on every sheet of pictures


Picture = UInt8[np.ndarray, "_ _ 3"]  # height, width; pictures of a dataset differ in size


class Survey(NamedTuple):
    """N parsing maps at a glance."""

    pixels: Int[np.ndarray, "N 8"]  # of each part in each map
    place: Float[np.ndarray, "9 H W"]  # share of the maps that show the label there
    repeated: int  # maps that equal an earlier one; all-background maps are not counted
    odd: Float[np.ndarray, "N"]  # surprise at a map, given where parts usually lie; nats a pixel
    fit: tuple[float, float]  # share of an image's colour variance explained by its own map, by another's


def survey_labels(maps: Dataset, images: Images | Sequence[Picture]) -> Survey:
    """Look at every map twice and at some of the images."""
    pixels, place, repeated = _places(maps)
    seen = np.log((place * len(maps) + 1) / (len(maps) + LABELS))
    rows, columns = np.indices(maps.shape[1:])
    odd = np.array([-seen[maps[i], rows, columns].mean() for i in range(len(maps))])
    some = np.random.default_rng(SHUFFLE).permutation(len(maps))[:SAMPLE].tolist()
    return Survey(
        pixels, place, repeated, odd, colour_fit([images[i] for i in some], [maps[i] for i in some])
    )


def _places(maps: Dataset) -> tuple[np.ndarray, np.ndarray, int]:
    pixels = np.zeros((len(maps), LABELS), np.int64)
    place = np.zeros((LABELS, *maps.shape[1:]), np.int64)
    seen, repeated = set(), 0
    rows, columns = np.indices(maps.shape[1:])
    for i in progress_bar(iterable=range(len(maps)), desc="survey"):
        label = maps[i]
        pixels[i] = np.bincount(label.ravel(), minlength=LABELS)
        place[label, rows, columns] += 1
        digest = hashlib.sha256(label.tobytes()).digest()
        repeated += digest in seen and bool(label.any())
        seen.add(digest)
    return pixels[:, 1:], place / max(len(maps), 1), repeated


# ------------------------------------------------------------------ do maps and images belong together?


def colour_fit(pictures: Sequence[Picture], maps: Sequence[UInt8[np.ndarray, "H W"]]) -> tuple[float, float]:
    """Mean share of colour variance that each image's own map explains, and that the next image's explains.

    In [0, 1].  The first is well above the second if labels and images belong together.
    """
    size = FIT_SIZE[::-1]
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    coarse = [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT) for label in maps]
    own = [explained_variance(*pair) for pair in zip(small, coarse, strict=True)]
    other = [explained_variance(*pair) for pair in zip(small, coarse[1:] + coarse[:1], strict=True)]
    return float(np.mean(own)), float(np.mean(other))


def explained_variance(picture: UInt8[np.ndarray, "H W 3"], label: UInt8[np.ndarray, "H W"]) -> float:
    """Share of an image's colour variance that lies between the parts of a map; 0 for an even image."""
    colours, where = picture.reshape(-1, 3).astype(np.float64), label.ravel()
    colours = colours - colours.mean(0)
    count = np.bincount(where, minlength=LABELS)
    sums = np.stack([np.bincount(where, channel, LABELS) for channel in colours.T], 1)
    between = (sums**2 / np.maximum(count, 1)[:, None]).sum()
    return float(between / max((colours**2).sum(), 1e-9))


# ------------------------------------------------------------------ occlusion types


def count_patterns(index: pd.DataFrame, hidden: Integer[np.ndarray, "N C"]) -> pd.DataFrame:
    """Images of each occlusion type z in each split, the most frequent first; written z_0 z_1 ..."""
    names = pd.Series(["".join(map(str, row)) for row in hidden.astype(int)], name="z")
    table = pd.crosstab(names, index["split"].to_numpy())
    table = table.reindex(columns=["train", "query", "gallery"], fill_value=0)
    return table.iloc[np.lexsort((table.index, -table.sum(axis=1).to_numpy()))]


def unseen_patterns(table: pd.DataFrame) -> dict[str, int]:
    """Occlusion types of query and gallery that training never saw, and how many images have them."""
    new = table[table["train"] == 0]
    return {z: int(count) for z, count in new.sum(axis=1).items()}
