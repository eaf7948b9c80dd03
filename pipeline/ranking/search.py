"""A gallery of any size, ranked for every query, in memory that does not grow with it.

Each distance is computed once, and only how it compares with the matches' distances is kept:

1. A block of queries, one person's together, is compared with the images of its own people.  That gives
   the distance of every match.
2. The rest of the gallery passes by tile by tile, each image read once a block; for every match, the images
   that come before it are counted.

Distances are compared as they were computed, so that no match is ranked by another rounding of itself.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float32, Int
from tqdm import tqdm

from pipeline.core.distributed import parse_device
from pipeline.core.params import BadInput, check_choice, check_count
from pipeline.core.workers import num_cores, progress_bar
from pipeline.model.average_precision import Rule
from pipeline.model.compute import float32_matmul
from pipeline.model.distance import Metric, check_same_parts
from pipeline.ranking import kernels
from pipeline.ranking.comparison import (
    COLUMN_MULTIPLE,
    GALLERY_AT_ONCE,
    QUERIES_AT_ONCE,
    ROW_MULTIPLE,
    GalleryBlock,
    QueryBlock,
    TileBuffer,
    Workspace,
    block_distances,
    round_up,
)
from pipeline.ranking.embedded import Embedded, Stored
from pipeline.ranking.protocol import IdentityIndex, Ranking, empty_top, mask_junk, score_queries

MB = 2**20


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

    Left out of the gallery: junk (pid below 0), and for each query the images of its person by its own
    camera, if that is known.  Equal distances keep the gallery's order.  `memory` bounds in MB what is held
    beside features that are in memory already; `top` asks for so many nearest images; `workers` threads
    compute, one a core if 0, fewer if they do not fit.  With a `title`, progress is shown.
    Raises `BadInput` for features that are not finite, for too little memory, and for an argument that is
    none of its choices.
    """
    check_choice("metric", metric, Metric)
    check_choice("rule", rule, Rule)
    check_count("top", top)
    check_count("workers", workers)
    where = parse_device(device)
    check_same_parts(query.parts.shape[1:], gallery.parts.shape[1:])
    task = fitting(Task(query, gallery, metric, top, where, workers or num_cores()), memory)
    order = np.argsort(query.pid, kind="stable")
    pieces = list(blocks(task, query.pid[order], memory))
    total = len(query) * len(task.kept)
    with (
        float32_matmul("default"),
        worker_threads(task.workers) as pool,
        progress_bar(total=total, desc=title, unit="pair", unit_scale=True, disable=not title) as bar,
    ):
        found = [_Block(task, order[some], pool, bar).answer() for some in pieces]
    return _ranking(task, order, found, rule)


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose matrix products use one core each; the caller's `torch.get_num_threads()` is restored."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _ranking(task: "Task", order: Int[np.ndarray, "Q"], found: list["BlockResult"], rule: str) -> Ranking:
    hits = task.cast.split(task.query.pid[order], task.query.camid[order])[0]
    ranks = np.concatenate([answer.ranks for answer in found]) if found else np.ones(0, np.int64)
    best, who = empty_top(0, task.top)
    best = np.concatenate([best, *(answer.best for answer in found)])
    who = np.concatenate([who, *(answer.who for answer in found)])
    return score_queries(hits, ranks, (best, who), rule, order, task.kept)


# ------------------------------------------------------------------ what fits


