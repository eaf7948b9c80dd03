"""How good are the labels?  Parsing maps and occlusion flags against the exact truth of a rendered dataset.

Shares are in [0, 1] with four decimals.  IoU of a part is pooled: all its pixels in all images; IoU of the
target's mask is the mean over images.  The true z follows from the exact map by Eq. 1-2, with the lambda,
the grouping and the strictness that made the labels.  A dataset without truth gets the counts alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT
from pipeline.core.workers import progress_bar
from pipeline.data import parts
from pipeline.labels import occlusion, parsing
from pipeline.labels.quality import statistics

LABELS = len(parts.SWAPPED)


@dataclass(frozen=True, config=STRICT)
class Score:
    """What the label report and the audit page show."""

    reference: float  # `changed` counts the flags that differ from those of this lambda
    pictures: Annotated[int, Field(ge=1)]  # images on a sheet
    columns: Annotated[int, Field(ge=1)]  # of a sheet


class Labels(NamedTuple):
    """The cached labels of N images, opened together; all belong to one index."""

    instances: LabelFile
    parsing: LabelFile
    occlusion: LabelFile
    truth: LabelFile

    @property
    def scored(self) -> bool:
        """Whether the truth is known."""
        return bool(self.truth.attrs["truth"])


@plain_dataclass(frozen=True)
class Agreement:
    """Parsing maps beside the truth, an image a row."""

    table: Int[np.ndarray, "N 9 9"]  # pixels by true label and label
    mask_iou: Float[np.ndarray, "N"]  # of the target person; 0 without one, nan if a map came without it
    wrong: Bool[np.ndarray, "N"]  # another found person fits the target's true mask better, by far

    def part_iou(self) -> Float[np.ndarray, "8"]:
        """IoU of each part over all images; nan where neither knows it."""
        return _iou(self.table.sum(0))[1:]

    def image_iou(self) -> Float[np.ndarray, "N"]:
        """Mean IoU of the parts that an image or its map shows; nan where there are none."""
        each = _iou(self.table)[:, 1:]
        known = ~np.isnan(each)
        return np.where(known.any(1), np.nansum(each, 1) / np.maximum(known.sum(1), 1), np.nan)


def _iou(table: Integer[np.ndarray, "... 9 9"]) -> Float[np.ndarray, "... 9"]:
    both = np.diagonal(table, axis1=-2, axis2=-1).astype(np.float64)
    union = table.sum(-1) + table.sum(-2) - both
    return np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)


# ------------------------------------------------------------------ maps


def confusion(truth: UInt8[np.ndarray, "H W"], found: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, "9 9"]:
    """Pixels by true label (rows) and label (columns)."""
    pairs = truth.astype(np.int64).ravel() * LABELS + found.ravel()
    return np.bincount(pairs, minlength=LABELS**2).reshape(LABELS, LABELS)


def resize_nearest(picture: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """A label map on another grid, by the nearest pixel."""
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(grid, picture.shape, strict=True)
    )
    return picture[rows[:, None], columns]


def compare(index: pd.DataFrame, labels: Labels) -> Agreement:
    """Every image's map and chosen person beside the truth."""
    sizes = index[["height", "width"]].to_numpy().tolist()
    grid = labels.parsing["map"].shape[1:]
    chosen = labels.parsing["instance"][:]
    unknown = np.where(labels.parsing["status"][:] == parsing.NO_PERSON, 0, np.nan)  # a label made elsewhere
    table, iou, wrong = np.zeros((len(index), LABELS, LABELS), np.int64), np.zeros(len(index)), []
    for i in progress_bar(iterable=range(len(index)), desc="score"):
        table[i] = confusion(resize_nearest(labels.truth["map"][i], grid), labels.parsing["map"][i])
        person = resize_nearest(labels.truth["person"][i], grid) > 0
        each = instance_iou(labels.instances, i, tuple(sizes[i]), person)
        iou[i] = each[chosen[i]] if chosen[i] >= 0 else unknown[i]
        wrong.append(chosen[i] >= 0 and iou[i] < each.max() / 2)
    return Agreement(table, iou, np.array(wrong, bool))


def instance_iou(
    instances: LabelFile, row: int, size: tuple[int, int], person: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "P"]:
    """IoU of each found person's mask (above 0.5) with the target's true one."""
    each = []
    for i in range(int(instances["found"][row])):
        mask = (
            parsing.paste_mask(instances["mask"][row][i], instances["box"][row][i], size, person.shape) > 0.5
        )
        each.append((mask & person).sum() / max((mask | person).sum(), 1))
    return np.array(each, np.float64)


# ------------------------------------------------------------------ flags


def merge_parts(fine: Integer[np.ndarray, "N 8"], count: int) -> Int[np.ndarray, "N C"]:
    """Pixels of the C coarse parts from those of the K fine ones: y(c) of Eq. 1."""
    columns = [fine[:, np.array(labels) - 1].sum(1) for labels in parts.COARSE[count].values()]
    return np.stack(columns, 1).astype(np.int64)


