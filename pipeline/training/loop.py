"""One step at a time: players, their optimisers, precision, and the check for what is no number."""

import math
import resource
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline import arithmetic, processes
from pipeline.batches import Batch
from pipeline.method import Method, Objective, Player
from pipeline.params import BadInput
from pipeline.training.schedule import Schedule, rate

Row = dict[str, float]


class Loop:
    """Optimisers of a method's players, and one step at a time; `log` holds a row a step."""

    def __init__(self, method: Method, schedule: Schedule, device: torch.device):
        self.method, self.schedule, self.device = method, schedule, device
        self.precision = arithmetic.precision(schedule.precision, device)
        kernel = arithmetic.kernel(schedule.attention, device, self.precision, schedule.products)
        arithmetic.attend_by(method, processes.from_first(kernel))
        if processes.from_first(arithmetic.compiles(schedule.compile, method, device, self.precision)):
            arithmetic.compile_layers(method)
        self.players = method.players()
        self.averaged = {name: processes.averaged(p.parameters) for name, p in self.players.items()}
        self.optimisers = {name: _optimiser(p, schedule) for name, p in self.players.items()}
        half = self.precision == torch.float16
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=half) for name in self.players}
        self.base = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}
        self.log: list[Row] = []
        self.loss = math.nan
        if schedule.statistics == "batch":
            processes.share_statistics(method)
        self.clock = time.perf_counter()

    def step(self, batch: Batch, progress: float, names: Sequence[str] = (), waited: float = 0.0) -> None:
        """One batch, or this process's share of it: an optimiser step at each objective.

        `progress` is in epochs; `waited` are the seconds that the batch was waited for.

        Raises `BadInput` that names the term, the step and `names`, the batch's images, if a loss or a
        gradient is no number; the weights stay as they were.
        """
        share = rate(progress, self.schedule.epochs, self.schedule.warmup, self.schedule.floor)
        row, self.loss = {}, 0.0
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()  # or the last step's gradients would lie beside this one's activations
        objectives = self.method.objectives(batch)
        while (objective := self._next(objectives)) is not None:
            row |= self._take(objective, share, names)
        began, self.clock = self.clock, time.perf_counter()
        self.log.append(
            {
                "step": len(self.log),
                "epoch": round(progress, 4),
                "lr": self.schedule.lr * share,
                "seconds": round(self.clock - began, 4),  # since the step before
                "waited": round(waited, 4),
                "images_per_s": round(processes.count() * len(batch.pid) / (self.clock - began), 1),
                "memory": memory(self.device),
                "loss": self.loss,
                **row,
            }
        )

    def cast(self) -> torch.autocast:
        """The precision of the method's code; the step itself is taken in float32."""
        half = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision if half else None, half)

    def _next(self, objectives: Iterator[Objective]) -> Objective | None:
        with self.cast(), processes.mined(self.schedule.mining):
            return next(objectives, None)

    def _take(self, objective: Objective, share: float, names: Sequence[str]) -> Row:
        optimiser, player = self.optimisers[objective.player], self.players[objective.player]
        scaler, loss, length = self.scalers[objective.player], objective.loss, f"norm_{objective.player}"
        optimiser.zero_grad()
        # of the player's own parameters: an objective cannot move anybody else's
        scaler.scale(self.averaged[objective.player](loss)).backward(inputs=player.parameters)
        scaler.unscale_(optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in player.parameters if p.grad is not None])
        values = _values({**objective.terms, **objective.noted, length: norm, "": loss})
        for name in objective.terms:
            if not math.isfinite(values[name]):
                raise self._fault(f"the loss '{name}' of '{objective.player}' is {values[name]}", names)
        if not scaler.is_enabled() and not math.isfinite(values[length]):
            raise self._fault(f"the gradient of '{objective.player}' has the norm {values[length]}", names)
        if self.schedule.clip:
            nn.utils.clip_grads_with_norm_(player.parameters, self.schedule.clip, norm)
        for group in optimiser.param_groups:
            group["lr"] = self.base[objective.player] * share
        scaler.step(optimiser)  # in float16 a gradient that overflowed is left out, and the scale is halved
        scaler.update()
        if scaler.is_enabled():
            values[f"scale_{objective.player}"] = scaler.get_scale()
            if scaler.get_scale() < 1:
                raise self._fault(f"the gradient of '{objective.player}' overflows float16", names)
        self.loss += values.pop("")
        return values

    def _fault(self, what: str, names: Sequence[str]) -> BadInput:
        return BadInput(
            f"train: step {len(self.log)}: {what}. Lower train.lr, set train.clip, or use float32 "
            f"(train.precision). Images of the batch: {', '.join(names) or 'not named'}."
        )


def _values(figures: dict[str, Tensor]) -> Row:
    # one transfer from the device for all
    held = torch.stack([figure.detach().float().reshape(()) for figure in figures.values()])
    return dict(zip(figures, processes.mean(held).tolist(), strict=True))


def _optimiser(player: Player, schedule: Schedule) -> torch.optim.Optimizer:
    name = player.optimiser or schedule.optimiser
    lr = player.lr or schedule.lr
    decay = schedule.decay if player.decay is None else player.decay
    if name == "adamw":
        return torch.optim.AdamW(player.parameters, lr, weight_decay=decay, fused=True)
    made = torch.optim.SGD(player.parameters, lr, momentum=0.9, weight_decay=decay, fused=True)
    for p in player.parameters:  # else, if the first gradient overflows, from memory as it happens to be
        made.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return made


def memory(device: torch.device) -> int:
    """The most memory in use so far, in MiB: the GPU's, or this process's where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
