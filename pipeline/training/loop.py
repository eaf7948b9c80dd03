"""One step at a time: groups, their optimisers, precision, and the check for what is no number."""

import math
import resource
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.batches.views import Batch
from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.methods.base import Method, Objective, ParamGroup
from pipeline.model import compute
from pipeline.training.schedule import Schedule, lr_factor

Row = dict[str, float]


class Loop:
    """Optimisers of a method's groups, and one step at a time; `log` holds a row a step."""

    def __init__(self, method: Method, schedule: Schedule, device: torch.device):
        self.method, self.schedule, self.device = method, schedule, device
        self.precision = compute.precision(schedule.precision, device)
        kernel = compute.attention_kernel(schedule.attention, device, self.precision, schedule.products)
        compute.set_attention(method, distributed.broadcast_object(kernel))
        if distributed.broadcast_object(
            compute.should_compile(schedule.compile, method, device, self.precision)
        ):
            compute.compile_layers(method)
        self.groups = method.param_groups()
        self.averaged = {name: distributed.average_gradients(p.parameters) for name, p in self.groups.items()}
        self.optimisers = {name: _optimiser(p, schedule) for name, p in self.groups.items()}
        half = self.precision == torch.float16
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=half) for name in self.groups}
        self.base = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}
        self.log: list[Row] = []
        self.loss = math.nan
        if schedule.statistics == "batch":
            distributed.sync_batch_norm(method)
        self.clock = time.perf_counter()

    def step(self, batch: Batch, progress: float, names: Sequence[str] = (), waited: float = 0.0) -> None:
        """One batch, or this process's share of it: an optimiser step at each objective.

        `progress` is in epochs; `waited` are the seconds that the batch was waited for.

        Raises `BadInput` that names the term, the step and `names`, the batch's images, if a loss or a
        gradient is no number; the weights stay as they were.
        """
        share = lr_factor(progress, self.schedule.epochs, self.schedule.warmup, self.schedule.floor)
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
                "images_per_s": round(distributed.world_size() * len(batch.pid) / (self.clock - began), 1),
                "memory": peak_memory(self.device),
                "loss": self.loss,
                **row,
            }
        )

    def cast(self) -> torch.autocast:
        """The precision of the method's code; the step itself is taken in float32."""
        half = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision if half else None, half)

    def _next(self, objectives: Iterator[Objective]) -> Objective | None:
        with self.cast(), distributed.mining_scope(self.schedule.mining):
            return next(objectives, None)

    def _take(self, objective: Objective, share: float, names: Sequence[str]) -> Row:
        optimiser, group = self.optimisers[objective.group], self.groups[objective.group]
        scaler, loss, length = self.scalers[objective.group], objective.loss, f"norm_{objective.group}"
        optimiser.zero_grad()
        # of the group's own parameters: an objective cannot move anybody else's
        scaler.scale(self.averaged[objective.group](loss)).backward(inputs=group.parameters)
        scaler.unscale_(optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in group.parameters if p.grad is not None])
        values = _values({**objective.terms, **objective.metrics, length: norm, "": loss})
        for name in objective.terms:
            if not math.isfinite(values[name]):
                raise self._fault(f"the loss '{name}' of '{objective.group}' is {values[name]}", names)
        if not scaler.is_enabled() and not math.isfinite(values[length]):
            raise self._fault(f"the gradient of '{objective.group}' has the norm {values[length]}", names)
        if self.schedule.clip:
            nn.utils.clip_grads_with_norm_(group.parameters, self.schedule.clip, norm)
        for settings in optimiser.param_groups:
            settings["lr"] = self.base[objective.group] * share
        scaler.step(optimiser)  # in float16 a gradient that overflowed is left out, and the scale is halved
        scaler.update()
        if scaler.is_enabled():
            values[f"scale_{objective.group}"] = scaler.get_scale()
            if scaler.get_scale() < 1:
                raise self._fault(f"the gradient of '{objective.group}' overflows float16", names)
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
    return dict(zip(figures, distributed.all_reduce_mean(held).tolist(), strict=True))


def _optimiser(group: ParamGroup, schedule: Schedule) -> torch.optim.Optimizer:
    name = group.optimiser or schedule.optimiser
    lr = group.lr or schedule.lr
    decay = schedule.decay if group.decay is None else group.decay
    if name == "adamw":
        return torch.optim.AdamW(group.parameters, lr, weight_decay=decay, fused=True)
    made = torch.optim.SGD(group.parameters, lr, momentum=0.9, weight_decay=decay, fused=True)
    for p in group.parameters:  # else, if the first gradient overflows, from memory as it happens to be
        made.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return made


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in MiB: the GPU's, or this process's where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
