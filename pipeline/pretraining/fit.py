"""A resumable training loop for detectors, on an endless stream of rendered pictures.

Unusual here:
- bfloat16 autocast and the channels-last format more than double the speed on a CPU.
- The result is a running average of the weights; it scores higher than the weights of the last step.
- Running again with more `steps` continues from the saved state, for example after a change of the renderer.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.core.files import DeferredErrorFile, atomic_write
from pipeline.core.params import STRICT
from pipeline.core.workers import progress_bar


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """Length and optimiser of one training."""

    seed: int  # of the rendered people; held-out pictures use seed + 1
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)  # pictures
    pool: int = Field(ge=1)  # different pictures, which repeat
    learning_rate: float = Field(gt=0)  # of AdamW, after the warm-up; a cosine lowers it to 1 %
    weight_decay: float = Field(ge=0)
    warmup: int = Field(ge=1)  # steps
    clip: float = Field(gt=0)  # largest norm of the gradient
    average: float = Field(ge=0, lt=1)  # decay of the running average of the weights
    keep_every: int = Field(ge=1)  # steps between two saved states; each is scored on the held-out pictures
    held_out: int = Field(ge=1)  # pictures
    renderers: int = Field(ge=0)  # processes that render pictures beside the training process


class SampleStream(Dataset):
    """Sample i is `make(seed, i)`."""

    def __init__(self, make: Callable[[int, int], Any], seed: int, count: int):
        self.make, self.seed, self.count = make, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.make(self.seed, i)


def fit_network(
    network: nn.Module,
    loss: Callable[[nn.Module, list[Any]], Tensor],
    make: Callable[[int, int], Any],
    score: Callable[[nn.Module], dict[str, float | int]],
    schedule: Schedule,
    state: Path,
) -> tuple[nn.Module, list[dict[str, float | int]]]:
    """The averaged network in eval mode, and the history: figures of every saved state.

    `loss(network, batch)` is a scalar, `make(seed, i)` renders sample i, `score(network)` gives figures on
    held-out pictures.  The training continues from the file `state` if there is one.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=schedule.weight_decay)
    start, history = _resume(state, network, averaged, optimiser)
    cpu_before, cpu_start = history[-1]["cpu_seconds"] if history else 0.0, time.process_time()
    running_loss = None
    bar = progress_bar(total=schedule.steps, initial=start, desc=state.stem, unit="step")
    for step, batch in enumerate(_batches(make, schedule, start), start):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(schedule, step, start)
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(network, batch)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), schedule.clip)
        optimiser.step()
        _update_average(averaged, network, min(schedule.average, (1 + step) / (10 + step)))
        batch_loss = float(value.detach())
        running_loss = batch_loss if running_loss is None else 0.98 * running_loss + 0.02 * batch_loss
        bar.update()
        if (step + 1) % schedule.keep_every == 0 or step + 1 == schedule.steps:
            cpu = round(cpu_before + time.process_time() - cpu_start)
            figures = {"step": step + 1, "cpu_seconds": cpu, "loss": running_loss}
            history.append(figures | score(averaged))
            bar.write(str(history[-1]))
            _save_state(state, step + 1, history, network, averaged, optimiser)
    return averaged, history


def training_record(network: str, settings: Any, history: list[dict[str, float | int]]) -> dict[str, Any]:
    """The command, data, params and versions behind the weights, and their history of scores."""
    return {
        "command": f"python -m stages.pretrain {network} models/embedded/{network}.safetensors",
        "trained_on": "rendered people of other seeds than any dataset's (pipeline/synthetic)",
        "params": asdict(settings),
        "history": history,
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
    }


def _batches(make: Callable[[int, int], Any], schedule: Schedule, start: int) -> Iterator[list[Any]]:
    samples = SampleStream(make, schedule.seed, schedule.steps * schedule.batch)
    return iter(
        DataLoader(
            samples,
            schedule.batch,
            sampler=range(start * schedule.batch, len(samples)),
            num_workers=schedule.renderers,
            collate_fn=list,
        )
    )


def _learning_rate(schedule: Schedule, step: int, start: int) -> float:
    warm = min(1.0, (step - start + 1) / schedule.warmup)
    return schedule.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / schedule.steps))


@torch.no_grad()
def _update_average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for average, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        average.lerp_(value, 1 - decay) if average.is_floating_point() else average.copy_(value)


def _save_state(
    state: Path, step: int, history: list, network: nn.Module, averaged: nn.Module, optimiser
) -> None:
    with atomic_write(state) as temporary, DeferredErrorFile(temporary, "w") as file:
        modules = {"network": network, "averaged": averaged, "optimiser": optimiser}
        states = {name: module.state_dict() for name, module in modules.items()}
        torch.save({"step": step, "history": history, **states}, file)


def _resume(state: Path, network: nn.Module, averaged: nn.Module, optimiser) -> tuple[int, list]:
    if not state.is_file():
        return 0, []
    checkpoint = torch.load(state, weights_only=True)
    network.load_state_dict(checkpoint["network"])
    averaged.load_state_dict(checkpoint["averaged"])
    optimiser.load_state_dict(checkpoint["optimiser"])
    return checkpoint["step"], checkpoint["history"]
