"""Stage `score`: cached labels, and the truth if there is one -> label metrics, pictures, an audit page."""

import json
import sys
from pathlib import Path

from pipeline import audit, datasets, occlusion, params, scoring, sheets, store, survey
from pipeline.audit import page


def main(
    index: str,
    images: str,
    instances: str,
    parsing: str,
    occlusions: str,
    truth: str,
    out: str,
    figures: str,
    config: str = "params.yaml",
) -> None:
    score = params.read(config, "score", scoring.Score)
    label = params.read(config, "label", occlusion.Label)
    threshold = params.read(config, "lambda", params.Amount)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    kinds = {instances: "instances", parsing: "parsing", occlusions: "occlusion", truth: "truth"}
    labels = scoring.Labels(*(store.Rows(path, kind, own) for path, kind in kinds.items()))
    pictures = datasets.Images(images, own)
    seen = survey.survey(labels.parsing["map"], pictures)
    report, agreement = scoring.report(table, labels, seen, label, threshold, score)
    name = Path(index).parent.name
    shown = audit.Audit(name, table, pictures, labels, seen, report, agreement, threshold)
    with store.replace(figures) as folder:
        folder.mkdir()
        sheets.draw(folder, pictures, labels, agreement, threshold, score)
        histograms = (folder / "pixels.png").read_bytes()
        (folder / "audit.html").write_text(page.render(shown, histograms, score.pictures), encoding="utf-8")
    with store.replace(out) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
