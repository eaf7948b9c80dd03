"""The training loop: it knows batches, objectives and players, and no method by name.

Every optimiser step follows one `yield` of the method's objectives, so that an objective sees the weights
which the one before left.  Seeds, learning rate, clipping, precision, the log and the check for losses that
are no numbers live here, once for all methods.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline import batches, obstacles
from pipeline.arithmetic import Precision, Products, precision
from pipeline.batches import Batch, Pictures
from pipeline.method import Method, Objective, Player
from pipeline.obstacles import Obstacles
from pipeline.params import STRICT, BadInput
from pipeline.store import progress


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Schedule:
    """How training goes; null means the preset's value (see the method's `PRESETS`)."""

    size: tuple[int, int]  # height, width of images in pixels
    identities: int = Field(ge=1)  # P, in a batch
    images: int = Field(ge=1)  # K, of each identity
    epochs: int | None = Field(ge=1)
    optimiser: Literal["sgd", "adamw"] | None
    lr: float | None = Field(gt=0)
    decay: float | None = Field(ge=0)
    warmup: float | None = Field(ge=0)  # epochs
    floor: float = Field(ge=0, le=1)  # of the learning rate, as a share
    clip: float | None = Field(ge=0)  # largest norm of a player's gradient; 0 for no limit
    precision: Precision
    products: Products
    flip: float = Field(ge=0, le=1)  # probability of a mirrored pair
    pad: int = Field(ge=0)  # pixels, before the random crop
    obstacles: Obstacles


def rate(progress: float, epochs: int, warmup: float, floor: float) -> float:
    """Share of the full learning rate after `progress` epochs: cosine, under a linear warm-up from 1 %.

    The cosine's clock runs during the warm-up.  Departs: "decayed at 40 and 70 epochs" contradicts the
    cosine of the same sentence and is left out.
    """
    cosine = floor + (1 - floor) * (1 + math.cos(math.pi * min(progress / epochs, 1))) / 2
    rise = 0.01 + 0.99 * progress / warmup if progress < warmup else 1.0
    return cosine * rise


def seed(value: int) -> None:
    """Seed what draws initial weights and actions."""
    torch.manual_seed(value)


def record(schedule: Schedule, seed: int, data: dict[str, str]) -> dict[str, Any]:
    """What a run can be told from: its resolved schedule, its data by hash, the versions that made it."""
    versions = {name: version(name) for name in ("torch", "timm", "numpy", "safetensors")}
    return {"train": asdict(schedule), "seed": seed, "data": data, "versions": versions}


def train(method: Method, pictures: Pictures, schedule: Schedule, seed: int) -> pd.DataFrame:
    """Train a method in place and return its log: a row a step.

    The same seed, data and machine give the same weights on a CPU.  Raises `BadInput` that names the term
    and the step if a loss is no number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    epochs = [
        batches.by_identity(pictures.pid, schedule.identities, schedule.images, rng)
        for _ in range(schedule.epochs)
    ]
    method.to(device).train()
    loop = Loop(method, schedule, device)
    cutouts = obstacles.read_cutouts(schedule.obstacles.cutouts)
    images = schedule.identities * schedule.images
    with progress(total=sum(map(len, epochs)) * images, desc="train") as bar:
        for epoch, steps in enumerate(epochs):
            plain = lambda: (b.to(device) for b in batches.plain_batches(pictures, images))  # noqa: E731
            method.eval()
            method.begin_epoch(epoch, plain)
            method.train()
            drawn = (
                batches.pairs(
                    pictures, rows, schedule.flip, schedule.pad, schedule.obstacles, cutouts, rng
                ).to(device)
                for rows in steps
            )
            for step, batch in enumerate(batches.ahead(drawn)):
                loop.step(batch, epoch + step / len(steps))
                bar.update(images)
                bar.set_postfix_str(f"epoch {epoch + 1}/{len(epochs)} loss {loop.loss:.3f}", refresh=False)
    method.eval().cpu()
    return pd.DataFrame(loop.log)


class Loop:
    """Optimisers of a method's players, and one step at a time."""

    def __init__(self, method: Method, schedule: Schedule, device: torch.device):
        self.method, self.schedule = method, schedule
        self.precision = precision(schedule.precision, device)
        self.players = method.players()
        self.optimisers = {name: _optimiser(p, schedule) for name, p in self.players.items()}
        self.base = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}
        self.log: list[dict[str, float]] = []
        self.loss = math.nan

    def step(self, batch: Batch, progress: float) -> None:
        """One batch: an optimiser step at each objective.  `progress` is in epochs."""
        share = rate(progress, self.schedule.epochs, self.schedule.warmup, self.schedule.floor)
        began, row, self.loss = time.perf_counter(), {}, 0.0
        objectives = self.method.objectives(batch)
        while (objective := self._next(objectives, batch)) is not None:
            row |= self._take(objective, share)
        spent = time.perf_counter() - began
        self.log.append(
            {
                "step": len(self.log),
                "epoch": round(progress, 4),
                "lr": self.schedule.lr * share,
                "images_per_s": round(len(batch.pid) / spent, 1),
                "loss": self.loss,
                **row,
            }
        )

    def _next(self, objectives: Iterator[Objective], batch: Batch) -> Objective | None:
        # autocast around the method's code alone: the step belongs to full precision
        with torch.autocast(batch.pid.device.type, torch.bfloat16, self.precision == torch.bfloat16):
            return next(objectives, None)

    def _take(self, objective: Objective, share: float) -> dict[str, float]:
        values = {name: float(term.detach()) for name, term in objective.terms.items()}
        noted = {name: float(value) for name, value in objective.noted.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise BadInput(
                    f"train: step {len(self.log)}: the loss '{name}' of '{objective.player}' is {value}. "
                    "Lower train.lr, set train.clip, or use float32 (train.precision)."
                )
        optimiser, player = self.optimisers[objective.player], self.players[objective.player]
        optimiser.zero_grad(set_to_none=True)
        for p, g in zip(player.parameters, _gradients(objective.loss, player.parameters), strict=True):
            p.grad = g
        if self.schedule.clip:
            nn.utils.clip_grad_norm_(player.parameters, self.schedule.clip)
        for group in optimiser.param_groups:
            group["lr"] = self.base[objective.player] * share
        optimiser.step()
        self.loss += float(objective.loss.detach())
        return values | noted


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    # of the player's own parameters: an objective cannot move anybody else's
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def _optimiser(player: Player, schedule: Schedule) -> torch.optim.Optimizer:
    name = player.optimiser or schedule.optimiser
    lr = player.lr or schedule.lr
    decay = schedule.decay if player.decay is None else player.decay
    if name == "sgd":
        return torch.optim.SGD(player.parameters, lr, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(player.parameters, lr, weight_decay=decay)
