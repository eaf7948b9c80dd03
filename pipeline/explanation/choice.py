"""The queries that a figure shows: the worst, the best, the most changed, random ones, or named ones."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Integer

from pipeline.core.params import BadInput, shorten

CHOICES = ("worst", "best", "changed", "random")
Group = Literal["all", "occluded", "holistic"]


def choose(
    queries: pd.DataFrame,
    wanted: Sequence[str],
    count: int,
    seed: int,
    group: Group = "all",
    systems: tuple[str, str] = ("model", "encoder"),
) -> pd.DataFrame:
    """The rows of `queries` that a figure shows, in its order.

    `queries` is the table of `evaluate`: `key`, `occluded`, `matches`, and AP as `<system>_ap`.  `wanted` is
    one of the choices, which draws `count` queries with a match from a group, or the keys of any queries:

    worst, best: least or greatest AP by the first system
    changed: greatest difference of AP between the two systems, whichever is better
    random: fixed by the seed

    The seed also orders queries of equal AP.  Raises `BadInput` for unknown keys and systems, and where the
    group has no query with a match.
    """
    if len(wanted) > 1 or wanted[0] not in CHOICES:
        return _named(queries, wanted)
    pool = queries[queries["matches"] > 0]
    if group != "all":
        pool = pool[pool["occluded"] == (group == "occluded")]
    if not len(pool):
        raise BadInput(f"group = {group}: no such query has a match in the gallery. Choose another group.")
    shuffled = pool.sample(frac=1, random_state=seed)
    if wanted[0] == "random":
        return shuffled[:count]
    first = _ap(shuffled, systems[0])
    score = {
        "worst": lambda: first,
        "best": lambda: -first,
        "changed": lambda: -np.abs(first - _ap(shuffled, systems[1])),
    }[wanted[0]]()
    return shuffled.iloc[np.argsort(score, kind="stable")[:count]]


def _named(queries: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    by_key = queries.set_index("key", drop=False)
    unknown = [key for key in keys if key not in by_key.index]
    if unknown:
        example = queries["key"].iloc[0]
        raise BadInput(
            f"queries: {', '.join(shorten(unknown))}: no query has this key. Name keys of the index, such as "
            f"{example}, or one of {', '.join(CHOICES)}."
        )
    return by_key.loc[list(dict.fromkeys(keys))]


def _ap(queries: pd.DataFrame, system: str) -> np.ndarray:
    if f"{system}_ap" not in queries:
        systems = [name.removesuffix("_ap") for name in queries if name.endswith("_ap")]
        raise BadInput(f"beside = {system}: no AP of this system. Name one of {', '.join(systems)}.")
    return queries[f"{system}_ap"].to_numpy()


def holistic_image(index: pd.DataFrame, hidden: Integer[np.ndarray, "N C"], row: int) -> int | None:
    """The row of the gallery image of a query's person that hides the fewest parts, the first of equal ones.

    `hidden` is z of every image.  None if the gallery has no image of that person.
    """
    pid = index["pid"].iloc[row]
    rows = np.flatnonzero((index["split"] == "gallery") & (index["pid"] == pid) & (pid > 0))
    return int(rows[hidden[rows].sum(1).argmin()]) if len(rows) else None
