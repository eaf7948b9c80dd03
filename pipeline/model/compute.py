"""How networks compute: their precision, the library that multiplies matrices, the kernel of attention.

Each is named in the params, or chosen for the device at hand: what a measurement finds clearly faster is
taken, if it is exact.  A choice moves last digits, no more; a machine measures once, so that all its runs
choose alike.
"""

import contextlib
import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.core.params import BadInput
from pipeline.model import machine

Precision = Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 where a machine computes in it
Products = Literal["auto", "stock", "onednn"]  # of float32 matrices on a CPU
Attention = Literal["auto", "written", "fused"]  # see `attend`
Compile = Literal["auto"] | bool  # see `compile_layers`


class Compute(NamedTuple):
    """How a network computes, by the names that params give it."""

    precision: Precision
    products: Products
    attention: Attention


ROUNDING = 1e-5  # of the largest number in a product: float32 stays below 2e-6, bfloat16 is near 1e-3
FASTER = 1.5  # times, or the choice would hang on the load of the moment
WORTH = 1.1  # times, for half a minute of compiling
ROWS, CHANNELS = 1024, 768  # of a ViT-B and some images
HEADS = {"cpu": (4, 12, 137, 64), "cuda": (64, 12, 137, 64)}  # images, heads, tokens, channels, likewise
ROUNDS = 9

log = logging.getLogger(__name__)


def precision(name: Precision, device: torch.device) -> torch.dtype:
    """What networks compute in; weights and losses are float32 in any case."""
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16, so that it is the faster choice."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve(how: Compute, device: torch.device) -> Compute:
    """The same, with what each `auto` stands for on a device."""
    dtype = precision(how.precision, device)
    name = str(dtype).removeprefix("torch.")
    return Compute(
        name, matmul_library(how.products), attention_kernel(how.attention, device, dtype, how.products)
    )


@contextlib.contextmanager
def inference_mode(model: nn.Module, device: torch.device, how: Compute) -> Iterator[None]:
    """Within it, a model that does not learn computes on a device as it is told, its attention for good."""
    how = resolve(how, device)
    dtype = getattr(torch, how.precision)
    set_attention(model, how.attention)
    with float32_matmul(how.products), torch.autocast(device.type, dtype, dtype != torch.float32):
        yield


# ------------------------------------------------------------------ products of float32


@contextlib.contextmanager
def float32_matmul(name: Products) -> Iterator[None]:
    """Within it, float32 is float32: on a CPU by the library that `name` says, on a GPU without TF32."""
    with _by(matmul_library(name)):
        yield


def matmul_library(name: Products) -> str:
    """`stock`, what PyTorch ships for it (MKL, slower on CPUs that are not Intel's), or `onednn`.

    Raises `BadInput` if oneDNN is asked for, and rounds its products on this machine.
    """
    if name == "onednn" and not _onednn_is_exact():
        raise BadInput(
            "params.yaml: products = onednn: rounds float32 to bfloat16 on this machine. Set stock or auto."
        )
    return _fastest_library() if name == "auto" else name


@cache
def _fastest_library() -> str:
    return "onednn" if _onednn_is_exact() and _onednn_is_faster() > FASTER else "stock"


@cache
def _onednn_is_exact() -> bool:
    return _rounding("onednn") <= ROUNDING


