"""What OGFR costs at the paper's size: `uv run python -m benchmarks.complexity` prints one JSON object.

Multiply-adds are those of every matrix product and convolution that the method itself runs, forward and
backward, as PyTorch counts them. The networks stand on the `meta` device, where tensors have shapes and no
values, so that no weights are needed.

Table 9's 26.5 G are the student's branch at stride 11.  What its 121.7 M hold is not said: `heads` tells how
many classifiers would make them up.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.worlds import ROOT
from pipeline.batches.views import Batch, View
from pipeline.core import params
from pipeline.methods.base import DataSpec
from pipeline.methods.ogfr import agent
from pipeline.methods.ogfr import model as ogfr_model
from pipeline.methods.ogfr.model import OGFR, build
from pipeline.methods.ogfr.params import PRESETS, Params
from pipeline.methods.presets import resolve
from pipeline.model import losses
from pipeline.model.backbones import untrained_vit
from pipeline.model.layers import TransformerLayers

TABLE_9 = {"parameters_m": 121.7, "inference_gmac": 26.5}
VIT, CLASSES = "vit_base_patch16_224", 1000  # of ImageNet: the pre-trained weights' own classifier
OCCLUDED_DUKE = DataSpec((256, 128), identities=702, cameras=8, coarse=4, trained_cameras=tuple(range(8)))
BATCH = 64
M, G = 1e6, 1e9


def main() -> None:
    """Count and print."""
    print(json.dumps(count(printed(), OCCLUDED_DUKE), indent=1))


def count(settings: Params, world: DataSpec) -> dict[str, Any]:
    """Everything that is printed."""
    model = shapes(settings, world, VIT)
    seen, learnt = batch(world, 1), batch(world, BATCH)
    whole, least = inference(model, seen, whole=True), inference(model, seen)
    return {
        "vit": VIT,
        "size": world.size,
        "stride": settings.stride,
        "patches": model.encoder.grid[0] * model.encoder.grid[1],
        "identities": world.identities,
        "table_9": TABLE_9,
        "inference_gmac": _rounded(whole, G),
        "inference_of_table_9": round(sum(whole.values()) / G / TABLE_9["inference_gmac"], 4),
        "inference_pruned_gmac": _rounded(least, G),
        "training_gmac_per_pair": {
            "forward": _rounded(training(model, learnt, backward=False), G),
            "forward_and_backward": _rounded(training(model, learnt, backward=True), G),
        },
        "parameters_m": _rounded(parameters(model), M),
        "inference_parameters_m": _rounded({n: parameters(model)[n] for n in ("encoder", "student")}, M),
        "heads": heads(model),
    }


def _rounded(parts: dict[str, float], unit: float) -> dict[str, float]:
    return {name: round(n / unit, 6) for name, n in {**parts, "all": sum(parts.values())}.items()}


# ------------------------------------------------------------------ the networks, as shapes


def printed() -> Params:
    """OGFR's parameters as the paper prints them."""
    given = replace(params.read(ROOT / "params.yaml", "ogfr", Params), preset="paper")
    return resolve(given, PRESETS, "paper", "ogfr")


def shapes(settings: Params, world: DataSpec, name: str) -> OGFR:
    """OGFR around a ViT of timm, on the device `meta`."""
    with torch.device("meta"):
        return build(settings, world, untrained_vit({"name": name}))


def batch(world: DataSpec, images: int) -> Batch:
    """Both views of so many images, on the device `meta`."""

    def view() -> View:
        hidden = torch.zeros(images, world.coarse, dtype=torch.bool)
        return View(torch.zeros(images, 3, *world.size), covered.to(torch.uint8), hidden)

    camid = torch.zeros(images, dtype=torch.long)  # its greatest value is num_tokens for, so it has values
    with torch.device("meta"):
        covered = torch.zeros(images, *world.size, dtype=torch.bool)
        pid = torch.zeros(images, dtype=torch.long)
        return Batch(view(), camid, pid, view(), covered)


# ------------------------------------------------------------------ multiply-adds


