"""The nearest images of every image, queries and gallery together: what re-ranking starts from.

Images are numbered, queries first.  A batch of them is compared with itself and with all later images, and
each distance enters the lists of both images.
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
from pipeline.ranking.task import (
    MB,
    Task,
    block_slices,
    fit_workers,
    for_each_tile,
    refuse_memory,
    worker_threads,
)

GATED = "gated features: nearest neighbours are not mutual. Set evaluate.rerank.depth to 0."


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of N images to each of them, itself among them, and its distance to the farthest."""

    image: Int[np.ndarray, "N k"]  # numbers; of equal distances the smaller first; -1 where there are no more
    distance: Float32[np.ndarray, "N k"]
    farthest: Float32[np.ndarray, "N"]  # greatest finite distance

    @classmethod
    def empty(cls, images: int, k: int) -> "Neighbours":
        """Lists before anything is compared."""
        distance, image = empty_top(images, k)
        return cls(image, distance, np.zeros(images, np.float32))

    def update(self, rows: slice, columns: slice, distances: Float32[np.ndarray, "n w"]) -> None:
        """Merge a block of distances to the images `columns` into the lists of the images `rows`."""
        kernels.nearest(distances, _numbers(columns), self.distance[rows], self.image[rows])
        kernels.farthest(distances, self.farthest[rows])


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
    """The neighbours of all queries, then of all gallery images that are not junk, numbered in this order.

    `workers` and `title` are those of `rank`; `memory` bounds what is held beside the neighbours.
    Raises `BadInput` for gated features, whose distance depends on which of two images is the query.
    """
    if query.gate is not None or gallery.gate is not None:
        raise BadInput(GATED)
    sides = replace(query, pid=np.zeros_like(query.pid)), gallery  # no query is junk
    options = metric, k, torch.device(device), workers or num_cores()
    tasks = [
        [fit_workers(Task(one, other, *options), memory) for other in sides[n:]]
        for n, one in enumerate(sides)
    ]
    lists = Neighbours.empty(sum(len(task.kept) for task in tasks[0]), k)
    batches = list(_batches(tasks, memory))
    total = sum(batch.pairs for batch in batches)
    with (
        float32_matmul("default"),
        worker_threads(max(task.workers for row in tasks for task in row)) as pool,
        progress_bar(total=total, desc=title, unit="pair", unit_scale=True, disable=not title) as bar,
    ):
        for batch in batches:
            batch.compare(lists, pool, bar)
    return lists


def _batches(tasks: list[list[Task]], memory: int) -> Iterator["_Batch"]:
    """As many images at a time as fit in memory; raises `BadInput` if not even one does."""
    offset = 0
    for row in tasks:
        images, per_image = len(row[0].kept), row[0].query_bytes
        fixed = max(task.fixed_bytes for task in row)
        most = (memory * MB - fixed) // per_image
        if most < 1:
            refuse_memory(memory, fixed + per_image)
        for start in range(0, images, most):
            yield _Batch(row, offset, slice(start, min(start + most, images)))
        offset += images


@dataclass(frozen=True)
class _Batch:
    """Images of one side, queries or gallery, that are compared together."""

    tasks: list[Task]  # with their own side as the gallery, then with the later side if there is one
    offset: int  # number of the first image of their side
    rows: slice  # of their side's images

    @property
    def slices(self) -> list[slice]:
        """Their query blocks."""
        return block_slices(self.rows.stop - self.rows.start, self.tasks[0].query_block)

    @property
    def pairs(self) -> int:
        """Number of distances that are computed."""
        same, *later = self.tasks
        others = sum(len(task.kept) for task in later)
        tile = same.gallery_block
        return sum(
            (block.stop - block.start)
            * (len(same.kept) - self.rows.start - block.start // tile * tile + others)
            for block in self.slices
        )

    def compare(self, lists: Neighbours, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        """Compare each image with those of the batch from its block on, and with all after the batch."""
        same = self.tasks[0]
        rows, slices, lock = same.kept[self.rows], self.slices, Lock()
        blocks = [QueryBlock(same.query, rows[block], same.device) for block in slices]
        first = self.offset + self.rows.start

        def update(offset: int, number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
            block, columns = slices[number], slice(offset + images[0], offset + images[-1] + 1)
            _update_both(lists, slice(first + block.start, first + block.stop), columns, distances, lock)

        offset = self.offset
        for task in self.tasks:
            images = np.arange(self.rows.start if task is same else 0, len(task.kept))
            since = [block.start if task is same else 0 for block in slices]
            # a copy of the task, so that its buffers are freed with it
            for_each_tile(replace(task), blocks, images, partial(update, offset), pool, bar, since)
            offset += len(task.kept)


def _update_both(
    lists: Neighbours, rows: slice, columns: slice, distances: Float32[np.ndarray, "n w"], lock: Lock
) -> None:
    """Merge each distance into the lists of both images, if the row's number is not the greater."""
    if columns.start < rows.stop:  # images of one block among themselves
        distances[_numbers(rows)[:, None] > _numbers(columns)] = kernels.JUNK
    transposed = distances.T.copy()
    transposed[_numbers(columns)[:, None] == _numbers(rows)] = kernels.JUNK  # to itself: merged once
    with lock:
        lists.update(rows, columns, distances)
        lists.update(columns, rows, transposed)
