"""The training loop: it knows batches, objectives and groups, and no method by name.

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

from pipeline.batches import gpu
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.batches.prefetch import prefetch
from pipeline.batches.sampler import pk_batches
from pipeline.batches.views import Batch, ImageSet, eval_batches
from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.core.workers import progress_bar
from pipeline.data import obstacles
from pipeline.methods.base import Method
from pipeline.model import compute, machine
from pipeline.model.compute import Compute
from pipeline.training import selection
from pipeline.training.checkpoint import BestEpoch, Checkpoints
from pipeline.training.loop import Loop
from pipeline.training.schedule import Schedule

T = TypeVar("T")
LIBRARIES = ("torch", "timm", "numpy", "safetensors", "opencv-python-headless", "pillow")


def run_record(method: Method, schedule: Schedule, seed: int, data: dict[str, str]) -> dict[str, Any]:
    """What a run depends on: start, resolved schedule, seed, data by hash, versions and machine.

    `method` is as it is before training.  On a CPU an equal record means equal weights.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {
        "train": asdict(schedule), "seed": seed, "start": weights_hash(method), "data": data,
        "versions": versions, "machine": hardware(), "computed": resolved_compute(method, schedule),
    }  # fmt: skip


def resolved_compute(method: Method, schedule: Schedule) -> dict[str, str]:
    """What `auto` stands for on this machine."""
    device = distributed.local_device()
    how = Compute(schedule.precision, schedule.products, schedule.attention)
    compiled = compute.should_compile(
        schedule.compile, method, device, compute.precision(how.precision, device)
    )
    return compute.resolve(how, device)._asdict() | {"compiled": str(compiled).lower()}


def weights_hash(method: Method) -> str:
    """Hex digest of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in method.state_dict().items():
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def hardware() -> dict[str, Any]:
    """What the weights depend on beside numbers and code: the kind of processor, and how many work."""
    where = distributed.local_device()
    number = {"threads": torch.get_num_threads(), "processes": distributed.world_size()}
    return {"device": where.type, "processor": machine.processor(where), **number}


def train_model(
    method: Method,
    pictures: ImageSet,
    schedule: Schedule,
    seed: int,
    names: Sequence[str] | None = None,
    held_out: ImageSet | None = None,
    saves: Checkpoints | None = None,
) -> pd.DataFrame:
    """Train a method in place and return its log: a row a step.

    `names` are what errors call the pictures, their row numbers by default.  With `held_out`, pictures of
    other identities, the weights kept are those of the epoch that ranks them best, else the last epoch's.
    With `saves`, training goes on from what an earlier run left there.  Processes that torchrun started
    share each batch; every one draws the whole, and they stop as soon as their weights differ.

    The same seed, data and machine give the same weights on a CPU, with and without interruptions.  Raises
    `BadInput` that names the term, the step and the images if a loss or a gradient is no number.
    """
    if schedule.identities % distributed.world_size():
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} cannot be shared by "
            f"{distributed.world_size()} processes. Let it be a multiple."
        )
    alone = distributed.world_size() if schedule.statistics == "process" else 1
    if schedule.identities * schedule.images < 2 * alone:
        raise BadInput(
            f"params.yaml: train.identities = {schedule.identities} and train.images = {schedule.images} "
            "give a batch norm a single image, and it needs two. Raise train.images."
        )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    epochs = [
        pk_batches(pictures.pid, schedule.identities, schedule.images, rng) for _ in range(schedule.epochs)
    ]
    device = distributed.local_device()
    loop = Loop(method.to(device).train(), schedule, device)
    best = saves.resume(loop, rng) if saves else None
    names = [f"row {i}" for i in range(len(pictures))] if names is None else names
    images, done = schedule.identities * schedule.images, len(loop.log)
    total, silent = sum(map(len, epochs)) * images, distributed.rank() > 0
    steps = _remaining_steps(epochs, done)
    drawn = _with_wait(
        prefetch(_training_batches(pictures, [rows for *_, rows in steps], schedule, device, rng))
    )
    products = compute.float32_matmul(distributed.broadcast_object(compute.matmul_library(schedule.products)))
    bar = progress_bar(total=total, initial=done * images, desc="train", disable=silent)
    with machine.keep_freed_memory(), products, bar:
        for (epoch, step, rows), ((batch, state), waited) in zip(steps, drawn, strict=True):
            if step == 0:
                _begin_epoch(loop, pictures, epoch, images)
            loop.step(batch, epoch + step / len(epochs[epoch]), [names[i] for i in rows], waited)
            if held_out is not None and step == len(epochs[epoch]) - 1:
                best = _evaluate_held_out(best, loop, held_out, epoch, images)
            if saves:
                saves.step(loop, state, best)
            bar.update(images)
            bar.set_postfix_str(f"epoch {epoch + 1}/{len(epochs)} loss {loop.loss:.3f}", refresh=False)
    distributed.check_equal_weights(method)
    if best:
        method.load_state_dict(best.weights)
    method.eval().cpu()
    return pd.DataFrame(loop.log)


def _remaining_steps(epochs: list[list[np.ndarray]], done: int) -> list[tuple[int, int, np.ndarray]]:
    # (epoch, step in it, rows) of the steps that are left
    steps = [(epoch, step, rows) for epoch, all in enumerate(epochs) for step, rows in enumerate(all)]
    return steps[done:]


def _training_batches(
    pictures: ImageSet,
    steps: list[np.ndarray],
    schedule: Schedule,
    device: torch.device,
    rng: np.random.Generator,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each step's batch, or this process's share of it, and the state that the next one is drawn from."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a thread of its own would take memory of the first GPU, too
    cutouts, there = obstacles.read_cutouts(schedule.obstacles.cutouts), gpu.to_gpu(pictures, device)
    for rows in steps:
        chances = sample_augmentations(
            pictures, rows, schedule.flip, schedule.pad, schedule.obstacles, cutouts, rng
        )
        own = distributed.local_slice(len(rows))
        if there:
            batch = there.pairs(rows[own], chances[own])
        else:
            batch = training_batch(pictures, rows[own], chances[own]).to(device)
        yield batch, rng.bit_generator.state


def _with_wait(made: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each, and the seconds that it was waited for."""
    began = time.perf_counter()
    for one in made:
        yield one, time.perf_counter() - began
        began = time.perf_counter()


def _begin_epoch(loop: Loop, pictures: ImageSet, epoch: int, images: int) -> None:
    distributed.check_equal_weights(loop.method)
    loop.method.eval()
    with loop.cast():
        loop.method.begin_epoch(epoch, lambda: (b.to(loop.device) for b in eval_batches(pictures, images)))
    loop.method.train()


def _evaluate_held_out(
    best: BestEpoch | None, loop: Loop, held_out: ImageSet, epoch: int, images: int
) -> BestEpoch:
    with loop.cast():
        score = selection.score(loop.method, held_out, images, loop.device)
    loop.log[-1]["held_out_mAP"] = 100 * score
    if best and best.score >= score:
        return best
    weights = {name: t.to("cpu", copy=True) for name, t in loop.method.state_dict().items()}
    return BestEpoch(score, epoch, weights)
