"""What networks compute in: the precision, and the library that multiplies matrices.

Both are chosen for the device at hand, or named in the params.  The choice moves last digits, no more: a
library that turns out to round further than float32 does is not taken.
"""

import contextlib
import time
from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 where a machine computes in it
Products = Literal["auto", "stock", "onednn"]  # of float32 matrices on a CPU; auto: the faster one, if exact

ROUNDING = 1e-5  # of the largest number in a product: float32 stays below 2e-6, bfloat16 is near 1e-3
FASTER = 1.3  # times, or the choice would hang on the load of the moment
ROWS, CHANNELS = 1024, 768  # of a ViT-B and some images


def precision(name: Precision, device: torch.device) -> torch.dtype:
    """What networks compute in; weights and losses are float32 in any case."""
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16, so that it is the faster choice."""
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def products(name: Products) -> Iterator[None]:
    """Within it, matrices of float32 are multiplied on a CPU by the library that `name` says."""
    with _by(library(name)):
        yield


def library(name: Products) -> str:
    """`stock`, what PyTorch ships for it (MKL, slower on CPUs that are not Intel's), or `onednn`."""
    return chosen() if name == "auto" else name


@cache
def chosen() -> str:
    """oneDNN where it is exact to float32's rounding and clearly faster, else stock."""
    if _rounding("onednn") > ROUNDING:
        return "stock"
    return "onednn" if FASTER * _seconds("onednn") < _seconds("stock") else "stock"


@contextlib.contextmanager
def _by(library: str) -> Iterator[None]:
    # PyTorch hands products to oneDNN where they may be rounded to bfloat16, which oneDNN does only on CPUs
    # with tiles for it (AMX): elsewhere they stay float32, which `_rounding` checks
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16" if library == "onednn" else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def _rounding(library: str) -> float:
    """Greatest error of a product, as a share of its largest number."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(CHANNELS, CHANNELS, generator=draw) for _ in range(2))
    wanted = a.double() @ b.double()
    with _by(library):
        return float((a @ b - wanted).abs().max() / wanted.abs().max())


def _seconds(library: str) -> float:
    """CPU time of a product, the least of some: the load of the machine does not count."""
    a, b = torch.ones(ROWS, CHANNELS), torch.ones(CHANNELS, 4 * CHANNELS)
    taken = []
    with _by(library):
        for _ in range(6):
            start = time.process_time()
            a @ b
            taken.append(time.process_time() - start)
    return min(taken)
