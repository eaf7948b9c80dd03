"""Prefetching: a thread prepares the next batches while one is used."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(batches: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same batches in the same order, prepared up to `count` ahead.

    A single thread prepares them all, so that random numbers are drawn in the order of the batches.  An error
    in `batches` is raised where its batch is asked for.
    """
    with ThreadPoolExecutor(1) as thread:
        queue = deque(thread.submit(next, batches, None) for _ in range(count))
        while (batch := queue.popleft().result()) is not None:
            queue.append(thread.submit(next, batches, None))
            yield batch
