"""Ranking a gallery for every query: one distance for all methods, and the protocol of Market-1501.

Unusual here:
- Memory is bounded by a block of queries times the gallery; the matrix of distances never exists.
- Nothing is sorted: AP, CMC and mINP need the ranks of the right images alone, and those are counted.
- A camera may be unknown (-1); it then hides nothing from a query.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from pipeline.params import BadInput

TILE = 2048  # gallery images compared at a time: the intermediate results stay in the processor's cache
Metric = Literal["euclidean", "squared"]


@dataclass(frozen=True)
class Embedded:
    """Images as a method sees them, and who they show.

    `parts` need not be normalised, the distance does that.  `visibility` weighs each part, 0 hidden to 1
    visible; a global feature is a part that is always visible.  `gate`, if any, is multiplied into the
    gallery's parts when these images are the queries.
    """

    parts: Float32[Tensor, "n P D"]
    visibility: Float32[Tensor, "n P"]
    pid: Int[np.ndarray, "n"]  # 0 a distractor, below 0 junk
    camid: Int[np.ndarray, "n"]  # below 0 unknown
    gate: Float32[Tensor, "n P D"] | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, which: slice | np.ndarray) -> "Embedded":
        gate = None if self.gate is None else self.gate[which]
        return Embedded(self.parts[which], self.visibility[which], self.pid[which], self.camid[which], gate)

    def to(self, device: str | torch.device) -> "Embedded":
        gate = None if self.gate is None else self.gate.to(device)
        return Embedded(self.parts.to(device), self.visibility.to(device), self.pid, self.camid, gate)


# ------------------------------------------------------------------ the distance


def distances(query: Embedded, gallery: Embedded, metric: Metric = "euclidean") -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery image: the mean over the parts that both show.

    sum_p v_p^q v_p^g D_p / sum_p v_p^q v_p^g, OGFR's Eq. 25, where the global feature is a part with v = 1
    (the D_g and the + 1 there).  D_p is the Euclidean distance, or its square; it lies in [0, 2] or [0, 4].
    Two images that show no common part are infinitely far apart.  A gate of the query weighs the gallery's
    channels before they are scaled.
    Departs: parts are scaled to length 1 first, or long ones would decide.
    """
    return _compare(query, gallery, gallery.parts.norm(dim=2), metric)


def _compare(query: Embedded, gallery: Embedded, lengths: Tensor, metric: Metric) -> Tensor:
    parts = [_Part(query, p) for p in range(query.parts.shape[1])]
    result = torch.empty(len(query), len(gallery), device=query.parts.device)
    for start in range(0, len(gallery), TILE):
        tile = slice(start, start + TILE)
        total = torch.zeros_like(result[:, tile])
        for part in parts:
            part.add_to(total, gallery[tile], lengths[tile], metric)
        weight = query.visibility @ gallery.visibility[tile].T
        result[:, tile] = (total / weight).masked_fill_(weight == 0, torch.inf)
    return result


class _Part:
    """One part of a block of queries, ready to be compared with tiles of the gallery."""

    def __init__(self, query: Embedded, p: int):
        self.p = p
        # queries that hide the part are left out of its products
        self.rows = query.visibility[:, p].nonzero().flatten()
        self.visibility = query.visibility[self.rows, p, None]
        self.feature = F.normalize(query.parts[self.rows, p], dim=1)
        self.gate = None if query.gate is None else query.gate[self.rows, p]
        self.square = self.feature.square().sum(1, keepdim=True)

    def add_to(self, total: Tensor, tile: Embedded, lengths: Tensor, metric: Metric) -> None:
        other, length = tile.parts[:, self.p], lengths[:, self.p]
        if self.gate is None:
            product = self.feature @ other.T
        else:
            product = (self.feature * self.gate) @ other.T
            length = (self.gate.square() @ other.square().T).sqrt_()
        present = (length > 0).float()
        # |q - g|^2 = |q|^2 + |g|^2 - 2 q g, with g scaled to length 1 unless it is zero
        square = product.div_(length + (1 - present)).mul_(-2).add_(self.square).add_(present).clamp_(min=0)
        distance = square.sqrt_() if metric == "euclidean" else square
        total.index_add_(0, self.rows, distance.mul_(self.visibility).mul_(tile.visibility[:, self.p]))


# ------------------------------------------------------------------ the protocol


@dataclass(frozen=True)
class Ranking:
    """How well each query was answered; a query without a right image in the gallery has no scores."""

    ap: Float[np.ndarray, "Q"]  # average precision, rectangular rule; NaN without a match
    inp: Float[np.ndarray, "Q"]  # matches / rank of the last one; NaN without a match
    first: Int[np.ndarray, "Q"]  # rank of the first match, from 1; 0 without a match
    matches: Int[np.ndarray, "Q"]  # right images left in the gallery
    top: Int[np.ndarray, "Q top"]  # nearest gallery images, by position; -1 where there are no more

    @property
    def valid(self) -> Bool[np.ndarray, "Q"]:
        return self.matches > 0


