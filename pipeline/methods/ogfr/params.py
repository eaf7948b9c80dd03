"""OGFR's parameters, and the table of both presets.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.data import parts
from pipeline.methods.presets import ENCODER_AND_HEADS, SCHEDULE, Preset, Presets, preset_value
from pipeline.model.backbones import Colours

K = len(parts.FINE)
HOLISTIC, OCCLUDED = 0, 1  # the branches: their necks' numbers
STUDENT_WEIGHTS = ("alpha", "beta", "mu_1", "mse_weight", "student_triplet")  # of the losses on its output
FEP = {"teacher": {HOLISTIC}, "student": {OCCLUDED}, "both": {HOLISTIC, OCCLUDED}, "none": set()}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """OGFR's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # S of Eq. 4
    gamma_pattern: float  # gamma_1
    gamma_camera: float  # gamma_2
    student_layers: int = Field(ge=0)
    distil: bool  # two branches, Eq. 17-19; False: the occluded one alone, as Table 4's upper rows
    fep: Literal["teacher", "student", "both", "none"]  # branches that erase and purify (Table 4)
    decoder: Literal["fixed", "plain"]  # first decoder layer: MHSA_fix, or an ordinary one (Table 6)
    residual: bool | None  # skip connections in the decoder
    # part tokens and the layers after the encoder start from the encoder, or at random
    start: Literal["encoder", "random"] | None
    erase: Literal["agent", "none", "random", "labels"]  # what chooses the patches to erase (Table 5)
    erase_rate: float = Field(ge=0, le=1)  # share erased by `random`
    erased: Literal["shared", "place"] | None  # one learned token plus its position, or one for each place
    erase_before: int = Field(ge=0)  # encoder blocks that follow the erasing; 0: it follows the encoder
    # the teacher's global feature: the encoder's class token, or a query that reads the kept patches alone
    global_token: Literal["encoder", "rebuilt"]
    episodes: int = Field(ge=1)  # masks that the agent samples for each image
    agent_bias: bool | None
    agent_keep: float = Field(gt=0, lt=1)  # probability of keeping a patch at the start, given a bias
    agent_optimiser: Literal["sgd", "adamw"] | None
    agent_lr: float | None = Field(gt=0)
    baseline: Literal["paper", "image", "self_critical"] | None  # what p^m is compared with
    baseline_epochs: int = Field(ge=1)  # refresh of the baseline `paper`
    reward_floor: float | None = Field(gt=0)  # least 1 - p^b in Eq. 10
    reward_clip: float | None = Field(gt=0)  # the reward lies in [-clip, 1]
    alpha: float = Field(ge=0)
    beta: float = Field(ge=0)
    mu_1: float = Field(ge=0)
    mu_2: float = Field(ge=0)
    mse: Literal["mean", "sum"] | None
    mse_weight: float = Field(ge=0)  # of L_mse in Eq. 23, printed without one; 0 leaves it out (Table 8)
    mask: Literal["mean", "sum"] | None
    mask_grid: Literal["patch", "image"] | None
    temperature: float | None = Field(gt=0)  # of the softmax over parts in Eq. 21
    teacher_identity: float | None = Field(ge=0)  # weight of an identity loss on the teacher's output
    student_triplet: float | None = Field(ge=0)  # weight of Eq. 22 on the student's output
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster classifiers move under Adam
    visible: Literal["argmax", "positive"] | None  # Eq. 24
    triplet: Literal["necked", "plain"] | None  # what Eq. 22 compares
    feature: Literal["before", "after"] | None  # what Eq. 25 compares: before or after the neck's batch norm

    @model_validator(mode="after")
    def _check_teacher(self) -> "Params":
        if not self.distil and self.fep in ("teacher", "both"):
            raise ValueError(
                f"ogfr.fep = {self.fep}, but ogfr.distil = false leaves no teacher. "
                "Set ogfr.fep to student or none."
            )
        default = preset_value(PRESETS, self.preset, "ogfr.student_triplet")  # the only one that may be null
        weights = [getattr(self, name) for name in STUDENT_WEIGHTS]
        if self.distil and not any(default if weight is None else weight for weight in weights):
            raise ValueError(
                f"ogfr.{', ogfr.'.join(STUDENT_WEIGHTS)} are all 0, so that nothing teaches the student, "
                "whose features are compared. Raise one of them."
            )
        return self