@contextlib.contextmanager
def _by(library: str) -> Iterator[None]:
    # PyTorch hands products to oneDNN where they may be rounded to bfloat16, which oneDNN does only on CPUs
    # with tiles for it (AMX): elsewhere they stay float32, which `_rounding` checks
    cpu, cuda = torch.backends.mkldnn.matmul, (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    wanted = {cpu: "bf16" if library == "onednn" else "ieee"} | dict.fromkeys(cuda, "ieee")
    before = {switch: switch.fp32_precision for switch in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(before)


def _set(precisions: dict[Any, str]) -> None:
    for switch, precision in precisions.items():
        switch.fp32_precision = precision


def _rounding(library: str) -> float:
    """Greatest error of a product, as a share of its largest number."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(CHANNELS, CHANNELS, generator=draw) for _ in range(2))
    with _by(library):
        return _error(a @ b, a.double() @ b.double())


def _onednn_is_faster() -> float:
    a, b = torch.ones(ROWS, CHANNELS), torch.ones(CHANNELS, 4 * CHANNELS)

    def multiply(library: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with _by(library):
                return a @ b

        return run

    question = f"onednn's products of {ROWS} rows and {CHANNELS} channels"
    return _times_faster(question, multiply("onednn"), multiply("stock"), torch.device("cpu"))


# ------------------------------------------------------------------ attention


def dot_product_attention(
    query: Float[Tensor, "B heads Q d"],
    key: Float[Tensor, "B heads L d"],
    value: Float[Tensor, "B heads L d"],
    fused: bool,
) -> Float[Tensor, "B heads Q d"]:
    """softmax(q k / sqrt(d)) v, for each head: written out, or by PyTorch's fused kernel.

    On a CPU that kernel takes 1.2 to 7 times as long for a step in bfloat16 or with oneDNN's products, and
    saves up to 15 % in float32 with MKL's.
    """
    if fused:
        return F.scaled_dot_product_attention(query, key, value)
    return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1).to(value.dtype) @ value


def attention_kernel(
    name: Attention, device: torch.device, precision: torch.dtype, products: Products = "auto"
) -> str:
    """`written` or `fused`: what `attend` shall be, beside such products; `auto` asks a trial."""
    return _fastest_kernel(device, precision, matmul_library(products)) if name == "auto" else name


def set_attention(model: nn.Module, kernel: str) -> None:
    """Let all attention of a model be computed so, timm's included."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = kernel == "fused"


@cache
def _fastest_kernel(device: torch.device, precision: torch.dtype, library: str) -> str:
    with _by(library):
        fused, written = (_attention_error(f, device, precision) for f in (True, False))
        faster = fused <= 2 * written and _fused_is_faster(device, precision, library) > FASTER
        return "fused" if faster else "written"


def _attention_error(fused: bool, device: torch.device, precision: torch.dtype) -> float:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(HEADS["cpu"], generator=draw).to(device, precision) for _ in range(3)]
    return _error(
        dot_product_attention(*inputs, fused), dot_product_attention(*(t.double() for t in inputs), False)
    )


def _fused_is_faster(device: torch.device, precision: torch.dtype, library: str) -> float:
    shape = HEADS[device.type]
    inputs = [torch.ones(shape, device=device, dtype=precision, requires_grad=True) for _ in range(3)]

    def attending(fused: bool) -> Callable[[], object]:
        return lambda: torch.autograd.grad(
            dot_product_attention(*inputs, fused).sum(), inputs
        )  # forward and back

    question = f"fused attention of {shape} in {precision}, beside {library} products"
    return _times_faster(question, attending(True), attending(False), device)


# ------------------------------------------------------------------ layers as one program


def compile_layers(model: nn.Module) -> None:
    """Let `torch.compile` make one program of each of a model's layers, at their first use.

    That takes half a minute and a C++ compiler.  On a CPU it then saves up to 10 % of a small ViT's time, and
    nothing of a ViT-B's.
    """
    for module in model.modules():
        if any(hasattr(child, "fused_attn") for child in module.children()):
            module.compile()


def should_compile(name: Compile, model: nn.Module, device: torch.device, precision: torch.dtype) -> bool:
    """Whether to compile a model's layers; `auto`: on a GPU, if a trial of the first one is faster."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return False
    first = next(module for module in model.modules() if isinstance(module, Block))
    return times_faster_compiled(first, device, precision) > WORTH


@cache
def times_faster_compiled(layer: Block, device: torch.device, precision: torch.dtype) -> float:
    """How many times as fast a layer learns once it is compiled; 0, and a line in the log, if that fails.

    0 too if what it gives differs by more than the precision's rounding.
    """
    plain, compiled = (copy.deepcopy(layer).to(device) for _ in range(2))
    compiled.compile()
    images, _, length, _ = HEADS[device.type]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, length, layer.norm1.normalized_shape[0], generator=draw).to(device)
    tokens.requires_grad_()

    def learning(network: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast(device.type, precision, precision != torch.float32):
                found = network(tokens)
            torch.autograd.grad(found.float().square().mean(), [tokens, *network.parameters()])
            return found.detach().float()

        return run

    try:
        off = _error(learning(compiled)(), learning(plain)())
    except Exception as error:  # of whichever compiler is asked
        log.warning("torch.compile cannot be used here: %s", str(error).split("\n")[0])
        return 0.0
    exact = off <= max(ROUNDING, 4 * torch.finfo(precision).eps)
    question = f"a compiled layer of {tuple(tokens.shape)}, {layer.attn.num_heads} heads in {precision}"
    return _times_faster(question, learning(compiled), learning(plain), device) if exact else 0.0


# ------------------------------------------------------------------ measured


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _times_faster(
    what: str, new: Callable[[], object], old: Callable[[], object], device: torch.device
) -> float:
    """How many times as long as `new` the `old` takes, as this machine found it when it was first asked."""
    return machine.remembered(f"how many times as fast: {what}", device, lambda: _compare(new, old, device))


def _compare(new: Callable[[], object], old: Callable[[], object], device: torch.device) -> float:
    """The median of some rounds.

    Both run in turn, and on a CPU by one thread, whose own time counts: so the machine's load hardly does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return statistics.median(_seconds(old, device) / _seconds(new, device) for _ in range(ROUNDS))
    finally:
        torch.set_num_threads(threads)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = _clock(device)
    run()
    return _clock(device) - start


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
