"""Stage `score`: cached labels, and the truth if there is one -> label metrics, figures, an audit page.

Reads:
    index       index.parquet, one row per image
    images      images.h5, the encoded images
    instances   instances.h5, the person instances of each image
    parsing     parsing.h5, one parsing map per image
    occlusions  occlusion.h5, the occlusion labels of each image
    truth       truth.h5, exact part maps if there are any
Writes:
    out         labels.json, the accuracy of the labels if there is a truth
    figures     folder of figures, with audit.html and all scores in report.json

Params: lambda, label, score.
"""

import json
import sys
from pathlib import Path

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.labels import occlusion
from pipeline.labels.quality import audit, metrics, page, plots, statistics


def main(
    index: str, images: str, instances: str, parsing: str, occlusions: str, truth: str,
    out: str, figures: str, config: str = "params.yaml",
) -> None:  # fmt: skip
    score = params.read(config, "score", metrics.Score)
    label = params.read(config, "label", occlusion.Label)
    threshold = params.read(config, "lambda", params.Amount)
    table = read_index(index)
    key = index_hash(table)
    kinds = {instances: "instances", parsing: "parsing", occlusions: "occlusion", truth: "truth"}
    labels = metrics.Labels(*(LabelFile(path, kind, key) for path, kind in kinds.items()))
    crops = Images(images, key)
    survey = statistics.survey_labels(labels.parsing["map"], crops, table["split"])
    report, agreement = metrics.report(table, labels, survey, label, threshold, score)
    name = Path(index).parent.name
    view = audit.Audit(name, table, crops, labels, survey, report, agreement, threshold)
    with atomic_write(figures) as folder:
        folder.mkdir()
        plots.draw(folder, table["key"].tolist(), crops, labels, agreement, threshold, score)
        histograms = (folder / "pixels.png").read_bytes()
        (folder / "audit.html").write_text(page.render(view, histograms, score.pictures), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    with atomic_write(out) as path:
        path.write_text(json.dumps(metrics.summary(report), indent=2) + "\n")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
