"""Stage `draw`: the ranking of each query -> CMC curves, mAP of each occlusion type, sheets of rankings.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    parsing    parsing.h5, one parsing map per image
    queries    queries.parquet, the AP of each query
    rankings   rankings.csv, the nearest gallery images of each query
Writes:
    out        folder of figures

Params: draw.
"""

import sys

import pandas as pd

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.ranking import figures


def main(
    index: str, images: str, parsing: str, queries: str, rankings: str, out: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "draw", figures.Draw)
    table = read_index(index)
    key = index_hash(table)
    pictures, maps = Images(images, key), LabelFile(parsing, "parsing", key)
    with atomic_write(out) as folder:
        folder.mkdir()
        tables = pd.read_parquet(queries), pd.read_csv(rankings)
        figures.draw(folder, table, pictures, maps, *tables, options)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
