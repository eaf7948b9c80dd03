"""The costs of the label stages: CPU time, memory, read rates, bytes."""

import argparse
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks import ROOT
from benchmarks.labels import bpbreid
from benchmarks.labels.input_sizes import compare_sizes
from benchmarks.labels.read_rates import measure_read_rates
from benchmarks.labels.sandbox import LABEL_STAGES, Cost, Sandbox
from benchmarks.labels.stage_memory import measure_memory
from benchmarks.samples import Sample, evenly_spaced, held_out_samples, pack_samples, read_samples
from pipeline.core.workers import num_cores

SHORT = 16  # images of the short run, whose cost is subtracted from the long run's
EMBEDDED = ROOT / "data/embedded/raw.zip"


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    exists, images = EMBEDDED.exists(), options.images
    samples = read_samples(EMBEDDED, images) if exists else held_out_samples(images)
    short, long = Sandbox(folder / "short"), Sandbox(folder / "long")
    few = evenly_spaced(samples, SHORT)
    _stage_costs(short, few, 1)  # what the first use sets up is not measured
    fixed, costs = _stage_costs(short, few, options.rounds), _stage_costs(long, samples, options.rounds)
    differences = {stage: cost - fixed[stage] for stage, cost in costs.items()}
    result = {
        "images": len(samples),
        "source": str(EMBEDDED.relative_to(ROOT)) if exists else "rendered",
        "rounds": options.rounds,
        "stages": {s: _describe(differences[s], fixed[s], len(samples) - SHORT) for s in differences},
        "inside_networks": _network_shares(differences),
        "inside_networks_with_fixed_costs": _network_shares(costs),
        "commands": _commands(folder / "long"),
        "read_images_per_second": measure_read_rates(long.path("parsing.h5"), long.path("occlusion.h5")),
        "bytes_per_image": bytes_per_image(long.folder, len(samples)),
    }
    if options.bpbreid:
        extra = [path for path in options.detectron2.split(":") if path]
        compared = bpbreid.compare(options.bpbreid, extra, folder / "peer", samples, options.rounds)
        result["around_the_networks"] = compared
    if options.sizes:
        held_out = held_out_samples(options.held_out)
        result["held_out"] = len(held_out)
        result["sizes"] = compare_sizes(folder / "sizes", options.sizes, held_out)
    return result


def _stage_costs(sandbox: Sandbox, samples: list[Sample], rounds: int) -> dict[str, Cost]:
    """The cheapest of several runs of each stage, `index` included."""
    pack_samples(sandbox.path("raw.zip"), samples)
    stages = ("index", *LABEL_STAGES)
    runs = [{stage: sandbox.run(stage)[0] for stage in stages} for _ in range(rounds)]
    return {stage: min((run[stage] for run in runs), key=lambda cost: cost.work) for stage in stages}


def _describe(difference: Cost, fixed: Cost, images: int) -> dict[str, float]:
    return {
        "images_per_cpu_second": round(images / difference.work, 2),
        "cpu_ms_per_image": round(1e3 * difference.work / images, 3),
        "in_networks_ms": round(1e3 * difference.network / images, 3),
        "around_ms": round(1e3 * difference.around_network / images, 3),
        "fixed_seconds": round(fixed.work - SHORT * difference.work / images, 3),
        "built_by_each_worker_seconds": round(fixed.setup, 3),
    }


def _network_shares(costs: dict[str, Cost]) -> dict[str, float]:
    """Share of the CPU time spent inside the networks."""
    shares = {stage: costs[stage].network / costs[stage].work for stage in ("segment", "pose")}
    chain = [costs[stage] for stage in LABEL_STAGES]
    shares["chain"] = sum(c.network for c in chain) / sum(c.work for c in chain)
    return {name: round(share, 4) for name, share in shares.items()}


def _commands(folder: Path) -> dict[str, Any]:
    """Wall time and peak memory of each stage's own command, with one worker per core."""
    sandbox = Sandbox(folder, workers=0)
    return {"workers": num_cores(), **{stage: measure_memory(sandbox, stage) for stage in LABEL_STAGES}}


def bytes_per_image(folder: Path, count: int) -> dict[str, float]:
    """Bytes per image of every file of a dataset."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".h5", ".parquet"))
    return {path.name: round(path.stat().st_size / count, 1) for path in files}
