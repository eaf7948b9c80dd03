"""DPM's parameters, and the table of both presets."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.methods.presets import ENCODER_AND_HEADS, RECIPE, Preset, Presets
from pipeline.model.backbones import Colours
from pipeline.model.masking import Taps


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """DPM's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float  # weight of the camera embedding; 0 leaves it out
    mask: Literal["generator", "none"]  # none: the plain cosine to prototypes, and no gate
    taps: Taps  # blocks whose patches the generator reads
    steps: Literal["alternate", "joint"]  # the generator after the rest, on its new weights; or all at once
    mask_lr: float | None = Field(gt=0)
    mask_schedule: Literal["cosine", "constant"] | None  # of its rate
    plain: float = Field(ge=0)  # weight of the identity loss of f W
    arc: float = Field(ge=0)  # weight of the identity loss of the masked cosines
    scale: float | None = Field(gt=0)  # s, factor on the cosines
    margin: float | None = Field(ge=0, lt=3.14)  # mu, radians that the true identity has to gain
    orthogonal: float = Field(ge=0)  # weight of the head enrichment, summed over the batch; 0 leaves it out
    head_gain: float | None = Field(gt=0)  # factor on plain logits: how much faster W moves under Adam
    triplet: Literal["necked", "plain"] | None  # what the triplet loss compares, as OGFR's
    feature: Literal["before", "after"] | None  # what is compared at the end: before or after the neck

    @model_validator(mode="after")
    def _check_what_teaches_the_mask(self) -> "Params":
        if self.mask == "generator" and self.arc == 0:
            raise ValueError(
                "dpm.arc = 0: nothing teaches the mask generator. Raise it, or set dpm.mask to none."
            )
        return self


PRESETS: Presets = {
    **{f"dpm.{name}": row for name, row in ENCODER_AND_HEADS.items()},
    "dpm.mask_lr": (7e-4, 0.008, "that of the other parameters, in both"),
    "dpm.mask_schedule": (
        "cosine",
        "constant",
        "the published code decays the rate of the other parameters alone",
    ),
    "dpm.margin": (0.3, 0.5, "0.5 is Occluded-Duke's; 0.3, Market-1501's, asks less of a short training"),
    "dpm.scale": (10.0, 30.0, "30 outweighs the other losses: 6 points of mAP less in 8 epochs"),
    **RECIPE,
    "train.epochs": (8, 150, "the published code's; what a CPU does in minutes"),
}

# param -> when it changes neither the log nor an embedding
WITHOUT_EFFECT: dict[str, Callable[[Any, Any], bool]] = {
    "taps": lambda dpm, _: dpm.mask == "none",
    "steps": lambda dpm, _: dpm.mask == "none",
    "mask_lr": lambda dpm, _: dpm.mask == "none" or dpm.steps == "joint",
    "mask_schedule": lambda dpm, _: dpm.mask == "none" or dpm.steps == "joint",
}
