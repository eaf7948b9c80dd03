"""Stage `adopt`: labels made elsewhere -> the parsing map of each image, in place of the parsers.

Reads:
    index      index.parquet, one row per image
    labels     folder or archive of the labels, one file per image
Writes:
    out        parsing.h5, one parsing map per image
    instances  instances.h5 without persons

Params: labels_from, parse, workers.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import write_label_file
from pipeline.core.resumable import compute_rows
from pipeline.data import parts
from pipeline.data.index import index_hash, read_index
from pipeline.labels import parsing
from pipeline.labels.external import adapter


def main(index: str, labels: str, out: str, instances: str, config: str = "params.yaml") -> None:
    dataset = Path(index).parent.name
    section = f"labels_from.{dataset}"
    values = params.read(config, "labels_from", dict).get(dataset)
    settings = params.validate(values, adapter.ExternalLabels, f"{config}: ", section)
    rule = params.read(config, "parse", parsing.Parse)
    workers = params.read(config, "workers", params.Count)
    table = read_index(index)
    key = index_hash(table)
    settings = dataclasses.replace(settings, path=labels)
    matches = adapter.check_labels(table, settings, rule, section)
    print(adapter.describe(matches))
    sizes = table[["height", "width"]].to_numpy()
    make = partial(adapter.LabelConverter, matches.names, sizes, settings, rule)
    attrs = {"index": key, "parts": parts.FINE, "params": dataclasses.asdict(rule)}
    attrs |= {"source": settings.source, "classes": settings.class_parts(), "sources": [matches.content]}
    compute_rows(out, "parsing", len(table), rule.batch, make, attrs, workers)
    write_label_file(instances, "instances", {"found": np.zeros(len(table), np.int32)}, {"index": key})


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
