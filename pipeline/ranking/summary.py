"""Scores of many queries: CMC, Rank-k, mAP and mINP."""

import numpy as np
from jaxtyping import Bool, Float

from pipeline.core.params import BadInput
from pipeline.ranking.embedded import Array
from pipeline.ranking.protocol import Ranking

GROUPS = ("all", "occluded", "holistic")  # of queries
RANKS = (1, 5, 10)
RESAMPLES, LEVEL, SEED = 1000, 0.95, 1  # of the confidence intervals


def cmc(ranking: Ranking, depth: int) -> Float[np.ndarray, "depth"]:
    """Share of the queries whose first match is among the first 1, 2, ... `depth` images, in [0, 1]."""
    first = ranking.first_match[ranking.valid]
    return np.array([(first <= k).mean() if len(first) else np.nan for k in range(1, depth + 1)])


def scores(ranking: Ranking, which: Array | None = None) -> dict[str, float | int]:
    """Rank-1, 5, 10, mAP and mINP of the queries `which` (all if none), in percent with two decimals.

    Before them stand numbers of queries:

        queries          with a match: the scores are theirs alone
        without_match    skipped: their identity is not in the gallery, or by their own camera alone
        unidentified     skipped: pid 0 or below
        camera_unknown   of `queries`: a match may be by the query's own camera, and so count by mistake
        infinitely_far   of `queries`: a match shows no part that the query shows.  Such images come last, in
                         the gallery's order

    If `queries` is 0, there are no scores.  Raises `BadInput` unless `which` has one bool per query.
    """
    chosen = _chosen(ranking, which)
    valid = ranking.valid & chosen
    result: dict[str, float | int] = {
        name: int((queries & chosen).sum()) for name, queries in _counted(ranking).items()
    }
    if not valid.any():
        return result
    for k in RANKS:
        result[f"rank{k}"] = _percent(ranking.first_match[valid] <= k)
    return {**result, "mAP": _percent(ranking.ap[valid]), "mINP": _percent(ranking.inp[valid])}


def _chosen(ranking: Ranking, which: Array | None) -> Bool[np.ndarray, "Q"]:
    if which is None:
        return np.ones(len(ranking.pid), bool)
    chosen = np.asarray(which)
    if chosen.dtype != bool or chosen.shape != ranking.pid.shape:
        raise BadInput(
            f"which: {chosen.dtype} of {chosen.shape}. Give {len(ranking.pid)} bools, one per query."
        )
    return chosen


def _counted(ranking: Ranking) -> dict[str, Bool[np.ndarray, "Q"]]:
    return {
        "queries": ranking.valid,
        "without_match": ~ranking.valid & (ranking.pid > 0),
        "unidentified": ranking.pid <= 0,
        "camera_unknown": ranking.camera_unknown,
        "infinitely_far": ranking.infinitely_far,
    }


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(np.mean(shares)), 2)


def interval(ranking: Ranking, which: Array | None = None) -> dict[str, dict[str, float]]:
    """95 % confidence intervals of Rank-1 and mAP over the queries `which` (all if none), in percent.

    Percentile bootstrap over queries, with gallery and model fixed (Efron 1979).  Empty if no query has a
    match.
    """
    valid = ranking.valid & _chosen(ranking, which)
    values = np.stack([ranking.first_match[valid] == 1, ranking.ap[valid]], 1)
    if not len(values):
        return {}
    return {
        name: {"low": round(100 * float(a), 2), "high": round(100 * float(b), 2)}
        for name, a, b in zip(("rank1", "mAP"), *mean_interval(values), strict=True)
    }


def mean_interval(values: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "2 m"]:
    """The ends of the 95 % confidence interval of each column's mean over n > 0 rows.

    Percentile bootstrap (Efron 1979); the same at every call.  Of one row it has no width.
    """
    generator = np.random.default_rng(SEED)
    means = [values[generator.integers(0, len(values), len(values))].mean(0) for _ in range(RESAMPLES)]
    return np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
