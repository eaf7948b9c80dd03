"""How many workers compute, and how they show their progress."""

import os
import sys
from typing import Any

from tqdm import tqdm


def num_cores() -> int:
    """Processor cores that this process may use; what `workers: 0` means."""
    return len(os.sched_getaffinity(0))


def progress_bar(**kwargs: Any) -> tqdm:
    """A progress bar with rate and time left; on a log file, a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(unit=kwargs.pop("unit", "img"), mininterval=interval, dynamic_ncols=True, **kwargs)
