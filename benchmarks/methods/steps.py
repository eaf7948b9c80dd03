"""A training step and an embedding of each method, in turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.training.modes import DEVICE, read_params
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.batches.views import Batch, ImageSet, eval_batches
from pipeline.labels.occlusion import Label
from pipeline.methods.base import Method, data_spec, load_method
from pipeline.methods.presets import resolve
from pipeline.model import compute
from pipeline.model.backbones import load_vit
from pipeline.studies.tables import METHODS
from pipeline.training.loop import Loop
from pipeline.training.schedule import Schedule

CONTROL = "vit_baseline"
EMBEDDED = ROOT / "models" / "embedded"
QUARTILES = ("lower_quartile", "median", "upper_quartile")


def measure(rounds: int) -> dict[str, Any]:
    """Everything that is printed."""
    images = noise(read_params("train", Schedule))
    sides = {name: Side(name, images) for name in sorted(METHODS)}
    with compute.keep_freed_memory():
        step, embed = (
            ratios({name: getattr(side, kind) for name, side in sides.items()}, rounds)
            for kind in ("step", "embed")
        )
    return {
        "device": compute.processor(DEVICE),
        "images": len(images),
        "rounds": rounds,
        **{name: side.sizes | {"step": step[name], "embed": embed[name]} for name, side in sides.items()},
    }


def noise(train: Schedule) -> ImageSet:
    """One batch of noise: every pixel of the parsing maps is of some part, or of none."""
    rng, count = np.random.default_rng(0), train.identities * train.images
    return ImageSet(
        image=rng.integers(0, 256, (count, *train.size, 3), np.uint8),
        parsing=rng.integers(0, 9, (count, *train.size), np.uint8),
        hidden=np.zeros((count, read_params("label", Label).parts), bool),
        camid=np.arange(count) % 4,
        pid=np.arange(count) // train.images,
        threshold=5.0,
    )


class Side:
    """A method as its training begins, with one batch."""

    def __init__(self, name: str, images: ImageSet):
        module = load_method(name)
        settings = resolve(read_params(name, module.Params), module.PRESETS, "recommended", name)
        schedule = resolve(read_params("train", Schedule), module.PRESETS, "recommended", "train")
        torch.manual_seed(0)
        self.model: Method = module.build(settings, data_spec(images), load_vit(EMBEDDED / "vit.safetensors"))
        self.model.read_text(str(EMBEDDED / "text.safetensors"))
        self.loop = Loop(self.model.to(DEVICE).train(), replace(schedule, epochs=1, warmup=0.0), DEVICE)
        self.batch = _batch(images, schedule).to(DEVICE)
        self.model.eval()
        with self.loop.autocast():
            self.model.begin_epoch(0, lambda: (b.to(DEVICE) for b in eval_batches(images, len(images))))

    def step(self) -> None:
        """A step of training."""
        self.model.train()
        self.loop.step(self.batch, 0.5)

    def embed(self) -> None:
        """Features of the batch, in float32 as `embed` computes them."""
        self.model.eval()
        with torch.inference_mode():
            self.model.embed(self.batch)

    @property
    def sizes(self) -> dict[str, int]:
        """Trained parameters, and numbers of an embedding."""
        self.model.eval()
        with torch.inference_mode():
            _, parts, channels = self.model.embed(self.batch).parts.shape
        trained = sum(p.numel() for p in self.model.parameters())
        return {"parameters": trained, "features": parts * channels}


def _batch(images: ImageSet, schedule: Schedule) -> Batch:
    rows, rng = np.arange(len(images)), np.random.default_rng(0)
    augmentations = sample_augmentations(
        images, rows, schedule.flip, schedule.pad, schedule.obstacles, {}, rng, schedule.jitter
    )
    return training_batch(images, rows, augmentations)


def ratios(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Time of each run beside the control's in the same round: quartiles over rounds, after a warm-up."""
    seconds = [{name: _seconds(run) for name, run in runs.items()} for _ in range(rounds + 1)][1:]
    return {
        name: dict(
            zip(
                QUARTILES,
                np.quantile([r[name] / r[CONTROL] for r in seconds], (0.25, 0.5, 0.75)).round(2).tolist(),
                strict=True,
            )
        )
        for name in runs
    }


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
