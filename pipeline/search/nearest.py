"""The nearest rows of a gallery of any size to some queries: by blocks, in memory that does not grow with it.

The distances are those of `ranking.rank`, by which the stage `evaluate` ranks (Eq. 25), gates included.
"""

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int

from pipeline.core.params import BadInput
from pipeline.core.workers import num_cores, progress_bar
from pipeline.methods.base import Embedding
from pipeline.model.compute import float32_matmul
from pipeline.model.distance import check_same_parts
from pipeline.ranking import Embedded, Rerank, distances, kernels, rank_distances, rerank_distances
from pipeline.ranking.comparison import QueryBlock
from pipeline.ranking.embedded import take
from pipeline.ranking.protocol import empty_top
from pipeline.ranking.task import Task, block_slices, for_each_tile, worker_threads

Lists = tuple[Float32[np.ndarray, "Q listed"], Int[np.ndarray, "Q listed"]]  # distances, rows of the gallery


def embedded(embedding: Embedding, names: Sequence[str] | None = None) -> Embedded:
    """Images whose identities and cameras do not matter; their names are for messages."""
    count = len(embedding.parts)
    pid, camid = np.zeros(count, np.int8), np.full(count, -1, np.int8)
    return Embedded(embedding.parts, embedding.visibility, pid, camid, embedding.gate, names)


def nearest(query: Embedded, gallery: Embedded, rows: Int[np.ndarray, "n"], top: int) -> Lists:
    """Distances and numbers of the `top` nearest of these rows to each query; of equal ones the first.

    There are as many as `rows`, if those are fewer.  Raises `BadInput` for other parts or channels, and for
    features that are damaged (`check_embeddings`).
    """
    check_same_parts(query.parts.shape[1:], gallery.parts.shape[1:])
    distance, number = empty_top(len(query), min(top, len(rows)))
    if not number.size:
        return distance, number
    task = Task(query, gallery, "euclidean", top, torch.device("cpu"), num_cores())
    slices = block_slices(len(query), task.query_block)
    blocks = [QueryBlock(query, np.arange(len(query))[block], task.device) for block in slices]
    locks = [Lock() for _ in blocks]

    def merge(block: int, start: int, table: np.ndarray, images: np.ndarray) -> None:
        with locks[block]:
            kernels.nearest(table, images, distance[slices[block]], number[slices[block]])

    with (
        float32_matmul("default"),
        worker_threads(task.workers) as pool,
        progress_bar(total=len(query) * len(rows), disable=True) as bar,
    ):
        for_each_tile(task, blocks, rows, merge, pool, bar)
    return distance, number


def rerank(query: Embedded, gallery: Embedded, lists: Lists, options: Rerank) -> Lists:
    """The first `depth` of each list in k-reciprocal order (pipeline/ranking/reranking.py).

    Departs: neighbours are searched among the query and its list alone, not in the whole gallery, so that a
    query costs the same in a gallery of any size.  Raises `BadInput` for gated features.
    """
    if query.gate is not None:
        raise BadInput("gated features: nearest neighbours are not mutual. Search without re-ranking.")
    distance, number = (column.copy() for column in lists)
    for q in range(len(query)):
        short = number[q, : options.depth]
        one, images = query[q : q + 1], _rows(gallery, short)
        table, itself, among = (distances(*p) for p in ((one, images), (one, one), (images, images)))
        sides = one.pid, one.camid, images.pid, images.camid
        ranking = rank_distances(table, *sides, top=len(short))
        ranking = rerank_distances(table, itself, among, ranking, options)
        number[q, : len(short)] = short[ranking.top[0]]
        distance[q, : len(short)] = ranking.top_distance[0]
    return distance, number


def _rows(gallery: Embedded, rows: Int[np.ndarray, "n"]) -> Embedded:
    return embedded(Embedding(take(gallery.parts, rows), take(gallery.visibility, rows)))
