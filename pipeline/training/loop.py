"""One training step: param groups, their optimisers, precision, and the check for finite losses."""

import math
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batches.views import Batch
from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.methods.base import Method, Objective, ParamGroup
from pipeline.model import compute
from pipeline.training.schedule import Schedule, lr_factor

Row = dict[str, float]
TIMES = ("seconds", "waited", "images_per_s", "memory")  # columns of the log that differ from run to run


class Loop:
    """The optimisers of a method's param groups, and one step at a time; `log` holds one row per step."""

    def __init__(self, method: Method, schedule: Schedule, device: torch.device):
        self.method, self.schedule, self.device = method, schedule, device
        self.precision = compute.dtype(schedule.precision, device)
        kernel = compute.attention_kernel(schedule.attention, device)
        compiled = compute.should_compile(schedule.compile, device)
        distributed.check_equal_across_ranks("how they compute", f"{self.precision} {kernel} {compiled}")
        compute.set_attention(method, kernel)
        if compiled:
            compute.compile_layers(method)
        self.groups = method.param_groups()
        self.gradient_averagers = {
            name: distributed.average_gradients(group.parameters) for name, group in self.groups.items()
        }
        biases = {id(p) for name, p in method.named_parameters() if name.endswith("bias")}
        self.optimisers = {name: _optimiser(g, schedule, biases) for name, g in self.groups.items()}
        float16 = self.precision == torch.float16
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=float16) for name in self.groups}
        self.base_lr = {name: [g["lr"] for g in o.param_groups] for name, o in self.optimisers.items()}
        self.log: list[Row] = []
        self.loss = math.nan
        if schedule.statistics == "batch":
            distributed.sync_batch_norm(method)
        self.last_step = time.perf_counter()

    def step(self, batch: Batch, progress: float, names: Sequence[str] = (), waited: float = 0.0) -> None:
        """One batch, or this rank's share of it: an optimiser step after each objective.

        `progress` is in epochs; `waited` is how many seconds the loop waited for the batch.

        Raises `BadInput` that names the term, the step and `names`, the batch's images, if a loss or a
        gradient is not finite; the weights stay as they were.
        """
        factor = lr_factor(progress, self.schedule.epochs, self.schedule.warmup, self.schedule.floor)
        self.loss = 0.0
        values: Row = {}
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()  # or the last step's gradients would lie beside this one's activations
        objectives = self.method.objectives(batch)
        while (objective := self._next_objective(objectives, len(batch.pid))) is not None:
            values |= self._optimise(objective, factor, names)
        before, self.last_step = self.last_step, time.perf_counter()
        seconds = self.last_step - before
        self.log.append(
            {
                "step": len(self.log),
                "epoch": round(progress, 4),
                "lr": self.schedule.lr * factor,
                "seconds": round(seconds, 4),  # since the step before
                "waited": round(waited, 4),
                "images_per_s": round(distributed.world_size() * len(batch.pid) / seconds, 1),
                "memory": peak_memory(self.device),
                "loss": self.loss,
                **values,
            }
        )

    def autocast(self) -> torch.autocast:
        """The precision of the method's code; the optimiser step itself is in float32."""
        half = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision if half else None, half)

    def _next_objective(self, objectives: Iterator[Objective], images: int) -> Objective | None:
        scope = distributed.mining_scope(self.schedule.mining)
        with self.autocast(), scope, distributed.local_images(images):
            return next(objectives, None)

    def _optimise(self, objective: Objective, factor: float, names: Sequence[str]) -> Row:
        name, loss = objective.group, objective.loss
        optimiser, group, scaler = self.optimisers[name], self.groups[name], self.scalers[name]
        optimiser.zero_grad()
        # with respect to the group's own parameters: an objective cannot move those of another group
        scaler.scale(self.gradient_averagers[name](loss)).backward(inputs=group.parameters)
        scaler.unscale_(optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in group.parameters if p.grad is not None])
        values = _to_floats({**objective.terms, **objective.metrics, f"norm_{name}": norm, "": loss})
        self._check_finite(objective, values, names)
        if self.schedule.clip:
            nn.utils.clip_grads_with_norm_(group.parameters, self.schedule.clip, norm)
        for settings, lr in zip(optimiser.param_groups, self.base_lr[name], strict=True):
            settings["lr"] = lr * (1 if group.schedule == "constant" else factor)
        scaler.step(optimiser)  # in float16 a gradient that overflowed is left out, and the scale is halved
        scaler.update()
        if scaler.is_enabled():
            values[f"scale_{name}"] = scaler.get_scale()
            if scaler.get_scale() < 1:
                raise self._error(f"the gradient of '{name}' overflows float16", names)
        self.loss += values.pop("")
        return values

    def _check_finite(self, objective: Objective, values: Row, names: Sequence[str]) -> None:
        group = objective.group
        for term in objective.terms:
            if not math.isfinite(values[term]):
                raise self._error(f"the loss '{term}' of '{group}' is {values[term]}", names)
        norm = values[f"norm_{group}"]
        if not self.scalers[group].is_enabled() and not math.isfinite(norm):
            raise self._error(f"the gradient of '{group}' has the norm {norm}", names)

    def _error(self, fault: str, names: Sequence[str]) -> BadInput:
        return BadInput(
            f"train: step {len(self.log)}: {fault}. Lower train.lr, set train.clip, or use float32 "
            f"(train.precision). Images of the batch: {', '.join(names) or 'not named'}."
        )


def _to_floats(values: dict[str, Tensor]) -> Row:
    # the mean over ranks; one transfer from the device for all
    stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    return dict(zip(values, distributed.all_reduce_mean(stacked).tolist(), strict=True))


def _optimiser(group: ParamGroup, schedule: Schedule, biases: set[int]) -> torch.optim.Optimizer:
    name = group.optimiser or schedule.optimiser
    decay = schedule.decay if group.decay is None else group.decay
    rates = _by_rate(group, group.lr or schedule.lr, schedule.bias_lr, biases)
    if name == "adam":
        return torch.optim.Adam(rates, weight_decay=decay, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(rates, weight_decay=decay, fused=True)
    sgd = torch.optim.SGD(rates, momentum=0.9, weight_decay=decay, fused=True)
    for p in group.parameters:  # if the first gradient overflows, fused SGD would start from unset memory
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def _by_rate(group: ParamGroup, lr: float, bias_lr: float, biases: set[int]) -> list[dict[str, Any]]:
    """A group's parameters by their rate, in their order; `biases` are ids of parameters."""
    multiples = {id(p): multiple for parameters, multiple in group.scaled for p in parameters}
    rates: dict[float, list[nn.Parameter]] = {}
    for p in group.parameters:
        rate = lr * multiples.get(id(p), 1.0) * (bias_lr if id(p) in biases else 1.0)
        rates.setdefault(rate, []).append(p)
    return [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in MiB: the GPU's, or on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