# name: (recommended, paper, reason)
PRESETS: Presets = {
    "ogfr.stride": ENCODER_AND_HEADS["stride"],
    "ogfr.residual": (True, False, "Eq. 12 prints no skip connection; without one the input is lost"),
    "ogfr.start": (
        "encoder",
        "random",
        "part tokens start as the class token, added layers as the identity: a few steps suffice",
    ),
    "ogfr.erased": ("shared", "place", "'learnable embedding tokens'; one for all places learns sooner"),
    "ogfr.agent_bias": (True, False, "Eq. 7 has none, so that half of all patches go from the first step"),
    "ogfr.agent_optimiser": (
        "adamw",
        "sgd",
        "a dozen parameters with a noisy gradient need steps of their own size",
    ),
    "ogfr.agent_lr": (0.05, 0.008, "the paper names one rate for all; a few hundred steps need a larger one"),
    "ogfr.baseline": ("self_critical", "paper", "Eq. 9's cumulative mean lags behind and rewards anything"),
    "ogfr.reward_floor": (0.05, 1e-6, "Eq. 10 divides by 1 - p^b, which training drives to 0"),
    "ogfr.reward_clip": (1.0, 1e6, "the same"),
    "ogfr.mse": ("mean", "sum", "Eq. 17 prints a sum: 10^5 terms, which drown all other losses"),
    "ogfr.mask": ("mean", "sum", "Eq. 21 prints a sum over 32,768 pixels, unweighted in Eq. 23"),
    "ogfr.mask_grid": ("patch", "image", "patch labels are exact for overlapping patches, and cheaper"),
    "ogfr.temperature": (0.1, 1.0, "a softmax of 9 cosines cannot exceed 0.48"),
    "ogfr.teacher_identity": (1.0, 0.0, "no loss of the paper teaches the teacher's classifier"),
    "ogfr.student_triplet": (
        1.0,
        0.0,
        "Eq. 22 is the teacher's alone, but the student's features are compared",
    ),
    "ogfr.head_gain": ENCODER_AND_HEADS["head_gain"],
    "ogfr.triplet": ENCODER_AND_HEADS["triplet"],
    "ogfr.visible": ("argmax", "positive", "the best cosine is nearly always above 0: all parts visible"),
    "ogfr.feature": ENCODER_AND_HEADS["feature"],
    **SCHEDULE,
}


def _erases_nothing(params: Params, train: Any) -> bool:
    return params.fep == "none"


def _has_no_agent(params: Params, train: Any) -> bool:
    return params.fep == "none" or params.erase != "agent"


def _has_no_teacher(params: Params, train: Any) -> bool:
    return not params.distil


# param -> when it changes neither the log nor an embedding, given the method's params and those of `train`
WITHOUT_EFFECT: dict[str, Callable[[Params, Any], bool]] = {
    "start": lambda params, train: train.start_from != "",
    **dict.fromkeys(("decoder", "residual", "erase", "erase_before", "global_token"), _erases_nothing),
    "erase_rate": lambda params, train: params.fep == "none" or params.erase != "random",
    **dict.fromkeys(("episodes", "agent_optimiser", "agent_lr"), _has_no_agent),
    "agent_keep": lambda params, train: (
        _has_no_agent(params, train) or not params.agent_bias or train.start_from != ""
    ),
    **dict.fromkeys(("baseline", "reward_floor", "reward_clip"), _has_no_agent),
    "baseline_epochs": lambda params, train: _has_no_agent(params, train) or params.baseline != "paper",
    **dict.fromkeys((*STUDENT_WEIGHTS, "mu_2", "mse", "teacher_identity"), _has_no_teacher),
}
