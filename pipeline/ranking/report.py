"""The report of an evaluation: scores of all, occluded and holistic queries, and of each occlusion type.

A query's type z is the true one where the truth is known, by Eq. 1-2 at a threshold of its own
(`group_lambda`): a study of lambda then moves the labels, not the groups that it is judged on.  Elsewhere it
is the cached one.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT, BadInput, shorten
from pipeline.data import parts
from pipeline.labels import occlusion
from pipeline.ranking import Embedded, Metric, Ranking, Rerank, Rule, Stored, rank, rerank, scores
from pipeline.ranking.embedded import take
from pipeline.ranking.protocol import IdentityIndex
from pipeline.ranking.summary import GROUPS, interval

SUMMARY = {"R1": "rank1", "mAP": "mAP"}  # of each group: short names, so that `dvc metrics show` stays narrow
TYPE_SCORES = ("queries", "rank1", "mAP")
CAMERAS = (  # by how many sides know cameras
    "unknown, so no image is left out as its query's own",
    "known of {} alone, so no image is left out as its query's own",
    "images by a query's own camera are left out",
)
MAX_NAMED = 20  # queries without a match
MAX_PAIRS = 256  # of cameras: those of 16 cameras; MSMT17 has 15


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """How the gallery is ranked and the queries are grouped."""

    metric: Metric  # of one part; parts are scaled to length 1
    ap: Rule  # of the average precision
    memory: PositiveInt  # MB that ranking may hold, features included; changes no result
    group_lambda: NonNegativeFloat  # pixels; a part of the true map with fewer is hidden
    depth: PositiveInt  # ranks of the CMC curve
    top: NonNegativeInt  # gallery images listed for each query
    rerank: Rerank  # reported beside the plain ranking


@dataclasses.dataclass(frozen=True)
class QueryGroups:
    """Which queries are occluded, and by which occlusion type."""

    row: Int[np.ndarray, "Q"]  # of the queries in the index
    occluded: Bool[np.ndarray, "Q"]
    pattern: Int[np.ndarray, "Q"]  # number of the occlusion type, the sum of z_c 2^c
    names: list[str]  # of the C parts
    source: str = ""  # of occluded and pattern
    copies: bool = False  # whether the occluded queries are copies of other queries

    def name(self, pattern: int) -> str:
        """The hidden parts of an occlusion type, as in `arms+legs`."""
        return "+".join(n for c, n in enumerate(self.names) if pattern >> c & 1) or "none"


def query_groups(index: pd.DataFrame, labels: LabelFile, truth: LabelFile, threshold: float) -> QueryGroups:
    """Group the queries by the truth if there is one, else by the cached labels."""
    row = np.flatnonzero(index["split"] == "query")
    names = labels.attrs["parts"]
    has_truth = bool(truth.attrs["truth"])
    copies = not has_truth and "occluder" in truth
    if has_truth:
        fine_pixels = truth["visible"][:][row]
        coarse = parts.COARSE[len(names)].values()
        pixels = np.stack([fine_pixels[:, np.array(fine) - 1].sum(1) for fine in coarse], 1)
        hidden = occlusion.hidden_parts(torch.from_numpy(pixels), threshold, strict=True)
        source = f"truth, parts below {threshold:g} pixels"
    else:
        hidden = torch.from_numpy(labels["occluded"][:][row])
        source = "cached labels" + ("; occluded are those pasted upon" if copies else "")
    occluded = truth["occluder"][:][row] > 0 if has_truth or copies else (hidden > 0).any(1).numpy()
    return QueryGroups(row, occluded, occlusion.pattern_index(hidden).numpy(), names, source, copies)


# ------------------------------------------------------------------ systems


def embedded(features: LabelFile, index: pd.DataFrame, system: str) -> tuple[Embedded, Embedded]:
    """Queries and gallery as one system embeds them; the features stay in their file.

    Cameras that one side alone knows are left out, as no image can be by its query's own camera.
    Raises `BadInput` if they are not the features of the index.
    """
    tested = index[index["split"] != "train"]
    if not np.array_equal(features["row"][:], tested["row"]):
        raise BadInput(f"{features.path}: not the index's queries and gallery. Run `dvc repro`.")
    part, visibility, gate = (f"{system}/{name}" for name in ("part", "visibility", "gate"))
    images = Embedded(
        Stored(features[part], 0, len(tested)),
        Stored(features[visibility], 0, len(tested)),
        np.array(tested["pid"]),
        np.array(tested["camid"]) if len(camera_sides(index)) == 2 else np.full(len(tested), -1),
        keys=tested["key"].tolist(),
    )
    queries = int((tested["split"] == "query").sum())
    gates = Stored(features[gate], 0, queries) if gate in features else None
    return dataclasses.replace(images[:queries], gate=gates), images[queries:]


def camera_sides(index: pd.DataFrame) -> list[str]:
    """Which of query and gallery have known cameras, among pairs of images of one identity."""
    query, gallery = (
        index.loc[index["split"] == side, ["pid", "camid"]].to_numpy().T for side in ("query", "gallery")
    )
    return IdentityIndex.of(*gallery).camera_sides(*query)


def visible_parts(query: Embedded) -> Int[np.ndarray, "Q"]:
    """How many parts of each query the system takes for visible."""
    return (take(query.visibility, np.arange(len(query))) > 0).sum(1).numpy()


def rank_systems(
    systems: dict[str, tuple[Embedded, Embedded]], groups: QueryGroups, options: Evaluate, device: str
) -> tuple[dict[str, Ranking], dict[str, Ranking]]:
    """Every system's ranking, and the same after re-ranking, if the params ask for it.

    Raises `BadInput` if queries are to be re-ranked beside copies of themselves, and for features that cannot
    be compared, with the names of the images.
    """
    if groups.copies and options.rerank.depth:
        raise BadInput(
            f"params.yaml: evaluate.rerank.depth = {options.rerank.depth}, but queries and their occluded "
            "copies (index.occlude) would be each other's neighbours, and score too high. Set it to 0, or "
            "index without copies."
        )
    common: dict[str, Any] = {"metric": options.metric, "memory": options.memory, "device": device}
    top = max(2, options.top, options.rerank.depth)  # 2, for the ties
    rankings, reranked = {}, {}
    for system, sides in systems.items():
        try:
            ranking = rank(*sides, rule=options.ap, top=top, title=f"rank {system}", **common)
        except BadInput as error:
            raise BadInput(f"system {system}: {error}") from None
        rankings[system] = ranking
        if options.rerank.depth:
            reranked[system] = rerank(*sides, ranking, options.rerank, title=f"rerank {system}", **common)
    return rankings, reranked


def ties(ranking: Ranking) -> int:
    """Number of queries whose two nearest images are equally near: the gallery's order ranks these."""
    equal = ranking.top_distance[:, 0] == ranking.top_distance[:, 1]
    return int((equal & (ranking.top[:, 1] >= 0)).sum())


