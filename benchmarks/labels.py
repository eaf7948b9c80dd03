"""What the labels cost: `uv run python -m benchmarks.labels` prints one JSON object.

CPU time is that of one process with one thread, without imports and what a worker builds once; of several
rounds the least counts. An image's cost is what a long run takes more than a short one, so that what does not
grow with the images stands apart. Inside the networks is what torch modules with weights compute.
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
from pipeline.core.workers import num_cores

FEW = 16  # pictures of a short run, whose cost is taken off a long one's
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
    options = parser.parse_args()
    if options.images < 4 * FEW:
        parser.error(
            f"--images {options.images}: too few to tell an image's cost from noise, take {4 * FEW} or more"
        )
    return options


def _sizes(text: str) -> list[tuple[int, int]]:
    return [tuple(map(int, size.split("x"))) for size in text.split(",")]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    taken = _pictures(options.images)
    few, world = World(folder / "few"), World(folder / "world")
    some = pictures.spread(taken, FEW)
    _costs(few, some, 1)  # whatever is built at the first use
    fixed, costs = _costs(few, some, options.rounds), _costs(world, taken, options.rounds)
    more = {stage: cost - fixed[stage] for stage, cost in costs.items()}
    result = {
        "images": len(taken),
        "source": str(EMBEDDED.relative_to(ROOT)) if EMBEDDED.exists() else "rendered",
        "rounds": options.rounds,
        "stages": {stage: _describe(more[stage], fixed[stage], len(taken) - FEW) for stage in more},
        "inside_networks": _shares(more),
        "inside_networks_with_fixed_costs": _shares(costs),
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


def _costs(world: World, taken: list[pictures.Picture], rounds: int) -> dict[str, Cost]:
    """The cheapest of several runs of each stage, `index` included."""
    pictures.pack(world.path("raw.zip"), taken)
    stages = ("index", *CHAIN)
    runs = [{stage: world.run(stage)[0] for stage in stages} for _ in range(rounds)]
    return {stage: min((run[stage] for run in runs), key=lambda cost: cost.images) for stage in stages}


def _describe(more: Cost, fixed: Cost, images: int) -> dict[str, float]:
    return {
        "images_per_cpu_second": round(images / more.images, 2),
        "cpu_ms_per_image": round(1e3 * more.images / images, 3),
        "in_networks_ms": round(1e3 * more.inside / images, 3),
        "around_ms": round(1e3 * more.around / images, 3),
        "fixed_seconds": round(fixed.images - FEW * more.images / images, 3),
        "built_by_each_worker_seconds": round(fixed.build, 3),
    }


def _shares(costs: dict[str, Cost]) -> dict[str, float]:
    """Share of the CPU time spent inside the networks."""
    shares = {stage: costs[stage].inside / costs[stage].images for stage in ("segment", "pose")}
    chain = [costs[stage] for stage in CHAIN]
    shares["chain"] = sum(c.inside for c in chain) / sum(c.images for c in chain)
    return {name: round(share, 4) for name, share in shares.items()}


def _commands(folder: Path) -> dict[str, Any]:
    """Wall time and peak memory of each stage's own command with a worker a core."""
    world = World(folder, workers=0)
    return {"workers": num_cores(), **{stage: memory.peak(world, stage) for stage in CHAIN}}


if __name__ == "__main__":
    main()
