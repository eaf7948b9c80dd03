"""The protocol of Market-1501: which gallery images count for a query, and what their ranks are worth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from pipeline.core.params import check_choice, check_count
from pipeline.model.average_precision import Rule, average_precision
from pipeline.ranking import kernels

_ROWS = 64  # of a matrix that are judged at a time: they stay in the processor's cache


@dataclass(frozen=True)
class RaggedRows:
    """A list of gallery images for each query: those of query i are rows[first[i] : first[i + 1]]."""

    first: Int[np.ndarray, "starts"]
    rows: Int[np.ndarray, "n"]

    @property
    def lengths(self) -> Int[np.ndarray, "Q"]:
        return np.diff(self.first)

    @property
    def owner(self) -> Int[np.ndarray, "n"]:
        """The query of each entry."""
        return np.repeat(np.arange(len(self.first) - 1), self.lengths)

    def __getitem__(self, which: slice) -> "RaggedRows":
        start, stop, _ = which.indices(len(self.first) - 1)
        first = self.first[start : stop + 1]
        return RaggedRows(first - first[0], self.rows[first[0] : first[-1]])


@dataclass(frozen=True)
class IdentityIndex:
    """Who is who in a gallery: its images sorted by person, in the gallery's order within each."""

    order: Int[np.ndarray, "G"]
    pid: Int[np.ndarray, "G"]  # sorted
    camid: Int[np.ndarray, "G"]  # as in the gallery

    @classmethod
    def of(cls, pid: Int[np.ndarray, "G"], camid: Int[np.ndarray, "G"]) -> "IdentityIndex":
        order = np.argsort(pid, kind="stable")
        return cls(order, pid[order], camid)

    def own(self, pid: Int[np.ndarray, "Q"]) -> RaggedRows:
        """Every image of each query's person; distractors and junk are nobody."""
        start, stop = (np.searchsorted(self.pid, pid, side) for side in ("left", "right"))
        first = np.concatenate([[0], np.cumsum(np.where(pid > 0, stop - start, 0))])
        place = np.arange(first[-1]) + np.repeat(start - first[:-1], np.diff(first))
        return RaggedRows(first, self.order[place])

    def split(self, pid: Int[np.ndarray, "Q"], camid: Int[np.ndarray, "Q"]) -> tuple[RaggedRows, RaggedRows]:
        """Each query's matches, and the images of its person that its own camera took, which do not count."""
        own = self.own(pid)
        camera = camid[own.owner]
        same = (self.camid[own.rows] == camera) & (camera >= 0)
        return _some(own, ~same), _some(own, same)


def _some(lists: RaggedRows, which: Bool[np.ndarray, "n"]) -> RaggedRows:
    counts = np.bincount(lists.owner[which], minlength=len(lists.first) - 1)
    return RaggedRows(np.concatenate([[0], np.cumsum(counts)]), lists.rows[which])


# ------------------------------------------------------------------ what ranks are worth


@dataclass(frozen=True)
class Ranking:
    """How well each query was answered; a query without a right image in the gallery has no scores."""

    ap: Float[np.ndarray, "Q"]  # average precision; NaN without a match
    inp: Float[np.ndarray, "Q"]  # matches / rank of the last one; NaN without a match
    first: Int[np.ndarray, "Q"]  # rank of the first match, from 1; 0 without a match
    matches: Int[np.ndarray, "Q"]  # right images left in the gallery
    top: Int[np.ndarray, "Q top"]  # nearest gallery images, by position; -1 where there are no more
    at: Float32[np.ndarray, "Q top"]  # their distances; infinite where there are no more
    found: "Matches"
    rule: str  # of the average precision

    @property
    def valid(self) -> Bool[np.ndarray, "Q"]:
        return self.matches > 0


@dataclass(frozen=True)
class Matches:
    """The right images of all queries, nearest first in each; a query's AP is the mean of its precisions."""

    query: Int[np.ndarray, "n"]  # by position
    image: Int[np.ndarray, "n"]  # of the gallery, by position
    rank: Int[np.ndarray, "n"]  # from 1
    precision: Float[np.ndarray, "n"]


