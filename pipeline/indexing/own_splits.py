"""The splits of one's own pictures: who is tested on, and which pictures are queries.

Without a split the people are divided at random: some to train on, the others to test on.  Of each person
to test on, one picture by each camera is a query (where cameras are unknown, a quarter of the pictures), if a
match by another camera is left for the gallery.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd

from pipeline.core.params import BadInput, plural
from pipeline.data.index import SPLITS
from pipeline.indexing.own_data import SPLIT_WORDS, TEST

FEW = 4  # people; fewer cannot be divided into two to train on and two to test on


def split(table: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """The numbered table with a split in every row, and what to know of it.

    The split is the table's own if it has one.  Otherwise `test_share` of the people are tested on.  Fewer
    than four are trained and tested on alike, so that the rows stand twice.  Raises `BadInput` if nobody
    could be found again: no person has two pictures, by two cameras where cameras are known.
    """
    rng = np.random.default_rng(seed)
    people = sorted(set(table.loc[table["pid"] > 0, "person"]))
    if len(people) < 2:
        alone = f"{plural(len(people), 'person')} alone ({', '.join(people)})"
        raise BadInput(f"{alone}: there is nobody to tell apart.")
    own, words = table["split"].any(), set(table["split"])
    table = table.assign(split=table["split"].map(SPLIT_WORDS).fillna(""))
    tested = table[table["split"] == TEST] if own else table
    queries = {pid: choose_queries(rows["camid"].tolist(), rng) for pid, rows in tested.groupby("pid")}
    matched = [pid for pid, chosen in queries.items() if chosen]
    if len(tested) and not matched:
        raise BadInput(
            "nobody could be found again: no person has two pictures"
            + (
                " by two cameras. Leave the cameras out: no --pattern, or `--camera none`."
                if (table["camid"] >= 0).any()
                else "."
            )
        )
    if own:
        rest = table[table["split"] != TEST]
        notes = [f"split {word}: trained on" for word in sorted(words) if word.startswith("val")]
        return _ordered([rest, _test_rows(tested, queries)]), notes
    if len(people) < FEW:
        return _ordered([table.assign(split="train"), _test_rows(table, queries)]), [
            f"WARNING: {plural(len(people), 'person')} cannot be divided into some to train on and others to "
            "test on. All are in both, so the scores say nothing about other people."
        ]
    count = min(max(round(test_share * len(people)), 1), len(matched), len(people) - 2)
    chosen = rng.permutation(matched)[:count]
    test = table["pid"].isin(chosen)
    note = f"{plural(count, 'person')} of {len(people)} drawn to test on, by seed {seed}"
    return _ordered([table[~test].assign(split="train"), _test_rows(table[test], queries)]), [note]


def _test_rows(table: pd.DataFrame, queries: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    is_query = pd.Series(False, index=table.index)
    for pid, rows in table.groupby("pid"):
        is_query[rows.index[queries[int(pid)]]] = True
    return table.assign(split=np.where(is_query, "query", "gallery"))


def _ordered(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts)
    rank = table["split"].map(SPLITS.index)
    return table.assign(rank=rank).sort_values(["rank", "pid", "path"]).drop(columns="rank")


def choose_queries(cameras: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Positions of one person's pictures that become queries; each has a match left for the gallery."""
    queries: list[int] = []
    gallery, taken = Counter(cameras), Counter[int]()
    for position in rng.permutation(len(cameras)).tolist():
        camera = cameras[position]
        if taken[camera] == (max(1, len(cameras) // 4) if camera < 0 else 1):
            continue
        left = [c for c in islice(gallery, 3) if c != camera or gallery[c] > 1]  # if this becomes a query
        if len(left) > 1 or (left and (left[0] < 0 or not (taken[left[0]] or left[0] == camera))):
            queries.append(position)
            taken[camera] += 1
            gallery[camera] -= 1
            if not gallery[camera]:
                del gallery[camera]
    return sorted(queries)
