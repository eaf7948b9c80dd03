"""A gallery of any size, ranked for every query, in memory that does not grow with it.

Each distance is computed once, and only its comparison with the matches' distances is kept:

1. A batch of queries, those of one identity together, is compared with the gallery images of its own
   identities.  That gives the distance of every match.
2. The rest of the gallery is read block by block, each image once per batch; for every match, the images
   that come before it are counted.

Distances are compared as they were computed, so that no match is ranked by another rounding of itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int
from tqdm import tqdm

from pipeline.core.distributed import parse_device
from pipeline.core.params import check_choice, check_count
from pipeline.core.workers import num_cores, progress_bar
from pipeline.model.average_precision import Rule
from pipeline.model.compute import float32_matmul
from pipeline.model.distance import Metric, check_same_parts
from pipeline.ranking import kernels
from pipeline.ranking.comparison import QueryBlock
from pipeline.ranking.embedded import Embedded
from pipeline.ranking.protocol import Ranking, empty_top, mask_junk, score_queries
from pipeline.ranking.task import (
    MB,
    Task,
    block_slices,
    fit_workers,
    for_each_tile,
    refuse_memory,
    worker_threads,
)


def rank(
    query: Embedded,
    gallery: Embedded,
    metric: Metric | str = "euclidean",
    rule: Rule | str = "rectangular",
    memory: int = 256,
    top: int = 0,
    device: str | torch.device = "cpu",
    workers: int = 0,
    title: str = "",
) -> Ranking:
    """Rank the gallery for every query by the protocol of Market-1501.

    Left out of the gallery: junk (pid below 0), and for each query the images of its identity by its own
    camera, if that is known.  Equal distances keep the gallery's order.  `memory` bounds in MB what is held
    beside features that are in memory already; `top` nearest images are listed for each query; `workers`
    threads compute, one per core if 0, fewer if they do not fit.  A `title` shows progress.
    Raises `BadInput` for visible features that are not finite or shorter than 1e-12, for cameras that one
    side alone knows, for too little memory, and for an argument that is none of its choices.
    """
    check_choice("metric", metric, Metric)
    check_choice("rule", rule, Rule)
    check_count("top", top)
    check_count("workers", workers)
    check_same_parts(query.parts.shape[1:], gallery.parts.shape[1:])
    task = Task(query, gallery, metric, top, parse_device(device), workers or num_cores())
    task.identities.check_cameras(query.pid, query.camid)
    task = fit_workers(task, memory)
    order = np.argsort(query.pid, kind="stable")
    batches = list(query_batches(task, query.pid[order], memory))
    total = len(query) * len(task.kept)
    with (
        float32_matmul("default"),
        worker_threads(task.workers) as pool,
        progress_bar(total=total, desc=title, unit="pair", unit_scale=True, disable=not title) as bar,
    ):
        results = [_QueryBatch(task, order[batch], pool, bar).rank() for batch in batches]
    return _join(task, order, results, rule)


def _join(task: Task, order: Int[np.ndarray, "Q"], results: list["BatchResult"], rule: str) -> Ranking:
    pid, camid = task.query.pid[order], task.query.camid[order]
    matches, _ = task.identities.matches_and_junk(pid, camid)
    ranks = np.concatenate([np.ones(0, np.int64), *(result.ranks for result in results)])
    distance = np.concatenate([np.ones(0, np.float32), *(result.match_distance for result in results)])
    top_distance, top_image = empty_top(0, task.top)
    top_distance = np.concatenate([top_distance, *(result.top_distance for result in results)])
    top_image = np.concatenate([top_image, *(result.top_image for result in results)])
    counted = task.identities.camera_unknown(matches, camid), matches.any(np.isinf(distance))
    return score_queries(pid, matches, ranks, *counted, (top_distance, top_image), rule, order, task.kept)


def query_batches(task: Task, pid: Int[np.ndarray, "Q"], memory: int) -> Iterator[slice]:
    """As many queries at a time as fit in memory; raises `BadInput` if not even one does.

    `pid` is sorted.
    """
    images = task.identities.same_identity(pid).lengths
    start = 0
    while start < len(pid):
        new = np.diff(pid[start:], prepend=pid[start] - 1) != 0
        near = np.cumsum(images[start:] * new) + task.gallery_block  # images of the batch's identities
        per_query = task.query_bytes + 4 * near + 16 * task.top
        matches = 56 * np.cumsum(images[start:])
        needed = task.fixed_bytes + np.arange(1, len(new) + 1) * per_query + matches
        if needed[0] > memory * MB:
            refuse_memory(memory, int(needed[0]))
        stop = start + int(np.searchsorted(needed, memory * MB, "right"))
        yield slice(start, stop)
        start = stop


# ------------------------------------------------------------------ a batch of queries


@dataclass(frozen=True)
class BatchResult:
    """The matches and the nearest images of a batch of queries; ranks grow as the gallery is read."""

    match_distance: Float32[np.ndarray, "matches"]
    ranks: Int[np.ndarray, "matches"]
    top_distance: Float32[np.ndarray, "n top"]
    top_image: Int[np.ndarray, "n top"]


class _QueryBatch:
    """Queries that are ranked together."""

    def __init__(self, task: Task, rows: Int[np.ndarray, "n"], pool: ThreadPoolExecutor, bar: tqdm):
        self.task, self.rows, self.pool, self.bar = task, rows, pool, bar
        pid, camid = task.query.pid[rows], task.query.camid[rows]
        self.matches, self.junk = task.identities.matches_and_junk(pid, camid)
        near = np.zeros(len(task.kept), bool)
        near[task.identities.same_identity(np.unique(pid)).images] = True
        near[np.flatnonzero(~near)[: -int(near.sum()) % task.gallery_block]] = True  # whole blocks
        self.near, self.far = np.flatnonzero(near), np.flatnonzero(~near)
        self.slices = block_slices(len(rows), task.query_block)

    def rank(self) -> BatchResult:
        """Both passes over the gallery."""
        query, device = self.task.query, self.task.device
        blocks = [QueryBlock(query, self.rows[rows], device) for rows in self.slices]
        result = self._compare_near(blocks)
        self._count_far(blocks, result)
        return result

    def _compare_near(self, blocks: list[QueryBlock]) -> BatchResult:
        """The images of the batch's identities: distances of the matches, and their ranks so far."""
        table = np.empty((len(self.rows), len(self.near)), np.float32)

        def fill(number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
            table[self.slices[number], start : start + len(images)] = distances

        for_each_tile(self.task, blocks, self.near, fill, self.pool, self.bar)
        distance = mask_junk(table, self.near, self.matches, self.junk)
        top = empty_top(len(self.rows), self.task.top)
        result = BatchResult(distance, np.ones(len(distance), np.int64), *top)
        split = np.searchsorted(self.near, self.matches.images)

        def count(number: int) -> None:
            self._update(result, number, table[self.slices[number]], self.near, split)

        list(self.pool.map(count, range(len(blocks))))
        return result

    def _count_far(self, blocks: list[QueryBlock], result: BatchResult) -> None:
        """All other images, which only raise ranks."""
        column = np.searchsorted(self.far, self.matches.images)
        locks = [Lock() for _ in blocks]

        def count(number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
            split = (column - start).clip(0, len(images))
            with locks[number]:
                self._update(result, number, distances, images, split)

        for_each_tile(self.task, blocks, self.far, count, self.pool, self.bar)

    def _update(
        self, result: BatchResult, number: int, distances: np.ndarray, images: np.ndarray, split: np.ndarray
    ) -> None:
        """Count what comes before a block's matches: nearer, or as near and in a column left of `split`."""
        rows = self.slices[number]
        start = self.matches.start[rows.start : rows.stop + 1]
        entries = slice(start[0], start[-1])
        match_distance, ranks = result.match_distance[entries], result.ranks[entries]
        kernels.count(distances, start - start[0], match_distance, split[entries], ranks)
        if self.task.top:
            kernels.nearest(distances, images, result.top_distance[rows], result.top_image[rows])
