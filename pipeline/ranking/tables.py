"""The tables that an evaluation leaves for people: scores, queries, their nearest images, CMC curves."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from pipeline.core.params import plural
from pipeline.ranking import Ranking, cmc
from pipeline.ranking.report import QueryGroups
from pipeline.ranking.summary import GROUPS

COUNTS = ("queries", "without_match", "unidentified", "camera_unknown", "infinitely_far")
SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")
LISTED = ("model", "model_reranked", "histogram")  # systems whose nearest images are listed
YES_NO = {True: "yes", False: "no"}


def scores_table(report: dict[str, Any]) -> pd.DataFrame:
    """Scores of every system, one row per group and per occlusion type, in percent; from `all_scores`."""
    reranked = {f"{system}_reranked": scores for system, scores in report.get("reranked", {}).items()}
    rows = []
    for system, scores in ({"model": report} | report["baselines"] | reranked).items():
        types = {f"hidden {hidden}": row for hidden, row in scores["by_z"].items()}
        groups = {group: scores[group] for group in GROUPS} | types
        rows += [{"system": system, "group": group, **row} for group, row in groups.items()]
    table = pd.DataFrame(rows, columns=["system", "group", *COUNTS, *SCORES])
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def query_table(
    index: pd.DataFrame, rankings: dict[str, Ranking], groups: QueryGroups, top: int
) -> pd.DataFrame:
    """One row per query: its type, and each system's AP and rank of the first match.

    `<system>_distances` has, for the systems of `LISTED`, the distances of the `top` nearest gallery images,
    nearest first: those of `ranking_table`, in float32.
    """
    table = index.iloc[groups.row][["row", "key", "pid", "camid"]].reset_index(drop=True)
    table["pattern"] = groups.pattern
    table["hidden"] = [groups.name(pattern) for pattern in groups.pattern.tolist()]
    table["occluded"] = groups.occluded
    table["matches"] = rankings["model"].num_matches
    for system, ranking in rankings.items():
        table[f"{system}_ap"] = ranking.ap
        table[f"{system}_first"] = ranking.first_match
    for system in (name for name in LISTED if name in rankings):
        near, distance = rankings[system].top[:, :top], rankings[system].top_distance[:, :top]
        rows = zip(distance.astype(np.float32), near >= 0, strict=True)
        table[f"{system}_distances"] = [row[there] for row, there in rows]
    return table


def ranking_table(index: pd.DataFrame, rankings: dict[str, Ranking], top: int) -> pd.DataFrame:
    """The `top` nearest gallery images of each query, one row each, by the systems of `LISTED`.

    `distance` is that of the ranking, after re-ranking the final one; `ap` is the query's, in [0, 1].
    """
    names = ["key", "pid", "camid"]
    query, gallery = (index.loc[index["split"] == side, names] for side in ("query", "gallery"))
    tables = []
    for system in (name for name in LISTED if name in rankings):
        ranking = rankings[system]
        number, place = np.nonzero(ranking.top[:, :top] >= 0)
        left = query.iloc[number].set_axis(["query", "query_pid", "query_camid"], axis=1)
        right = gallery.iloc[ranking.top[number, place]].set_axis(["image", "pid", "camid"], axis=1)
        table = pd.concat([left.reset_index(drop=True), right.reset_index(drop=True)], axis=1)
        table.insert(0, "system", system)
        table.insert(4, "ap", _readable(ranking.ap[number]))
        table.insert(5, "rank", place + 1)
        table["distance"] = _readable(ranking.top_distance[number, place])
        table["match"] = ((table["pid"] == table["query_pid"]) & (table["pid"] > 0)).map(YES_NO)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _readable(values: Float[np.ndarray, "n"]) -> list[float]:
    """With six significant digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def cmc_table(rankings: dict[str, Ranking], depth: int) -> pd.DataFrame:
    """CMC of every system in percent, one row per rank."""
    curves = {system: (100 * cmc(ranking, depth)).round(3) for system, ranking in rankings.items()}
    return pd.DataFrame({"rank": np.arange(1, depth + 1), **curves})


def text_table(report: dict[str, Any]) -> str:
    """The scores as text, for the terminal."""
    columns = ("queries", *SCORES)
    systems = {"model": report, **report["baselines"]}
    table = scores_table(report)
    rows = table[table["group"].isin(GROUPS)].to_dict("records")
    width = max(map(len, table["system"])) + 2
    lines = [f"{'':{width + 11}}" + "".join(f"{name:>9}" for name in columns)]
    for row in rows:
        cells = ("" if pd.isna(row[name]) else row[name] for name in columns)
        lines.append(f"{row['system']:{width}}{row['group']:11}" + "".join(f"{cell:>9}" for cell in cells))
    lines += ["", f"{'hidden':22}{'queries':>9}" + "".join(f"{'mAP ' + system:>15}" for system in systems)]
    for hidden, row in report["by_z"].items():
        means = [groups["by_z"][hidden].get("mAP", "") for groups in systems.values()]
        lines.append(f"{hidden:22}{row['queries']:>9}" + "".join(f"{mean:>15}" for mean in means))
    return "\n".join(lines + _notes(report, systems))


def _notes(report: dict[str, Any], systems: dict[str, dict[str, Any]]) -> list[str]:
    """How the scores were computed, and what limits them."""
    protocol, scores = report["protocol"], report["all"]
    lines = [
        f"types by {protocol['z']}; {plural(protocol['queries_without_match'], 'query')} without a match "
        f"skipped; AP by the {protocol['ap']} rule"
    ]
    if scores["camera_unknown"]:
        lines.append(
            f"{plural(scores['camera_unknown'], 'query')} with a match that may be by the same camera; "
            f"cameras: {protocol['cameras']}"
        )
    for system, groups in systems.items():
        if groups["ties"]:
            lines.append(
                f"{system}: two nearest images equally near for {plural(groups['ties'], 'query')}; the "
                "gallery's order ranks them"
            )
    return lines
