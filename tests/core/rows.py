"""Rows for the tests of label files; spawned workers import this, so neither torch nor pytest."""

import time
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.label_file import Arrays
from pipeline.core.params import BadInput
from pipeline.core.resumable import SINGLE_PROCESS, Compute, ShardGroup, compute_rows

ATTRS = {"index": "abc", "parts": ["head", "legs"]}
BATCH = 8


def random_rows(count: int) -> Arrays:
    """A map of 2 kB, 1.2 kB of features and a number for each of `count` images."""
    rng = np.random.default_rng(count)
    return {
        "map": rng.integers(0, 9, (count, 64, 32), np.uint8),
        "number": np.arange(count, dtype=np.int32),
        "part": rng.random((count, 300), np.float32),
    }


def compute_batch(count: int, pause: float, start: int, stop: int) -> Arrays:
    """Rows `start` to `stop` of `random_rows(count)`, after `pause` seconds."""
    time.sleep(pause)
    return {name: array[start:stop] for name, array in random_rows(count).items()}


def make_compute(count: int, pause: float = 0.0) -> Compute:
    return partial(compute_batch, count, pause)


def compute_file(
    path: Path | str,
    count: int = 300,
    workers: int = 1,
    pause: float = 0.0,
    group: ShardGroup = SINGLE_PROCESS,
) -> None:
    """Let workers write `random_rows(count)` to a label file in batches of 8, each after `pause` seconds."""
    make = partial(make_compute, count, pause)
    compute_rows(path, "maps", count, BATCH, make, ATTRS, workers, group=group)


def make_failing() -> Compute:
    """What fails at every batch."""

    def fail(start: int, stop: int) -> Arrays:
        raise BadInput("weights.pth: not a checkpoint.")

    return fail


def make_failing_from(row: int, count: int) -> Compute:
    """What computes the batches before a row, and fails at those after."""

    def compute(start: int, stop: int) -> Arrays:
        if start >= row:
            raise BadInput(f"row {row}: broken.")
        return compute_batch(count, 0, start, stop)

    return compute
