"""The nearest images of every image, queries and gallery together: what re-ranking starts from.

All are numbered, queries first; a block of them is compared with itself and what comes behind it, and each
distance is told to both images.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int
from tqdm import tqdm

from pipeline.core.params import BadInput
from pipeline.core.workers import num_cores, progress_bar
from pipeline.model.compute import float32_matmul
from pipeline.ranking import kernels
from pipeline.ranking.comparison import QueryBlock
from pipeline.ranking.embedded import Embedded
from pipeline.ranking.protocol import empty_top
from pipeline.ranking.search import MB, Task, fitting, for_each_tile, refuse, spans, worker_threads


@dataclass
class Neighbours:
    """The k nearest of N images, themselves among them, and how far the farthest is."""

    who: Int[np.ndarray, "N k"]  # by number, equal ones in this order; -1 where there are no more
    distance: Float32[np.ndarray, "N k"]
    most: Float32[np.ndarray, "N"]  # greatest finite distance

    @classmethod
    def none(cls, images: int, k: int) -> "Neighbours":
        """Before anything is compared."""
        distance, who = empty_top(images, k)
        return cls(who, distance, np.zeros(images, np.float32))

    def update(self, rows: slice, columns: slice, distances: Float32[np.ndarray, "n w"]) -> None:
        """Tell the images `rows` how far away the images `columns` are."""
        kernels.nearest(distances, _numbers(columns), self.distance[rows], self.who[rows])
        kernels.farthest(distances, self.most[rows])


def _numbers(images: slice) -> Int[np.ndarray, "n"]:
    return np.arange(images.start, images.stop)


def neighbours(
    query: Embedded,
    gallery: Embedded,
    k: int,
    metric: str = "euclidean",
    memory: int = 256,
    device: str | torch.device = "cpu",
    workers: int = 0,
    title: str = "",
) -> Neighbours:
    """The neighbours of all queries, then of all gallery images that are no junk, numbered in this order.

    `workers` and `title` are those of `rank`; `memory` bounds what is held beside the neighbours.
    Raises `BadInput` for gated features, as there a distance depends on which of two images asks.
    """
    if query.gate is not None or gallery.gate is not None:
        raise BadInput("gated features: nearest neighbours are not mutual. Set evaluate.rerank.depth to 0.")
    sides = replace(query, pid=np.zeros_like(query.pid)), gallery  # no query is junk
    given = metric, k, torch.device(device), workers or num_cores()
    tasks = [
        [fitting(Task(one, other, *given), memory) for other in sides[n:]] for n, one in enumerate(sides)
    ]
    with (
        float32_matmul("default"),
        worker_threads(max(task.workers for row in tasks for task in row)) as pool,
    ):
        found = Neighbours.none(sum(len(task.kept) for task in tasks[0]), k)
        blocks = list(_blocks(tasks, memory))
        total = sum(block.pairs for block in blocks)
        with progress_bar(total=total, desc=title, unit="pair", unit_scale=True, disable=not title) as bar:
            for block in blocks:
                block.compare(found, pool, bar)
    return found


def _blocks(tasks: list[list[Task]], memory: int) -> Iterator["_Block"]:
    """As many images at a time as fit; raises `BadInput` if not even one does."""
    before = 0
    for row in tasks:
        images, each, fixed = len(row[0].kept), row[0].image, max(task.fixed for task in row)
        most = (memory * MB - fixed) // each
        if most < 1:
            refuse(memory, fixed + each)
        for start in range(0, images, most):
            yield _Block(row, before, slice(start, min(start + most, images)))
        before += images


@dataclass(frozen=True)
class _Block:
    """Images that are compared together."""

    tasks: list[Task]  # with their own side for a gallery, then with the one behind it
    before: int  # images of sides before theirs
    some: slice  # of their side's images

    @property
    def cuts(self) -> list[slice]:
        """Their panels."""
        return spans(self.some.stop - self.some.start, self.tasks[0].panel)

    @property
    def pairs(self) -> int:
        """Pairs that pass by."""
        own, *others = self.tasks
        behind = sum(len(task.kept) for task in others)
        return sum(
            (cut.stop - cut.start)
            * (len(own.kept) - self.some.start - cut.start // own.tile * own.tile + behind)
            for cut in self.cuts
        )

    def compare(self, found: Neighbours, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        """Compare each with those of the block that are not before it, and with all behind the block."""
        own = self.tasks[0]
        rows, cuts, lock = own.kept[self.some], self.cuts, Lock()
        panels = [QueryBlock(own.query, rows[cut], own.device) for cut in cuts]
        first, before = self.before + self.some.start, self.before

        def tell(before: int, number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
            cut, columns = cuts[number], slice(before + images[0], before + images[-1] + 1)
            _update_both(found, slice(first + cut.start, first + cut.stop), columns, distances, lock)

        for task in self.tasks:
            mine = task is own
            images = np.arange(self.some.start if mine else 0, len(task.kept))
            since = [cut.start if mine else 0 for cut in cuts]
            passing = replace(task)  # a twin, so that its rooms go with it
            for_each_tile(passing, panels, images, partial(tell, before), pool, bar, since)
            before += len(task.kept)


def _update_both(
    found: Neighbours, rows: slice, columns: slice, distances: Float32[np.ndarray, "n w"], lock: Lock
) -> None:
    """Tell each pair to both images, if the first is not behind the second."""
    if columns.start < rows.stop:  # these images among themselves
        distances[_numbers(rows)[:, None] > _numbers(columns)] = kernels.OUT
    turned = distances.T.copy()
    turned[_numbers(columns)[:, None] == _numbers(rows)] = kernels.OUT  # one's own was told
    with lock:
        found.update(rows, columns, distances)
        found.update(columns, rows, turned)
