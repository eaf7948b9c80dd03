"""Label quality against cost for several input sizes of both networks, on people whom no network has seen.

The embedded networks were trained at 256 x 128.  The other sizes show what a deviation costs or saves.
"""

from pathlib import Path
from typing import Any

from benchmarks.labels.sandbox import LABEL_STAGES, Sandbox, suppress_output
from benchmarks.samples import Sample, pack_samples
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, read_index
from pipeline.labels import occlusion
from pipeline.labels.quality import metrics, statistics

Size = tuple[int, int]  # height, width


def compare_sizes(folder: Path, sizes: list[Size], samples: list[Sample]) -> list[dict[str, Any]]:
    """One row per size: quality as stage `score` defines it, and CPU ms per image."""
    return [_row(folder / f"{height}x{width}", (height, width), samples) for height, width in sizes]


def _row(folder: Path, size: Size, samples: list[Sample]) -> dict[str, Any]:
    sandbox = Sandbox(folder, segment={"size": list(size)}, pose={"size": list(size)})
    pack_samples(sandbox.path("raw.zip"), samples)
    sandbox.run("index")
    costs = {stage: sandbox.run(stage)[0] for stage in LABEL_STAGES}
    milliseconds = {stage: round(1e3 * cost.work / len(samples), 2) for stage, cost in costs.items()}
    return {
        "size": f"{size[0]}x{size[1]}",
        **label_quality(sandbox),
        "cpu_ms_per_image": {**milliseconds, "all": round(sum(milliseconds.values()), 2)},
    }


def label_quality(sandbox: Sandbox) -> dict[str, Any]:
    """IoU of target mask and parts, balanced accuracy of l_c, images without or with a wrong person."""
    index = read_index(sandbox.path("index.parquet"))
    files = [LabelFile(sandbox.path(f"{n}.h5"), n) for n in ("instances", "parsing", "occlusion", "truth")]
    labels = metrics.Labels(*files)
    rule = params.validate(sandbox.values["label"], occlusion.Label, "label: ")
    score = params.validate(sandbox.values["score"], metrics.Score, "score: ")
    with suppress_output():
        survey = statistics.survey_labels(labels.parsing["map"], Images(sandbox.path("images.h5")))
        report, _ = metrics.report(index, labels, survey, rule, sandbox.values["lambda"], score)
    return {
        "mask_iou": report["mask_iou"],
        "part_iou": report["part_iou"]["mean"],
        "balanced_accuracy": report["all"]["balanced_accuracy"]["mean"],
        "balanced_accuracy_occluded": report["occluded"]["balanced_accuracy"],
        "no_person": report["no_person"],
        "wrong_person": report["wrong_person"],
    }
