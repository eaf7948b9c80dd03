"""A stand-in for a GPU: tensors that report the device `cuda`, computed by the CPU.

Code that runs on it has every tensor where CUDA wants it.  As CUDA does, the stand-in refuses

- operands of one operation that lie on different devices, but for indices and single numbers;
- to show NumPy a tensor that has not been copied to the CPU.

Under autocast it computes in float32 what CUDA's autocast does and the CPU's does not, so that dtypes are
those of CUDA.  It is no faster than the CPU, whose memory it uses.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
# what autocast computes in float32 on CUDA, by PyTorch's documentation of torch.amp
FLOAT32 = {
    "__pow__", "__rdiv__", "__rpow__", "__rtruediv__", "acos", "asin", "binary_cross_entropy_with_logits",
    "cosh", "cosine_embedding_loss", "cdist", "cosine_similarity", "cross_entropy", "cumprod", "cumsum",
    "dist", "erfinv", "exp", "expm1", "group_norm", "hinge_embedding_loss", "kl_div", "l1_loss",
    "layer_norm", "log", "log10", "log_softmax", "log1p", "log2", "margin_ranking_loss", "mse_loss",
    "nll_loss", "norm", "normalize", "pdist", "pow", "prod", "reciprocal", "rsqrt", "sinh",
    "smooth_l1_loss", "softmax", "softmin", "softplus", "sum", "renorm", "tan", "triplet_margin_loss"
}  # fmt: skip
# operations between a GPU tensor and tensors of the CPU
MIXING = {"copy_", "__getitem__", "__setitem__", "_has_compatible_shallow_copy_type"}
MOVES = {"to", "cpu", "cuda"}


def is_on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, "is_on_gpu", False)


class _Calls(TorchFunctionMode):
    """Intercepts every call of PyTorch: checks the operands' devices and sets the result's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return _attribute(function, name, args)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_gpu = any(map(is_on_gpu, tensors))
        if name in MOVES:
            return _moved(function, name, args, kwargs)
        if name == "pin_memory":
            return args[0].clone(memory_format=torch.preserve_format)
        if on_gpu and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        on_cpu = [tuple(value.shape) for value in tensors if value.ndim and not is_on_gpu(value)]
        if on_gpu and on_cpu and name not in MIXING:
            raise RuntimeError(f"{name}: found tensors on cuda:0, but those of {on_cpu} on cpu")
        if on_gpu and name in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        kwargs.pop("pin_memory", None)
        device = kwargs.pop("device", None)
        target = on_gpu if device is None else torch.device(device).type == "cuda"
        return _placed(function(*args, **kwargs), target, tensors)


def _attribute(function, name, args):
    attribute = getattr(function.__self__, "__name__", "")
    if name == "__get__":
        if attribute in ("device", "is_cuda", "is_cpu") and is_on_gpu(args[0]):
            return {"device": CUDA, "is_cuda": True, "is_cpu": False}[attribute]
        return _placed(function(*args), is_on_gpu(args[0]), args[:1])
    if attribute == "data":
        args[0].is_on_gpu = is_on_gpu(args[1])
    elif isinstance(args[1], Tensor) and is_on_gpu(args[0]) != is_on_gpu(args[1]):
        raise RuntimeError(f"{attribute}: assigned a tensor of another device")
    return function(*args)


def _moved(function, name, args, kwargs):
    tensor, *words = args
    words += [kwargs.pop("device", None), kwargs.pop("dtype", None)]
    kwargs.pop("non_blocking", None)
    target = {"cpu": False, "cuda": True}.get(name, is_on_gpu(tensor))
    dtype = tensor.dtype
    for word in words:
        if isinstance(word, str | torch.device):
            target = torch.device(word).type == "cuda"
        elif isinstance(word, Tensor):
            target, dtype = is_on_gpu(word), word.dtype
        elif isinstance(word, torch.dtype):
            dtype = word
    copy = kwargs.pop("copy", False) or target != is_on_gpu(tensor)
    return _placed(Tensor.to(tensor, dtype, copy=copy, **kwargs), target, args)


def _widened(value: Any) -> Any:
    if is_on_gpu(value) and value.dtype in (torch.float16, torch.bfloat16):
        return _placed(value.float(), True)
    return value


def _placed(result: Any, on_gpu: bool, operands: Any = ()) -> Any:
    known = {id(value) for value in operands}
    for value in tree_leaves(result):
        if isinstance(value, Tensor) and id(value) not in known:
            value.is_on_gpu = on_gpu
    return result


class _Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu", *args, **kwargs)


class _Scaler(torch.amp.GradScaler):
    def __init__(self, device="cuda", **kwargs):
        super().__init__("cpu", **kwargs)


@contextmanager
def stand_in() -> Iterator[None]:
    """Inside it, PyTorch sees one GPU, in every thread."""
    run = threading.Thread.run

    def with_gpu(thread: threading.Thread) -> None:
        with _Calls():
            run(thread)

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "synchronize": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True,
        "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (1 << 30, 1 << 30),  # bytes: free, all
        "get_device_name": lambda *_: "stand-in",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    replaced = [
        (threading.Thread, "run", with_gpu),
        (torch, "autocast", _Autocast),
        (torch.amp, "GradScaler", _Scaler),
        (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None),
        *((torch.cuda, name, value) for name, value in cuda.items()),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_Calls())
        yield
