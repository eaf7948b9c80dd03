"""Multiply-adds and parameters of any method, as it is printed: the same row for each."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from benchmarks.complexity.counts import BATCH, VIT, any_device, meta_batch
from pipeline.batches.views import Batch
from pipeline.core import params
from pipeline.methods.base import DataSpec, Method, load_method
from pipeline.methods.presets import resolve
from pipeline.model.backbones import untrained_vit

M, G = 1e6, 1e9


def row(name: str, spec: DataSpec, **changes: Any) -> dict[str, Any]:
    """What a method costs with the preset `paper`, but for `changes` of its params.

    A training image counts with all views that the method takes of it and all steps in which it is.
    """
    model: Any = meta_method(name, spec, **changes)
    down, across = model.encoder.grid
    forward, both = (training_cost(model, meta_batch(spec, BATCH), backward) for backward in (False, True))
    return {
        "stride": model.encoder.stride,
        "patches": down * across,
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / M, 6),
        "inference_parameters_m": round(embedding_parameters(model, meta_batch(spec, 1)) / M, 6),
        "embedding_gmac": round(embedding_cost(model, meta_batch(spec, 1)) / G, 6),
        "training_gmac": {
            "forward": round(forward / G, 6),
            "forward_and_backward": round(both / G, 6),
        },
    }


def meta_method(name: str, spec: DataSpec, **changes: Any) -> Method:
    """A method around `VIT`, with the preset `paper`, on the device `meta`."""
    module = load_method(name)
    settings = params.read(ROOT / "params.yaml", name, module.Params)
    settings = resolve(replace(settings, preset="paper", **changes), module.PRESETS, "paper", name)
    with torch.device("meta"):
        return module.build(settings, spec, untrained_vit({"name": VIT}))


def embedding_cost(model: Method, batch: Batch) -> float:
    """Multiply-adds to embed an image."""
    with FlopCounterMode(display=False) as counter, any_device():
        model.eval().embed(batch)
    return counter.get_total_flops() / 2 / len(batch.pid)


def training_cost(model: Method, batch: Batch, backward: bool) -> float:
    """Multiply-adds of a training batch's objectives for one of its images.

    What `begin_epoch` computes is not counted.
    """
    with FlopCounterMode(display=False) as counter, any_device():
        for objective in model.train().objectives(batch):
            if backward:
                objective.loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2 / len(batch.pid)


class _Reads(TorchDispatchMode):
    """Keeps the tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.read[id(value)] = value
        return func(*args, **(kwargs or {}))


def embedding_parameters(model: Method, batch: Batch) -> int:
    """Numbers of the parameters that embedding an image reads."""
    with _Reads() as reads, any_device():
        model.eval().embed(batch)
    return sum(p.numel() for p in model.parameters() if id(p) in reads.read)
