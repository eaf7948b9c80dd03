"""Multiply-adds and parameters of OGFR, counted on the modules as they run."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from pipeline.batches.views import Batch, View
from pipeline.core import params
from pipeline.methods.base import DataSpec
from pipeline.methods.ogfr import model as ogfr_model
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import OGFR, build
from pipeline.methods.ogfr.params import PRESETS, Params
from pipeline.methods.presets import resolve
from pipeline.model.backbones import untrained_vit
from pipeline.model.layers import TransformerLayers

TABLE_9 = {"parameters_m": 121.7, "inference_gmac": 26.5}
VIT, CLASSES = "vit_base_patch16_224", 1000  # of ImageNet: the pre-trained weights' own classifier
OCCLUDED_DUKE = DataSpec((256, 128), identities=702, cameras=8, coarse=4, trained_cameras=tuple(range(8)))
BATCH = 64
M, G = 1e6, 1e9


def count(settings: Params, spec: DataSpec) -> dict[str, Any]:
    """Everything that is printed."""
    model = meta_model(settings, spec, VIT)
    image, training_batch = meta_batch(spec, 1), meta_batch(spec, BATCH)
    whole, pruned = inference(model, image, whole=True), inference(model, image)
    return {
        "vit": VIT,
        "size": spec.size,
        "stride": settings.stride,
        "patches": model.encoder.grid[0] * model.encoder.grid[1],
        "identities": spec.identities,
        "table_9": TABLE_9,
        "inference_gmac": _rounded(whole, G),
        "inference_of_table_9": round(sum(whole.values()) / G / TABLE_9["inference_gmac"], 4),
        "inference_pruned_gmac": _rounded(pruned, G),
        "training_gmac_per_pair": {
            "forward": _rounded(training(model, training_batch, backward=False), G),
            "forward_and_backward": _rounded(training(model, training_batch, backward=True), G),
        },
        "parameters_m": _rounded(parameters(model), M),
        "inference_parameters_m": _rounded({n: parameters(model)[n] for n in ("encoder", "student")}, M),
        "heads": heads(model),
    }


def _rounded(parts: Mapping[str, float], unit: float) -> dict[str, float]:
    return {name: round(n / unit, 6) for name, n in {**parts, "all": sum(parts.values())}.items()}


# ------------------------------------------------------------------ the networks on the device meta


def paper_params() -> Params:
    """OGFR's parameters as the paper prints them."""
    settings = dataclasses.replace(params.read(ROOT / "params.yaml", "ogfr", Params), preset="paper")
    return resolve(settings, PRESETS, "paper", "ogfr")


def meta_model(settings: Params, spec: DataSpec, name: str) -> OGFR:
    """OGFR around a ViT of timm, on the device `meta`."""
    with torch.device("meta"):
        return build(settings, spec, untrained_vit({"name": name}))


def meta_batch(spec: DataSpec, images: int) -> Batch:
    """Both views of `images` images, on the device `meta`."""

    def view() -> View:
        hidden = torch.zeros(images, spec.coarse, dtype=torch.bool)
        return View(torch.zeros(images, 3, *spec.size), covered.to(torch.uint8), hidden)

    camid = torch.zeros(images, dtype=torch.long)  # its maximum is read, so it has values
    with torch.device("meta"):
        covered = torch.zeros(images, *spec.size, dtype=torch.bool)
        pid = torch.zeros(images, dtype=torch.long)
        return Batch(view(), camid, pid, view(), covered)


# ------------------------------------------------------------------ multiply-adds


class _Function(nn.Module):
    """A function as a module, so that it is counted by itself."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class _Run(nn.Module):
    """A run of a method, as one module whose children are the parts that are counted."""

    def __init__(self, model: OGFR, run: Callable[[OGFR], Any]):
        super().__init__()
        self.model, self.run, self.correlation = model, run, _Function(correlation)

    def forward(self) -> Any:
        with mock.patch.object(ogfr_model, "correlation", self.correlation), any_device():
            return self.run(self.model)


def any_device() -> Any:
    """A context in which `torch.autocast`, which does not know `meta`, stands for the CPU's."""
    autocast = torch.autocast
    return mock.patch.object(torch, "autocast", lambda *_, **__: autocast("cpu", enabled=False))


