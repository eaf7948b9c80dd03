"""The training loop: it knows batches, objectives and param groups, and no method by name.

An optimiser step follows each objective that the method yields, so that the next objective sees the weights
that this step left.  Seeds, learning rate, clipping, precision, the log and the check for losses that are not
finite live in this chapter, once for all methods.

Unusual here: a run that was killed, at whatever moment, resumes from its last checkpoint and, on a CPU, ends
with the weights of a run that was not.
"""

import random
import time
from collections.abc import Iterator, Sequence
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
from pipeline.core.workers import progress_bar
from pipeline.data import obstacle_pictures
from pipeline.methods.base import Method
from pipeline.model import compute
from pipeline.training import selection
from pipeline.training.checkpoint import BestEpoch, Checkpoints
from pipeline.training.loop import Loop
from pipeline.training.remarks import rate_remarks, say
from pipeline.training.schedule import Schedule, check_batch_size
from pipeline.training.tensorboard import EventFiles

T = TypeVar("T")


def train_model(
    method: Method,
    images: ImageSet,
    schedule: Schedule,
    seed: int,
    names: Sequence[str] | None = None,
    held_out: ImageSet | None = None,
    checkpoints: Checkpoints | None = None,
    events: EventFiles | None = None,
) -> pd.DataFrame:
    """Train a method in place and return its log: one row per step.

    `names` are what errors call the images, by default their row numbers.  With `held_out`, images of other
    identities, the weights of the epoch that ranks them best are kept, else the last epoch's.  With
    `checkpoints`, training resumes from the last one of an earlier run.  `events` get each step when it is
    done, and first those of the earlier run.  Processes that torchrun started share each batch; each of them
    draws the whole batch, and they stop as soon as their weights differ.

    The same seed, data and kind of machine give the same weights on a CPU, with and without interruptions.
    Raises `BadInput` that names the term, the step and the images if a loss or a gradient is not finite.
    """
    check_batch_size(schedule, distributed.world_size())
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    epochs = [
        pk_batches(images.pid, schedule.identities, schedule.images, rng) for _ in range(schedule.epochs)
    ]
    say(rate_remarks(schedule, [len(epoch) for epoch in epochs]))
    device = distributed.local_device()
    loop = Loop(method.to(device).train(), schedule, device)
    best = checkpoints.resume(loop, rng) if checkpoints else None
    if events:
        events.write(loop.log)
    names = [f"row {i}" for i in range(len(images))] if names is None else names
    batch_size, steps = schedule.identities * schedule.images, _remaining_steps(epochs, len(loop.log))
    batches = _with_wait(
        prefetch(_training_batches(images, [rows for *_, rows in steps], schedule, device, rng))
    )
    bar = progress_bar(
        total=sum(map(len, epochs)) * batch_size,
        initial=len(loop.log) * batch_size,
        desc="train",
        disable=distributed.rank() > 0,
    )
    with compute.keep_freed_memory(), compute.float32_matmul(schedule.matmul), bar:
        for (epoch, step, rows), ((batch, rng_state), waited) in zip(steps, batches, strict=True):
            if step == 0:
                _begin_epoch(loop, images, epoch, batch_size)
            loop.step(batch, epoch + step / len(epochs[epoch]), [names[i] for i in rows], waited)
            if held_out is not None and step == len(epochs[epoch]) - 1:
                best = _evaluate_held_out(best, loop, held_out, batch_size)
            if checkpoints:
                checkpoints.step(loop, rng_state, best)
            if events:
                events.write(loop.log[-1:])
            bar.update(batch_size)
            bar.set_postfix_str(f"epoch {epoch + 1}/{len(epochs)} loss {loop.loss:.3f}", refresh=False)
    distributed.check_equal_weights(method)
    if best:
        method.load_state_dict(best.weights)
    method.eval().cpu()
    return pd.DataFrame(loop.log)


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, before anything is drawn."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _remaining_steps(epochs: list[list[np.ndarray]], done: int) -> list[tuple[int, int, np.ndarray]]:
    # (epoch, step in the epoch, rows of the batch)
    steps = [(epoch, step, rows) for epoch, batches in enumerate(epochs) for step, rows in enumerate(batches)]
    return steps[done:]


def _training_batches(
    images: ImageSet,
    steps: list[np.ndarray],
    schedule: Schedule,
    device: torch.device,
    rng: np.random.Generator,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each step's batch, or this rank's share of it, and the generator's state after drawing it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else this thread would also take memory of the first GPU
    pictures = obstacle_pictures.read_folders(schedule.obstacles)
    on_gpu = gpu.image_set_on_gpu(images, device)
    for rows in steps:
        augmentations = sample_augmentations(
            images,
            rows,
            schedule.flip,
            schedule.pad,
            schedule.obstacles,
            pictures,
            rng,
            schedule.jitter,
        )
        share = distributed.local_slice(len(rows))
        if on_gpu:
            batch = on_gpu.training_batch(rows[share], augmentations[share])
        else:
            batch = training_batch(images, rows[share], augmentations[share]).to(device)
        yield batch, dict(rng.bit_generator.state)


def _with_wait(batches: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each batch, and the seconds that the loop waited for it."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()


def _begin_epoch(loop: Loop, images: ImageSet, epoch: int, batch_size: int) -> None:
    distributed.check_equal_weights(loop.method)
    loop.method.eval()
    with loop.autocast():
        loop.method.begin_epoch(
            epoch, lambda: (batch.to(loop.device) for batch in eval_batches(images, batch_size))
        )
    loop.method.train()


def _evaluate_held_out(best: BestEpoch | None, loop: Loop, held_out: ImageSet, batch_size: int) -> BestEpoch:
    with loop.autocast():
        score = selection.score(loop.method, held_out, batch_size, loop.device)
    loop.log[-1]["held_out_mAP"] = 100 * score
    if best and best.score >= score:
        return best
    weights = {name: t.to("cpu", copy=True) for name, t in loop.method.state_dict().items()}
    return BestEpoch(score, weights)
