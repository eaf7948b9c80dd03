"""Checks before a dataset is ranked: published counts, and queries that have a match in the gallery."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.core.params import plural, shorten
from pipeline.indexing.layout import OCCLUDED_PREFIX, ImageEntry, PublishedCount

DOUBTED_CAMERAS = 5  # that took one image each; fewer are those of a small set
MISSING_SPLIT = {
    "train": "no training image: the set can test, not train",
    "query": "no query: nothing can be measured on the set",
    "gallery": "no gallery: nothing can be measured on the set",
}


def count_differences(images: Iterable[ImageEntry], published: Mapping[str, PublishedCount]) -> list[str]:
    """One line for each split whose counts differ from the published ones; junk is not counted."""
    columns = ["split", "pid", "camid"]
    table = pd.DataFrame([(i.split, i.pid, i.camid) for i in images if i.pid >= 0], columns=columns)
    lines = []
    for split, expected in published.items():
        part = table[table["split"] == split]
        pids, camids = part.loc[part["pid"] > 0, "pid"], part.loc[part["camid"] >= 0, "camid"]
        pairs = {
            "image": (len(part), expected.images),
            "identity": (pids.nunique(), expected.identities),
            "camera": (camids.nunique(), expected.cameras),
        }
        differences = [
            f"{plural(count, noun)} (published: {other})"
            for noun, (count, other) in pairs.items()
            if other is not None and count != other
        ]
        if differences:
            lines.append(f"{split}: {', '.join(differences)}")
    return lines


def has_match(query: pd.DataFrame, gallery: pd.DataFrame) -> Bool[np.ndarray, "Q"]:
    """Whether each query has a match: a gallery image of its identity by another camera.

    As in the ranking, no gallery image is left out for a query of unknown camera (-1).
    """
    cameras = gallery.drop_duplicates(["pid", "camid"]).groupby("pid")["camid"].agg(set).to_dict()
    pairs = zip(query["pid"].tolist(), query["camid"].tolist(), strict=True)
    return np.array(
        [bool(cameras.get(pid, set()) - ({camid} if camid >= 0 else set())) for pid, camid in pairs]
    )


def unmatched_queries(query: pd.DataFrame, gallery: pd.DataFrame) -> list[str]:
    """One line if no query has a match, so that nothing could be measured; else none."""
    if len(query) and not len(gallery):
        return ["there are queries, but no gallery to find them in: add it, or leave out the queries as well"]
    if not len(query) or has_match(query, gallery).any():
        return []
    gallery_pids = set(gallery["pid"])
    if not any(pid in gallery_pids for pid in query["pid"]):
        return ["no identity of query is in gallery: are these splits of one set?"]
    return [
        "every match in gallery is by its query's own camera, which the protocol leaves out: give each "
        "camera its number, or leave cameras unknown"
    ]


def self_matches(query: pd.DataFrame, gallery: pd.DataFrame) -> list[str]:
    """Keys of the queries whose own file is in the gallery and is not left out by its camera."""
    pairs = query.merge(gallery, on=["sha256", "pid"], suffixes=("", "_gallery"))
    ranked = pairs[(pairs["camid"] < 0) | (pairs["camid"] != pairs["camid_gallery"])]
    return ranked["key"].drop_duplicates().tolist()


def dataset_warnings(index: pd.DataFrame) -> list[str]:
    """One line for each limitation of a usable dataset."""
    parts = {split: rows for split, rows in index[index["pid"] > 0].groupby("split")}
    empty = index[:0]
    train, query, gallery = (parts.get(split, empty) for split in ("train", "query", "gallery"))
    single = int((train["pid"].value_counts() == 1).sum())
    unmatched = int((~has_match(query, gallery)).sum()) if len(query) else 0
    copies = self_matches(query, gallery)
    shared = len(set(train["pid"]) & (set(query["pid"]) | set(gallery["pid"])))
    counts = {
        f"{plural(single, 'training identity')} with one image alone; a batch repeats it": single,
        f"{plural(unmatched, 'query')} without a match by another camera in gallery; skipped when "
        "evaluated": unmatched,
        f"{plural(len(copies), 'query')} in gallery as the same file, which no camera leaves out, so each "
        f"finds itself and Rank-1 is too high: {', '.join(shorten(copies))}": len(copies),
        f"{plural(shared, 'identity')} both in train and in query or gallery": shared,
    }
    missing = [line for split, line in MISSING_SPLIT.items() if split not in set(index["split"])]
    return (
        missing
        + [line for line, count in counts.items() if count]
        + _one_sided_cameras(query, gallery)
        + _camera_warnings(index)
    )


def _one_sided_cameras(query: pd.DataFrame, gallery: pd.DataFrame) -> list[str]:
    sides = {"query": query, "gallery": gallery}
    both = set(query["pid"]) & set(gallery["pid"])
    known = [name for name, rows in sides.items() if (rows.loc[rows["pid"].isin(both), "camid"] >= 0).any()]
    if len(known) != 1:
        return []
    return [
        f"cameras known in {known[0]} alone: no image is left out as its query's own, and Rank-1 is too high"
    ]


def _camera_warnings(index: pd.DataFrame) -> list[str]:
    # a column of camera numbers may hold something else, such as the number of the image
    images = index[(index["camid"] >= 0) & ~index["key"].str.startswith(OCCLUDED_PREFIX)]
    counts = images["camid"].value_counts()
    once = int((counts == 1).sum())
    if once < DOUBTED_CAMERAS or 2 * once <= len(counts):
        return []
    taken = "each took one" if once == len(images) else f"{once} of them took one"
    return [
        f"{plural(len(counts), 'camera')} for {plural(len(images), 'image')}, and {taken}: do these numbers "
        "name cameras? If not, leave them unknown (-1)"
    ]
