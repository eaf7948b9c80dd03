"""OGFR and TransReID in turn: time, multiply-adds and memory of a step and of an embedding."""

import contextlib
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.complexity.counts import OCCLUDED_DUKE, VIT
from benchmarks.training.input_rates import measure_input, random_images
from benchmarks.training.modes import DEVICE, MODES, SHARED, autocast, read_params
from benchmarks.training.transreid import TransReID
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import HOLISTIC, PRESETS, Params
from pipeline.methods.presets import resolve
from pipeline.model import compute
from pipeline.model.backbones import untrained_vit
from pipeline.training.loop import Loop
from pipeline.training.schedule import Schedule

IMAGES = 4 if DEVICE.type == "cpu" else 64  # per batch, by default
MB = 1e6


def measure(checkout: Path, strides: list[int], images: int | None, rounds: int) -> dict[str, Any]:
    """Everything that is printed."""
    torch.set_num_threads(1)
    images = images or IMAGES
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor(),
        "images": images,
        "rounds": rounds,
        "input": measure_input(checkout, rounds),
        **{f"stride_{stride}": measure_networks(checkout, stride, images, rounds) for stride in strides},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "cpu family"))}))


class Ours:
    """OGFR and the steps of the project's loop."""

    def __init__(self, checkout: Path, stride: int, images: int):
        settings = dataclasses.replace(read_params("ogfr", Params), preset="recommended", stride=stride)
        settings = resolve(settings, PRESETS, "recommended", "ogfr")
        self.schedule = resolve(read_params("train", Schedule), PRESETS, "paper", "train")
        self.model = build(settings, OCCLUDED_DUKE, untrained_vit({"name": VIT})).to(DEVICE)
        image_set, rows, rng = random_images(images), np.arange(images), np.random.default_rng(0)
        augmentations = sample_augmentations(image_set, rows, 0.5, 10, self.schedule.obstacles, {}, rng)
        self.batch = training_batch(image_set, rows, augmentations).to(DEVICE)
        self.loops: dict[torch.dtype, Loop] = {}

    def step(self, precision: torch.dtype) -> None:
        """A step of training."""
        if precision not in self.loops:
            schedule = dataclasses.replace(self.schedule, precision=str(precision).removeprefix("torch."))
            self.loops[precision] = Loop(self.model, schedule, DEVICE)
        self._set_attention()
        self.model.train()
        self.loops[precision].step(self.batch, 0.5)

    def embed(self, precision: torch.dtype) -> None:
        """Features and visibility."""
        self._set_attention()
        self.model.eval()
        with torch.inference_mode(), autocast(precision):
            self.model.embed(self.batch)

    def _set_attention(self) -> None:
        compute.set_attention(self.model, compute.attention_kernel("auto", DEVICE))

    def explore(self, precision: torch.dtype) -> Callable[[], None]:
        """The agent's part of a step, as a function: baseline and three more episodes."""
        model, batch = self.model.train(), self.batch
        with torch.no_grad(), autocast(precision):
            h, _ = model.encode_views(batch)
            branch = model.branch(HOLISTIC, h, batch.holistic)

        def run() -> None:
            with torch.no_grad(), autocast(precision):
                model.explore([branch], batch.pid)

        return run


def measure_networks(checkout: Path, stride: int, images: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of both sides in every mode, their ratios, and the memory of a step."""
    sides = {"theirs": TransReID(checkout, stride, images), "ours": Ours(checkout, stride, images)}
    runs = {
        (side, kind, mode): (getattr(sides[side], kind), *MODES[mode])
        for mode in MODES
        for side in (sides if mode in SHARED else ["theirs"])
        for kind in ("step", "embed")
    }
    milliseconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with compute.keep_freed_memory():
        for _ in range(rounds):
            for mode, (library, precision) in MODES.items():
                speeds[mode].append(_speed(library, precision))
            for key, (run, library, precision) in runs.items():
                with compute.float32_matmul(library):
                    milliseconds[key].append(_seconds(lambda run=run, p=precision: run(p)) / images * 1e3)
            print(f"stride {stride}: {milliseconds}", flush=True)
    least = {key: min(values) for key, values in milliseconds.items()}
    fastest = {mode: max(values) for mode, values in speeds.items()}
    return {
        "product_gflop_per_s": {mode: round(speed) for mode, speed in fastest.items()},
        **{kind: _table(least, kind, _work(sides, kind), fastest) for kind in ("step", "embed")},
        "agent_share_of_step": _agent(sides["ours"], least, images, rounds),
        "step_peak_mb": {side: _peak(side, checkout, stride, images) for side in sides},
    }


def _speed(library: str, precision: torch.dtype) -> float:
    """GFLOP/s of a product of a ViT-B's size, the best of nine."""
    left, right = (torch.randn(shape, device=DEVICE, dtype=precision) for shape in ((1024, 768), (768, 3072)))
    with compute.float32_matmul(library):
        seconds = min(_seconds(lambda: left @ right) for _ in range(9))
    return 2 * left.numel() * right.shape[1] / seconds / 1e9


def _work(sides: dict[str, TransReID | Ours], kind: str) -> float:
    """Our multiply-adds as a multiple of theirs."""
    flops = {}
    for name, side in sides.items():
        with FlopCounterMode(display=False) as counter:
            getattr(side, kind)(MODES[next(iter(SHARED))][1])
        flops[name] = counter.get_total_flops()
    return flops["ours"] / flops["theirs"]


def _table(
    least: dict[tuple[str, str, str], float], kind: str, work: float, speeds: dict[str, float]
) -> dict[str, Any]:
    first = next(iter(MODES))
    theirs = least["theirs", kind, first]
    return {
        "multiply_adds_of_theirs": round(work, 3),
        "products_alone": {m: round(work * speeds[first] / speeds[m], 3) for m in SHARED},
        "ms_per_image": {f"{s} {m}": round(v, 1) for (s, k, m), v in least.items() if k == kind},
        "ours_of_theirs_alike": {
            m: round(least["ours", kind, m] / least["theirs", kind, m], 3) for m in SHARED
        },
        "ours_of_theirs_as_it_is": {m: round(least["ours", kind, m] / theirs, 3) for m in SHARED},
    }


def _agent(
    ours: Ours, least: dict[tuple[str, str, str], float], images: int, rounds: int
) -> dict[str, float]:
    """Share of a step that the baseline and three more episodes take."""
    shares = {}
    for mode, (library, precision) in SHARED.items():
        with compute.float32_matmul(library):
            run = ours.explore(precision)
            milliseconds = min(_seconds(run) for _ in range(rounds)) / images * 1e3
        shares[mode] = round(milliseconds / least["ours", "step", mode], 4)
    return shares


def _seconds(run: Callable[[], None]) -> float:
    if DEVICE.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(side: str, checkout: Path, stride: int, images: int) -> float:
    """MB that two steps add to a process of their own, model and optimiser included."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as process:
        return round(process.apply(_step_alone, (side, checkout, stride, images)) / MB, 1)


def _step_alone(side: str, checkout: Path, stride: int, images: int) -> float:
    torch.set_num_threads(1)
    kind = {"theirs": TransReID, "ours": Ours}[side]
    with contextlib.redirect_stdout(sys.stderr):
        before = _memory("VmRSS")
        model = kind(checkout, stride, images)
        with compute.keep_freed_memory():
            for _ in range(2):  # momentum is there from the second on
                model.step(MODES[next(iter(SHARED))][1])
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _memory("VmHWM") - before


def _memory(line: str) -> int:
    """Bytes in use (VmRSS), or their peak (VmHWM)."""
    status = dict(entry.split(":") for entry in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024