@dataclass(frozen=True)
class Task:
    """What is asked; gallery images are numbered without the junk."""

    query: Embedded
    gallery: Embedded
    metric: str
    top: int
    device: torch.device
    workers: int

    @cached_property
    def kept(self) -> Int[np.ndarray, "G"]:
        """The gallery's positions of the images that count."""
        return np.flatnonzero(self.gallery.pid >= 0)

    @cached_property
    def cast(self) -> IdentityIndex:
        return IdentityIndex.of(self.gallery.pid[self.kept], self.gallery.camid[self.kept])

    @property
    def panel(self) -> int:
        return QUERIES_AT_ONCE[self.device.type]

    @property
    def tile(self) -> int:
        """Images in a tile; all tiles are alike but the last: each size of product is prepared anew."""
        return max(1, min(len(self.kept), GALLERY_AT_ONCE[self.device.type]))

    @cached_property
    def rooms(self) -> list[TileBuffer]:
        return [TileBuffer(self.gallery, self.tile) for _ in range(self.ahead)]

    @cached_property
    def desks(self) -> SimpleQueue[Workspace]:
        """One for each worker."""
        desks = SimpleQueue()
        for _ in range(self.workers):
            desks.put(Workspace(self.panel, self.tile, self.device))
        return desks

    @property
    def ahead(self) -> int:
        """Tiles that are read before the first of them is done with."""
        return 1 + -(-self.workers // 2)

    @property
    def image(self) -> int:
        """Bytes of a query in a panel."""
        parts, channels = self.query.parts.shape[1:]
        return 4 * parts * (channels + 4) * (1 if self.query.gate is None else 3)

    @property
    def fixed(self) -> int:
        """Bytes that are held for however few queries."""
        parts, channels = self.gallery.parts.shape[1:]
        wide, gated = round_up(self.tile, COLUMN_MULTIPLE), self.query.gate is not None
        read = (self.ahead + 1 + isinstance(self.gallery.parts, Stored)) * wide
        drawn = (isinstance(self.query.parts, Stored) + 2 * gated) * self.panel
        tables = 4 if self.device.type == "cpu" and not gated else 8
        desks = self.workers * tables * 4 * round_up(self.panel, ROW_MULTIPLE) * wide
        return (read + drawn) * 4 * parts * (channels + 4) + desks + 40 * len(self.kept)


def fitting(task: Task, memory: int) -> Task:
    """With as many of the workers as leave room for a panel of queries, or with one."""
    while task.workers > 1 and task.fixed + task.panel * task.image > memory * MB:
        task = replace(task, workers=task.workers - 1)
    return task


def spans(queries: int, most: int) -> list[slice]:
    """Panels of at most so many queries, about as long as each other."""
    cuts = np.linspace(0, queries, 1 - (-queries // most)).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]


def refuse(memory: int, need: int) -> NoReturn:
    """Say how many MB these features need; `need` is in bytes."""
    raise BadInput(f"memory = {memory}: too little for these features; give at least {need // MB + 1} MB.")


def blocks(task: Task, pid: Int[np.ndarray, "Q"], memory: int) -> Iterator[slice]:
    """As many queries at a time as fit; raises `BadInput` if not even one does."""
    own = task.cast.own(pid).lengths
    start = 0
    while start < len(pid):
        new = np.diff(pid[start:], prepend=pid[start] - 1) != 0
        near = np.cumsum(own[start:] * new) + task.tile  # images of the block's own people
        each = task.image + 4 * near + 16 * task.top
        need = task.fixed + np.arange(1, len(new) + 1) * each + 48 * np.cumsum(own[start:])
        if need[0] > memory * MB:
            refuse(memory, int(need[0]))
        stop = start + int(np.searchsorted(need, memory * MB, "right"))
        yield slice(start, stop)
        start = stop


# ------------------------------------------------------------------ a block of queries


@dataclass
class BlockResult:
    """What is known of a block of queries."""

    at: Float32[np.ndarray, "hits"]  # distances of the matches
    ranks: Int[np.ndarray, "hits"]
    best: Float32[np.ndarray, "n top"]  # distances of the nearest
    who: Int[np.ndarray, "n top"]


class _Block:
    """Queries that are ranked together."""

    def __init__(self, task: Task, rows: Int[np.ndarray, "n"], pool: ThreadPoolExecutor, bar: tqdm):
        self.task, self.rows, self.pool, self.bar = task, rows, pool, bar
        self.hits, self.removed = task.cast.split(task.query.pid[rows], task.query.camid[rows])
        near = np.zeros(len(task.kept), bool)
        near[task.cast.own(np.unique(task.query.pid[rows])).rows] = True
        near[np.flatnonzero(~near)[: -int(near.sum()) % task.tile]] = True  # whole tiles
        self.near, self.far = np.flatnonzero(near), np.flatnonzero(~near)
        self.place = np.searchsorted(self.far, self.hits.rows)
        self.spans = spans(len(rows), task.panel)
        self.locks = [Lock() for _ in self.spans]

    def answer(self) -> BlockResult:
        """Both passes."""
        panels = [QueryBlock(self.task.query, self.rows[span], self.task.device) for span in self.spans]
        found = self._near(panels)
        self._pass(panels, self.far, partial(self._count, found))
        return found

    def _near(self, panels: list[QueryBlock]) -> BlockResult:
        """The images of the block's own people: distances of the matches, and their ranks so far."""
        table = np.empty((len(self.rows), len(self.near)), np.float32)

        def fill(number: int, start: int, distances: np.ndarray, images: np.ndarray) -> None:
            table[self.spans[number], start : start + len(images)] = distances

        self._pass(panels, self.near, fill)
        at = mask_junk(table, self.near, self.hits, self.removed)
        found = BlockResult(at, np.ones(len(at), np.int64), *empty_top(len(self.rows), self.task.top))
        place = np.searchsorted(self.near, self.hits.rows)

        def tally(number: int) -> None:
            self._add(found, number, table[self.spans[number]], self.near, place)

        list(self.pool.map(tally, range(len(panels))))
        return found

    def _count(
        self,
        found: BlockResult,
        number: int,
        start: int,
        distances: np.ndarray,
        images: np.ndarray,
    ) -> None:
        place = (self.place - start).clip(0, len(images))
        with self.locks[number]:
            self._add(found, number, distances, images, place)

    def _add(
        self, found: BlockResult, number: int, distances: np.ndarray, images: np.ndarray, place: np.ndarray
    ) -> None:
        """Count what comes before a panel's matches; a match stands left of the column `place`, if equal."""
        span = self.spans[number]
        first = self.hits.first[span.start : span.stop + 1]
        mine = slice(first[0], first[-1])
        kernels.count(distances, first - first[0], found.at[mine], place[mine], found.ranks[mine])
        if self.task.top:
            kernels.nearest(distances, images, found.best[span], found.who[span])

    def _pass(self, panels: list[QueryBlock], images: np.ndarray, use: Callable[..., None]) -> None:
        for_each_tile(self.task, panels, images, use, self.pool, self.bar)


def for_each_tile(
    task: Task,
    panels: list[QueryBlock],
    images: Int[np.ndarray, "n"],
    use: Callable[[int, int, np.ndarray, np.ndarray], None],
    pool: ThreadPoolExecutor,
    bar: tqdm,
    since: list[int] | None = None,
) -> None:
    """Let images pass by all panels, a tile at a time; by a panel, those from place `since` on, if given.

    What is used: number of the panel, place of the tile's first image, distances (lost afterwards), images.
    """

    def work(number: int, tile: GalleryBlock, start: int, some: np.ndarray) -> None:
        desk = task.desks.get()
        try:
            use(number, start, block_distances(panels[number], tile, task.metric, desk).cpu().numpy(), some)
        finally:
            task.desks.put(desk)

    def finish() -> None:
        futures, pairs = waiting.popleft()
        for future in futures:
            future.result()
        bar.update(pairs)

    waiting: deque[tuple[list[Future], int]] = deque()
    for start in range(0, len(images), task.tile):
        some = images[start : start + task.tile]
        room = task.rooms[start // task.tile % task.ahead]
        tile = GalleryBlock(task.gallery, task.kept[some], task.device, room)
        passed = [n for n in range(len(panels)) if since is None or since[n] < start + len(some)]
        pairs = len(some) * sum(len(panels[n].visibility) for n in passed)
        waiting.append(([pool.submit(work, n, tile, start, some) for n in passed], pairs))
        del tile
        if len(waiting) == task.ahead:
            finish()
    while waiting:
        finish()
