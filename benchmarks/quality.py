"""Label quality against cost, for input sizes of both networks, on people whom no network has seen."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pictures import Picture, pack
from benchmarks.worlds import CHAIN, World
from pipeline import datasets, occlusion, params, parts, scoring, store

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
    """IoU of the target's mask and of the parts, balanced accuracy of l_c, images without a person."""
    index = datasets.read_index(world.path("index.parquet"))
    files = [store.Rows(world.path(f"{n}.h5"), n) for n in ("instances", "parsing", "occlusion", "truth")]
    labels = scoring.Labels(*files)
    agreement = scoring.compare(index, labels)
    occluded = (index["split"] == "query").to_numpy()  # in these pictures, whoever is behind something
    return {
        "mask_iou": _share(agreement.mask_iou.mean()),
        "mask_iou_occluded": _share(agreement.mask_iou[occluded].mean()),
        "part_iou": _share(np.nanmean(agreement.part_iou())),
        "balanced_accuracy": _flags(world, labels, np.ones(len(index), bool)),
        "balanced_accuracy_occluded": _flags(world, labels, occluded),
        "no_person": int((labels.parsing["status"][:] == 1).sum()),
    }


def _flags(world: World, labels: scoring.Labels, rows: np.ndarray) -> dict[str, float]:
    """Balanced accuracy of each l_c, and their mean."""
    rule = params.validate(world.values["label"], occlusion.Label, "label: ")
    names = list(parts.COARSE[rule.parts])
    pixels = scoring.true_pixels(labels.truth, labels.parsing["map"].shape[1:], len(names))
    threshold = world.values["lambda"]
    truth = pixels < threshold if rule.strict else pixels <= threshold
    guess = labels.occlusion["occluded"][:] > 0
    each = {n: scoring.balanced_accuracy(truth[rows, c], guess[rows, c]) for c, n in enumerate(names)}
    return {**{n: _share(v) for n, v in each.items()}, "mean": _share(np.nanmean(list(each.values())))}


def _share(value: float) -> float:
    return round(float(value), 4)
