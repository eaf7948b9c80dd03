"""A run as one HTML file: scores, curves and rankings, with their pictures inside."""

import json
import re
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from pipeline.drawing import html
from pipeline.drawing.html import Markup, Section
from pipeline.ranking import figures, pager
from pipeline.ranking.summary import GROUPS, mean_interval

CURVE, POINTS = (260, 96), 120  # of a training curve: width and height in pixels, points
NAMED = ("name", "value")
LINKS = {  # beside the page
    "labels/audit.html": "audit of the labels",
    "figures/rankings.png": "sheet of rankings",
    "scores.csv": "scores.csv",
    "rankings.csv": "rankings.csv",
    "report.json": "report.json",
}
CHANGES = "<!-- changes -->"  # where `stages.compare` puts what differs from another commit
STYLE = """
summary { cursor: pointer; margin-bottom: 8px } svg text { font-size: 10px; fill: var(--dim) }
polyline { fill: none; stroke: var(--bar); stroke-width: 1.4 } svg path { stroke: var(--line) }
"""


class Run(NamedTuple):
    """What the page shows."""

    name: str  # of the test set
    shown: pager.Shown
    report: dict[str, Any]  # report.json
    record: dict[str, Any]  # record.json of the trained model
    log: pd.DataFrame  # of the training, one row per step
    figures: dict[str, bytes]  # PNG files by name


def render(run: Run, options: figures.Draw) -> str:
    """The run as one HTML document."""
    confidence = "In brackets: 95 % bootstrap interval over the queries; gallery and model are fixed."
    sections = [
        Section("Scores", f"In percent. {confidence}", _scores(run.report)),
        Section("CMC", "Share of the queries with a match within each rank.", _figure(run, "cmc.png")),
        Section("Occlusion types", f"The model by what a query hides. {confidence}", _types(run)),
        Section("Cameras", "How well the model ranks the matches of each pair of cameras.", _cameras(run)),
        Section("Training", "Means of neighbouring steps, over the epochs.", training_curves(run.log)),
        Section("Rankings", "The queries with the least AP, the most, and others at random.",
                pager.rankings(run.shown, options)),
        Section("Params and versions", "From record.json of the trained model.", _record(run.record)),
    ]  # fmt: skip
    title = f"{run.record['method']} on {run.name}"
    return html.document(title, _head(run, title), sections, STYLE + pager.STYLE, pager.SCRIPT)


def _head(run: Run, title: str) -> str:
    protocol, record = run.report["protocol"], run.record
    facts = [
        f"{record['parameters']:,} parameters, {record['train']['epochs']} epochs, seed {record['seed']}",
        f"{protocol['queries']:,} queries, {protocol['gallery']:,} gallery images",
        f"{protocol['distance']} distance, AP by the {protocol['ap']} rule, types by {protocol['z']}",
    ]
    boxes = "".join(
        f"<div>mAP, {group}<b>{scores['mAP']:.1f}</b>{_ends(run.report, group, 'mAP')}</div>"
        for group in GROUPS
        if "mAP" in (scores := run.report[group])
    )
    links = " · ".join(f'<a href="{path}">{name}</a>' for path, name in LINKS.items())
    return (
        f'<h1>{escape(title)}</h1>\n<p class="dim">{escape(" · ".join(facts))}</p>'
        f'<div class="numbers">{boxes}</div><p>Beside this page: {links}</p>\n{CHANGES}'
    )


def _ends(scores: dict[str, Any], group: str, name: str) -> Markup:
    ends = scores["confidence"][group].get(name)
    return Markup(f"<small>[{ends['low']:.1f}, {ends['high']:.1f}]</small>" if ends else "")


def _figure(run: Run, name: str) -> str:
    alt = {"cmc.png": "CMC curves of all systems", "types.png": "mAP of all systems by occlusion type"}[name]
    return html.picture(run.figures[name], "png", f"{alt}; the numbers stand in tables", 680)


# ------------------------------------------------------------------ scores


