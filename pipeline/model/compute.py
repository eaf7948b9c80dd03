"""How networks compute: their precision, the library that multiplies matrices, the kernel of attention.

`auto` in the params stands for a fixed choice (`resolve`), by the kind of device and processor alone, so that
two runs on machines of one kind compute alike:

    device                                    precision   attention  compile
    CPU with instructions for bfloat16        bfloat16    math       no
    any other CPU                             float32     math       no
    GPU that computes in bfloat16             bfloat16    sdpa       yes
    any other GPU                             float32     sdpa       from compute capability 7.0

On a CPU `sdpa`, PyTorch's fused kernel, takes 1.2 to 7 times as long in bfloat16; in float32 it would save up
to 15 % of a step on processors where MKL is fast.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.params import BadInput

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Matmul = Literal["default", "onednn"]  # of float32 matrices on a CPU
Attention = Literal["auto", "math", "sdpa"]  # see `dot_product_attention`
Compile = Literal["auto"] | bool  # see `compile_layers`

ATTENTION: dict[str, Attention] = {"cpu": "math", "cuda": "sdpa"}  # what `auto` stands for
COMPILE_FROM = (7, 0)  # CUDA compute capability that Triton, which torch.compile uses, supports
ROUNDING = 1e-5  # of the largest number in a product: float32 stays below 2e-6, bfloat16 is near 1e-3


class Compute(NamedTuple):
    """How a network computes, by the names that the params give it."""

    precision: Precision
    matmul: Matmul
    attention: Attention


def resolve(compute: Compute, device: torch.device) -> Compute:
    """`compute` with each `auto` replaced by what it stands for on `device`."""
    precision: Any = str(dtype(compute.precision, device)).removeprefix("torch.")
    return Compute(precision, compute.matmul, attention_kernel(compute.attention, device))


@contextlib.contextmanager
def inference_mode(model: nn.Module, device: torch.device, compute: Compute) -> Iterator[None]:
    """Within it, `model` computes on `device` as `compute` says; its attention kernel stays so."""
    compute = resolve(compute, device)
    precision = getattr(torch, compute.precision)
    set_attention(model, compute.attention)
    with (
        float32_matmul(compute.matmul),
        torch.autocast(device.type, precision, precision != torch.float32),
    ):
        yield


# ------------------------------------------------------------------ precision


def dtype(name: Precision, device: torch.device) -> torch.dtype:
    """What networks compute in under autocast; weights and losses are float32 in any case."""
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16, which makes it the faster choice."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


# ------------------------------------------------------------------ products of float32 matrices


@contextlib.contextmanager
def float32_matmul(name: Matmul) -> Iterator[None]:
    """Within it, products of float32 matrices are float32: on a CPU by library `name`, on a GPU without TF32.

    `default` is what PyTorch ships for the CPU (MKL); `onednn` is 6 % faster for a ViT-B on AMD's Zen 4.
    Raises `BadInput` if oneDNN is asked for where it rounds float32 to bfloat16 (on CPUs with AMX).
    """
    if name == "onednn" and not _onednn_is_exact():
        raise BadInput("matmul = onednn: rounds float32 to bfloat16 on this machine. Set it to default.")
    with _matmul_library(name):
        yield


@cache
def _onednn_is_exact() -> bool:
    return matmul_rounding("onednn") <= ROUNDING


def matmul_rounding(name: Matmul) -> float:
    """Greatest error of a product of two float32 matrices, as a share of its largest number."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(768, 768, generator=generator) for _ in range(2))
    with _matmul_library(name):
        product, exact = a @ b, a.double() @ b.double()
    return float((product - exact).abs().max() / exact.abs().max())


@contextlib.contextmanager
def _matmul_library(name: Matmul) -> Iterator[None]:
    # PyTorch hands products to oneDNN where they may be rounded to bfloat16, which oneDNN does only on CPUs
    # with tiles for it (AMX): elsewhere they stay float32, which `_onednn_is_exact` checks
    backends: Any = torch.backends
    cpu, cuda = backends.mkldnn.matmul, (backends.cuda.matmul, backends.cudnn.conv)
    inside = {cpu: "bf16" if name == "onednn" else "ieee"} | dict.fromkeys(cuda, "ieee")
    before = {backend: backend.fp32_precision for backend in inside}
    try:
        _set_fp32_precision(inside)
        yield
    finally:
        _set_fp32_precision(before)


def _set_fp32_precision(precisions: dict[Any, str]) -> None:
    for backend, precision in precisions.items():
        backend.fp32_precision = precision


# ------------------------------------------------------------------ attention


def dot_product_attention(
    query: Float[Tensor, "B heads Q d"],
    key: Float[Tensor, "B heads L d"],
    value: Float[Tensor, "B heads L d"],
    fused: bool,
) -> Float[Tensor, "B heads Q d"]:
    """softmax(q k / sqrt(d)) v for each head: by PyTorch's fused kernel (`sdpa`), or written out (`math`)."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value)
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1).to(value.dtype) @ value


def attention_kernel(name: Attention, device: torch.device) -> Attention:
    """`math` or `sdpa`; `auto` is replaced by what it stands for on `device`."""
    return ATTENTION[device.type] if name == "auto" else name


def set_attention(model: nn.Module, kernel: Attention) -> None:
    """Let every attention layer of `model`, timm's included, compute by `kernel`: `math` or `sdpa`."""
    layers: Iterator[Any] = model.modules()
    for layer in layers:
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = kernel == "sdpa"


# ------------------------------------------------------------------ torch.compile


def should_compile(name: Compile, device: torch.device) -> bool:
    """Whether to compile a model's layers; `auto`: on a GPU that torch.compile supports."""
    if name == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= COMPILE_FROM
    return name


def compile_layers(model: nn.Module) -> None:
    """Let `torch.compile` make one program of each transformer layer of `model`, at its first use.

    That takes half a minute and a C++ compiler.  On a CPU it saves up to 10 % of a small ViT's time, and
    nothing of a ViT-B's.
    """
    for module in model.modules():
        if any(hasattr(child, "fused_attn") for child in module.children()):
            module.compile()


# ------------------------------------------------------------------ processor and memory


def processor(device: torch.device) -> str:
    """The kind of processor: a GPU's name, or a CPU's instruction sets.  Equal kinds round numbers alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = torch.cpu.get_capabilities()
    sets = sorted(name for name, value in capabilities.items() if value is True)
    return f"{capabilities['architecture']}: {' '.join(sets)}"


# limits of glibc's mallopt(3): bytes that stay when memory is freed; of a block that is mapped; mapped blocks
TRIM, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEP = {TRIM: -1, MMAP_MAX: 0}  # free nothing, map nothing
# the greatest values that glibc's own limits reach as blocks are freed
USUAL = {TRIM: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within it, memory that the main thread's CPU tensors free stays with the process.

    glibc gives large blocks back to the system, which clears every page of them before it hands them out
    again: up to a sixth of the CPU time of a ViT-B's step in float32.  The limits are those of the whole
    process; afterwards they are the usual ones, not those that a user had set by `MALLOC_*`.  Other C
    libraries are left as they are.
    """
    _mallopt(KEEP)
    try:
        yield
    finally:
        _mallopt(USUAL)
        _call_libc("malloc_trim", 0)


def _mallopt(limits: dict[int, int]) -> None:
    for limit, value in limits.items():
        _call_libc("mallopt", limit, value)


def _call_libc(name: str, *arguments: int) -> None:
    if function := getattr(ctypes.CDLL(None), name, None):
        function(*arguments)
