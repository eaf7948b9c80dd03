"""The matrix product to compare features with: the fastest of the machine that is still float32.

PyTorch's own choice is MKL, which on processors of other makers takes a slower path than oneDNN does.  The
switch that hands products to oneDNN would allow bfloat16 on processors that multiply it in hardware, so
what comes out is compared with float64 first.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.model import machine

PLAIN, ONEDNN = "ieee", "bf16"  # how PyTorch names them; on processors without AMX both are float32
EXACT = 4e-6  # greatest error of a product of unit vectors; float32's is 4e-7, bfloat16's 4e-3
ROWS, COLUMNS, TRIES = 256, 512, 3  # of the trial

log = logging.getLogger(__name__)


@contextmanager
def chosen(width: int, device: str | torch.device, before: str = "") -> Iterator[str]:
    """Products of `width` channels are made the fastest way inside the block, whose name is given.

    Work that began elsewhere goes on with the product `before`, as long as that is float32: which is faster
    by a hair may differ there, and so would the last digits.
    """
    if torch.device(device).type == "cuda":
        with _set(torch.backends.cuda.matmul, PLAIN):  # no TF32, whatever the caller's settings
            yield PLAIN
        return
    name = before if before and trial(before, width) is not None else fastest(width)
    with _set(torch.backends.mkldnn.matmul, name):
        yield name


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose products take one core each; the caller's own number of cores comes back afterwards."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@functools.cache
def fastest(width: int) -> str:
    """The faster of both products on one thread, as the machine's first trial found, if it is float32."""
    with threads(1) as alone:
        plain, onednn = (alone.submit(trial, name, width).result() for name in (PLAIN, ONEDNN))
    if onednn is None:
        return PLAIN
    question = f"how many times as fast: onednn's products of {width} channels, to compare features"
    return ONEDNN if machine.remembered(question, torch.device("cpu"), lambda: plain / onednn) > 1 else PLAIN


def trial(name: str, width: int, product: Callable[[Tensor, Tensor], Tensor] = torch.mm) -> float | None:
    """Seconds of a trial, or none, and a line in the log, if the product is not float32."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator)) for n in (ROWS, COLUMNS)
    )
    with _set(torch.backends.mkldnn.matmul, name):
        error = (product(left, right.T) - left.double() @ right.double().T).abs().max().item()
        if name != PLAIN and error > EXACT:
            log.warning(
                "products by oneDNN are off by %.1e on this processor: PyTorch's own are taken", error
            )
            return None
        return min(_seconds(lambda: product(left, right.T)) for _ in range(TRIES))


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


@contextmanager
def _set(backend: object, name: str) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = name
    try:
        yield
    finally:
        backend.fp32_precision = before
