"""Label metrics: parsing maps and occlusion labels against the exact truth of a rendered dataset.

Shares are in [0, 1] with four decimals.  A part's IoU is pooled over its pixels in all images; the target
mask's IoU is the mean over images.  The true z follows from the exact map by Eq. 1-2, with the lambda, the
grouping and the strictness of the labels.  A dataset without truth gets the counts alone.
"""

import dataclasses
from collections.abc import Iterable
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
from pipeline.data.index import SPLITS
from pipeline.labels import occlusion, parsing
from pipeline.labels.quality import statistics
from pipeline.labels.quality.statistics import LABELS


@dataclass(frozen=True, config=STRICT)
class Score:
    """What the label report and the audit page show."""

    reference: float  # pixels: `changed` counts the labels l_c that differ from those of this lambda
    pictures: Annotated[int, Field(ge=1)]  # images on a sheet
    columns: Annotated[int, Field(ge=1)]  # of a sheet


class Labels(NamedTuple):
    """The cached labels of N images, opened together; all belong to one index."""

    instances: LabelFile
    parsing: LabelFile
    occlusion: LabelFile
    truth: LabelFile

    @property
    def has_truth(self) -> bool:
        """Whether the truth is known."""
        return bool(self.truth.attrs["truth"])

    def has_person(self) -> Bool[np.ndarray, "N"]:
        """Whether a person was found in each image; its map is all background otherwise."""
        return self.parsing["status"][:] != parsing.NO_PERSON


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Parsing maps compared with the truth, one row per image."""

    table: Int[np.ndarray, "N 9 9"]  # pixels by true label and label
    mask_iou: Float[np.ndarray, "N"]  # of the target's mask; 0 without a person, nan if made elsewhere
    wrong: Bool[np.ndarray, "N"]  # another instance has more than twice the IoU with the target's true mask

    def part_iou(self) -> Float[np.ndarray, "8"]:
        """IoU of each part over all images; nan for a part that neither truth nor maps show."""
        return _iou(self.table.sum(0))[1:]

    def image_iou(self) -> Float[np.ndarray, "N"]:
        """Mean IoU of the parts that an image's true map or its map shows; nan without any."""
        iou = _iou(self.table)[:, 1:]
        defined = ~np.isnan(iou)
        return np.where(defined.any(1), np.nansum(iou, 1) / np.maximum(defined.sum(1), 1), np.nan)


def _iou(table: Integer[np.ndarray, "... 9 9"]) -> Float[np.ndarray, "... 9"]:
    intersection = np.diagonal(table, axis1=-2, axis2=-1).astype(np.float64)
    union = table.sum(-1) + table.sum(-2) - intersection
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


# ------------------------------------------------------------------ maps


def confusion(truth: UInt8[np.ndarray, "H W"], label: UInt8[np.ndarray, "H W"]) -> Int[np.ndarray, "9 9"]:
    """Pixels by true label (rows) and label (columns)."""
    pairs = truth.astype(np.int64).ravel() * LABELS + label.ravel()
    return np.bincount(pairs, minlength=LABELS**2).reshape(LABELS, LABELS)


def resize_nearest(picture: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """A label map on another grid, by the nearest pixel."""
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(grid, picture.shape, strict=True)
    )
    return picture[rows[:, None], columns]


def compare(index: pd.DataFrame, labels: Labels) -> Agreement:
    """Compare every image's map and target with the truth."""
    sizes = index[["height", "width"]].to_numpy().tolist()
    _, height, width = labels.parsing["map"].shape
    targets = labels.parsing["instance"][:]
    no_target = np.where(labels.parsing["status"][:] == parsing.NO_PERSON, 0, np.nan)  # nan: made elsewhere
    table, iou, wrong = np.zeros((len(index), LABELS, LABELS), np.int64), np.zeros(len(index)), []
    for i in progress_bar(iterable=range(len(index)), desc="score"):
        truth = resize_nearest(labels.truth["map"][i], (height, width))
        table[i] = confusion(truth, labels.parsing["map"][i])
        person = resize_nearest(labels.truth["person"][i], (height, width)) > 0
        ious = instance_iou(labels.instances, i, tuple(sizes[i]), person)
        iou[i] = ious[targets[i]] if targets[i] >= 0 else no_target[i]
        wrong.append(targets[i] >= 0 and iou[i] < ious.max() / 2)
    return Agreement(table, iou, np.array(wrong, bool))


def instance_iou(
    instances: LabelFile, row: int, size: tuple[int, int], person: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "P"]:
    """IoU of the mask (above 0.5) of each person of an image with the target's true mask."""
    ious = []
    for i in range(int(instances["found"][row])):
        mask = (
            parsing.paste_mask(instances["mask"][row][i], instances["box"][row][i], size, person.shape) > 0.5
        )
        ious.append((mask & person).sum() / max((mask | person).sum(), 1))
    return np.array(ious, np.float64)


# ------------------------------------------------------------------ occlusion labels


def merge_parts(fine: Integer[np.ndarray, "N 8"], count: int) -> Int[np.ndarray, "N C"]:
    """Pixels of the C coarse parts from those of the K fine parts: y(c) of Eq. 1."""
    columns = [fine[:, np.array(labels) - 1].sum(1) for labels in parts.COARSE[count].values()]
    return np.stack(columns, 1).astype(np.int64)


def hidden_flags(
    counts: Integer[np.ndarray, "N C"], threshold: float, strict: bool
) -> Bool[np.ndarray, "N C"]:
    """l_c of Eq. 2 for pixel counts; `threshold` is lambda."""
    return occlusion.hidden_parts(torch.from_numpy(counts), threshold, strict).numpy()


