"""Batches prepared in a thread while the one before is used."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(made: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same batches in the same order, the next `count` of them made while one is used.

    One thread makes them all, so that whatever they draw is drawn in their order.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, made, None) for _ in range(count))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, made, None))
            yield batch
