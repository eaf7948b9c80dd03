"""The number of workers and their progress bar."""

import os
import sys
from typing import Any

from tqdm import tqdm


def num_cores() -> int:
    """Processor cores that this process may use: the number of workers for `workers: 0`."""
    return len(os.sched_getaffinity(0))


def progress_bar(**kwargs: Any) -> tqdm:
    """tqdm's bar; in a log file, it prints a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(unit=kwargs.pop("unit", "img"), mininterval=interval, dynamic_ncols=True, **kwargs)
