"""Stage `evaluate`: features -> CMC, mAP and mINP; of all queries, the occluded ones, each occlusion type."""

import json
import sys

from pipeline import datasets, params, processes, store
from pipeline.ranking import report


def main(
    index: str, features: str, labels: str, truth: str, metrics: str, queries: str, curves: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "evaluate", report.Evaluate)
    table = datasets.read_index(index)
    key = datasets.index_hash(table)
    seen = store.Rows(features, "features", key)
    grouped = report.groups(
        table, store.Rows(labels, "occlusion", key), store.Rows(truth, "truth", key), options.group_lambda
    )
    device = processes.device().type
    systems = {system: report.embedded(seen, table, system) for system in seen.attrs["systems"]}
    with store.scratch(
        "ranking", [seen.attrs["content"], key, options, device], ("torch", "numba")
    ) as folder:
        rankings, reranked = report.ranked(systems, grouped, options, device, folder)
    parts = {system: report.visible(query) for system, (query, _) in systems.items()}
    listed = rankings | {f"{system}_reranked": after for system, after in reranked.items()}
    found = report.metrics(rankings, reranked, parts, grouped, table, options)
    found["protocol"] |= {name: seen.attrs[name] for name in ("model_cameras", "model_cameras_unknown")}
    with store.replace(queries) as path:
        report.queries(table, listed, grouped, options.top).to_parquet(path, index=False)
    with store.replace(curves) as path:
        report.curves(listed, options.depth).to_csv(path, index=False)
    with store.replace(metrics) as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(report.table(found))


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
