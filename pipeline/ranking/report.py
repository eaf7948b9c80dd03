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
from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.data import parts
from pipeline.labels import occlusion
from pipeline.ranking import Embedded, Metric, Ranking, Rerank, Rule, Stored, cmc, rank, rerank, scores
from pipeline.ranking.embedded import take
from pipeline.ranking.summary import interval

GROUPS = ("all", "occluded", "holistic")
SUMMARY = {"R1": "rank1", "mAP": "mAP"}  # of each group: short names, so that `dvc metrics show` stays narrow
TYPE_SCORES = ("queries", "rank1", "mAP")
MAX_NAMED = 20  # queries without a match


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

    Raises `BadInput` if they are not those of the index.
    """
    tested = index[index["split"] != "train"]
    if not np.array_equal(features["row"][:], tested["row"]):
        raise BadInput(f"{features.path}: not the index's queries and gallery. Run `dvc repro`.")
    part, visibility, gate = (f"{system}/{name}" for name in ("part", "visibility", "gate"))
    images = Embedded(
        Stored(features[part], 0, len(tested)),
        Stored(features[visibility], 0, len(tested)),
        np.array(tested["pid"]),
        np.array(tested["camid"]),
        Stored(features[gate], 0, len(tested)) if gate in features else None,
    )
    queries = int((tested["split"] == "query").sum())
    return images[:queries], images[queries:]


def visible_parts(query: Embedded) -> Int[np.ndarray, "Q"]:
    """How many parts of each query the system takes for visible."""
    return (take(query.visibility, np.arange(len(query))) > 0).sum(1).numpy()


def rank_systems(
    systems: dict[str, tuple[Embedded, Embedded]], groups: QueryGroups, options: Evaluate, device: str
) -> tuple[dict[str, Ranking], dict[str, Ranking]]:
    """Every system's ranking, and the same after re-ranking, if the params ask for it.

    Raises `BadInput` if queries are to be re-ranked beside copies of themselves.
    """
    if groups.copies and options.rerank.depth:
        raise BadInput(
            f"params.yaml: evaluate.rerank.depth = {options.rerank.depth}, but queries and their occluded "
            "copies (index.occlude) would be each other's neighbours, and score too high. Set it to 0, or "
            "index without copies."
        )
    common: dict[str, Any] = {"metric": options.metric, "memory": options.memory, "device": device}
    top = max(options.top, options.rerank.depth)
    rankings, reranked = {}, {}
    for system, sides in systems.items():
        ranking = rank(*sides, rule=options.ap, top=top, title=f"rank {system}", **common)
        rankings[system] = ranking
        if options.rerank.depth:
            reranked[system] = rerank(*sides, ranking, options.rerank, title=f"rerank {system}", **common)
    return rankings, reranked


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
    }


def _by(ranking: Ranking, values: Int[np.ndarray, "Q"]) -> dict[int, dict[str, float | int]]:
    rows = {value: scores(ranking, values == value) for value in np.unique(values).tolist()}
    return {value: {name: row[name] for name in TYPE_SCORES if name in row} for value, row in rows.items()}


def camera_scores(ranking: Ranking, index: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """How well the matches of each pair of cameras, the query's and the gallery image's, are ranked.

    `mAP` is the mean precision at the pair's matches, in percent: mAP taken apart, except that queries with
    many matches count more.  `rank10` is the share of the matches among the first ten, in percent.
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
    pairs = table.groupby("pair").agg(matches=("mAP", "size"), mAP=("mAP", "mean"), rank10=("rank10", "mean"))
    return {str(pair): row for pair, row in pairs.round(2).to_dict("index").items()}


def _protocol(
    ranking: Ranking, groups: QueryGroups, index: pd.DataFrame, options: Evaluate
) -> dict[str, str | int]:
    gallery, tested = index[index["split"] == "gallery"], index[index["split"] != "train"]
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
    }


# ------------------------------------------------------------------ tables


def query_table(
    index: pd.DataFrame, rankings: dict[str, Ranking], groups: QueryGroups, top: int
) -> pd.DataFrame:
    """One row per query: its type, and each system's AP, rank of the first match and nearest gallery rows."""
    table = index.iloc[groups.row][["row", "key", "pid", "camid"]].reset_index(drop=True)
    table["pattern"] = groups.pattern
    table["hidden"] = [groups.name(pattern) for pattern in groups.pattern.tolist()]
    table["occluded"] = groups.occluded
    table["matches"] = rankings["model"].num_matches
    gallery = np.append(np.flatnonzero(index["split"] == "gallery"), -1)  # -1 stays -1
    for system, ranking in rankings.items():
        table[f"{system}_ap"] = ranking.ap
        table[f"{system}_first"] = ranking.first_match
        table[f"{system}_top"] = list(gallery[ranking.top[:, :top]])
    return table


def cmc_table(rankings: dict[str, Ranking], depth: int) -> pd.DataFrame:
    """CMC of every system in percent, one row per rank."""
    curves = {system: (100 * cmc(ranking, depth)).round(3) for system, ranking in rankings.items()}
    return pd.DataFrame({"rank": np.arange(1, depth + 1), **curves})


def text_table(report: dict[str, Any]) -> str:
    """The scores as text, for the terminal."""
    columns = ("queries", "rank1", "rank5", "rank10", "mAP", "mINP")
    reranked = {f"{system} reranked": scores for system, scores in report.get("reranked", {}).items()}
    systems = {"model": report, **report["baselines"]}
    rows = systems | reranked
    width = max(map(len, rows)) + 2
    lines = [f"{'':{width + 11}}" + "".join(f"{name:>9}" for name in columns)]
    for system, groups in rows.items():
        lines += [
            f"{system:{width}}{group:11}" + "".join(f"{groups[group].get(name, ''):>9}" for name in columns)
            for group in GROUPS
        ]
    lines += ["", f"{'hidden':22}{'queries':>9}" + "".join(f"{'mAP ' + system:>15}" for system in systems)]
    for hidden, row in report["by_z"].items():
        means = [groups["by_z"][hidden].get("mAP", "") for groups in systems.values()]
        lines.append(f"{hidden:22}{row['queries']:>9}" + "".join(f"{mean:>15}" for mean in means))
    protocol = report["protocol"]
    lines.append(
        f"types by {protocol['z']}; {plural(protocol['queries_without_match'], 'query')} without a match "
        f"skipped; AP by the {protocol['ap']} rule"
    )
    return "\n".join(lines)
