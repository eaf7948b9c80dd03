"""Worker processes, their number and their progress bar."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tqdm import tqdm


def num_cores() -> int:
    """Processor cores that this process may use: the number of workers for `workers: 0`."""
    return len(os.sched_getaffinity(0))


class WorkerPool(ProcessPoolExecutor):
    """Spawned worker processes.  They ignore Ctrl-C, and end without a word when it stops this process."""

    def __init__(self, workers: int, start: Callable[..., object] | None = None, arguments: tuple = ()):
        super().__init__(workers, multiprocessing.get_context("spawn"), start, arguments)

    def submit(self, *args: Any, **kwargs: Any) -> Future:
        """As of any executor; starts a worker if none is idle."""
        with _interrupts_ignored():  # which the worker inherits
            return super().submit(*args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            stop_workers()
        self.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone handle signals
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def stop_workers() -> None:
    """Terminate the worker processes that this process started."""
    for process in multiprocessing.active_children():
        process.terminate()


def progress_bar(**kwargs: Any) -> tqdm:
    """tqdm's bar; in a log file, it prints a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(unit=kwargs.pop("unit", "img"), mininterval=interval, dynamic_ncols=True, **kwargs)