def hidden_flags(
    counts: Integer[np.ndarray, "N C"], threshold: float, strict: bool
) -> Bool[np.ndarray, "N C"]:
    """l_c of Eq. 2 for pixel counts."""
    return occlusion.hidden_parts(torch.from_numpy(counts), threshold, strict).numpy()


def balanced_accuracy(truth: Bool[np.ndarray, "N"], guess: Bool[np.ndarray, "N"]) -> float:
    """Mean of the shares of hidden and of visible parts that are labelled so; nan if one kind is absent."""
    if truth.all() or not truth.any():
        return float("nan")
    return float((guess[truth].mean() + (~guess[~truth]).mean()) / 2)


def _flag_scores(names: list[str], truth: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
    each = [balanced_accuracy(truth[:, c], guess[:, c]) for c in range(len(names))]
    constant = (
        [balanced_accuracy(t, np.full(len(t), t.mean() > 0.5)) for t in truth.T] if len(truth) else each
    )
    return {
        "images": len(truth),
        "balanced_accuracy": _by_part(names, each),
        "constant": _by_part(names, constant)["mean"],
        "hidden": {name: int(column.sum()) for name, column in zip(names, truth.T, strict=True)},
    }


def _by_part(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    each = {name: _plain(value) for name, value in zip(names, values, strict=True)}
    known = [value for value in each.values() if value is not None]
    return {**each, "mean": _plain(np.mean(known)) if known else None}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


# ------------------------------------------------------------------ the report


def counts(
    index: pd.DataFrame, labels: Labels, seen: statistics.Survey, rule: occlusion.Label, score: Score
) -> dict[str, Any]:
    """What the labels say, without truth: statuses, hidden parts, occlusion types, what lambda changes.

    A pattern is written z_0 z_1 ... in the order of the parts, 1 is hidden; `unseen` are those at test that
    training lacks.  `shown` is the share of images with a pixel of a part.
    """
    status = labels.parsing["status"][:]
    hidden = labels.occlusion["occluded"][:].astype(bool)
    names = list(parts.COARSE[rule.parts])
    before = hidden_flags(labels.occlusion["pixels"][:], score.reference, rule.strict)
    patterns, number = np.unique(hidden.astype(int), axis=0, return_counts=True)
    return {
        "images": len(status),
        "no_person": int((status == parsing.NO_PERSON).sum()),
        "ambiguous": int((status == parsing.AMBIGUOUS).sum()),
        "hidden": {name: int(column.sum()) for name, column in zip(names, hidden.T, strict=True)},
        "changed": int((hidden != before).sum()),  # against the reference lambda
        "patterns": {"".join(map(str, p)): int(n) for p, n in zip(patterns, number, strict=True)},
        "unseen": statistics.unseen_patterns(statistics.count_patterns(index, hidden.astype(int))),
        "shown": {k: _plain(v) for k, v in zip(parts.FINE, (seen.pixels > 0).mean(0), strict=True)},
        "repeated": seen.repeated,
        "fit": {"own": _plain(seen.fit[0]), "other": _plain(seen.fit[1])},
    }


def accuracy(
    agreement: Agreement,
    index: pd.DataFrame,
    labels: Labels,
    rule: occlusion.Label,
    threshold: float,
) -> dict[str, Any]:
    """What the labels are worth: IoU of masks and parts, balanced accuracy of every l_c.

    `all` is every image, `occluded` the queries with an occluder.
    """
    names = list(parts.COARSE[rule.parts])
    truth = hidden_flags(merge_parts(agreement.table.sum(2)[:, 1:], rule.parts), threshold, rule.strict)
    guess = labels.occlusion["occluded"][:].astype(bool)
    occluded = (index["split"] == "query").to_numpy() & (labels.truth["occluder"][:] > 0)
    shown = agreement.table.sum((1, 2)) > agreement.table[:, 0].sum(1)  # the target is visible at all
    return {
        "mask_iou": _plain(agreement.mask_iou[shown].mean()) if shown.any() else None,
        "wrong_person": int(agreement.wrong.sum()),
        "part_iou": _by_part(parts.FINE, agreement.part_iou()),
        "all": _flag_scores(names, truth, guess),
        "occluded": _flag_scores(names, truth[occluded], guess[occluded]),
    }


def report(
    index: pd.DataFrame,
    labels: Labels,
    seen: statistics.Survey,
    rule: occlusion.Label,
    threshold: float,
    score: Score,
) -> tuple[dict[str, Any], Agreement | None]:
    """The content of labels.json, and the comparison with the truth behind it if there is one.

    `threshold` is lambda.
    """
    found = counts(index, labels, seen, rule, score)
    if not labels.scored:
        return found, None
    agreement = compare(index, labels)
    return {**found, **accuracy(agreement, index, labels, rule, threshold)}, agreement
