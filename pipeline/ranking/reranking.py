"""k-reciprocal re-ranking of the nearest gallery images (Zhong et al., CVPR 2017), sparse throughout.

Two images are alike if they are near the same others: each image is described by its k-reciprocal neighbours
R* (Eq. 2-5), weighted by exp(-d) (Eq. 7) and averaged over its k2 nearest (Eq. 11); the Jaccard distance of
two descriptions (Eq. 10) is added to their own distance (Eq. 12).

Unusual here:
- Neighbours come from a search in blocks, descriptions are sparse rows: no matrix of all images exists.
- Only a query's shortlist is re-ordered.  Images after it keep their places.
- Parts and visibilities count as in the ranking itself, as the distance is the same.
Departs from the paper as its authors' program does, which all published figures were made with: distances are
squared and divided by the greatest from the same image; neighbours are searched among queries and gallery
together, and each image is its own nearest; R(j, k1 / 2) joins R* if R holds more than two thirds of it, not
at least these.  Where two images show no common part, the distance is infinite and is not the greatest.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from pipeline.core.distributed import parse_device
from pipeline.core.params import STRICT, BadInput, check_choice, check_count
from pipeline.model.distance import Metric, distances
from pipeline.ranking import reciprocal
from pipeline.ranking.embedded import Array, Embedded, take
from pipeline.ranking.neighbours import Neighbours, neighbours
from pipeline.ranking.protocol import IdentityIndex, RaggedRows, Ranking, distance_table, score_queries

ROWS, PAIRS = 1024, 256  # images described, and pairs compared, at a time

# distances of pairs of images by their numbers
PairDistances = Callable[[Int[np.ndarray, "n"], Int[np.ndarray, "n"]], Float32[np.ndarray, "n"]]


@dataclass(frozen=True, config=STRICT)
class Rerank:
    """How many images of a ranking are re-ordered, and by which neighbours."""

    depth: NonNegativeInt  # gallery images of each query that are re-ordered; 0: none, no re-ranking
    k1: PositiveInt  # neighbours that must be mutual
    k2: PositiveInt  # neighbours whose descriptions are averaged
    original: Annotated[float, Field(ge=0, le=1)]  # lambda, the weight of the original distance

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

    `memory` bounds the search; beside it, some 400 bytes per image are held.  The other arguments are those
    of `rank`.  Raises `BadInput` for gated features, for a list that is too short, and for a ranking of other
    queries or another gallery.
    """
    check_choice("metric", metric, Metric)
    check_count("workers", workers)
    target, kept = parse_device(device), np.flatnonzero(gallery.pid >= 0)
    identities = IdentityIndex.of(gallery.pid[kept], gallery.camid[kept])
    identities.check_cameras(query.pid, query.camid)
    matches, _ = identities.matches_and_junk(query.pid, query.camid)
    _check_ranking(ranking, len(query), len(gallery), min(options.depth, len(kept)))
    if not np.array_equal(ranking.num_matches, matches.lengths):
        raise BadInput("a ranking of queries with other matches than those given. Give the ranking of these.")
    k = max(options.k1 + 1, options.k2)
    nearest = neighbours(query, gallery, k, metric, memory, target, workers, title)
    return _rerank(
        ranking, nearest, pair_distances(query, gallery, kept, metric), kept, len(gallery), options
    )