def score_queries(
    hits: RaggedRows,
    ranks: Int[np.ndarray, "n"],
    nearest: tuple[Float32[np.ndarray, "Q top"], Int[np.ndarray, "Q top"]],
    rule: str,
    order: Int[np.ndarray, "Q"],
    kept: Int[np.ndarray, "G"],
) -> Ranking:
    """Scores from the ranks of all matches, counted from 1.

    Query i of the lists stands at order[i], image j at kept[j]; an image below 0 is none.  `nearest` are
    distances and images.
    """
    first, matches, owner = hits.first, hits.lengths, hits.owner
    found = np.flatnonzero(matches)
    by_rank = np.lexsort((ranks, owner))
    ranks, images = ranks[by_rank], hits.rows[by_rank]
    ap, precision = average_precision(ranks, matches, rule)
    inp = np.full(len(matches), np.nan)
    earliest = np.zeros(len(matches), np.int32)
    if len(found):
        inp[found] = matches[found] / ranks[first[found + 1] - 1]
        earliest[found] = ranks[first[found]]
    back = np.argsort(order)
    each = (values[back] for values in (ap, inp, earliest, matches.astype(np.int32)))
    at, top = nearest
    top = np.where(top < 0, -1, np.append(kept, -1)[top])
    return Ranking(*each, top[back], at[back], Matches(order[owner], kept[images], ranks, precision), rule)


def rank_distances(
    table: Float32[np.ndarray, "Q G"],
    query_pid: Int[np.ndarray, "Q"],
    query_camid: Int[np.ndarray, "Q"],
    gallery_pid: Int[np.ndarray, "G"],
    gallery_camid: Int[np.ndarray, "G"],
    rule: Rule | str = "rectangular",
    top: int = 0,
) -> Ranking:
    """Rank by a matrix of distances that somebody else computed, by the same protocol as `rank`.

    The matrix is left as it is; beside it, a few of its rows are held.  Raises `BadInput` for another rule.
    """
    check_choice("rule", rule, Rule)
    check_count("top", top)
    kept = np.flatnonzero(gallery_pid >= 0)
    whole = len(kept) == len(gallery_pid)
    hits, removed = IdentityIndex.of(gallery_pid[kept], gallery_camid[kept]).split(query_pid, query_camid)
    ranks, images = np.ones(len(hits.rows), np.int64), np.arange(len(kept))
    best, who = empty_top(len(table), top)
    for start in range(0, len(table), _ROWS):
        some = slice(start, start + _ROWS)
        rows = table[some].copy() if whole else table[some][:, kept]
        at = mask_junk(rows, images, hits[some], removed[some])
        mine = ranks[hits.first[start] : hits.first[min(start + _ROWS, len(table))]]
        kernels.count(rows, hits[some].first, at, hits[some].rows, mine)
        if top:
            kernels.nearest(rows, images, best[some], who[some])
    return score_queries(hits, ranks, (best, who), rule, np.arange(len(table)), kept)


def mask_junk(
    table: Float32[np.ndarray, "n w"], images: Int[np.ndarray, "w"], hits: RaggedRows, removed: RaggedRows
) -> Float32[np.ndarray, "hits"]:
    """The distances of the matches; what does not count is taken out of the table.

    The table's columns are these images of the gallery, in its order.
    """
    at = table[hits.owner, np.searchsorted(images, hits.rows)]
    table[removed.owner, np.searchsorted(images, removed.rows)] = kernels.OUT
    return at


def empty_top(queries: int, top: int) -> tuple[Float32[np.ndarray, "Q top"], Int[np.ndarray, "Q top"]]:
    """Lists of the nearest images that hold none yet: distances, and positions in the gallery."""
    return np.full((queries, top), kernels.FAR), np.full((queries, top), -1, np.int64)
