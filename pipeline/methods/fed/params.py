"""FED's parameters, and the table of both presets."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.methods.presets import ENCODER_AND_HEADS, SCHEDULE, Preset, Presets
from pipeline.model.backbones import Colours


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """FED's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float  # weight of the camera embedding; 0 leaves it out
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster classifiers move under Adam
    stripes: int = Field(ge=2)  # horizontal, of an image, each with an occlusion score
    oem: bool  # the occlusion erasing module: features are weighted by their stripe's score
    oem_weight: float = Field(ge=0)  # of the scores' loss
    label: Literal["coverage", "difference"]  # how a stripe is known to be occluded
    fdm: bool  # the feature diffusion module
    neighbours: int = Field(ge=1)  # nearest centres of other people, which a feature is diffused with
    banks: Literal["two", "one"]  # memories: of features and of diffused features, or one of both
    temperature: float = Field(gt=0)  # of the contrast with the memory
    momentum: float = Field(ge=0, le=1)  # share of a centre that an image of its identity leaves
    contrast_occluded: float = Field(ge=0)  # weight of the occluded view's contrast; the holistic view's is 1
    contrast_diffused: float = Field(ge=0)  # of the diffused features' contrast
    global_token: Literal["class", "first_patch"]  # what the global classifier reads


# name: (recommended, paper, reason)
PRESETS: Presets = {
    "fed.stride": (16, 16, "the published code's"),
    "fed.head_gain": ENCODER_AND_HEADS["head_gain"],
    **SCHEDULE,
    "train.jitter": ((0.0,) * 4, (0.1, 0.1, 0.1, 0.0), "colours tell our people apart"),
    "train.obstacles.probability": (1.0, 1.0, "every occluded view has a patch"),
    "train.obstacles.sources": (
        ["rectangle"],
        ["background"],
        "rectangles show other people, too, as our queries do; backgrounds stand for FED's patches, a "
        "download of unstated origin",
    ),
    "train.obstacles.placement": (
        "border",
        "border",
        "patches lie at a border, from edge to edge",
    ),
}


def _not_diffused(params: Params, train: Any) -> bool:
    return not params.fdm


# param -> when it changes neither the log nor an embedding, given the method's params and those of `train`
WITHOUT_EFFECT: dict[str, Callable[[Params, Any], bool]] = {
    "oem_weight": lambda params, train: not params.oem,
    "label": lambda params, train: not params.oem or train.obstacles.probability == 0,
    **dict.fromkeys(("neighbours", "banks", "contrast_diffused"), _not_diffused),
}