def balanced_accuracy(truth: Bool[np.ndarray, "N"], guess: Bool[np.ndarray, "N"]) -> float:
    """Mean of the shares of hidden parts and of visible parts that are labelled so, in [0, 1].

    nan if no part is hidden or none is visible.
    """
    if truth.all() or not truth.any():
        return float("nan")
    return float((guess[truth].mean() + (~guess[~truth]).mean()) / 2)


def _flag_scores(names: list[str], truth: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
    accuracies = [balanced_accuracy(truth[:, c], guess[:, c]) for c in range(len(names))]
    constant = (
        [balanced_accuracy(t, np.full(len(t), t.mean() > 0.5)) for t in truth.T] if len(truth) else accuracies
    )
    return {
        "images": len(truth),
        "balanced_accuracy": _by_part(names, accuracies),
        "constant": _by_part(names, constant)["mean"],
        "hidden": {name: int(column.sum()) for name, column in zip(names, truth.T, strict=True)},
    }


def _by_part(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    by_part = {name: _rounded(value) for name, value in zip(names, values, strict=True)}
    defined = [value for value in by_part.values() if value is not None]
    return {**by_part, "mean": _rounded(float(np.mean(defined))) if defined else None}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


# ------------------------------------------------------------------ the report


def counts(
    index: pd.DataFrame, labels: Labels, survey: statistics.Survey, rule: occlusion.Label, score: Score
) -> dict[str, Any]:
    """Counts that need no truth: statuses, hidden parts, occlusion patterns, labels that lambda changes.

    An image in which nobody was found hides no part and has no pattern.  A pattern is written z_0 z_1 ... in
    the order of the parts, 1 for hidden; `unseen` are the patterns of test images that no training image has.
    `shown` is the share of images with a pixel of a part.
    """
    hidden, person = labels.occlusion["occluded"][:].astype(bool), labels.has_person()
    flags = hidden[person].astype(int)
    names = list(parts.COARSE[rule.parts])
    reference = hidden_flags(labels.occlusion["pixels"][:], score.reference, rule.strict)
    patterns, number = np.unique(flags, axis=0, return_counts=True)
    splits = {s: (index["split"] == s).to_numpy() for s in SPLITS}
    return {
        **_image_counts(labels, np.ones(len(index), bool), names),
        "splits": {
            s: {**_image_counts(labels, rows, names), "fit": _fit(survey.fit[s])}
            for s, rows in splits.items()
        },
        "changed": int((hidden != reference).sum()),  # against the reference lambda
        "patterns": {"".join(map(str, p)): int(n) for p, n in zip(patterns, number, strict=True)},
        "unseen": statistics.unseen_patterns(statistics.count_patterns(index[person], flags)),
        "shown": {k: _rounded(v) for k, v in zip(parts.FINE, (survey.pixels > 0).mean(0), strict=True)},
        "repeated": survey.repeated,
    }


def _image_counts(labels: Labels, rows: Bool[np.ndarray, "N"], names: list[str]) -> dict[str, Any]:
    # of the images of these rows
    hidden = labels.occlusion["occluded"][:][rows & labels.has_person()].astype(bool)
    return {
        "images": int(rows.sum()),
        "no_person": int((rows & ~labels.has_person()).sum()),
        "ambiguous": int((labels.parsing["status"][:][rows] == parsing.AMBIGUOUS).sum()),
        "hide_part": int(hidden.any(1).sum()),
        "hidden": {name: int(column.sum()) for name, column in zip(names, hidden.T, strict=True)},
    }


def _fit(fit: statistics.Fit | None) -> dict[str, Any] | None:
    return fit and {**fit._asdict(), "own": _rounded(fit.own), "other": _rounded(fit.other)}


def accuracy(
    agreement: Agreement,
    index: pd.DataFrame,
    labels: Labels,
    rule: occlusion.Label,
    threshold: float,
) -> dict[str, Any]:
    """Accuracy of the labels: IoU of masks and parts, balanced accuracy of every l_c.

    `all` stands for all images, `occluded` for the queries with an occluder.  `threshold` is lambda.
    """
    names = list(parts.COARSE[rule.parts])
    truth = hidden_flags(merge_parts(agreement.table.sum(2)[:, 1:], rule.parts), threshold, rule.strict)
    guess = labels.occlusion["occluded"][:].astype(bool)
    occluded = (index["split"] == "query").to_numpy() & (labels.truth["occluder"][:] > 0)
    visible = agreement.table.sum((1, 2)) > agreement.table[:, 0].sum(1)  # images with a pixel of the target
    return {
        "mask_iou": _rounded(agreement.mask_iou[visible].mean()) if visible.any() else None,
        "wrong_person": int(agreement.wrong.sum()),
        "part_iou": _by_part(parts.FINE, agreement.part_iou()),
        "all": _flag_scores(names, truth, guess),
        "occluded": _flag_scores(names, truth[occluded], guess[occluded]),
    }


def report(
    index: pd.DataFrame,
    labels: Labels,
    survey: statistics.Survey,
    rule: occlusion.Label,
    threshold: float,
    score: Score,
) -> tuple[dict[str, Any], Agreement | None]:
    """The content of report.json, and the comparison with the truth if it is known.

    `threshold` is lambda.
    """
    label_counts = counts(index, labels, survey, rule, score)
    if not labels.has_truth:
        return label_counts, None
    agreement = compare(index, labels)
    return {**label_counts, **accuracy(agreement, index, labels, rule, threshold)}, agreement


def summary(report: dict[str, Any]) -> dict[str, float]:
    """The one score that `dvc metrics show` prints: the balanced accuracy of all l_c; none without truth."""
    accuracy = report["all"]["balanced_accuracy"]["mean"] if "all" in report else None
    return {} if accuracy is None else {"labels": accuracy}
