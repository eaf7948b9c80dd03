"""An audit of cached labels: the data of its page, and the images that the page shows.

Most of it needs no truth, so that labels of photographs and labels made elsewhere are audited as well.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Integer, UInt8

from pipeline.data.index import Images
from pipeline.labels import parsing
from pipeline.labels.quality import metrics, plots, statistics

CLOSE_CALLS = "Closest calls"  # the sheet that shows boxes


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


# ------------------------------------------------------------------ the images on the page


def select_rows(audit: Audit, count: int) -> dict[str, tuple[str, Integer[np.ndarray, "n"]]]:
    """Title of a sheet -> a line about it, and the rows of its images, at most `count`.

    The sheets show random images, the worst maps by the truth, the oddest ones, close calls, empty maps.
    """
    margin, status = audit.labels.parsing["margin"][:], audit.labels.parsing["status"][:]
    person = status != parsing.NO_PERSON
    sheets = {"At random": ("A bit of everything.", plots.random_order(len(status)))}
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
    image, count = audit.images[i].copy(), int(audit.labels.instances["found"][i])
    scale = plots.TILE[0] / image.shape[0]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    target = int(audit.labels.parsing["instance"][i])
    for person in sorted(range(count), key=lambda p: p == target):
        x0, y0, x1, y1 = (audit.labels.instances["box"][i][person] * scale).round().astype(int).tolist()
        colour = (255, 255, 255) if person == target else (230, 60, 60)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, 2 if person == target else 1)
    return image
