"""Stage `draw`: the ranking of each query -> curves, mAP of each occlusion type, rankings, a page of the run.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    parsing    parsing.h5, one parsing map per image
    queries    queries.parquet, the AP of each query
    rankings   rankings.csv, the nearest gallery images of each query
    full       report.json, all scores of all systems
    model      folder of the trained model, for its record
    log        log.csv, one row per training step
Writes:
    out        folder of figures
    run        report.html, the run as a page in one file

Params: draw.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.ranking import figures, page, pager


def main(
    index: str, images: str, parsing: str, queries: str, rankings: str, full: str, model: str, log: str,
    out: str, run: str, config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "draw", figures.Draw)
    table = read_index(index)
    key = index_hash(table)
    pictures, maps = Images(images, key), LabelFile(parsing, "parsing", key)
    tables = pd.read_parquet(queries), pd.read_csv(rankings)
    with atomic_write(out) as folder:
        folder.mkdir()
        figures.draw(folder, table, pictures, maps, *tables, options)
        drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    report, record = (json.loads(path.read_text()) for path in (Path(full), Path(model) / "record.json"))
    shown = pager.Shown(table, pictures, maps, *tables)
    view = page.Run(Path(index).parent.name, shown, report, record, pd.read_csv(log), drawn)
    with atomic_write(run) as path:
        path.write_text(page.render(view, options), encoding="utf-8")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
