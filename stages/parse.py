"""Stage `parse`: person instances and pose confidences -> the parsing map of each image's target person.

Reads:
    index      index.parquet, one row per image
    instances  instances.h5, the person instances of each image
    fields     fields.h5, the pose confidences of each image
Writes:
    out        parsing.h5, one parsing map per image

Params: parse, workers.
"""

import dataclasses
import sys
from functools import partial

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import LabelFile
from pipeline.core.resumable import compute_rows
from pipeline.data import parts
from pipeline.data.index import index_hash, read_index
from pipeline.labels import parsing


def main(index: str, instances: str, fields: str, out: str, config: str = "params.yaml") -> None:
    rule = params.read(config, "parse", parsing.Parse)
    workers = params.read(config, "workers", params.Count)
    table = read_index(index)
    key = index_hash(table)
    sizes = table[["height", "width"]].to_numpy()
    make = partial(parsing.Parser, instances, fields, sizes, key, rule)
    sources = [LabelFile(path, index=key).attrs["content"] for path in (instances, fields)]
    attrs = {"index": key, "parts": parts.FINE, "params": dataclasses.asdict(rule), "sources": sources}
    compute_rows(out, "parsing", len(table), rule.batch, make, attrs, workers)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
