"""The protocol of Market-1501: which gallery images count for a query, and the scores of their ranks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from pipeline.core.params import BadInput, check_choice, check_count
from pipeline.model.average_precision import Rule, average_precision
from pipeline.ranking import kernels
from pipeline.ranking.embedded import Array, as_array, whole_numbers

ROWS = 64  # queries of a matrix that are ranked at a time: they stay in the processor's cache


@dataclass(frozen=True)
class RaggedRows:
    """A list of gallery images for each query: those of query i are images[start[i] : start[i + 1]]."""

    start: Int[np.ndarray, "Q_plus_1"]
    images: Int[np.ndarray, "n"]

    @property
    def lengths(self) -> Int[np.ndarray, "Q"]:
        return np.diff(self.start)

    @property
    def query(self) -> Int[np.ndarray, "n"]:
        """The query of each entry."""
        return np.repeat(np.arange(len(self.start) - 1), self.lengths)

    def __getitem__(self, queries: slice) -> "RaggedRows":
        begin, end, _ = queries.indices(len(self.start) - 1)
        start = self.start[begin : end + 1]
        return RaggedRows(start - start[0], self.images[start[0] : start[-1]])

    def select(self, entries: Bool[np.ndarray, "n"]) -> "RaggedRows":
        """The same lists with these entries alone."""
        lengths = np.bincount(self.query[entries], minlength=len(self.start) - 1)
        return RaggedRows(np.concatenate([[0], np.cumsum(lengths)]), self.images[entries])

    def any(self, entries: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "Q"]:
        """Whether each query has one of these entries."""
        return self.select(entries).lengths > 0


@dataclass(frozen=True)
class IdentityIndex:
    """The images of a gallery by identity: sorted by pid, in the gallery's order within each."""

    order: Int[np.ndarray, "G"]
    pid: Int[np.ndarray, "G"]  # sorted
    camid: Int[np.ndarray, "G"]  # as in the gallery

    @classmethod
    def of(cls, pid: Int[np.ndarray, "G"], camid: Int[np.ndarray, "G"]) -> "IdentityIndex":
        order = np.argsort(pid, kind="stable")
        return cls(order, pid[order], camid)

    def same_identity(self, pid: Int[np.ndarray, "Q"]) -> RaggedRows:
        """The gallery images of each query's identity; none for distractors and junk."""
        begin, end = (np.searchsorted(self.pid, pid, side) for side in ("left", "right"))
        start = np.concatenate([[0], np.cumsum(np.where(pid > 0, end - begin, 0))])
        place = np.arange(start[-1]) + np.repeat(begin - start[:-1], np.diff(start))
        return RaggedRows(start, self.order[place])

    def camera_sides(self, pid: Int[np.ndarray, "Q"], camid: Int[np.ndarray, "Q"]) -> list[str]:
        """Which of query and gallery have known cameras, among pairs of images of one identity."""
        pairs = self.same_identity(pid)
        cameras = {"query": camid[pairs.query], "gallery": self.camid[pairs.images]}
        return [side for side, known in cameras.items() if (known >= 0).any()]

    def check_cameras(self, pid: Int[np.ndarray, "Q"], camid: Int[np.ndarray, "Q"]) -> None:
        """Raises `BadInput` if queries that could have a match know their camera, and no such image its own.

        Or the other way round.  No image would be left out for its query's own camera.
        """
        sides = self.camera_sides(pid, camid)
        if len(sides) == 1:
            side = "queries" if sides == ["query"] else "gallery"
            raise BadInput(
                f"camid: known of the {side} alone, where both show one person, so no image is left out for "
                "its query's own camera, and scores are too high. Give both sides their cameras, or neither: "
                "then every image counts."
            )

    def camera_unknown(self, matches: RaggedRows, camid: Int[np.ndarray, "Q"]) -> Bool[np.ndarray, "Q"]:
        """Whether a match may be by its query's own camera, as one of the two cameras is unknown."""
        return matches.any((camid[matches.query] < 0) | (self.camid[matches.images] < 0))

    def matches_and_junk(
        self, pid: Int[np.ndarray, "Q"], camid: Int[np.ndarray, "Q"]
    ) -> tuple[RaggedRows, RaggedRows]:
        """Each query's matches, and the images of its identity by its own camera, which are junk for it."""
        images = self.same_identity(pid)
        camera = camid[images.query]
        junk = (self.camid[images.images] == camera) & (camera >= 0)
        return images.select(~junk), images.select(junk)


