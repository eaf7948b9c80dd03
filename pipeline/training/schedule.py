"""How training goes: its parameters, and the learning rate over time."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pipeline.core.distributed import Scope
from pipeline.core.params import STRICT, BadInput
from pipeline.data.obstacles import Obstacles
from pipeline.model.compute import Attention, Compile, Matmul, Precision

Strength = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]  # of the colour circle, either way
Jitter = tuple[Strength, Strength, Strength, Hue]

ONE_TEACHES_NOTHING = {
    "identities": "No image has a negative: triplet losses stay at ln 4. Set 2 or more",
    "images": "No image has a positive: triplet losses stay at ln 4. Set 2 or more",
    "held_out": "One identity ranks itself: all epochs are equal. Set 0, 2 or more",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Schedule:
    """How training goes; null means the preset's value (see the method's `PRESETS`)."""

    size: tuple[PositiveInt, PositiveInt]  # height, width of images in pixels
    identities: int = Field(ge=1)  # P, in a batch; one has no negative
    images: int = Field(ge=1)  # K, of each identity; one has no positive
    epochs: int | None = Field(ge=1)
    held_out: int = Field(ge=0)  # identities that choose the epoch to keep; 0: train on all, keep the last
    optimiser: Literal["sgd", "adam", "adamw"] | None
    lr: float | None = Field(gt=0)
    bias_lr: float | None = Field(gt=0)  # of biases, as a multiple of `lr`
    decay: float | None = Field(ge=0)
    warmup: float | None = Field(ge=0)  # epochs
    floor: float = Field(ge=0, le=1)  # of the learning rate, as a share
    clip: float | None = Field(ge=0)  # largest norm of a group's gradient; 0 for no limit
    drop_path: float | None = Field(ge=0, lt=1)  # of the last block; see `layers.set_drop_path`
    precision: Precision
    matmul: Matmul
    attention: Attention
    compile: Compile  # each layer as one program: see `compute.compile_layers`
    mining: Scope  # where a triplet loss seeks: the batch, or a process's share of it
    statistics: Scope  # what a batch norm normalises by, likewise
    flip: float = Field(ge=0, le=1)  # probability of a mirrored pair
    pad: int = Field(ge=0)  # pixels, before the random crop
    jitter: Jitter | None  # of brightness, contrast, saturation and hue, before an obstacle is pasted
    obstacles: Obstacles
    start_from: str  # folder of a trained model whose weights are taken over; "": none

    @field_validator("identities", "images", "held_out")
    @classmethod
    def _check_what_can_teach(cls, value: int, info: Any) -> int:
        if value == 1:
            raise PydanticCustomError("teaches_nothing", ONE_TEACHES_NOTHING[info.field_name])
        return value

    @model_validator(mode="after")
    def _check_pad(self) -> "Schedule":
        if self.pad >= min(self.size):
            raise ValueError(f"train.pad = {self.pad}: it moves images out of their frame. Lower it.")
        return self


def check_batch_size(schedule: Schedule, processes: int) -> None:
    """Raise `BadInput` unless so many processes can share a batch, each with people to compare."""
    if schedule.identities % processes:
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} cannot be shared by {processes} "
            "processes. Let it be a multiple."
        )
    if schedule.mining == "process" and schedule.identities == processes:
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} gives each process one, and train.mining "
            f"= process finds no negative there. Set it to {2 * processes}, or mine in the batch."
        )


def lr_factor(progress: float, epochs: int, warmup: float, floor: float) -> float:
    """Share of the full learning rate after `progress` epochs: cosine, under a linear warm-up from 1 %.

    The cosine's clock runs during the warm-up.  Departs: "decayed at 40 and 70 epochs" contradicts the
    cosine of the same sentence and is left out.
    """
    cosine = floor + (1 - floor) * (1 + math.cos(math.pi * min(progress / epochs, 1))) / 2
    rise = 0.01 + 0.99 * progress / warmup if progress < warmup else 1.0
    return cosine * rise


def highest_rate(schedule: Schedule, steps: Sequence[int]) -> float:
    """The greatest share of the full learning rate in a training; `steps` are those of each epoch."""
    return max(
        lr_factor(epoch + step / count, schedule.epochs, schedule.warmup, schedule.floor)
        for epoch, count in enumerate(steps)
        for step in range(count)
    )
