"""DPM++'s parameters, and the table of both presets."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.methods.presets import ENCODER_AND_HEADS, RECIPE, Preset, Presets
from pipeline.model.backbones import Colours
from pipeline.model.masking import Taps
from pipeline.model.text.supervision import Link, Text
from pipeline.model.transfer import Pairing
from pipeline.model.vit import CameraOn


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """DPM++'s parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float | None  # weight of the camera embedding; 0 leaves it out
    camera_on: CameraOn | None  # tokens that get it
    # the masked metric, DPM's
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
    budget: float = Field(ge=0)  # weight of a loss of masks that keep few channels; 0 leaves it out
    # supervision by text, in two stages
    text: Text | None  # whose texts; table: free vectors, no words
    text_tower: str  # of `clip`: an architecture of open_clip
    text_weights: str  # of `clip`: a tag of open_clip, or a file of both towers
    embedding: int | None = Field(ge=1)  # E, channels of a text embedding
    prompt_tokens: int = Field(ge=1)  # learned words of a prompt; stage 1
    prompt_epochs: int | None = Field(ge=2)  # the last one's rate is next to 0
    prompt_lr: float = Field(gt=0)
    prompt_batch: int = Field(ge=2)  # images
    transfer: tuple[Link, ...]  # how the texts reach the prototypes; stage 2
    text_weight: float = Field(ge=0)  # of `i2t`
    align_weight: float = Field(ge=0)  # of `align`
    fresh_lr: float | None = Field(gt=0)  # rate of what no tower brought, as a multiple of train.lr
    # patch transfer
    spt: float = Field(ge=0, le=1)  # probability that an image is mixed
    pairing: Pairing  # oiou: with an image whose person it overlaps; random: with any other
    roll: bool  # whether an image may be rolled sideways to its donor's person
    ignore: bool  # whether the donor's identity is left out of the losses of what is mixed
    head_gain: float | None = Field(gt=0)  # factor on plain logits: how much faster W moves under Adam
    triplet: Literal["necked", "plain"] | None  # what the triplet loss compares, as OGFR's
    feature: Literal["before", "after"] | None  # what is compared at the end: before or after the neck

    @model_validator(mode="after")
    def _check_what_learns(self) -> "Params":
        if self.mask == "generator" and self.arc == 0:
            raise ValueError(
                "dpmpp.arc = 0: nothing teaches the mask generator. Raise it, or set dpmpp.mask to none."
            )
        if {"align", "replace"} <= set(self.transfer):
            raise ValueError(
                f"dpmpp.transfer = {list(self.transfer)}: `replace` freezes the prototypes, which `align` "
                "would move. Leave one of them out."
            )
        return self

    @property
    def words(self) -> bool:
        """Whether a text of each identity is learned, and teaches anything."""
        return self.text != "none" and bool(self.transfer)

    @property
    def own_tower(self) -> bool:
        """Whether the text tower is ours, embedded; `table` takes the projection of the encoder's."""
        return self.text == "embedded" or (self.text == "table" and self.vit == "embedded")


# The abstract alone is public: the paper's column is CLIP-ReID's and DPM's, on which DPM++ builds
PRESETS: Presets = {
    **{f"dpmpp.{name}": row for name, row in ENCODER_AND_HEADS.items()},
    "dpmpp.stride": (16, 16, "not public; CLIP-ReID's, which calls 12 an option of its own"),
    "dpmpp.gamma_camera": (3.0, 1.0, "not public; CLIP-ReID's, which adds it to the class token; DPM's"),
    "dpmpp.camera_on": ("all", "class", "the same"),
    "dpmpp.mask_lr": (7e-4, 3.5e-4, "not public; the generator starts from nothing beside a trained tower"),
    "dpmpp.mask_schedule": ("cosine", "constant", "not public; DPM's code decays the other rates alone"),
    "dpmpp.margin": (0.3, 0.5, "not public; DPM's on Occluded-Duke, and on Market-1501"),
    "dpmpp.scale": (10.0, 30.0, "not public; DPM's"),
    "dpmpp.text": ("embedded", "clip", "our own small tower needs no download"),
    "dpmpp.embedding": (128, 512, "that of our tower, and of CLIP's ViT-B"),
    "dpmpp.prompt_epochs": (30, 120, "not public; CLIP-ReID's, and what a CPU does in a minute"),
    "dpmpp.fresh_lr": (1.0, 70.0, "not public; 3.5e-4, CLIP-ReID's first rate, beside a tower at 5e-6"),
    **RECIPE,
    "train.epochs": (8, 60, "not public; CLIP-ReID's, and what a CPU does in minutes"),
    "train.optimiser": ("adamw", "adam", "not public; CLIP-ReID's, and what a small ViT learns by"),
    "train.lr": (7e-4, 5e-6, "not public; CLIP-ReID's: a larger rate undoes CLIP's training"),
    "train.warmup": (1.0, 10.0, "not public; CLIP-ReID's, and an eighth of our epochs"),
    "train.drop_path": (0.0, 0.0, "not public; CLIP-ReID has none"),
}

# param -> when it changes neither the log nor an embedding
WITHOUT_EFFECT: dict[str, Callable[[Any, Any], bool]] = {
    "camera_on": lambda dpmpp, _: dpmpp.gamma_camera == 0,
    **{name: lambda dpmpp, _: dpmpp.mask == "none" for name in ("taps", "steps", "budget")},
    **{
        name: lambda dpmpp, _: dpmpp.mask == "none" or dpmpp.steps == "joint"
        for name in ("mask_lr", "mask_schedule")
    },
    "text": lambda dpmpp, _: not dpmpp.transfer,
    "transfer": lambda dpmpp, _: dpmpp.text == "none",
    **{name: lambda dpmpp, _: dpmpp.own_tower or not dpmpp.words for name in ("text_tower", "text_weights")},
    **{
        name: lambda dpmpp, _: not dpmpp.words
        for name in ("embedding", "prompt_epochs", "prompt_lr", "prompt_batch")
    },
    "prompt_tokens": lambda dpmpp, _: dpmpp.text == "table" or not dpmpp.words,
    "text_weight": lambda dpmpp, _: "i2t" not in dpmpp.transfer or not dpmpp.words,
    "align_weight": lambda dpmpp, _: "align" not in dpmpp.transfer or not dpmpp.words,
    **{name: lambda dpmpp, _: dpmpp.spt == 0 for name in ("pairing", "ignore")},
    "roll": lambda dpmpp, _: dpmpp.spt == 0 or dpmpp.pairing == "random",
}