# ------------------------------------------------------------------ scores


@dataclass(frozen=True)
class Ranking:
    """How each query is ranked; a query without a match in the gallery has no scores."""

    pid: Int[np.ndarray, "Q"]  # of the query; 0 and below show nobody, and have no match
    ap: Float[np.ndarray, "Q"]  # average precision in [0, 1]; NaN without a match
    inp: Float[np.ndarray, "Q"]  # matches / rank of the last one; NaN without a match
    first_match: Int[np.ndarray, "Q"]  # rank of the first match, from 1; 0 without a match
    num_matches: Int[np.ndarray, "Q"]  # in the gallery, without junk
    top: Int[np.ndarray, "Q top"]  # nearest gallery images, by position; -1 where there are no more
    top_distance: Float[np.ndarray, "Q top"]  # infinite where there are no more
    camera_unknown: Bool[np.ndarray, "Q"]  # of a match or the query: it may be the query's own
    infinitely_far: Bool[np.ndarray, "Q"]  # a match shows no part that the query shows
    matches: "Matches"
    rule: str  # of the average precision

    @property
    def valid(self) -> Bool[np.ndarray, "Q"]:
        """Whether a query has a match."""
        return self.num_matches > 0


@dataclass(frozen=True)
class Matches:
    """The matches of all queries, nearest first in each; a query's AP is the mean of its precisions."""

    query: Int[np.ndarray, "n"]  # by position
    image: Int[np.ndarray, "n"]  # of the gallery, by position
    rank: Int[np.ndarray, "n"]  # from 1
    precision: Float[np.ndarray, "n"]  # in [0, 1]


def score_queries(
    pid: Int[np.ndarray, "Q"],
    matches: RaggedRows,
    ranks: Int[np.ndarray, "n"],
    camera_unknown: Bool[np.ndarray, "Q"],
    infinitely_far: Bool[np.ndarray, "Q"],
    top: tuple[Float[np.ndarray, "Q top"], Int[np.ndarray, "Q top"]],
    rule: str,
    order: Int[np.ndarray, "Q"],
    kept: Int[np.ndarray, "G"],
) -> Ranking:
    """Scores from the ranks of all matches, counted from 1.

    `top` holds the distances and the numbers of the nearest images; -1 is no image.  Query i of the arguments
    is query order[i] of the result, image j is image kept[j].
    """
    start, counts, query = matches.start, matches.lengths, matches.query
    by_rank = np.lexsort((ranks, query))
    ranks, images = ranks[by_rank], matches.images[by_rank]
    ap, precision = average_precision(ranks, counts, rule)
    inp, first_match = np.full(len(counts), np.nan), np.zeros(len(counts), np.int32)
    answered = np.flatnonzero(counts)
    if len(answered):
        inp[answered] = counts[answered] / ranks[start[answered + 1] - 1]
        first_match[answered] = ranks[start[answered]]
    near_distance, near = top
    near = np.where(near < 0, -1, np.append(kept, -1)[near])
    by_position = Matches(order[query], kept[images], ranks, precision)
    columns = {
        "pid": pid,
        "ap": ap,
        "inp": inp,
        "first_match": first_match,
        "num_matches": counts.astype(np.int32),
        "top": near,
        "top_distance": near_distance,
        "camera_unknown": camera_unknown,
        "infinitely_far": infinitely_far,
    }
    back = np.argsort(order)
    by_query = {name: column[back] for name, column in columns.items()}
    return Ranking(**by_query, matches=by_position, rule=rule)


