"""Stage `evaluate`: embeddings -> CMC, mAP and mINP: of all queries, the occluded ones, each occlusion type.

Reads:
    index      index.parquet, one row per image
    features   features.h5, the embeddings of queries and gallery
    labels     occlusion.h5, the occlusion labels of each image
    truth      truth.h5, exact part maps if there are any; they group the queries
Writes:
    metrics    metrics.json, the scores
    queries    queries.parquet, the AP and the nearest gallery images of each query
    curves     cmc.csv, a CMC curve per system

Params: evaluate.
"""

import json
import sys

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.data.index import index_hash, read_index
from pipeline.ranking import report


def main(
    index: str, features: str, labels: str, truth: str, metrics: str, queries: str, curves: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "evaluate", report.Evaluate)
    table = read_index(index)
    key = index_hash(table)
    seen = LabelFile(features, "features", key)
    grouped = report.groups(
        table, LabelFile(labels, "occlusion", key), LabelFile(truth, "truth", key), options.group_lambda
    )
    device = distributed.local_device().type
    systems = {system: report.embedded(seen, table, system) for system in seen.attrs["systems"]}
    rankings, reranked = report.ranked(systems, grouped, options, device)
    parts = {system: report.visible(query) for system, (query, _) in systems.items()}
    listed = rankings | {f"{system}_reranked": after for system, after in reranked.items()}
    found = report.metrics(rankings, reranked, parts, grouped, table, options)
    found["protocol"] |= {name: seen.attrs[name] for name in ("model_cameras", "model_cameras_unknown")}
    with atomic_write(queries) as path:
        report.queries(table, listed, grouped, options.top).to_parquet(path, index=False)
    with atomic_write(curves) as path:
        report.curves(listed, options.depth).to_csv(path, index=False)
    with atomic_write(metrics) as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(report.table(found))


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
