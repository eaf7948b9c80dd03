"""The training loop: it knows batches, objectives and players, and no method by name.

Every optimiser step follows one `yield` of the method's objectives, so that an objective sees the weights
which the one before left.  Seeds, learning rate, clipping, precision, the log and the check for losses that
are no numbers live here, once for all methods.

Unusual here: a run that was killed, at whatever moment, goes on from its last saved state and, on a CPU, ends
with the weights of a run that was not.
"""

import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from pipeline import arithmetic, batches, machine, obstacles, processes, resident
from pipeline.arithmetic import Computing
from pipeline.batches import Batch, Pictures
from pipeline.method import Method
from pipeline.params import BadInput
from pipeline.store import progress
from pipeline.training import selection
from pipeline.training.loop import Loop
from pipeline.training.schedule import Schedule
from pipeline.training.state import Best, Saves

T = TypeVar("T")
LIBRARIES = ("torch", "timm", "numpy", "safetensors", "opencv-python-headless", "pillow")


def seed(value: int) -> None:
    """Seed what draws initial weights and actions."""
    torch.manual_seed(value)


def record(method: Method, schedule: Schedule, seed: int, data: dict[str, str]) -> dict[str, Any]:
    """What a run depends on: start, resolved schedule, seed, data by hash, versions and machine.

    `method` is as it is before training.  On a CPU an equal record means equal weights.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {
        "train": asdict(schedule), "seed": seed, "start": digest(method), "data": data,
        "versions": versions, "machine": machine_used(), "computed": computed(method, schedule),
    }  # fmt: skip


def computed(method: Method, schedule: Schedule) -> dict[str, str]:
    """What `auto` stands for on this machine."""
    device = processes.device()
    how = Computing(schedule.precision, schedule.products, schedule.attention)
    compiled = arithmetic.compiles(
        schedule.compile, method, device, arithmetic.precision(how.precision, device)
    )
    return arithmetic.settled(how, device)._asdict() | {"compiled": str(compiled).lower()}


def digest(method: Method) -> str:
    """Hex digest of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in method.state_dict().items():
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def machine_used() -> dict[str, Any]:
    """What the weights depend on beside numbers and code: the kind of processor, and how many work."""
    where = processes.device()
    number = {"threads": torch.get_num_threads(), "processes": processes.count()}
    return {"device": where.type, "processor": machine.kind(where), **number}


def train(
    method: Method,
    pictures: Pictures,
    schedule: Schedule,
    seed: int,
    names: Sequence[str] | None = None,
    held_out: Pictures | None = None,
    saves: Saves | None = None,
) -> pd.DataFrame:
    """Train a method in place and return its log: a row a step.

    `names` are what errors call the pictures, their row numbers by default.  With `held_out`, pictures of
    other identities, the weights kept are those of the epoch that ranks them best, else the last epoch's.
    With `saves`, training goes on from what an earlier run left there.  Processes that torchrun started
    share each batch; every one draws the whole, and they stop as soon as their weights differ.

    The same seed, data and machine give the same weights on a CPU, with and without interruptions.  Raises
    `BadInput` that names the term, the step and the images if a loss or a gradient is no number.
    """
    if schedule.identities % processes.count():
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} cannot be shared by {processes.count()} "
            "processes. Let it be a multiple."
        )
    alone = processes.count() if schedule.statistics == "process" else 1
    if schedule.identities * schedule.images < 2 * alone:
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} and train.images = {schedule.images} "
            "give a batch norm a single image, and it needs two. Raise train.images."
        )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    epochs = [
        batches.by_identity(pictures.pid, schedule.identities, schedule.images, rng)
        for _ in range(schedule.epochs)
    ]
    device = processes.device()
    loop = Loop(method.to(device).train(), schedule, device)
    best = saves.resume(loop, rng) if saves else None
    names = [f"row {i}" for i in range(len(pictures))] if names is None else names
    images, done = schedule.identities * schedule.images, len(loop.log)
    total, silent = sum(map(len, epochs)) * images, processes.number() > 0
    steps = _from(epochs, done)
    drawn = _timed(batches.ahead(_drawn(pictures, [rows for *_, rows in steps], schedule, device, rng)))
    products = arithmetic.products(processes.from_first(arithmetic.library(schedule.products)))
    bar = progress(total=total, initial=done * images, desc="train", disable=silent)
    with machine.memory_kept(), products, bar:
        for (epoch, step, rows), ((batch, state), waited) in zip(steps, drawn, strict=True):
            if step == 0:
                _begin_epoch(loop, pictures, epoch, images)
            loop.step(batch, epoch + step / len(epochs[epoch]), [names[i] for i in rows], waited)
            if held_out is not None and step == len(epochs[epoch]) - 1:
                best = _better(best, loop, held_out, epoch, images)
            if saves:
                saves.step(loop, state, best)
            bar.update(images)
            bar.set_postfix_str(f"epoch {epoch + 1}/{len(epochs)} loss {loop.loss:.3f}", refresh=False)
    processes.agree_on_weights(method)
    if best:
        method.load_state_dict(best.weights)
    method.eval().cpu()
    return pd.DataFrame(loop.log)


def _from(epochs: list[list[np.ndarray]], done: int) -> list[tuple[int, int, np.ndarray]]:
    # (epoch, step in it, rows) of the steps that are left
    steps = [(epoch, step, rows) for epoch, all in enumerate(epochs) for step, rows in enumerate(all)]
    return steps[done:]


def _drawn(
    pictures: Pictures,
    steps: list[np.ndarray],
    schedule: Schedule,
    device: torch.device,
    rng: np.random.Generator,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each step's batch, or this process's share of it, and the state that the next one is drawn from."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a thread of its own would take memory of the first GPU, too
    cutouts, there = obstacles.read_cutouts(schedule.obstacles.cutouts), resident.of(pictures, device)
    for rows in steps:
        chances = batches.draw(pictures, rows, schedule.flip, schedule.pad, schedule.obstacles, cutouts, rng)
        own = processes.share(len(rows))
        if there:
            batch = there.pairs(rows[own], chances[own])
        else:
            batch = batches.pairs(pictures, rows[own], chances[own]).to(device)
        yield batch, rng.bit_generator.state


def _timed(made: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each, and the seconds that it was waited for."""
    began = time.perf_counter()
    for one in made:
        yield one, time.perf_counter() - began
        began = time.perf_counter()


def _begin_epoch(loop: Loop, pictures: Pictures, epoch: int, images: int) -> None:
    processes.agree_on_weights(loop.method)
    loop.method.eval()
    with loop.cast():
        loop.method.begin_epoch(
            epoch, lambda: (b.to(loop.device) for b in batches.plain_batches(pictures, images))
        )
    loop.method.train()


def _better(best: Best | None, loop: Loop, held_out: Pictures, epoch: int, images: int) -> Best:
    with loop.cast():
        score = selection.score(loop.method, held_out, images, loop.device)
    loop.log[-1]["held_out_mAP"] = 100 * score
    if best and best.score >= score:
        return best
    weights = {name: t.to("cpu", copy=True) for name, t in loop.method.state_dict().items()}
    return Best(score, epoch, weights)
