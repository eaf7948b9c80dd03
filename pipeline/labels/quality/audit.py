"""An audit of cached labels: the data of its page, and the images that the page shows.

Most of it needs no truth, so that labels of photographs and labels made elsewhere are audited as well.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Integer, UInt8

from pipeline.data import parts
from pipeline.data.index import Images
from pipeline.labels.quality import metrics, plots, statistics

CLOSE_CALLS = "Closest calls"  # the sheet that shows boxes
# pairs of parts -> the pairs whose sides a source may label, and from which the pair takes its own
SIDES = {"arms": ("arms",), "legs": ("legs", "feet"), "feet": ("legs", "feet")}


class Audit(NamedTuple):
    """The data of the page."""

    name: str  # of the dataset
    index: pd.DataFrame
    images: Images
    labels: metrics.Labels
    survey: statistics.Survey
    report: dict[str, Any]  # report.json
    agreement: metrics.Agreement | None  # with the truth; None if it is unknown
    threshold: float  # lambda, in pixels

    def guessed(self) -> list[str]:
        """The parts whose sides are guesses."""
        return guessed_sides(self.labels.parsing.attrs.get("classes", []))

    def part_names(self) -> list[str]:
        """The names of the eight parts; one whose side is a guess says so."""
        guessed = self.guessed()
        return [f"{name} (side guessed)" if name in guessed else name for name in parts.FINE]


def guessed_sides(classes: Sequence[str]) -> list[str]:
    """The parts whose sides a source never labels: half of a person's `arms` is the left arm, by its place.

    `classes` names the part, or the pair of parts, of each class of the source's label maps.
    """
    names = {pair: [parts.FINE[label - 1] for label in parts.COARSE[5][pair]] for pair in SIDES}
    guessed = []
    for pair, labelled in SIDES.items():
        known = all(any(names[p][side] in classes for p in labelled) for side in (0, 1))
        guessed += names[pair] if pair in classes and not known else []
    return guessed


# ------------------------------------------------------------------ the images on the page


def select_rows(audit: Audit, count: int) -> dict[str, tuple[str, Integer[np.ndarray, "n"]]]:
    """Title of a sheet -> a line about it, and the rows of its images, at most `count`.

    The sheets show random images, the worst maps by the truth, the oddest ones, close calls, empty maps.
    """
    margin, person = audit.labels.parsing["margin"][:], audit.labels.has_person()
    sheets = {"At random": ("A bit of everything.", plots.random_order(len(person)))}
    if audit.agreement is not None:
        iou = audit.agreement.image_iou()
        worst = np.argsort(iou)[: int((~np.isnan(iou)).sum())]
        sheets["Worst"] = ("Least mean IoU with the true map.", worst)
    odd = np.argsort(-np.where(person, audit.survey.surprise, -1), kind="stable")[: int(person.sum())]
    sheets["Oddest"] = ("Maps least like the others: parts lie where they seldom do.", odd)
    close = np.argsort(np.where(np.isfinite(margin) & person, margin, np.inf), kind="stable")
    close = close[np.isfinite(margin[close]) & person[close]]
    sheets[CLOSE_CALLS] = ("Least lead of the target (white box) over the second person (red).", close)
    sheets["Nobody found"] = ("All background; left out of losses on the maps.", np.flatnonzero(~person))
    return {title: (line, rows[:count]) for title, (line, rows) in sheets.items() if len(rows)}


def draw_boxes(audit: Audit, i: int) -> UInt8[np.ndarray, "H W 3"]:
    """An image with the boxes of its persons: white for the target, red for the others."""
    image, count = fit_picture(audit.images[i]), int(audit.labels.instances["found"][i])
    scale = np.array(image.shape[1::-1] * 2) / (audit.images[i].shape[1::-1] * 2)
    target = int(audit.labels.parsing["instance"][i])
    for person in sorted(range(count), key=lambda p: p == target):
        x0, y0, x1, y1 = (audit.labels.instances["box"][i][person] * scale).round().astype(int).tolist()
        colour = (255, 255, 255) if person == target else (230, 60, 60)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, 2 if person == target else 1)
    return image


def fit_picture(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image in its own shape, its longer side as long as a tile is high."""
    scale = plots.TILE[0] / max(image.shape)
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
