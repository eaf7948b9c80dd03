"""From rankings to figures: scores of all, occluded and holistic queries, and of each occlusion type.

A query's type z is the true one where the truth is known, by Eq. 1-2 at a threshold of its own: a study of
lambda then moves the labels, not the groups it is judged on.  Elsewhere it is the cached one.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as parameters

from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.data import parts
from pipeline.labels import occlusion
from pipeline.ranking import Embedded, Metric, Ranking, Rerank, Rule, Stored, cmc, rank, rerank, scores
from pipeline.ranking.embedded import take
from pipeline.ranking.summary import interval

TYPE_SCORES = ("queries", "rank1", "mAP")
NAMED = 20  # queries without a match


@parameters(frozen=True, config=STRICT)
class Evaluate:
    """How the gallery is ranked and the queries are grouped."""

    metric: Metric  # of one part; parts are scaled to length 1
    ap: Rule  # of the average precision
    memory: PositiveInt  # MB that ranking may hold, features included; changes nothing else
    group_lambda: NonNegativeFloat  # pixels; a part of the true map with fewer is hidden
    depth: PositiveInt  # ranks of the CMC curve
    top: NonNegativeInt  # gallery images listed for each query
    rerank: Rerank  # beside the plain ranking, which stays


@dataclass(frozen=True)
class Groups:
    """What hides each query."""

    row: Int[np.ndarray, "Q"]  # of the queries in the index
    occluded: Bool[np.ndarray, "Q"]
    pattern: Int[np.ndarray, "Q"]  # number of the occlusion type, the sum of z_c 2^c
    names: list[str]  # of the C parts
    source: str = field(default="")  # of occluded and pattern
    copies: bool = False  # whether the occluded queries are copies of others

    def name(self, pattern: int) -> str:
        """The hidden parts of an occlusion type, as in `arms+legs`."""
        return "+".join(n for c, n in enumerate(self.names) if pattern >> c & 1) or "none"


def embedded(features: LabelFile, index: pd.DataFrame, system: str) -> tuple[Embedded, Embedded]:
    """Queries and gallery as one system sees them, left in their file.

    Raises `BadInput` if they are not the index's.
    """
    table = index[index["split"] != "train"]
    if not np.array_equal(features["row"][:], table["row"]):
        raise BadInput(f"{features.path}: not the index's queries and gallery. Run `dvc repro`.")
    part, visibility, gate = (f"{system}/{name}" for name in ("part", "visibility", "gate"))
    whole = Embedded(
        Stored(features[part], 0, len(table)),
        Stored(features[visibility], 0, len(table)),
        np.array(table["pid"]),
        np.array(table["camid"]),
        Stored(features[gate], 0, len(table)) if gate in features else None,
    )
    queries = int((table["split"] == "query").sum())
    return whole[:queries], whole[queries:]


def visible(query: Embedded) -> Int[np.ndarray, "Q"]:
    """How many parts of each query are taken for visible."""
    return (take(query.visibility, np.arange(len(query))) > 0).sum(1).numpy()


def ranked(
    systems: dict[str, tuple[Embedded, Embedded]],
    grouped: Groups,
    options: Evaluate,
    device: str,
) -> tuple[dict[str, Ranking], dict[str, Ranking]]:
    """Every system's ranking, and the same after re-ranking, if that is asked for.

    Raises `BadInput` if queries are to be re-ranked beside copies of themselves.
    """
    if grouped.copies and options.rerank.depth:
        raise BadInput(
            f"params.yaml: evaluate.rerank.depth = {options.rerank.depth}, but queries and their occluded "
            "copies (index.occlude) would be each other's neighbours, and score too high. Set it to 0, or "
            "index without copies."
        )
    rankings, after = {}, {}
    for system, sides in systems.items():
        given = {
            "metric": options.metric,
            "memory": options.memory,
            "device": device,
        }
        top = max(options.top, options.rerank.depth)
        plain = rank(*sides, rule=options.ap, top=top, title=f"rank {system}", **given)
        rankings[system] = plain
        if options.rerank.depth:
            after[system] = rerank(*sides, plain, options.rerank, title=f"rerank {system}", **given)
    return rankings, after


def groups(index: pd.DataFrame, labels: LabelFile, truth: LabelFile, threshold: float) -> Groups:
    """Group the queries by the truth if there is one, else by the cached labels."""
    row = np.flatnonzero(index["split"] == "query")
    names = labels.attrs["parts"]
    known = bool(truth.attrs["truth"])
    copies = not known and "occluder" in truth
    if known:
        merged = parts.COARSE[len(names)].values()
        seen = truth["visible"][:][row]
        counts = np.stack([seen[:, np.array(fine) - 1].sum(1) for fine in merged], 1)
        hidden = occlusion.hidden_parts(torch.from_numpy(counts), threshold, strict=True)
        source = f"truth, parts below {threshold:g} pixels"
    else:
        hidden = torch.from_numpy(labels["occluded"][:][row])
        source = "cached labels" + ("; occluded are those pasted upon" if copies else "")
    covered = truth["occluder"][:][row] if known or copies else hidden.numpy().any(1)
    return Groups(row, covered > 0, occlusion.pattern_index(hidden).numpy(), names, source, copies)


def metrics(
    rankings: dict[str, Ranking],
    reranked: dict[str, Ranking],
    seen: dict[str, Int[np.ndarray, "Q"]],
    grouped: Groups,
    index: pd.DataFrame,
    options: Evaluate,
) -> dict[str, Any]:
    """All tables: the model's, under `baselines` the others', under `protocol` how they were made.

    Under `reranked`, if anything was, those of every system after re-ranking.  `seen` is how many parts of
    each query a system takes for visible.
    """
    tables, after = (
        {system: _tables(ranking, seen[system], grouped, index) for system, ranking in some.items()}
        for some in (rankings, reranked)
    )
    found = {**tables.pop("model"), "baselines": tables, **({"reranked": after} if after else {})}
    return {**found, "protocol": _protocol(rankings["model"], grouped, index, options)}


def _tables(
    ranking: Ranking, seen: Int[np.ndarray, "Q"], grouped: Groups, index: pd.DataFrame
) -> dict[str, Any]:
    chosen = {"all": None, "occluded": grouped.occluded, "holistic": ~grouped.occluded}
    by_z = _by(ranking, grouped.pattern)
    return {
        **{name: scores(ranking, which) for name, which in chosen.items()},
        "confidence": {name: interval(ranking, which) for name, which in chosen.items()},
        "by_z": {grouped.name(pattern): row for pattern, row in by_z.items()},
        "by_visible_parts": {str(count): row for count, row in _by(ranking, seen).items()},
        "by_cameras": cameras(ranking, index),
    }


def _by(ranking: Ranking, group: Int[np.ndarray, "Q"]) -> dict[int, dict[str, float | int]]:
    found = {value: scores(ranking, group == value) for value in np.unique(group).tolist()}
    return {value: {name: row[name] for name in TYPE_SCORES if name in row} for value, row in found.items()}


def cameras(ranking: Ranking, index: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """How well the matches of each pair of cameras, the query's and the gallery image's, are found.

    `mAP` is the mean precision at the pair's matches, in percent: mAP taken apart, but for queries with many
    matches counting more.  `rank10` is the share of them among the first ten.
    """
    query, gallery = (index[index["split"] == split]["camid"].to_numpy() for split in ("query", "gallery"))
    found = ranking.found
    matches = pd.DataFrame(
        {
            "pair": [f"{a}-{b}" for a, b in zip(query[found.query], gallery[found.image], strict=True)],
            "mAP": 100 * found.precision,
            "rank10": 100.0 * (found.rank <= 10),
        }
    )
    table = matches.groupby("pair").agg(
        matches=("mAP", "size"), mAP=("mAP", "mean"), rank10=("rank10", "mean")
    )
    return {str(pair): row for pair, row in table.round(2).to_dict("index").items()}


def _protocol(
    ranking: Ranking, grouped: Groups, index: pd.DataFrame, options: Evaluate
) -> dict[str, str | int]:
    gallery, tested = index[index["split"] == "gallery"], index[index["split"] != "train"]
    return {
        "ap": options.ap,
        "distance": options.metric,
        "rerank": options.rerank.name,
        "z": grouped.source,
        "queries": len(ranking.ap),
        "queries_without_match": int((~ranking.valid).sum()),
        "without_match": _without(ranking, grouped, index),
        "gallery": len(gallery),
        "gallery_junk": int((gallery["pid"] < 0).sum()),
        "gallery_distractors": int((gallery["pid"] == 0).sum()),
        "cameras_unknown": int((tested["camid"] < 0).sum()),
    }


def _without(ranking: Ranking, grouped: Groups, index: pd.DataFrame) -> str:
    keys = index["key"].to_numpy()[grouped.row[~ranking.valid]]
    return ", ".join(shorten(keys.tolist(), NAMED))


def queries(index: pd.DataFrame, rankings: dict[str, Ranking], grouped: Groups, top: int) -> pd.DataFrame:
    """A row a query: its type, and each system's AP, rank of the first match and nearest gallery rows."""
    table = index.iloc[grouped.row][["row", "key", "pid", "camid"]].reset_index(drop=True)
    table["pattern"] = grouped.pattern
    table["hidden"] = [grouped.name(pattern) for pattern in grouped.pattern.tolist()]
    table["occluded"] = grouped.occluded
    table["matches"] = rankings["model"].matches
    gallery = np.append(np.flatnonzero(index["split"] == "gallery"), -1)  # -1 stays -1
    for system, ranking in rankings.items():
        table[f"{system}_ap"] = ranking.ap
        table[f"{system}_first"] = ranking.first
        table[f"{system}_top"] = list(gallery[ranking.top[:, :top]])
    return table


