"""Stage `adopt`: labels made elsewhere -> the parsing map of each image; it stands in for the parsers."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import datasets, outside, params, parsing, parts, store


def main(index: str, labels: str, out: str, instances: str, config: str = "params.yaml") -> None:
    where = f"labels_from.{Path(index).parent.name}"
    values = params.read(config, "labels_from", dict)
    given = values.get(Path(index).parent.name)
    settings = params.validate(given, outside.Outside, f"{config}: ", where)
    rule = params.read(config, "parse", parsing.Parse)
    workers = params.read(config, "workers", params.Count)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    settings = dataclasses.replace(settings, path=labels)
    labelled = outside.account(table, settings, rule, where)
    print(outside.describe(labelled))
    make = partial(outside.Adopter, labelled.names, table[["height", "width"]].to_numpy(), settings, rule)
    attrs = {"index": own, "parts": parts.FINE, "params": dataclasses.asdict(rule)}
    attrs |= {"source": settings.source, "classes": settings.named(), "sources": [labelled.content]}
    store.compute(out, "parsing", len(table), rule.batch, make, attrs, workers, {})
    store.write(instances, "instances", {"found": np.zeros(len(table), np.int32)}, {"index": own})


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