# ------------------------------------------------------------------ scores


def all_scores(
    rankings: dict[str, Ranking],
    reranked: dict[str, Ranking],
    visible: dict[str, Int[np.ndarray, "Q"]],
    groups: QueryGroups,
    index: pd.DataFrame,
    options: Evaluate,
) -> dict[str, Any]:
    """The content of report.json: the model's scores, under `baselines` those of the other systems.

    Under `reranked`, if the params ask for it, those of every system after re-ranking; under `protocol` how
    they were computed.  `visible` is how many parts of each query a system takes for visible.
    """
    systems, after = (
        {system: _scores(ranking, visible[system], groups, index) for system, ranking in each.items()}
        for each in (rankings, reranked)
    )
    model = systems.pop("model")
    extra = {"reranked": after} if after else {}
    protocol = _protocol(rankings["model"], groups, index, options)
    return {**model, "baselines": systems, **extra, "protocol": protocol}


def summary(system: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The few scores of a system that `dvc metrics show` prints, from `all_scores`."""
    return {
        group: {short: system[group][name] for short, name in SUMMARY.items() if name in system[group]}
        for group in GROUPS
    }


def _scores(
    ranking: Ranking, visible: Int[np.ndarray, "Q"], groups: QueryGroups, index: pd.DataFrame
) -> dict[str, Any]:
    selections = dict(zip(GROUPS, (None, groups.occluded, ~groups.occluded), strict=True))
    return {
        **{name: scores(ranking, which) for name, which in selections.items()},
        "confidence": {name: interval(ranking, which) for name, which in selections.items()},
        "by_z": {groups.name(pattern): row for pattern, row in _by(ranking, groups.pattern).items()},
        "by_visible_parts": {str(count): row for count, row in _by(ranking, visible).items()},
        "by_cameras": camera_scores(ranking, index),
        "ties": ties(ranking),
    }


def _by(ranking: Ranking, values: Int[np.ndarray, "Q"]) -> dict[int, dict[str, float | int]]:
    rows = {value: scores(ranking, values == value) for value in np.unique(values).tolist()}
    return {value: {name: row[name] for name in TYPE_SCORES if name in row} for value, row in rows.items()}


def camera_scores(ranking: Ranking, index: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """How well the matches of each pair of cameras, the query's and the gallery image's, are ranked.

    `mAP` is the mean precision at the pair's matches, in percent: mAP taken apart, except that queries with
    many matches count more.  `rank10` is the share of the matches among the first ten, in percent.
    Only the `MAX_PAIRS` pairs with the most matches have an entry; `others` sums up the rest, and says how
    many `pairs` they are.
    """
    query, gallery = (index[index["split"] == split]["camid"].to_numpy() for split in ("query", "gallery"))
    matches = ranking.matches
    table = pd.DataFrame(
        {
            "pair": [f"{a}-{b}" for a, b in zip(query[matches.query], gallery[matches.image], strict=True)],
            "mAP": 100 * matches.precision,
            "rank10": 100.0 * (matches.rank <= 10),
        }
    )
    means = {"matches": ("mAP", "size"), "mAP": ("mAP", "mean"), "rank10": ("rank10", "mean")}
    pairs = table.groupby("pair").agg(**means)
    named = pairs["matches"].nlargest(MAX_PAIRS).index  # of equal ones, the first
    rows = pairs[pairs.index.isin(named)].round(2).to_dict("index")
    result = {str(pair): row for pair, row in rows.items()}
    if len(pairs) > MAX_PAIRS:
        others = table[~table["pair"].isin(named)]
        total = others.groupby(np.zeros(len(others))).agg(**means).round(2).to_dict("records")[0]
        result["others"] = {"pairs": len(pairs) - MAX_PAIRS, **total}
    return result


def _protocol(
    ranking: Ranking, groups: QueryGroups, index: pd.DataFrame, options: Evaluate
) -> dict[str, str | int]:
    gallery, tested = index[index["split"] == "gallery"], index[index["split"] != "train"]
    sides = camera_sides(index)
    without_match = index["key"].to_numpy()[groups.row[~ranking.valid]].tolist()
    return {
        "ap": options.ap,
        "distance": options.metric,
        "rerank": options.rerank.name,
        "z": groups.source,
        "queries": len(ranking.ap),
        "queries_without_match": len(without_match),
        "without_match": ", ".join(shorten(without_match, MAX_NAMED)),
        "gallery": len(gallery),
        "gallery_junk": int((gallery["pid"] < 0).sum()),
        "gallery_distractors": int((gallery["pid"] == 0).sum()),
        "cameras_unknown": int((tested["camid"] < 0).sum()),
        "cameras": CAMERAS[len(sides)].format(*sides),
    }
