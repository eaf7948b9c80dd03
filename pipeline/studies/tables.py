"""The paper's tables as data (`tables.yaml`): which experiments a table needs, and the table itself.

An experiment is a set of params, nothing else: one that is queued, done or kept in a folder is recognised by
its values, so that a study goes on where it stopped and two studies share the rows that they have in common.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core import params
from pipeline.core.params import STRICT, BadInput

SCORES = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP"}
STEPS = ("label", "train", "embed", "evaluate")  # what lies between cached parsing maps and a row's scores
LABELLING = ("lambda", "label")  # params that end in the labels
ASIDE = ("workers", "checkpoint", "datasets", "parse_on", "pretrain", "score", "draw")  # change no score,
SHARES = ("processes.segment", "processes.pose")  # nor do these
TABLE = Path(__file__).with_suffix(".yaml")
REPORT = "report.json"  # all scores of an evaluation
METHODS = {path.parent.name for path in Path(__file__).parents[1].glob("methods/*/__init__.py")}

Values = dict[str, Any]  # params.yaml, read
Queries = Literal["all", "occluded", "holistic"]


@dataclass(frozen=True, config=STRICT)
class Row:
    """A row of a table: what it is called, what it sets, what the paper reports."""

    cells: list[str | int | float]  # under the study's columns
    set: dict[str, Any]  # dotted name of a param: value
    paper: Annotated[list[float | None], Field(min_length=len(SCORES), max_length=len(SCORES))]  # percent


@dataclass(frozen=True, config=STRICT)
class Study:
    """A table or figure of the paper."""

    caption: str
    dataset: str  # the paper's
    columns: list[str]
    rows: list[Row]
    queries: Queries = "occluded"  # that the table is about, unless asked otherwise


class Result(NamedTuple):
    """An experiment that somebody ran or means to run."""

    values: Values
    state: str  # done | queued | running | failed
    scores: dict[str, dict[str, float]]  # group of queries: name of a score: percent


def load(name: str, path: str | Path = TABLE) -> Study:
    """The study of that name.  Raises `BadInput` that lists the names there are."""
    known = params.load(path)
    if name not in known:
        raise BadInput(f"{path}: no study '{name}'. Choose one of {', '.join(known)}.")
    return params.read(path, name, Study)


# ------------------------------------------------------------------ experiments


def experiment(values: Values, row: Row, seed: int) -> Values:
    """All params of one row and seed.  Raises `BadInput` for a name that params.yaml lacks."""
    values = deepcopy(values)
    for name, value in {**row.set, "seed": seed}.items():
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section.get(part, {})
        if last not in section:
            raise BadInput(f"{TABLE.name}: {name} is no parameter of params.yaml. Correct the name.")
        section[last] = value
    return values


def check(wanted: Values) -> None:
    """Raise `BadInput` unless params.yaml tells where the sets of an experiment are."""
    for name in [wanted["train_on"], *wanted["test_on"]]:
        if name not in wanted["datasets"]:
            raise BadInput(
                f"params.yaml: datasets has no '{name}', which the study needs. Add "
                f"`{name}: {{layout: {name}, archive: data/raw/{name}.zip}}` there, with your archive."
            )


def fair(study: Study, values: Values) -> None:
    """Raise `BadInput` if methods of different presets, hence of different schedules, would be compared."""
    used = dict.fromkeys(experiment(values, row, 1)["method"] for row in study.rows)
    presets = {f"{name}.preset": values[name]["preset"] for name in used}
    if len(set(presets.values())) > 1:
        told = " but ".join(f"{name} = {preset}" for name, preset in presets.items())
        raise BadInput(
            f"params.yaml: {told}, so that rows of '{study.caption}' would differ in their schedules. "
            "Give both the same preset."
        )


def decisive(values: Values) -> Values:
    """The params that a row's scores depend on: all but `ASIDE`, `SHARES`, empty ones and other methods'."""
    aside = {*ASIDE, *METHODS} - {values["method"]}
    kept = {name: value for name, value in values.items() if name not in aside and value not in ({}, "")}
    return {name: _without(SHARES, name, value) for name, value in kept.items()}


def _without(dotted: Iterable[str], section: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: held for name, held in value.items() if f"{section}.{name}" not in dotted}


def digest(values: Values) -> str:
    """A short name of an experiment, the same for the same decisive params."""
    return hashlib.sha256(json.dumps(decisive(values), sort_keys=True).encode()).hexdigest()[:12]


def find(results: Iterable[Result], wanted: Values) -> Result | None:
    """The result with the wanted params: a finished one rather than one on its way or failed."""
    same = [r for r in results if "method" in r.values and decisive(r.values) == decisive(wanted)]
    order = ("done", "running", "queued", "failed")
    return min(same, key=lambda result: order.index(result.state), default=None)


def todo(study: Study, values: Values, seeds: Iterable[int], results: list[Result]) -> list[tuple[Row, int]]:
    """Rows and seeds that are neither done nor on their way."""
    pairs = [(row, seed) for row in study.rows for seed in seeds]
    found = [find(results, experiment(values, row, seed)) for row, seed in pairs]
    return [p for p, result in zip(pairs, found, strict=True) if not result or result.state == "failed"]


# ------------------------------------------------------------------ DVC's experiments


def queue_words(row: Row, seeds: Iterable[int]) -> list[str]:
    """DVC's words that queue a row, an experiment a seed."""
    given = {**row.set, "seed": ",".join(map(str, seeds))}
    words = ["exp", "run", "--queue"]
    for name, value in given.items():
        words += ["--set-param", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def from_dvc(
    commits: list[dict[str, Any]], read_report: Callable[[str, str], dict[str, Any]] = lambda rev, path: {}
) -> list[Result]:
    """The experiments in the output of `dvc exp show --json`, without committed runs and the workspace.

    `read_report(rev, path)` returns the report.json of a finished experiment, which holds its scores.
    """
    results = []
    for commit in commits:
        for experiment in commit.get("experiments") or []:
            revision = experiment["revs"][0]
            data = revision["data"] or {}
            values = data.get("params", {}).get("params.yaml", {}).get("data", {})
            state, scores = (experiment.get("executor") or {}).get("state") or "success", {}
            if state == "success":
                path = _metrics_path(data.get("metrics", {}), values)
                state = "done" if path else "failed"
                scores = read_report(revision["rev"], str(path.with_name(REPORT))) if path else {}
            results.append(Result(values, state, scores))
    return results


def _metrics_path(metrics: dict[str, Any], values: Values) -> Path | None:
    """The metrics.json of the first test set, if the experiment wrote it."""
    for path, content in metrics.items():
        if Path(path).name == "metrics.json" and Path(path).parent.name in values.get("test_on", [])[:1]:
            return Path(path) if content.get("data") else None
    return None


# ------------------------------------------------------------------ runs without DVC


def commands(dag: dict[str, Any], values: Values, work: str | Path) -> list[tuple[str, list[str]]]:
    """The stages of one experiment and their words, as in dvc.yaml, but what they write lies under `work`.

    `dag` is dvc.yaml, read.  Parsing maps and images are read where they are; the first test set counts.
    """
    trained, tested = values["train_on"], values["test_on"][0]
    items = {"${datasets}": dict.fromkeys([trained, tested]), "${test_on}": [tested], None: [""]}
    moved: dict[str, str] = {}
    found = []
    for name in STEPS:
        stage = dag["stages"][name]
        for item in items[stage.get("foreach")]:
            known = {**values, "key": item, "item": item}
            fill = lambda text: re.sub(r"\$\{(\w+)\}", lambda m: str(known[m[1]]), text)  # noqa: B023, E731
            body = stage.get("do", stage)
            outs = [*body.get("outs", []), *(path for entry in body.get("metrics", []) for path in entry)]
            moved |= {fill(out): str(Path(work) / fill(out)) for out in outs}
            found.append((name, [moved.get(word, word) for word in fill(body["cmd"]).split()[3:]]))
    return found


def alike(folder: str | Path, wanted: Values, labels: dict[str, str]) -> Path | None:
    """An experiment in the folder that can differ from the wanted one by nothing: not even by its labels.

    `labels` holds the hash of each label file.  Params of the stage `label` do not matter beyond them.
    """
    rest = lambda values: {k: v for k, v in decisive(values).items() if k not in LABELLING}  # noqa: E731
    for path in sorted(Path(folder).glob("[!.]*/labels.json")):
        if json.loads(path.read_text()) == labels and rest(params.load(path.parent / "params.yaml")) == rest(
            wanted
        ):
            return path.parent
    return None


def from_folder(folder: str | Path) -> list[Result]:
    """What `stages.study run` left in a folder.  Raises `BadInput` if that is nothing."""
    found = [
        Result(params.load(path.parent / "params.yaml"), "done", json.loads(path.read_text()))
        for path in sorted(Path(folder).glob(f"[!.]*/{REPORT}"))
    ]
    if not found:
        raise BadInput(f"{folder}: no results. Run `python -m stages.study run <study> --results {folder}`.")
    return found


# ------------------------------------------------------------------ the table


def table(study: Study, values: Values, seeds: Iterable[int], results: list[Result], queries: Queries) -> str:
    """The paper's table in Markdown, ours as mean ± standard deviation over seeds, the paper's beside it.

    The deviation is the sample's (n - 1); one seed has none.  A group without a query has no scores: `-`.
    The column `seeds` counts those that are done.
    """
    seeds = list(seeds)
    lines = [[*study.columns, "seeds", *(cell for title in SCORES.values() for cell in (title, "paper"))]]
    for row in study.rows:
        found = [find(results, experiment(values, row, seed)) for seed in seeds]
        done = [result.scores[queries] for result in found if result and result.state == "done"]
        ours = [_spread([scores[name] for scores in done if name in scores]) for name in SCORES]
        pairs = [cell for pair in zip(ours, map(_figure, row.paper), strict=True) for cell in pair]
        lines.append([*map(str, row.cells), _progress(found), *pairs])
    tested = dict.fromkeys(f"`{experiment(values, row, 1)['test_on'][0]}`" for row in study.rows)
    return (
        f"{study.caption}\n\n{_aligned(lines)}\n\n"
        f"Ours: {queries} queries of {', '.join(tested)}, percent, mean ± standard deviation of seeds. "
        f"The paper's: {study.dataset}."
    )


def _progress(found: list[Result | None]) -> str:
    states = [result.state for result in found if result]
    others = [f", {states.count(s)} {s}" for s in ("running", "queued", "failed") if s in states]
    return f"{states.count('done')} of {len(found)}" + "".join(others)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
