"""Stage `parse`: person instances and pose confidences -> the parsing map of each image's target person."""

import dataclasses
import sys
from functools import partial

from pipeline import datasets, params, parsing, parts, store


def main(index: str, instances: str, fields: str, out: str, config: str = "params.yaml") -> None:
    rule = params.read(config, "parse", parsing.Parse)
    workers = params.read(config, "workers", params.Count)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    sizes = table[["height", "width"]].to_numpy()
    make = partial(parsing.Parser, instances, fields, sizes, own, rule)
    sources = [store.Rows(path, index=own).attrs["content"] for path in (instances, fields)]
    attrs = {"index": own, "parts": parts.FINE, "params": dataclasses.asdict(rule), "sources": sources}
    store.compute(out, "parsing", len(table), rule.batch, make, attrs, workers, {})


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
