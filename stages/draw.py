"""Stage `draw`: what `evaluate` found -> CMC curves, mAP of each occlusion type, rankings."""

import sys

import pandas as pd

from pipeline import datasets, figures, params, store


def main(index: str, images: str, parsing: str, queries: str, out: str, config: str = "params.yaml") -> None:
    options = params.read(config, "draw", figures.Draw)
    table = datasets.read_index(index)
    key = datasets.index_hash(table)
    pictures, maps = datasets.Images(images, key), store.Rows(parsing, "parsing", key)
    with store.replace(out) as folder:
        folder.mkdir()
        figures.draw(folder, table, pictures, maps, pd.read_parquet(queries), options)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
