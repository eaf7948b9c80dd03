"""How training goes: its parameters, and the learning rate over time."""

import math
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.distributed import Scope
from pipeline.core.params import STRICT
from pipeline.data.obstacles import Obstacles
from pipeline.model.compute import Attention, Compile, Matmul, Precision


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Schedule:
    """How training goes; null means the preset's value (see the method's `PRESETS`)."""

    size: tuple[int, int]  # height, width of images in pixels
    identities: int = Field(ge=1)  # P, in a batch
    images: int = Field(ge=1)  # K, of each identity
    epochs: int | None = Field(ge=1)
    held_out: int = Field(ge=0)  # identities that choose the epoch to keep; 0: train on all, keep the last
    optimiser: Literal["sgd", "adamw"] | None
    lr: float | None = Field(gt=0)
    decay: float | None = Field(ge=0)
    warmup: float | None = Field(ge=0)  # epochs
    floor: float = Field(ge=0, le=1)  # of the learning rate, as a share
    clip: float | None = Field(ge=0)  # largest norm of a group's gradient; 0 for no limit
    precision: Precision
    matmul: Matmul
    attention: Attention
    compile: Compile  # each layer as one program: see `compute.compile_layers`
    mining: Scope  # where a triplet loss seeks: the batch, or a process's share of it
    statistics: Scope  # what a batch norm normalises by, likewise
    flip: float = Field(ge=0, le=1)  # probability of a mirrored pair
    pad: int = Field(ge=0)  # pixels, before the random crop
    obstacles: Obstacles


def lr_factor(progress: float, epochs: int, warmup: float, floor: float) -> float:
    """Share of the full learning rate after `progress` epochs: cosine, under a linear warm-up from 1 %.

    The cosine's clock runs during the warm-up.  Departs: "decayed at 40 and 70 epochs" contradicts the
    cosine of the same sentence and is left out.
    """
    cosine = floor + (1 - floor) * (1 + math.cos(math.pi * min(progress / epochs, 1))) / 2
    rise = 0.01 + 0.99 * progress / warmup if progress < warmup else 1.0
    return cosine * rise