def _scores(report: dict[str, Any]) -> str:
    after = {f"{system}_reranked": scores for system, scores in report.get("reranked", {}).items()}
    rows = [
        [system, group, f"{scores[group]['queries']:,}", *_with_intervals(scores, group)]
        for system, scores in ({"model": report} | report["baselines"] | after).items()
        for group in GROUPS
        if "mAP" in scores[group]
    ]
    heads = ["system", "group", "queries", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"]
    return html.table(heads, rows, text=2)


def _with_intervals(scores: dict[str, Any], group: str) -> list[Markup]:
    return [
        Markup(f"{scores[group][name]:.1f} {_ends(scores, group, name)}")
        for name in ("rank1", "rank5", "rank10", "mAP", "mINP")
    ]


def _types(run: Run) -> str:
    scored = run.shown.queries[run.shown.queries["matches"] > 0]
    rows = [
        [hidden.replace("+", ", "), f"{len(group):,}", *_mean_and_ends(group)]
        for (_, hidden), group in scored.groupby(["pattern", "hidden"])
    ]
    table = html.table(["hidden parts", "queries", "Rank-1", "mAP"], rows)
    return f'<div class="tiles wide">{_figure(run, "types.png")}<div>{table}</div></div>'


def _mean_and_ends(group: pd.DataFrame) -> list[Markup]:
    values = 100 * np.stack([group["model_first"] == 1, group["model_ap"]], 1).astype(np.float64)
    ends = mean_interval(values).T
    return [
        Markup(f"{mean:.1f} <small>[{low:.1f}, {high:.1f}]</small>" if len(values) > 1 else f"{mean:.1f}")
        for mean, (low, high) in zip(values.mean(0), ends, strict=True)
    ]


def _cameras(run: Run) -> str:
    pairs = dict(run.report["by_cameras"])
    rest = pairs.pop("others", None)
    cells = {tuple(map(int, re.fullmatch(r"(-?\d+)-(-?\d+)", pair).groups())): pairs[pair] for pair in pairs}
    queries, images = (sorted({pair[side] for pair in cells}) for side in (0, 1))
    rows = [[pager.camera(a), *(_camera_cell(cells.get((a, b))) for b in images)] for a in queries]
    line = "mAP in percent and, in brackets, the number of matches."
    if rest:
        line += f" {rest['pairs']:,} pairs with fewer matches: {rest['mAP']:.1f} ({rest['matches']:,})."
    return html.table(["query, gallery", *map(pager.camera, images)], rows) + f'<p class="dim">{line}</p>'


def _camera_cell(pair: dict[str, float | int] | None) -> Markup:
    return Markup(f"{pair['mAP']:.1f} <small>({pair['matches']:,})</small>" if pair else "–")


# ------------------------------------------------------------------ training


def training_curves(log: pd.DataFrame) -> str:
    """A curve of each column of a training's log over the epochs, except those without a finite value."""
    finite = log.replace([np.inf, -np.inf], np.nan)
    curves = []
    for name in log.columns.drop(["step", "epoch"]):
        values = finite[["epoch", name]].dropna()
        if len(values):
            stretch = -(-len(values) // POINTS)
            means = values.groupby(np.arange(len(values)) // stretch).mean().to_numpy(np.float64)
            curves.append(_curve(name, means))
    return f'<div class="tiles">{"".join(curves)}</div>'


def _curve(name: str, points: Float[np.ndarray, "n 2"]) -> str:
    width, height = CURVE
    low, span = points.min(0), np.ptp(points, 0)
    places = (points - low) / np.where(span > 0, span, 1)
    line = " ".join(f"{4 + x * (width - 8):.1f},{height - 4 - y * (height - 20):.1f}" for x, y in places)
    first, last = points[0, 1], points[-1, 1]
    said = f"{escape(name)}: {first:.3g} → {last:.3g}"
    return (
        f'<figure style="width:{width}px"><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{said}, over {points[-1, 0]:.3g} epochs">'
        f'<path d="M0 {height - 0.5}H{width}"/><polyline points="{line}"/>'
        f'<text x="2" y="10">at most {points[:, 1].max():.3g}, at least {low[1]:.3g}</text></svg>'
        f"<figcaption>{said}</figcaption></figure>"
    )


# ------------------------------------------------------------------ params


def _record(record: dict[str, Any]) -> str:
    """A table a section of the record, closed at first; its single values in one of their own."""
    nested = {name: value for name, value in record.items() if isinstance(value, dict)}
    single = {name: value for name, value in record.items() if name not in nested}
    tables = {"run": single, f"params of {record['method']}": nested.pop("params"), **nested}
    return "".join(
        f"<details><summary>{escape(title)}</summary>{html.table(NAMED, _text(values), 2)}</details>"
        for title, values in tables.items()
    )


def _text(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in values.items()
    ]
