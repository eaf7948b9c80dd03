"""What differs between two runs: their scores, and the params that they were made with."""

from typing import Any

from pipeline.core.params import BadInput
from pipeline.drawing import html
from pipeline.drawing.html import Section
from pipeline.ranking.page import CHANGES


def flatten(values: Any, name: str = "") -> dict[str, Any]:
    """The values below nested mappings, by their dotted names: `{"all": {"mAP": 5}}` -> `{"all.mAP": 5}`."""
    if not isinstance(values, dict):
        return {name: values}
    return {
        key: value
        for part, below in values.items()
        for key, value in flatten(below, f"{name}.{part}" if name else str(part)).items()
    }


def changes(
    before: dict[str, Any], now: dict[str, Any], confidence: dict[str, Any]
) -> list[tuple[str, Any, Any, str]]:
    """Name, value before, value now, and what to make of it, for each value that differs.

    Both are nested mappings, scores by file (`metrics.json`) and params by `params.yaml`.  `confidence` is
    that of report.json, now: a score before that lies in the interval is no change to build on.
    """
    old, new = flatten(before), flatten(now)
    names = [*old, *(name for name in new if name not in old)]
    changed = [name for name in names if old.get(name, "–") != new.get(name, "–")]
    return [
        (name, old.get(name, "–"), new.get(name, "–"), _verdict(name, old, new, confidence))
        for name in changed
    ]


def _verdict(name: str, old: dict[str, Any], new: dict[str, Any], confidence: dict[str, Any]) -> str:
    if ".json." not in name or not (name in old and name in new):
        return ""
    difference = f"{new[name] - old[name]:+.2f}"
    group, score = name.split(".")[-2:]
    ends = confidence.get(group, {}).get({"R1": "rank1"}.get(score, score))
    if ends is None or not name.startswith("metrics.json."):
        return difference
    inside = ends["low"] <= old[name] <= ends["high"]
    return f"{difference}, {'within' if inside else 'beyond'} the 95 % interval"


def add_changes(page: str, rev: str, rows: list[tuple[str, Any, Any, str]]) -> str:
    """A run's page with a section on what differs from the commit `rev`; `rows` are from `changes`.

    Raises `BadInput` if `page` is not one that `draw` wrote.
    """
    if CHANGES not in page:
        raise BadInput(
            "the page has no place for changes. Take data/<dataset>/report.html, as `draw` wrote it."
        )
    heads = ["", "before", "now", "difference"]
    content = html.table(heads, rows) if rows else "<p>Nothing: scores and params are the same.</p>"
    section = Section(f"What differs from {rev}", "Scores in percent, and params.", content)
    return page.replace(CHANGES, section.html(), 1)