class _Function(nn.Module):
    """A function as a module, so that its share is told apart."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class _Run(nn.Module):
    """A method and what is done with it, as one module whose children are the parts."""

    def __init__(self, model: OGFR, run: Callable[[OGFR], Any]):
        super().__init__()
        self.model, self.run, self.correlation = model, run, _Function(agent.correlation)

    def forward(self) -> Any:
        with mock.patch.object(ogfr_model, "correlation", self.correlation), _any_device():
            return self.run(self.model)


def _any_device() -> Any:
    on_meta = lambda like: nullcontext()  # noqa: E731  autocast does not know the device
    return mock.patch.object(losses, "exact", on_meta)


def multiply_adds(model: OGFR, run: Callable[[OGFR], Any]) -> dict[str, int]:
    """Multiply-adds of a run, by part; `elsewhere` are the triplet's distances and the agent's scores."""
    with FlopCounterMode(display=False) as counter:
        _Run(model, run)()
    found = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    names = ("encoder", "student", "decoder", "agent", "heads", "global_head")
    parts = {name: found.get(f"_Run.model.{name}", 0) for name in names}
    parts["heads"] += parts.pop("global_head")
    parts["correlation"] = found.get("_Run.correlation", 0)
    parts["elsewhere"] = found["Global"] - sum(parts.values())
    return {name: n for name, n in parts.items() if n}


def inference(model: OGFR, seen: Batch, whole: bool = False) -> dict[str, float]:
    """Multiply-adds to embed one image, by part; `whole` lets the last layer compute all tokens."""

    def run(m: OGFR) -> None:
        everything = mock.patch.object(TransformerLayers, "forward", _all_tokens) if whole else nullcontext()
        with everything:
            m.embed(seen)

    found = multiply_adds(model.eval(), run)
    return {name: n / len(seen.pid) for name, n in found.items()}


def _all_tokens(layers: TransformerLayers, tokens: Tensor, num_tokens: int | None) -> Tensor:
    return nn.Sequential.forward(layers, tokens)[:, :num_tokens]


def training(model: OGFR, learnt: Batch, backward: bool) -> dict[str, float]:
    """Multiply-adds of a step for one image and its occluded view, by part.

    Refreshing the baseline of Eq. 9, one pass every ten epochs, is not in it.  Going backward, the small
    parts are not told apart: the counter follows layers, and these are functions.
    """

    def run(m: OGFR) -> None:
        for objective in m.objectives(learnt):
            if backward:
                objective.loss.backward()

    found = multiply_adds(model.train(), run)
    model.zero_grad(set_to_none=True)
    if backward:
        layers = {name: found[name] for name in ("encoder", "student", "decoder")}
        found = {**layers, "elsewhere": sum(found.values()) - sum(layers.values())}
    return {name: n / len(learnt.pid) for name, n in found.items()}


# ------------------------------------------------------------------ parameters


def parameters(model: OGFR) -> dict[str, int]:
    """Trained numbers by part; the necks' fixed biases count, as they do in a count of all tensors."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parts["heads"] += parts.pop("global_head")
    return {**parts, "erased": model.erased.numel()}


def heads(model: OGFR) -> dict[str, Any]:
    """How many heads, each a classifier and its neck, would make up Table 9's parameters.

    It depends on what else was counted: tools that walk over layers miss bare parameters (class and part
    tokens, embeddings), and a ViT may keep its 1000-way classifier unused.  Our count is of all parameters.
    """
    features, identities, width = model.heads.weight.shape
    one, paper = width * identities + 2 * width, TABLE_9["parameters_m"] * M
    rest = sum(n for name, n in parameters(model).items() if name != "heads")
    bare = sum(p.numel() for m in (model, model.encoder) for p in m.parameters(recurse=False))
    unused = CLASSES * (width + 1)
    known = {
        "layers": rest - bare,
        "layers_and_unused_classifier": rest - bare + unused,
        "all": rest,
        "all_and_unused_classifier": rest + unused,
    }
    return {
        "ours": features + 1,  # i in {g, 1 ... K} of Eq. 19, shared by both branches; one for Eq. 20
        "each_m": round(one / M, 4),
        "table_9_by_what_counts": {name: _fit(paper, n, one) for name, n in known.items()},
    }


def _fit(paper: float, known: int, one: int) -> dict[str, Any]:
    """The number of heads beside `known` parameters, and whether a whole number of them prints as Table 9."""
    total = (known + round((paper - known) / one) * one) / M
    fits = round(total, 1) == TABLE_9["parameters_m"]
    return {"heads": round((paper - known) / one, 2), "all_m": round(total, 2), "prints_as_table_9": fits}


if __name__ == "__main__":
    main()
