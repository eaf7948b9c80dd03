"""What a set must be before numbers on it mean anything: as published, with queries that can be answered."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.core.params import plural, shorten
from pipeline.indexing.layout import Count, Picture

MISSED = {  # what a set without a split is good for
    "train": "no training image: the set can test, not train",
    "query": "no query: nothing can be measured on the set",
    "gallery": "no gallery: nothing can be measured on the set",
}


def differences(pictures: Iterable[Picture], published: Mapping[str, Count]) -> list[str]:
    """A line for each split that does not hold what is published of it; junk is left out of both."""
    table = pd.DataFrame([(p.split, p.pid, p.camid) for p in pictures if p.pid >= 0], columns=list("spc"))
    lines = []
    for split, wanted in published.items():
        part = table[table["s"] == split]
        people, cameras = part.loc[part["p"] > 0, "p"].nunique(), part.loc[part["c"] >= 0, "c"].nunique()
        pairs = {
            "image": (len(part), wanted.images),
            "identity": (people, wanted.identities),
            "camera": (cameras, wanted.cameras),
        }
        unlike = [
            f"{plural(a, what)} (published: {b})"
            for what, (a, b) in pairs.items()
            if b is not None and a != b
        ]
        if unlike:
            lines.append(f"{split}: {', '.join(unlike)}")
    return lines


def answered(query: pd.DataFrame, gallery: pd.DataFrame) -> Bool[np.ndarray, "Q"]:
    """Whether each query has a right image in the gallery: the same identity, not by the query's own camera.

    An unknown camera (-1) of a query excludes nothing, as in the ranking.
    """
    seen = gallery.drop_duplicates(["pid", "camid"]).groupby("pid")["camid"].agg(set).to_dict()
    pairs = zip(query["pid"].tolist(), query["camid"].tolist(), strict=True)
    return np.array([bool(seen.get(pid, set()) - ({camid} if camid >= 0 else set())) for pid, camid in pairs])


def unanswerable(query: pd.DataFrame, gallery: pd.DataFrame) -> list[str]:
    """A line if no query has a right image in the gallery, so that nothing could be measured."""
    if len(query) and not len(gallery):
        return ["there are queries, but no gallery to find them in: add it, or leave out the queries as well"]
    if not len(query) or answered(query, gallery).any():
        return []
    known = set(gallery["pid"])
    if not any(pid in known for pid in query["pid"]):
        return ["no identity of query is in gallery: are these splits of one set?"]
    return [
        "every right image in gallery is by its query's own camera, which the protocol leaves out: give each "
        "camera its number, or leave cameras unknown"
    ]


def itself(query: pd.DataFrame, gallery: pd.DataFrame) -> list[str]:
    """Keys of the queries that the ranking may find as the same file, as no camera leaves it out."""
    pairs = query.merge(gallery, on=["sha256", "pid"], suffixes=("", "_found"))
    kept = pairs[(pairs["camid"] < 0) | (pairs["camid"] != pairs["camid_found"])]
    return kept["key"].drop_duplicates().tolist()


def notes(index: pd.DataFrame) -> list[str]:
    """What a user should know of a set that is fit for use."""
    parts = {split: rows for split, rows in index[index["pid"] > 0].groupby("split")}
    none = index[:0]
    train, query, gallery = (parts.get(split, none) for split in ("train", "query", "gallery"))
    alone = int((train["pid"].value_counts() == 1).sum())
    lost = int((~answered(query, gallery)).sum()) if len(query) else 0
    same = itself(query, gallery)
    both = len(set(train["pid"]) & (set(query["pid"]) | set(gallery["pid"])))
    facts = {
        f"{plural(alone, 'training identity')} with one image alone; a batch repeats it": alone,
        f"{plural(lost, 'query')} without a right image by another camera in gallery; skipped when "
        "evaluated": lost,
        f"{plural(len(same), 'query')} in gallery as the same file, which no camera leaves out, so each "
        f"finds itself and Rank-1 is too high: {', '.join(shorten(same))}": len(same),
        f"{plural(both, 'identity')} both in train and in query or gallery": both,
    }
    missed = [line for split, line in MISSED.items() if split not in set(index["split"])]
    return missed + [fact for fact, number in facts.items() if number]
