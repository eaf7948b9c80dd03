"""Label quality against cost, for input sizes of both networks, on people whom no network has seen.

The embedded networks were trained at one size, 256 x 128, so the others show what a deviation costs or saves.
"""

from pathlib import Path
from typing import Any

from benchmarks.pictures import Picture, pack
from benchmarks.worlds import CHAIN, World, silent
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import read_index
from pipeline.labels import occlusion
from pipeline.labels.quality import metrics

Size = tuple[int, int]  # height, width


def study(folder: Path, sizes: list[Size], pictures: list[Picture]) -> list[dict[str, Any]]:
    """A row for each size: quality as the stage `score` defines it, and CPU ms an image."""
    return [_row(folder / f"{height}x{width}", (height, width), pictures) for height, width in sizes]


def _row(folder: Path, size: Size, pictures: list[Picture]) -> dict[str, Any]:
    world = World(folder, segment={"size": list(size)}, pose={"size": list(size)})
    pack(world.path("raw.zip"), pictures)
    world.run("index")
    costs = {stage: world.run(stage)[0] for stage in CHAIN}
    spent = {stage: round(1e3 * cost.images / len(pictures), 2) for stage, cost in costs.items()}
    return {
        "size": f"{size[0]}x{size[1]}",
        **quality(world),
        "cpu_ms_per_image": {**spent, "all": round(sum(spent.values()), 2)},
    }


def quality(world: World) -> dict[str, Any]:
    """IoU of the target's mask and of the parts, balanced accuracy of l_c, what was missed or mistaken."""
    index = read_index(world.path("index.parquet"))
    files = [LabelFile(world.path(f"{n}.h5"), n) for n in ("instances", "parsing", "occlusion", "truth")]
    rule = params.validate(world.values["label"], occlusion.Label, "label: ")
    score = params.validate(world.values["score"], metrics.Score, "score: ")
    with silent():
        found = metrics.report(index, metrics.Labels(*files), rule, world.values["lambda"], score)[0]
    return {
        "mask_iou": found["mask_iou"],
        "part_iou": found["part_iou"]["mean"],
        "balanced_accuracy": found["all"]["balanced_accuracy"]["mean"],
        "balanced_accuracy_occluded": found["occluded"]["balanced_accuracy"],
        "no_person": found["no_person"],
        "wrong_person": found["wrong_person"],
    }
