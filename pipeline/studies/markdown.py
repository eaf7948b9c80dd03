"""A study's table in Markdown: our scores beside the paper's, with what each row costs."""

from collections.abc import Iterable
from statistics import mean, stdev

from pipeline.studies.tables import (
    COSTS,
    SCORES,
    Queries,
    Result,
    Study,
    Values,
    experiment,
    find_result,
)


def table(study: Study, values: Values, seeds: Iterable[int], results: list[Result], queries: Queries) -> str:
    """The paper's table in Markdown: our mean ± standard deviation over seeds, beside the paper's value.

    The deviation is the sample's (n - 1); one seed has none.  A group without a query has no scores: `-`.
    The column `seeds` counts those that are done.  Where rows have controls, a column has the difference of
    mAP from the control's, over the seeds that both have; costs are those of the first seed that is done.
    """
    seeds, compares = list(seeds), any(row.control for row in study.rows)
    per_row = [[find_result(results, experiment(values, row, seed)) for seed in seeds] for row in study.rows]
    lines = [[*study.columns, "seeds", *(cell for title in SCORES.values() for cell in (title, "paper"))]]
    lines[0] += ["mAP against"] * compares + [title for title, _ in COSTS.values()] * study.cost
    for row, per_seed in zip(study.rows, per_row, strict=True):
        ours = [_mean_and_deviation(_scores(per_seed, queries, name)) for name in SCORES]
        pairs = [cell for pair in zip(ours, map(_percent, row.paper), strict=True) for cell in pair]
        line = [*map(str, row.cells), _progress(per_seed), *pairs]
        if compares:
            line.append(_difference(per_seed, per_row[row.control - 1], row.control, queries))
        lines.append(line + (_costs(per_seed) if study.cost else []))
    tested = dict.fromkeys(f"`{experiment(values, row, 1)['test_on'][0]}`" for row in study.rows)
    return (
        f"{study.caption}\n\n{_aligned(lines)}\n\n"
        f"Ours: {queries} queries of {', '.join(tested)}, percent, mean ± standard deviation of seeds. "
        f"The paper's: {study.dataset}."
    )


def _scores(per_seed: list[Result | None], queries: Queries, name: str) -> list[float]:
    done = [result.scores[queries] for result in per_seed if result and result.state == "done"]
    return [scores[name] for scores in done if name in scores]


def _difference(
    per_seed: list[Result | None], control: list[Result | None], number: int, queries: Queries
) -> str:
    if not number:
        return ""
    pairs = [[_scores([r], queries, "mAP") for r in pair] for pair in zip(per_seed, control, strict=True)]
    differences = [ours[0] - theirs[0] for ours, theirs in pairs if ours and theirs]
    return f"row {number}: {_mean_and_deviation(differences, '+')}"


def _costs(per_seed: list[Result | None]) -> list[str]:
    values = next((result.cost for result in per_seed if result and result.cost), {})
    return [f"{values[name]:.{digits}f}" if name in values else "-" for name, (_, digits) in COSTS.items()]


def _progress(results: list[Result | None]) -> str:
    states = [result.state for result in results if result]
    others = [f", {states.count(s)} {s}" for s in ("running", "queued", "failed") if s in states]
    return f"{states.count('done')} of {len(results)}" + "".join(others)


def _mean_and_deviation(values: list[float], sign: str = "") -> str:
    if not values:
        return "-"
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
