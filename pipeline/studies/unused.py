"""Params of params.yaml whose value changes no result, given the others; `stages.check` says which."""

from collections.abc import Callable
from typing import Any

from pipeline.core import params
from pipeline.methods.base import load_method
from pipeline.methods.presets import resolve
from pipeline.studies.tables import METHODS
from pipeline.training.remarks import without_effect
from pipeline.training.schedule import Schedule

Values = dict[str, Any]  # of params.yaml
SHARED_TRAINING = ("train.mining", "train.statistics")  # what several processes of a training make differ


def _no_reranking(values: Values) -> bool:
    return values["evaluate"]["rerank"]["depth"] == 0


def _no_occluded_queries(values: Values) -> bool:
    return not values["index"]["occlude"]["datasets"]


def _published(section: str) -> Callable[[Values], bool]:
    return lambda values: (
        bool(values["parse_on"]) and (values["parsers"] == "coco" or ":" in values[section]["network"])
    )


def _not_chosen(method: str) -> Callable[[Values], bool]:
    return lambda values: values["method"] != method


# section or param -> when it changes no result; those of the method and of `train` have tables of their own
UNUSED: dict[str, Callable[[Values], bool]] = {
    "segment": lambda values: not values["parse_on"],
    "segment.network": lambda values: bool(values["parse_on"]) and values["parsers"] == "coco",
    "segment.weights": _published("segment"),
    "pose": lambda values: not values["parse_on"],
    "pose.network": lambda values: bool(values["parse_on"]) and values["parsers"] == "coco",
    "pose.weights": _published("pose"),
    "parsers": lambda values: not values["parse_on"],
    "parse.target": lambda values: not values["parse_on"],
    "parse.spread": lambda values: not values["parse"]["fill"],
    **{f"index.occlude.{name}": _no_occluded_queries for name in ("seed", "area", "aspect", "cutouts")},
    "embed.cameras": lambda values: values[values["method"]].get("gamma_camera") == 0,
    **{f"evaluate.rerank.{name}": _no_reranking for name in ("k1", "k2", "original")},
    "draw.nearest": lambda values: values["evaluate"]["top"] == 0,
    **{name: _not_chosen(name) for name in sorted(METHODS)},
}


def unused_params(values: Values) -> list[str]:
    """The dotted names of params without effect; the values are valid (`params.section_faults`)."""
    name = values["method"]
    module = load_method(name)
    own = params.validate(values[name], module.Params, "", name)
    schedule = resolve(
        params.validate(values["train"], Schedule, "", "train"), module.PRESETS, own.preset, "train"
    )
    training = without_effect(name, module, resolve(own, module.PRESETS, own.preset, name), schedule)
    if values["processes"]["train"] > 1:
        training = [param for param in training if param not in SHARED_TRAINING]
    return [param for param, applies in UNUSED.items() if applies(values)] + training
