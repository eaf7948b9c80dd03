"""Stage `evaluate`: embeddings -> CMC, mAP and mINP: of all queries, the occluded ones, each occlusion type.

Reads:
    index      index.parquet, one row per image
    features   features.h5, the embeddings of queries and gallery
    labels     occlusion.h5, the occlusion labels of each image
    truth      truth.h5, exact part maps if there are any; they group the queries
Writes:
    metrics    metrics.json, the model's Rank-1 and mAP of all, occluded and holistic queries
    encoder    encoder.json, the same of its encoder before training
    histogram  histogram.json, the same of the colour histogram
    full       report.json, all scores of all systems
    table      scores.csv, Rank-1 to mINP of all systems, one row per group of queries
    rankings   rankings.csv, the nearest gallery images of each query: names, identities, distances
    queries    queries.parquet, the type, the AP and the distances of each query, one row each
    curves     cmc.csv, a CMC curve per system

Params: evaluate.
"""

import json
import sys
from math import prod

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.data.index import index_hash, read_index
from pipeline.ranking import report, tables


def main(
    index: str, features: str, labels: str, truth: str,
    metrics: str, encoder: str, histogram: str, full: str,
    table: str, rankings: str, queries: str, curves: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "evaluate", report.Evaluate)
    images = read_index(index)
    key = index_hash(images)
    embeddings = LabelFile(features, "features", key)
    groups = report.query_groups(
        images, LabelFile(labels, "occlusion", key), LabelFile(truth, "truth", key), options.group_lambda
    )
    systems = {name: report.embedded(embeddings, images, name) for name in embeddings.attrs["systems"]}
    ranked, reranked = report.rank_systems(systems, groups, options, distributed.local_device().type)
    visible = {system: report.visible_parts(query) for system, (query, _) in systems.items()}
    scores = report.all_scores(ranked, reranked, visible, groups, images, options)
    scores["protocol"] |= {
        name: embeddings.attrs[name] for name in ("model_cameras", "model_cameras_unknown")
    }
    scores["protocol"]["features"] = prod(embeddings["model/part"].shape[1:])  # numbers an image
    ranked |= {f"{system}_reranked": ranking for system, ranking in reranked.items()}
    with atomic_write(queries) as path:
        tables.query_table(images, ranked, groups, options.top).to_parquet(path, index=False)
    frames = {
        table: tables.scores_table(scores),
        rankings: tables.ranking_table(images, ranked, options.top),
        curves: tables.cmc_table(ranked, options.depth),
    }
    for out, frame in frames.items():
        with atomic_write(out) as path:
            frame.to_csv(path, index=False)
    written = {
        full: scores,
        metrics: report.summary(scores),
        encoder: report.summary(scores["baselines"]["encoder"]),
        histogram: report.summary(scores["baselines"]["histogram"]),
    }
    for out, content in written.items():
        with atomic_write(out) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")
    print(tables.text_table(scores))


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
