"""An audit of cached labels: all that one page shows of them, most of it without any truth.

So labels from anywhere, and labels of photographs, are looked at alike.
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
    """All that the page is made of."""

    name: str  # of the dataset
    index: pd.DataFrame
    images: Images
    labels: metrics.Labels
    seen: statistics.Survey
    report: dict[str, Any]  # labels.json
    agreement: metrics.Agreement | None  # with the truth, if it is known
    threshold: float  # lambda, in pixels


# ------------------------------------------------------------------ which images are shown


def select_rows(audit: Audit, count: int) -> dict[str, tuple[str, Integer[np.ndarray, "n"]]]:
    """Title -> a line about it, and rows: at random, the worst or the oddest, close calls, nobody found."""
    labels, agreement = audit.labels, audit.agreement
    margin, status = labels.parsing["margin"][:], labels.parsing["status"][:]
    found = {"At random": ("A bit of everything.", plots.random_order(len(status)))}
    someone = status != parsing.NO_PERSON
    if agreement is not None:
        iou = agreement.image_iou()
        found["Worst"] = ("Least mean IoU with the true map.", np.argsort(iou)[: int((~np.isnan(iou)).sum())])
    odd = np.argsort(-np.where(someone, audit.seen.odd, -1), kind="stable")[: int(someone.sum())]
    found["Oddest"] = ("Maps least like the others: parts lie where they seldom do.", odd)
    close = np.argsort(np.where(np.isfinite(margin) & someone, margin, np.inf), kind="stable")
    close = close[np.isfinite(margin[close]) & someone[close]]
    found[CLOSE_CALLS] = ("Least lead of the target (white box) over the second person (red).", close)
    found["Nobody found"] = ("All background; left out of losses on the maps.", np.flatnonzero(~someone))
    return {title: (line, rows[:count]) for title, (line, rows) in found.items() if len(rows)}


def draw_boxes(audit: Audit, i: int) -> UInt8[np.ndarray, "H W 3"]:
    """An image with the boxes of the persons found in it: the target's white, the others' red."""
    image, found = audit.images[i].copy(), int(audit.labels.instances["found"][i])
    scale = plots.TILE[0] / image.shape[0]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    target = int(audit.labels.parsing["instance"][i])
    for person in sorted(range(found), key=lambda p: p == target):
        x0, y0, x1, y1 = (audit.labels.instances["box"][i][person] * scale).round().astype(int).tolist()
        colour = (255, 255, 255) if person == target else (230, 60, 60)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, 2 if person == target else 1)
    return image
