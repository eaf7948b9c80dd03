"""The nearest images of every image, queries and gallery together: what re-ranking starts from."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int
from tqdm import tqdm

from pipeline import store
from pipeline.params import BadInput
from pipeline.ranking import kernels, products, resume
from pipeline.ranking.comparison import Metric, Panel
from pipeline.ranking.embedded import Embedded
from pipeline.ranking.protocol import empty
from pipeline.ranking.resume import Notes
from pipeline.ranking.search import MB, Task, refuse, spans, sweep


@dataclass
class Neighbours:
    """The k nearest of N images, themselves among them, and how far the farthest is."""

    who: Int[np.ndarray, "N k"]  # by position, equal ones in this order; -1 where there are no more
    distance: Float32[np.ndarray, "N k"]
    most: Float32[np.ndarray, "N"]  # greatest finite distance


def neighbours(
    query: Embedded,
    gallery: Embedded,
    k: int,
    metric: Metric = "euclidean",
    memory: int = 256,
    device: str | torch.device = "cpu",
    workers: int = 0,
    title: str = "",
    notes: Path | None = None,
) -> Neighbours:
    """The neighbours of all queries, then of all gallery images that are no junk, numbered in this order.

    `memory`, `workers`, `title` and `notes` are those of `rank`.  Raises `BadInput` for gated features, as
    there a distance depends on which of two images asks.
    """
    if query.gate is not None or gallery.gate is not None:
        raise BadInput("gated features: nearest neighbours are not mutual. Set evaluate.rerank.depth to 0.")
    sides = replace(query, pid=np.zeros_like(query.pid)), gallery  # no query is junk
    tasks = [Task(side, side, metric, k, torch.device(device), workers or store.cores()) for side in sides]
    total = sum(len(task.kept) for task in tasks)
    with (
        resume.product(notes, query.parts.shape[2], device) as product,
        products.threads(tasks[0].workers) as pool,
        store.progress(total=total**2, desc=title, unit="pair", unit_scale=True, disable=not title) as bar,
    ):
        found = [
            _block(one, rows, sides, pool, bar, Notes(notes, f"{product}-near-{side}-{rows[0]}"))
            for side, one in enumerate(tasks)
            for rows in _blocks(one, memory)
        ]
    names = ("who", "distance", "most")
    return Neighbours(*(np.concatenate([getattr(some, name) for some in found]) for name in names))


def _blocks(task: Task, memory: int) -> list[Int[np.ndarray, "n"]]:
    each = task.image + 16 * task.top
    room = memory * MB - task.fixed
    if room < each:
        refuse(memory, task.fixed + each)
    return [task.kept[a : a + room // each] for a in range(0, len(task.kept), room // each)]


def _block(
    one: Task,
    rows: Int[np.ndarray, "n"],
    sides: tuple[Embedded, Embedded],
    pool: ThreadPoolExecutor,
    bar: tqdm,
    notes: Notes,
) -> Neighbours:
    """The neighbours of some images of one side, in both."""
    cuts = spans(len(rows), one.panel)
    found = notes.read(Neighbours)
    if found is not None:
        bar.update(len(rows) * isqrt(bar.total))
        return found
    panels = [Panel(one.query, rows[cut], one.device) for cut in cuts]
    locks = [Lock() for _ in cuts]
    best, who = empty(len(rows), one.top)
    found, before = Neighbours(who, best, np.zeros(len(rows), np.float32)), 0

    def use(before: int, number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
        cut = cuts[number]
        with locks[number]:
            kernels.nearest(distances, before + images, found.distance[cut], found.who[cut])
            kernels.farthest(distances, found.most[cut])

    for side in sides:
        task = replace(one, gallery=side)
        sweep(task, panels, np.arange(len(task.kept)), partial(use, before), pool, bar)
        before += len(task.kept)
    notes.write(found)
    return found