def rank_distances(
    table: Array,
    query_pid: Array,
    query_camid: Array,
    gallery_pid: Array,
    gallery_camid: Array,
    rule: Rule | str = "rectangular",
    top: int = 0,
) -> Ranking:
    """Rank by a matrix of distances (Q, G), whatever computed it, by the same protocol as `rank`.

    The matrix is not changed; beside it, a few of its rows are held.  Raises `BadInput` for another rule, a
    negative `top`, distances that `distance_table` refuses, identities and cameras that are not whole numbers
    or not one per image, and cameras that one side alone knows.
    """
    check_choice("rule", rule, Rule)
    check_count("top", top)
    query_pid, query_camid = _identities_and_cameras("query", query_pid, query_camid)
    gallery_pid, gallery_camid = _identities_and_cameras("gallery", gallery_pid, gallery_camid)
    table = distance_table("distances", table, len(query_pid), len(gallery_pid))
    kept = np.flatnonzero(gallery_pid >= 0)
    whole = len(kept) == len(gallery_pid)
    identities = IdentityIndex.of(gallery_pid[kept], gallery_camid[kept])
    identities.check_cameras(query_pid, query_camid)
    matches, junk = identities.matches_and_junk(query_pid, query_camid)
    ranks, images = np.ones(len(matches.images), np.int64), np.arange(len(kept))
    match_distance = np.empty(len(ranks), table.dtype)
    top_distance, top_image = empty_top(len(table), top)
    top_distance = top_distance.astype(table.dtype)
    for start in range(0, len(table), ROWS):
        queries = slice(start, start + ROWS)
        rows = table[queries].copy() if whole else table[queries][:, kept]
        block = matches[queries]
        distance = mask_junk(rows, images, block, junk[queries])
        entries = slice(matches.start[start], matches.start[start] + len(block.images))
        match_distance[entries] = distance
        kernels.count(rows, block.start, distance, block.images, ranks[entries])
        if top:
            kernels.nearest(rows, images, top_distance[queries], top_image[queries])
    counted = identities.camera_unknown(matches, query_camid), matches.any(np.isinf(match_distance))
    top_lists, order = (top_distance, top_image), np.arange(len(table))
    return score_queries(query_pid, matches, ranks, *counted, top_lists, rule, order, kept)


def _identities_and_cameras(
    side: str, pid: Array, camid: Array
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    identities, cameras = whole_numbers(f"{side}_pid", pid), whole_numbers(f"{side}_camid", camid)
    if len(identities) != len(cameras):
        raise BadInput(f"{side}_pid: {len(identities)}, {side}_camid: {len(cameras)}. Give one per image.")
    return identities, cameras


def distance_table(name: str, table: Array, rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """A matrix of distances of any origin.

    Raises `BadInput` unless it has this size, holds floats, and none of them is NaN.  NaN would hide an
    image, and whole numbers cannot hold the mark that hides junk.
    """
    table = as_array(name, table)
    if table.dtype not in (np.float32, np.float64) or table.shape != (rows, columns):
        raise BadInput(
            f"{name}: {table.dtype} of {table.shape}. Give float32 or float64 of {(rows, columns)}."
        )
    for start in range(0, rows, ROWS):
        faulty = np.flatnonzero(np.isnan(table[start : start + ROWS]).any(1))
        if len(faulty):
            raise BadInput(f"{name}: NaN in row {start + faulty[0]}. Correct it, or leave the row out.")
    return table


def mask_junk(
    table: Float[np.ndarray, "n w"], images: Int[np.ndarray, "w"], matches: RaggedRows, junk: RaggedRows
) -> Float[np.ndarray, "matches"]:
    """The distances of the matches; junk is overwritten, so that it is never counted.

    The table's columns are these images of the gallery, in its order.
    """
    distance = table[matches.query, np.searchsorted(images, matches.images)]
    table[junk.query, np.searchsorted(images, junk.images)] = kernels.JUNK
    return distance


def empty_top(queries: int, top: int) -> tuple[Float32[np.ndarray, "Q top"], Int[np.ndarray, "Q top"]]:
    """Lists of the nearest images, still empty: distances, and positions in the gallery."""
    return np.full((queries, top), kernels.FAR), np.full((queries, top), -1, np.int64)
