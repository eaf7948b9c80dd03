"""Statistics of parsing maps that need no truth: pixels, places, repetitions, fit to the images' colours.

They apply to labels from any source.  The colour fit shows whether labels and images are in the same order: a
map explains the colours of its own image better than those of another image.  It is measured split by split,
as the labels of each split lie in a folder of their own.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Integer, UInt8

from pipeline.core.label_file import Dataset
from pipeline.core.workers import progress_bar
from pipeline.data import parts
from pipeline.data.index import SPLITS, Crop, Images

LABELS = len(parts.SWAPPED)  # background and the K parts
SAMPLE = 200  # images of a split in the colour fit
FIT_SIZE = (64, 32)  # height, width of images in the colour fit
NEIGHBOUR = 4.0  # standard errors of a better fit of a neighbour; chance: once in 10,000 sets
# edges of bands of a standing person's height, from the top, and the bands where parts usually lie
BANDS = (0, 0.125, 0.3, 0.5, 0.7, 1)
HEAD_BAND, TRUNK_BAND, LEGS_BAND = 0, 2, 4
SHUFFLE = 0  # seed of the choice of images, here and on every sheet of pictures


class Fit(NamedTuple):
    """How well the maps of a split fit its images: mean shares of an image's colour variance, in [0, 1]."""

    images: int  # in the sample
    own: float  # explained by the image's own map
    other: float  # by the map of another image of the split
    moved: int  # -1, 1: the map of the previous, next row fits better than the own one; else 0


class Survey(NamedTuple):
    """Statistics of N parsing maps."""

    pixels: Int[np.ndarray, "N 8"]  # of each part in each map
    bands: Int[np.ndarray, "5 8"]  # pixels of each part in each band of the maps of standing people
    frequency: Float[np.ndarray, "9 H W"]  # share of the maps that show a label at a pixel
    repeated: int  # maps that equal an earlier one, without all-background maps
    surprise: Float[np.ndarray, "N"]  # mean of -log frequency of a map's labels; nats per pixel
    fit: dict[str, Fit | None]  # of each split; None where fewer than two maps show a part


def survey_labels(maps: Dataset, images: Images | Sequence[Crop], splits: pd.Series) -> Survey:
    """The statistics of all maps, and the colour fit of a sample of each split.  Reads every map twice.

    `splits` is the split of each image.
    """
    pixels, bands, frequency, repeated = _count(maps)
    log_frequency = np.log((frequency * len(maps) + 1) / (len(maps) + LABELS))
    rows, columns = np.indices(maps.shape[1:])
    surprise = np.array([-log_frequency[maps[i], rows, columns].mean() for i in range(len(maps))])
    shown = pixels.any(1)
    fit = {s: colour_fit(images, maps, np.flatnonzero((splits == s) & shown)) for s in SPLITS}
    return Survey(pixels, bands, frequency, repeated, surprise, fit)


def _count(maps: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    # the first four fields of a `Survey`
    pixels = np.zeros((len(maps), LABELS - 1), np.int64)
    bands = np.zeros((len(BANDS) - 1, LABELS - 1), np.int64)
    counts = np.zeros((LABELS, *maps.shape[1:]), np.int64)
    digests, repeated = set(), 0
    rows, columns = np.indices(maps.shape[1:])
    for i in progress_bar(iterable=range(len(maps)), desc="survey"):
        label = maps[i]
        in_bands = count_bands(label)
        pixels[i] = in_bands.sum(0)
        bands += in_bands * _is_standing(pixels[i])
        counts[label, rows, columns] += 1
        digest = hashlib.sha256(label.tobytes()).digest()
        repeated += digest in digests and bool(label.any())
        digests.add(digest)
    return pixels, bands, counts / max(len(maps), 1), repeated


def count_bands(label: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, "5 8"]:
    """Pixels of each part in each of the `BANDS` of a person's height, the rows that show any part."""
    shown = np.flatnonzero(label.any(1))
    if not len(shown):
        return np.zeros((len(BANDS) - 1, LABELS - 1), np.int64)
    edges = shown[0] + np.rint(np.array(BANDS) * (shown[-1] + 1 - shown[0])).astype(int)
    bands = [np.bincount(label[a:b].ravel(), minlength=LABELS)[1:] for a, b in pairwise(edges)]
    return np.stack(bands)


def _is_standing(pixels: Int[np.ndarray, "8"]) -> bool:
    # from head to legs; of others the rows are not the person's height
    head, torso, *legs = pixels[[parts.HEAD - 1, parts.TORSO - 1, parts.LEFT_LEG - 1, parts.RIGHT_LEG - 1]]
    return bool(head and torso and any(legs))


# ------------------------------------------------------------------ colour fit


def colour_fit(
    images: Images | Sequence[Crop],
    maps: Dataset | Sequence[UInt8[np.ndarray, "H W"]],
    rows: Integer[np.ndarray, "n"],
) -> Fit | None:
    """The fit of a sample of `rows`, which are those of a split whose maps show a part.

    `own` is well above `other` if labels and images are in the same order.  None for fewer than two rows.
    """
    if len(rows) < 2:
        return None
    order, places = rows.tolist(), np.random.default_rng(SHUFFLE).permutation(len(rows))[:SAMPLE]
    shares = np.array([
        _explained_by(images[order[p]], [maps[order[q % len(order)]] for q in (p, other, p - 1, p + 1)])
        for p, other in zip(places.tolist(), np.roll(places, -1).tolist(), strict=True)
    ])  # fmt: skip
    own, other = shares[:, :2].mean(0).tolist()
    lead = shares[:, 2:] - shares[:, :1]  # of previous and next map over the own one
    better = lead.mean(0) > NEIGHBOUR * lead.std(0, ddof=1) / np.sqrt(len(lead))
    return Fit(len(places), own, other, int(better[1]) - int(better[0]))


def _explained_by(picture: Crop, maps: Sequence[UInt8[np.ndarray, "H W"]]) -> list[float]:
    size = FIT_SIZE[::-1]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    coarse = [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT) for label in maps]
    return [explained_variance(small, label) for label in coarse]


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
    table = table.reindex(columns=list(SPLITS), fill_value=0)
    return table.iloc[np.lexsort((table.index, -table.sum(axis=1).to_numpy()))]


def unseen_patterns(table: pd.DataFrame) -> dict[str, int]:
    """Occlusion patterns of query and gallery that no training image has, and how many images have them."""
    new = table[table["train"] == 0]
    return {z: int(count) for z, count in new.sum(axis=1).items()}
