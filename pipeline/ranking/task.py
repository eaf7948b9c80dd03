"""Queries and a gallery to compare: what fits in memory, and the comparison of blocks in threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from queue import SimpleQueue
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from pipeline.core.params import BadInput
from pipeline.ranking.comparison import (
    GALLERY_BLOCK,
    QUERY_BLOCK,
    GalleryBlock,
    QueryBlock,
    TileBuffer,
    Workspace,
    block_distances,
    round_up,
)
from pipeline.ranking.embedded import Embedded, Stored
from pipeline.ranking.protocol import IdentityIndex

MB = 2**20


@dataclass(frozen=True)
class Task:
    """Queries, a gallery and how to compare them; gallery images are numbered without the junk."""

    query: Embedded
    gallery: Embedded
    metric: str
    top: int
    device: torch.device
    workers: int

    @cached_property
    def kept(self) -> Int[np.ndarray, "G"]:
        """Positions in the gallery of the images that are not junk."""
        return np.flatnonzero(self.gallery.pid >= 0)

    @cached_property
    def identities(self) -> IdentityIndex:
        return IdentityIndex.of(self.gallery.pid[self.kept], self.gallery.camid[self.kept])

    @property
    def query_block(self) -> int:
        """Queries in a block, at most."""
        return QUERY_BLOCK[self.device.type]

    @property
    def gallery_block(self) -> int:
        """Images in every block of the gallery but the last: each size of product is prepared anew."""
        return max(1, min(len(self.kept), GALLERY_BLOCK[self.device.type]))

    @cached_property
    def buffers(self) -> list[TileBuffer]:
        return [TileBuffer(self.gallery, self.gallery_block) for _ in range(self.lookahead)]

    @cached_property
    def workspaces(self) -> SimpleQueue[Workspace]:
        """One for each worker."""
        workspaces: SimpleQueue[Workspace] = SimpleQueue()
        for _ in range(self.workers):
            workspaces.put(Workspace(self.query_block, self.gallery_block, self.device))
        return workspaces

    @property
    def lookahead(self) -> int:
        """Gallery blocks that are in memory at a time."""
        return 1 + -(-self.workers // 2)

    @property
    def query_bytes(self) -> int:
        """Memory of one query in a block."""
        parts, channels = self.query.parts.shape[1:]
        return 4 * parts * (channels + 4) * (1 if self.query.gate is None else 3)

    @property
    def fixed_bytes(self) -> int:
        """Memory that does not depend on the number of queries."""
        parts, channels = self.gallery.parts.shape[1:]
        width, gated = round_up(self.gallery_block), self.query.gate is not None
        gallery_images = (self.lookahead + 1 + isinstance(self.gallery.parts, Stored)) * width
        query_images = (isinstance(self.query.parts, Stored) + 2 * gated) * self.query_block
        tables = 4 if self.device.type == "cpu" and not gated else 8
        workspaces = self.workers * tables * 4 * round_up(self.query_block) * width
        images = (gallery_images + query_images) * 4 * parts * (channels + 4)
        return images + workspaces + 40 * len(self.kept)


def fit_workers(task: Task, memory: int) -> Task:
    """The task with as many of its workers as leave memory for a block of queries, at least one."""
    while task.workers > 1 and task.fixed_bytes + task.query_block * task.query_bytes > memory * MB:
        task = replace(task, workers=task.workers - 1)
    return task


def block_slices(count: int, largest: int) -> list[slice]:
    """Cut `count` queries into blocks of about equal size, none larger than `largest`."""
    cuts = np.linspace(0, count, 1 - (-count // largest)).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]


def refuse_memory(memory: int, needed: int) -> NoReturn:
    """Raises `BadInput` that says how many MB these features need; `needed` is in bytes."""
    raise BadInput(f"memory = {memory}: too little for these features; give at least {needed // MB + 1} MB.")


# ------------------------------------------------------------------ threads


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


def for_each_tile(
    task: Task,
    blocks: list[QueryBlock],
    images: Int[np.ndarray, "n"],
    use: Callable[[int, int, np.ndarray, np.ndarray], None],
    pool: ThreadPoolExecutor,
    bar: tqdm,
    since: list[int] | None = None,
) -> None:
    """Compare every block of queries with these gallery images, block by block, in the pool's threads.

    `use` is called with the number of the query block, the place of the gallery block's first image in
    `images`, the distances (overwritten afterwards), and the numbers of the images.  Query block i skips the
    gallery blocks that end before place since[i].
    """

    def work(number: int, tile: GalleryBlock, start: int, numbers: np.ndarray) -> None:
        workspace = task.workspaces.get()
        try:
            distances = block_distances(blocks[number], tile, task.metric, workspace)
            use(number, start, distances.cpu().numpy(), numbers)
        finally:
            task.workspaces.put(workspace)

    def finish() -> None:
        futures, pairs = waiting.popleft()
        for future in futures:
            future.result()
        bar.update(pairs)

    waiting: deque[tuple[list[Future], int]] = deque()
    for start in range(0, len(images), task.gallery_block):
        numbers = images[start : start + task.gallery_block]
        buffer = task.buffers[start // task.gallery_block % task.lookahead]
        tile = GalleryBlock(task.gallery, task.kept[numbers], task.device, buffer)
        compared = [n for n in range(len(blocks)) if since is None or since[n] < start + len(numbers)]
        pairs = len(numbers) * sum(len(blocks[n].visibility) for n in compared)
        waiting.append(([pool.submit(work, n, tile, start, numbers) for n in compared], pairs))
        del tile
        if len(waiting) == task.lookahead:
            finish()
    while waiting:
        finish()