def curves(rankings: dict[str, Ranking], depth: int) -> pd.DataFrame:
    """CMC of every system in percent, a row a rank."""
    shares = {system: (100 * cmc(ranking, depth)).round(3) for system, ranking in rankings.items()}
    return pd.DataFrame({"rank": np.arange(1, depth + 1), **shares})


def table(found: dict[str, Any]) -> str:
    """The scores as a table for people."""
    columns = ("queries", "rank1", "rank5", "rank10", "mAP", "mINP")
    after = {f"{system} reranked": tables for system, tables in found.get("reranked", {}).items()}
    shown = {"model": found, **found["baselines"], **after}
    width = max(map(len, shown)) + 2
    lines = [f"{'':{width + 11}}" + "".join(f"{name:>9}" for name in columns)]
    for system, tables in shown.items():
        lines += [
            f"{system:{width}}{group:11}" + "".join(f"{tables[group].get(name, ''):>9}" for name in columns)
            for group in ("all", "occluded", "holistic")
        ]
    systems = ("model", *found["baselines"])
    lines += ["", f"{'hidden':22}{'queries':>9}" + "".join(f"{'mAP ' + system:>15}" for system in systems)]
    for kind, row in found["by_z"].items():
        means = [tables["by_z"][kind].get("mAP", "") for tables in (found, *found["baselines"].values())]
        lines.append(f"{kind:22}{row['queries']:>9}" + "".join(f"{mean:>15}" for mean in means))
    protocol = found["protocol"]
    lines.append(
        f"types by {protocol['z']}; {plural(protocol['queries_without_match'], 'query')} without a match "
        f"skipped; AP by the {protocol['ap']} rule"
    )
    return "\n".join(lines)