def pair_distances(
    query: Embedded, gallery: Embedded, kept: Int[np.ndarray, "kept"], metric: str
) -> PairDistances:
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
    query_gallery: Array,
    query_query: Array,
    gallery_gallery: Array,
    ranking: Ranking,
    options: Rerank,
) -> Ranking:
    """`rerank` by matrices of distances (Q, G), (Q, Q) and (G, G), whatever computed them, without junk.

    The ranking is that of `rank_distances(query_gallery, ..., top=depth)`.  Raises `BadInput` for distances
    that `distance_table` refuses, and for a ranking of other matrices or too short a list.
    """
    queries, images = len(query_query), len(gallery_gallery)
    query_gallery = distance_table("query_gallery", query_gallery, queries, images)
    query_query = distance_table("query_query", query_query, queries, queries)
    gallery_gallery = distance_table("gallery_gallery", gallery_gallery, images, images)
    _check_ranking(ranking, queries, images, min(options.depth, images))
    halves = (query_query, query_gallery), (query_gallery.T, gallery_gallery)
    nearest = Neighbours.empty(queries + images, max(options.k1 + 1, options.k2))
    for start, (left, right) in zip((0, queries), halves, strict=True):
        for a in range(0, len(left), ROWS):
            table = np.concatenate([left[a : a + ROWS], right[a : a + ROWS]], 1, dtype=np.float32)
            nearest.update(slice(start + a, start + a + len(table)), slice(0, queries + images), table)

    def pairs(one: Int[np.ndarray, "n"], other: Int[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        values = np.empty(len(one), np.float32)
        for side, (left, right) in enumerate(halves):
            for half, table in enumerate((left, right)):
                which = ((one >= queries) == side) & ((other >= queries) == half)
                values[which] = table[one[which] - side * queries, other[which] - half * queries]
        return values

    return _rerank(ranking, nearest, pairs, np.arange(images), images, options)


def _check_ranking(ranking: Ranking, queries: int, images: int, depth: int) -> None:
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


@dataclasses.dataclass(frozen=True)
class _Sparse:
    """V, one row per image: row i holds value[start[i] : start[i + 1]] in the columns `column`."""

    start: Int[np.ndarray, "N_plus_1"]
    column: Int[np.ndarray, "n"]
    value: Float32[np.ndarray, "n"]


def _scale(
    distance: Float[np.ndarray, "*shape"], greatest: Float32[np.ndarray, "*shape"]
) -> Float32[np.ndarray, "*shape"]:
    """Squared distances divided by the greatest squared one; infinite ones stay so."""
    square = np.square(greatest)
    scaled = np.where(np.isinf(distance), np.float32(np.inf), np.float32(0))
    return np.divide(np.square(distance), square, out=scaled, where=(square > 0) & np.isfinite(distance))


def _describe(nearest: Neighbours, pairs: PairDistances, options: Rerank) -> _Sparse:
    """Eq. 7: exp(-d) for each image of R*, which sum to 1."""
    count, k, half = len(nearest.image), options.k1 + 1, int(np.around(options.k1 / 2)) + 1
    mark = np.zeros(count, np.int8)
    starts, columns, values = [np.zeros(1, np.int64)], [], []
    for begin in range(0, count, ROWS):
        end = min(begin + ROWS, count)
        start = np.zeros(end - begin + 1, np.int64)
        column = np.empty((end - begin) * k * (half + 1), np.int32)
        reciprocal.expanded(nearest.image, begin, end, k, half, mark, start, column)
        column = column[: start[-1]].copy()
        row = begin + np.repeat(np.arange(end - begin), np.diff(start))
        distance = np.full(len(column), np.nan, np.float32)
        reciprocal.look_up(nearest.image, nearest.distance, begin, start, column, distance)
        missing = np.flatnonzero(np.isnan(distance))
        for entries in np.split(missing, range(PAIRS, len(missing), PAIRS)):
            distance[entries] = pairs(row[entries], column[entries])
        weight = np.exp(-_scale(distance, nearest.farthest[row]))
        sums = np.bincount(row - begin, weight, end - begin)
        sums[sums == 0] = 1  # of an image without a visible part
        starts.append(starts[-1][-1] + start[1:])
        columns.append(column)
        values.append((weight / sums[row - begin]).astype(np.float32))
    return _Sparse(np.concatenate(starts), np.concatenate(columns), np.concatenate(values))


# ------------------------------------------------------------------ the new order


def _rerank(
    ranking: Ranking,
    nearest: Neighbours,
    pairs: PairDistances,
    kept: Int[np.ndarray, "G"],
    images: int,
    options: Rerank,
) -> Ranking:
    queries = len(ranking.top)
    number = np.full(images + 1, -1)  # of a gallery image among all; the last place is for -1
    number[kept] = queries + np.arange(len(kept))
    top = ranking.top[:, : options.depth].copy()
    distance = ranking.top_distance[:, : options.depth].copy()
    place = np.empty(top.shape, np.int64)
    sparse = _describe(nearest, pairs, options)
    description = sparse.start, sparse.column, sparse.value, nearest.image, options.k2
    query_mean, image_mean = np.zeros((2, len(nearest.image)))
    for i in range(queries):
        jaccard = np.ones(top.shape[1])
        reciprocal.jaccard(*description, i, number[top[i]], query_mean, image_mean, jaccard)
        original = _scale(distance[i], np.broadcast_to(nearest.farthest[i], distance[i].shape))
        final = (1 - options.original) * jaccard
        final += options.original * original if options.original else 0
        final[top[i] < 0] = np.inf
        order = np.lexsort((top[i], top[i] < 0, final))
        top[i], distance[i], place[i, order] = top[i, order], final[order], np.arange(len(order))
    return _score(ranking, top, distance, place, images)


def _score(
    ranking: Ranking,
    top: Int[np.ndarray, "Q depth"],
    distance: Float[np.ndarray, "Q depth"],
    place: Int[np.ndarray, "Q depth"],
    images: int,
) -> Ranking:
    """Scores of the new order; `place` is the new place of each image of the shortlist, from 0."""
    depth, matches = top.shape[1], ranking.matches
    order = np.argsort(matches.query, kind="stable")
    query, image, rank = (column[order] for column in (matches.query, matches.image, matches.rank))
    short = rank <= depth
    rank[short] = 1 + place[query[short], rank[short] - 1]
    lists = RaggedRows(np.concatenate([[0], np.cumsum(ranking.num_matches)]), image)
    numbers = np.arange(len(top)), np.arange(images)
    counted = ranking.camera_unknown, ranking.infinitely_far
    new = score_queries(ranking.pid, lists, rank, *counted, (distance, top), ranking.rule, *numbers)
    return replace(
        new,
        top=np.concatenate([top, ranking.top[:, depth:]], 1),
        top_distance=np.concatenate([distance, ranking.top_distance[:, depth:]], 1),
    )
