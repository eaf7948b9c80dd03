"""What the labels cost: `uv run python -m benchmarks.labels` prints one JSON object.

CPU time is that of one process with one thread, without imports and what a worker builds once; of several
rounds the least counts. Inside the networks is what torch modules with weights compute.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks import bpbreid, memory, pictures, quality, reading
from benchmarks.worlds import CHAIN, ROOT, Cost, World
from pipeline import store

EMBEDDED = ROOT / "data/embedded/raw.zip"


def main() -> None:
    """Measure what the command line asks for."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=256, help="embedded pictures; rendered if there are none yet"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--bpbreid", type=Path, help="checkout of VlSomers/bpbreid to compare with")
    parser.add_argument(
        "--detectron2", default="", help="folders that hold detectron2 and its needs, joined by :"
    )
    parser.add_argument(
        "--sizes", type=_sizes, default=[], help="height x width,...: label quality against cost"
    )
    parser.add_argument("--held-out", type=int, default=128, help="pictures for --sizes")
    return parser.parse_args()


def _sizes(text: str) -> list[tuple[int, int]]:
    return [tuple(map(int, size.split("x"))) for size in text.split(",")]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    taken = _pictures(options.images)
    world = World(folder / "world")
    pictures.pack(world.path("raw.zip"), taken)
    index = world.run("index")[0]
    costs = [{stage: world.run(stage)[0] for stage in CHAIN} for _ in range(options.rounds)]
    best = {stage: min((c[stage] for c in costs), key=lambda cost: cost.images) for stage in CHAIN}
    result = {
        "images": len(taken),
        "source": str(EMBEDDED.relative_to(ROOT)) if EMBEDDED.exists() else "rendered",
        "rounds": options.rounds,
        "stages": {stage: _describe(cost, len(taken)) for stage, cost in best.items()},
        "index_cpu_ms_per_image": round(1e3 * index.total / len(taken), 3),
        "inside_networks": _shares(best),
        "commands": _commands(folder / "world"),
        "read_images_per_second": reading.measure(world.path("parsing.h5"), world.path("occlusion.h5")),
        "bytes_per_image": reading.sizes(world.folder, len(taken)),
    }
    if options.bpbreid:
        extra = [path for path in options.detectron2.split(":") if path]
        compared = bpbreid.compare(options.bpbreid, extra, folder / "peer", taken, options.rounds)
        result["around_the_networks"] = compared
    if options.sizes:
        held_out = pictures.held_out(options.held_out)
        result["held_out"] = len(held_out)
        result["sizes"] = quality.study(folder / "sizes", options.sizes, held_out)
    return result


def _pictures(count: int) -> list[pictures.Picture]:
    return pictures.some(EMBEDDED, count) if EMBEDDED.exists() else pictures.held_out(count)


def _describe(cost: Cost, images: int) -> dict[str, float]:
    return {
        "images_per_cpu_second": round(images / cost.images, 2),
        "cpu_ms_per_image": round(1e3 * cost.images / images, 3),
        "in_networks_ms": round(1e3 * cost.inside / images, 3),
        "around_ms": round(1e3 * cost.around / images, 3),
        "built_once_seconds": round(cost.build, 3),
    }


def _shares(costs: dict[str, Cost]) -> dict[str, float]:
    """Share of the CPU time spent inside the networks."""
    shares = {stage: costs[stage].inside / costs[stage].images for stage in ("segment", "pose")}
    shares["chain"] = sum(c.inside for c in costs.values()) / sum(c.images for c in costs.values())
    return {name: round(share, 4) for name, share in shares.items()}


def _commands(folder: Path) -> dict[str, Any]:
    """Wall time and peak memory of each stage's own command with a worker a core."""
    world = World(folder, workers=0)
    return {"workers": store.cores(), **{stage: memory.peak(world, stage) for stage in CHAIN}}


if __name__ == "__main__":
    main()