def rank(
    query: Embedded,
    gallery: Embedded,
    metric: Metric = "euclidean",
    block: int = 512,
    top: int = 0,
    device: str | torch.device = "cpu",
) -> Ranking:
    """Rank the gallery for every query by the protocol of Market-1501.

    Left out of the gallery: junk (pid below 0), and for each query the images of its person by its own
    camera, if that is known.  Equal distances keep the gallery's order.  `block` queries are ranked at a
    time: beside the features, memory is 4 bytes x block x gallery.  Raises `BadInput` for features that are
    no numbers.
    """
    kept = np.flatnonzero(gallery.pid >= 0)
    gallery = (gallery if len(kept) == len(gallery) else gallery[kept]).to(device)
    order = np.argsort(gallery.pid, kind="stable")
    people = (order, gallery.pid[order])
    _lengths(query, "query")
    lengths = _lengths(gallery, "gallery")
    rows = []
    for start in range(0, len(query), block):
        some = query[start : start + block].to(device)
        table = _compare(some, gallery, lengths, metric).cpu().numpy()
        rows += [_judge(*each, top) for each in _rows(table, some, gallery, people)]
    ap, inp, first, matches, nearest = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    nearest = np.array(nearest, np.int64).reshape(len(query), top)
    nearest = np.where(nearest < 0, -1, np.append(kept, -1)[nearest])
    return Ranking(np.array(ap, float), np.array(inp, float), _ints(first), _ints(matches), nearest)


def _lengths(embedded: Embedded, name: str) -> Float[Tensor, "n P"]:
    lengths = embedded.parts.norm(dim=2)
    gate = lengths if embedded.gate is None else embedded.gate.norm(dim=2)
    if not (lengths + gate + embedded.visibility).isfinite().all():
        raise BadInput(f"{name} features: hold values that are no numbers. Train again, more gently.")
    return lengths


def _ints(values: tuple) -> Int[np.ndarray, "Q"]:
    return np.array(values, np.int32)


def _rows(table: np.ndarray, query: Embedded, gallery: Embedded, people: tuple) -> Iterator[tuple]:
    """For each query its distances, the right images in gallery order, and those left out."""
    order, pids = people
    for row, pid, camid in zip(table, query.pid, query.camid, strict=True):
        own = order[slice(*np.searchsorted(pids, [pid, pid + 1]))] if pid > 0 else order[:0]
        same = (gallery.camid[own] == camid) & (camid >= 0)
        yield row, own[~same], own[same]


def _judge(row: np.ndarray, hits: np.ndarray, removed: np.ndarray, top: int) -> tuple:
    nearest = _nearest(row, removed, top)
    if len(hits) == 0:
        return np.nan, np.nan, 0, 0, nearest
    ranks = np.sort([_rank(row, removed, hit) for hit in hits.tolist()])
    found = np.arange(1, len(ranks) + 1)
    return (found / ranks).mean(), len(ranks) / ranks[-1], ranks[0], len(ranks), nearest


def _rank(row: np.ndarray, removed: np.ndarray, hit: int) -> int:
    """1 + the gallery images before `hit`: the nearer ones, and the equally near that come first."""
    at = row[hit]
    before = np.count_nonzero(row[:hit] <= at) + np.count_nonzero(row[hit + 1 :] < at)
    absent = (row[removed] < at) | ((row[removed] == at) & (removed < hit))
    return int(1 + before - np.count_nonzero(absent))


def _nearest(row: np.ndarray, removed: np.ndarray, top: int) -> np.ndarray:
    if top == 0:
        return np.empty(0, np.int64)
    reach = min(top + len(removed), len(row)) - 1
    candidates = np.flatnonzero(row <= np.partition(row, reach)[reach]) if len(row) else np.empty(0, int)
    candidates = np.setdiff1d(candidates, removed, assume_unique=True)
    best = candidates[np.argsort(row[candidates], kind="stable")][:top]
    return np.pad(best, (0, top - len(best)), constant_values=-1)


# ------------------------------------------------------------------ the scores


def cmc(ranking: Ranking, depth: int) -> Float[np.ndarray, "depth"]:
    """Share of the queries whose first match is among the first 1, 2, ... `depth`, in [0, 1]."""
    first = ranking.first[ranking.valid]
    return np.array([(first <= k).mean() if len(first) else np.nan for k in range(1, depth + 1)])


def scores(ranking: Ranking, which: Bool[np.ndarray, "Q"] | None = None) -> dict[str, float | int]:
    """Rank-1, 5, 10, mAP and mINP of the queries `which` (all if none), in percent with two decimals.

    Queries without a match are skipped; if none is left, only their number is given.
    """
    valid = ranking.valid if which is None else ranking.valid & which
    result: dict[str, float | int] = {"queries": int(valid.sum())}
    if not valid.any():
        return result
    for k in (1, 5, 10):
        result[f"rank{k}"] = _percent(ranking.first[valid] <= k)
    return {**result, "mAP": _percent(ranking.ap[valid]), "mINP": _percent(ranking.inp[valid])}


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(np.mean(shares)), 2)