def multiply_adds(model: OGFR, run: Callable[[OGFR], Any]) -> dict[str, int]:
    """Multiply-adds of a run by part; `elsewhere` are the triplet's distances and the agent's scores."""
    with FlopCounterMode(display=False) as counter:
        _Run(model, run)()
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    names = ("encoder", "student", "decoder", "agent", "heads", "global_head")
    parts = {name: counts.get(f"_Run.model.{name}", 0) for name in names}
    parts["heads"] += parts.pop("global_head")
    parts["correlation"] = counts.get("_Run.correlation", 0)
    parts["elsewhere"] = counts["Global"] - sum(parts.values())
    return {name: n for name, n in parts.items() if n}


def inference(model: OGFR, batch: Batch, whole: bool = False) -> dict[str, float]:
    """Multiply-adds to embed one image, by part; with `whole`, the last layer computes all tokens."""

    def run(m: OGFR) -> None:
        all_tokens = mock.patch.object(TransformerLayers, "forward", _all_tokens) if whole else nullcontext()
        with all_tokens:
            m.embed(batch)

    counts = multiply_adds(model.eval(), run)
    return {name: n / len(batch.pid) for name, n in counts.items()}


def _all_tokens(layers: TransformerLayers, tokens: Tensor, num_tokens: int | None) -> Tensor:
    return nn.Sequential.forward(layers, tokens)[:, :num_tokens]


def training(model: OGFR, batch: Batch, backward: bool) -> dict[str, float]:
    """Multiply-adds of a step for one image and its occluded view, by part.

    Refreshing the baseline of Eq. 9, one pass every ten epochs, is not counted.  With `backward`, the small
    parts are one: the counter follows layers, and these parts are functions.
    """

    def run(m: OGFR) -> None:
        for objective in m.objectives(batch):
            if backward:
                objective.loss.backward()

    counts = multiply_adds(model.train(), run)
    model.zero_grad(set_to_none=True)
    if backward:
        layers = {name: counts[name] for name in ("encoder", "student", "decoder")}
        counts = {**layers, "elsewhere": sum(counts.values()) - sum(layers.values())}
    return {name: n / len(batch.pid) for name, n in counts.items()}


# ------------------------------------------------------------------ parameters


def parameters(model: OGFR) -> dict[str, int]:
    """Numbers of parameters by part, the necks' fixed biases included."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parts["heads"] += parts.pop("global_head")
    return {**parts, "erased": model.erased.numel()}


def heads(model: OGFR) -> dict[str, Any]:
    """How many heads, each a classifier and its neck, would make up Table 9's parameters.

    It depends on what else was counted: tools that walk over layers miss bare parameters (class and part
    tokens, embeddings), and a ViT may keep its 1000-way classifier unused.  Our count is of all parameters.
    """
    features, identities, width = model.heads.weight.shape
    head, paper = width * identities + 2 * width, TABLE_9["parameters_m"] * M
    rest = sum(n for name, n in parameters(model).items() if name != "heads")
    bare = sum(p.numel() for m in (model, model.encoder) for p in m.parameters(recurse=False))
    unused = CLASSES * (width + 1)
    without_heads = {
        "layers": rest - bare,
        "layers_and_unused_classifier": rest - bare + unused,
        "all": rest,
        "all_and_unused_classifier": rest + unused,
    }
    return {
        "ours": features + 1,  # i in {g, 1 ... K} of Eq. 19, shared by both branches; one for Eq. 20
        "each_m": round(head / M, 4),
        "table_9_by_what_counts": {name: _fit(paper, n, head) for name, n in without_heads.items()},
    }


def _fit(paper: float, rest: int, head: int) -> dict[str, Any]:
    """The number of heads beside `rest` parameters, and whether a whole number of them prints as Table 9."""
    total = (rest + round((paper - rest) / head) * head) / M
    fits = round(total, 1) == TABLE_9["parameters_m"]
    return {"heads": round((paper - rest) / head, 2), "all_m": round(total, 2), "prints_as_table_9": fits}
