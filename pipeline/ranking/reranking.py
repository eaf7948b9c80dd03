"""k-reciprocal re-ranking of the nearest gallery images (Zhong et al., CVPR 2017), sparse throughout.

Two images are alike if they are near the same others: each image is described by its k-reciprocal neighbours
R* (Eq. 2-5), weighted by exp(-d) (Eq. 7) and averaged over its k2 nearest (Eq. 11); the Jaccard distance of
two descriptions (Eq. 10) is added to their own (Eq. 12).

Unusual here:
- Neighbours come from searches in tiles, descriptions are sparse rows: no matrix of all images exists.
- Only a query's shortlist is re-ordered.  What lies behind keeps its place.
- Parts and visibilities count as in the ranking itself, as the distance is the same.
Departs from the paper as its authors' program does, which all published figures were made with: distances are
squared and divided by the greatest from the same image; neighbours are searched among queries and gallery
together, and each image is its own nearest; R(j, k1 / 2) joins R* if R holds more than two thirds of it, not
at least these.  Where two images show no common part, the distance is infinite and is not the greatest.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float32, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as parameters

from pipeline.core.distributed import parse_device
from pipeline.core.params import STRICT, BadInput, check_choice, check_count
from pipeline.model.distance import Metric, distances
from pipeline.ranking import reciprocal
from pipeline.ranking.embedded import Embedded, take
from pipeline.ranking.neighbours import Neighbours, neighbours
from pipeline.ranking.protocol import IdentityIndex, RaggedRows, Ranking, score_queries

ROWS, PAIRS = 1024, 256  # images described, and pairs compared, at a time

Pairs = Callable[[Int[np.ndarray, "n"], Int[np.ndarray, "n"]], Float32[np.ndarray, "n"]]


@parameters(frozen=True, config=STRICT)
class Rerank:
    """How far down a ranking is re-ordered, and by what neighbours."""

    depth: NonNegativeInt  # gallery images of each query that are re-ordered; 0: none, no re-ranking
    k1: PositiveInt  # neighbours that must be mutual
    k2: PositiveInt  # neighbours whose descriptions are averaged
    original: Annotated[float, Field(ge=0, le=1)]  # lambda, the original distance's share

    @property
    def name(self) -> str:
        """For reports; `none` if nothing is re-ordered."""
        return ", ".join(f"{n} {value}" for n, value in asdict(self).items()) if self.depth else "none"


def rerank(
    query: Embedded,
    gallery: Embedded,
    ranking: Ranking,
    options: Rerank,
    metric: Metric | str = "euclidean",
    memory: int = 256,
    device: str | torch.device = "cpu",
    workers: int = 0,
    title: str = "",
) -> Ranking:
    """Re-order the first `depth` images of a ranking that lists as many (`rank(..., top=depth)`).

    `memory` bounds the search; beside it, some 400 bytes an image are held.  The other arguments are those
    of `rank`.  Raises `BadInput` for gated features, for a list that is too short, and for a ranking of other
    queries or another gallery.
    """
    check_choice("metric", metric, Metric)
    check_count("workers", workers)
    where, kept = parse_device(device), np.flatnonzero(gallery.pid >= 0)
    hits = IdentityIndex.of(gallery.pid[kept], gallery.camid[kept]).split(query.pid, query.camid)[0]
    _fitting(ranking, len(query), len(gallery), min(options.depth, len(kept)))
    if not np.array_equal(ranking.matches, hits.lengths):
        raise BadInput("a ranking of queries with other matches than those given. Give the ranking of these.")
    k = max(options.k1 + 1, options.k2)
    found = neighbours(query, gallery, k, metric, memory, where, workers, title)

    pairs = pair_distances(query, gallery, kept, metric)
    return _reordered(ranking, found, pairs, kept, len(gallery), options)


def pair_distances(query: Embedded, gallery: Embedded, kept: Int[np.ndarray, "kept"], metric: str) -> Pairs:
    """A function that computes the distances of pairs of images.

    They are numbered as by `neighbours`: queries, then the images `kept` of the gallery.
    """

    def pairs(one: Int[np.ndarray, "n"], other: Int[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        numbers, places = np.unique(np.stack([one, other]), return_inverse=True)
        queries = numbers[numbers < len(query)]
        images = kept[numbers[len(queries) :] - len(query)]
        parts = torch.cat([take(query.parts, queries), take(gallery.parts, images)])
        visibility = torch.cat([take(query.visibility, queries), take(gallery.visibility, images)])
        left, right = places.reshape(2, -1, 1)  # for each pair a query and a gallery of one image
        table = distances(parts[left], parts[right], visibility[left], visibility[right], metric)
        return table.flatten().numpy()

    return pairs


def rerank_distances(
    query_gallery: Float32[np.ndarray, "Q G"],
    query_query: Float32[np.ndarray, "Q Q"],
    gallery_gallery: Float32[np.ndarray, "G G"],
    ranking: Ranking,
    options: Rerank,
) -> Ranking:
    """`rerank` by matrices of distances that somebody else computed, all without junk.

    The ranking is that of `rank_distances(query_gallery, ..., top=depth)`.
    """
    queries, images = query_gallery.shape
    _fitting(ranking, queries, images, min(options.depth, images))
    halves = (query_query, query_gallery), (query_gallery.T, gallery_gallery)
    found = Neighbours.none(queries + images, max(options.k1 + 1, options.k2))
    for start, (left, right) in zip((0, queries), halves, strict=True):
        for a in range(0, len(left), ROWS):
            table = np.concatenate([left[a : a + ROWS], right[a : a + ROWS]], 1)
            found.update(slice(start + a, start + a + len(table)), slice(0, queries + images), table)

    def pairs(one: Int[np.ndarray, "n"], other: Int[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        values = np.empty(len(one), np.float32)
        for side, (left, right) in enumerate(halves):
            for half, table in enumerate((left, right)):
                which = ((one >= queries) == side) & ((other >= queries) == half)
                values[which] = table[one[which] - side * queries, other[which] - half * queries]
        return values

    return _reordered(ranking, found, pairs, np.arange(images), images, options)


def _fitting(ranking: Ranking, queries: int, images: int, depth: int) -> None:
    """Raises `BadInput` unless a ranking can be of so many queries and images, and lists `depth`."""
    length, listed = ranking.top.shape
    last = ranking.top.max(initial=-1)
    if length != queries or last >= images:
        raise BadInput(
            f"a ranking of {length} queries that lists images up to number {last}, but {queries} queries and "
            f"{images} images are given. Give the ranking of these."
        )
    if listed < depth:
        raise BadInput(f"a ranking of the nearest {listed}: re-ranking {depth} wants as many listed.")


# ------------------------------------------------------------------ descriptions


@dataclass(frozen=True)
class _Sparse:
    """V, a row an image: row i holds value[first[i] : first[i + 1]] in the columns `column`."""

    first: Int[np.ndarray, "starts"]
    column: Int[np.ndarray, "n"]
    value: Float32[np.ndarray, "n"]


def _scaled(
    distance: Float32[np.ndarray, "*shape"], most: Float32[np.ndarray, "*shape"]
) -> Float32[np.ndarray, "*shape"]:
    """Squared, and divided by the square of the greatest; infinite ones stay so."""
    square, found = np.square(most), np.where(np.isinf(distance), np.float32(np.inf), np.float32(0))
    return np.divide(np.square(distance), square, out=found, where=(square > 0) & np.isfinite(distance))


def _described(found: Neighbours, pairs: Pairs, options: Rerank) -> _Sparse:
    """Eq. 7: exp(-d) for each image of R*, which sum to 1."""
    count, k, half = len(found.who), options.k1 + 1, int(np.around(options.k1 / 2)) + 1
    seen = np.zeros(count, np.int8)
    firsts, columns, values = [np.zeros(1, np.int64)], [], []
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        first, column = (
            np.zeros(stop - start + 1, np.int64),
            np.empty((stop - start) * k * (half + 1), np.int32),
        )
        reciprocal.expanded(found.who, start, stop, k, half, seen, first, column)
        column = column[: first[-1]].copy()
        owner = start + np.repeat(np.arange(stop - start), np.diff(first))
        distance = np.full(len(column), np.nan, np.float32)
        reciprocal.known(found.who, found.distance, start, first, column, distance)
        asked = np.flatnonzero(np.isnan(distance))
        for some in np.split(asked, range(PAIRS, len(asked), PAIRS)):
            distance[some] = pairs(owner[some], column[some])
        weight = np.exp(-_scaled(distance, found.most[owner]))
        sums = np.bincount(owner - start, weight, stop - start)
        sums[sums == 0] = 1  # of an image that shows nothing
        firsts.append(firsts[-1][-1] + first[1:])
        columns.append(column)
        values.append((weight / sums[owner - start]).astype(np.float32))
    return _Sparse(np.concatenate(firsts), np.concatenate(columns), np.concatenate(values))


def _reordered(
    ranking: Ranking,
    found: Neighbours,
    pairs: Pairs,
    kept: Int[np.ndarray, "G"],
    images: int,
    options: Rerank,
) -> Ranking:
    queries = len(ranking.top)
    number = np.full(images + 1, -1)  # of a gallery image among all; the last place is for none
    number[kept] = queries + np.arange(len(kept))
    top, at = ranking.top[:, : options.depth].copy(), ranking.at[:, : options.depth].copy()
    sparse = _described(found, pairs, options)
    mine, theirs, place = np.zeros(len(found.who)), np.zeros(len(found.who)), np.empty(top.shape, np.int64)
    for i in range(queries):
        jaccard = np.ones(top.shape[1])
        given = sparse.first, sparse.column, sparse.value, found.who, options.k2
        reciprocal.jaccard(*given, i, number[top[i]], mine, theirs, jaccard)
        own = _scaled(at[i], np.broadcast_to(found.most[i], at[i].shape))
        final = (1 - options.original) * jaccard
        final += options.original * own if options.original else 0
        final[top[i] < 0] = np.inf
        order = np.lexsort((top[i], top[i] < 0, final))
        top[i], at[i], place[i, order] = top[i, order], final[order], np.arange(len(order))
    return _judged(ranking, top, at, place, images)


def _judged(
    ranking: Ranking,
    top: Int[np.ndarray, "Q depth"],
    at: Float32[np.ndarray, "Q depth"],
    place: Int[np.ndarray, "Q depth"],
    images: int,
) -> Ranking:
    """Scores of the new order; `place` is where each of the shortlist went, from 0."""
    depth = top.shape[1]
    order = np.argsort(ranking.found.query, kind="stable")
    query, image, rank = (getattr(ranking.found, name)[order] for name in ("query", "image", "rank"))
    short = rank <= depth
    rank[short] = 1 + place[query[short], rank[short] - 1]
    hits = RaggedRows(np.concatenate([[0], np.cumsum(ranking.matches)]), image)
    new = score_queries(hits, rank, (at, top), ranking.rule, np.arange(len(top)), np.arange(images))
    rest = ranking.top[:, depth:], ranking.at[:, depth:]
    return replace(new, top=np.concatenate([top, rest[0]], 1), at=np.concatenate([at, rest[1]], 1))
