"""Stage `score`: cached labels, and the truth if there is one -> label metrics and pictures of the labels."""

import json
import sys

from pipeline import datasets, occlusion, params, scoring, sheets, store


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
    threshold = params.read(config, "lambda", float)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    kinds = {instances: "instances", parsing: "parsing", occlusions: "occlusion", truth: "truth"}
    labels = scoring.Labels(*(store.Rows(path, kind, own) for path, kind in kinds.items()))
    report, agreement = scoring.report(table, labels, label, threshold, score)
    with store.replace(figures) as folder:
        folder.mkdir()
        sheets.draw(folder, datasets.Images(images, own), labels, agreement, threshold, score)
    with store.replace(out) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
