"""The paper's tables as data (`tables.yaml`): which experiments a table needs, and what each of them scored.

An experiment is identified by its params alone, whether it is queued, done or kept in a folder.  A study
therefore continues where it stopped, and two studies share the rows that they have in common.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from pipeline.core import params
from pipeline.core.params import STRICT, BadInput

SCORES = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP"}
COSTS = {  # of `cost`: title and decimals of a column
    "parameters": ("M params", 2),  # that are trained, in millions
    "features": ("numbers/image", 0),  # P x D of its embedding
    "step": ("ms/step", 0),  # median over the steps of a training
}
STEPS = ("label", "train", "embed", "evaluate")  # stages between cached parsing maps and a row's scores
LABELLING = ("lambda", "label")  # params that only the labels depend on
WITHOUT_EFFECT = (  # params that change no score
    "workers", "checkpoint", "tensorboard", "datasets", "parse_on", "pretrain", "score", "draw",
    "processes.segment", "processes.pose",
)  # fmt: skip
TABLE = Path(__file__).with_suffix(".yaml")
REPORT = "report.json"  # all scores of an evaluation
RECORD = "models/trained/record.json"
TIMES = "times.csv"  # seconds of each step of a training
METHODS = {path.parent.name for path in Path(__file__).parents[1].glob("methods/*/__init__.py")}

Values = dict[str, Any]  # the content of params.yaml
Queries = Literal["all", "occluded", "holistic"]


@dataclass(frozen=True, config=STRICT)
class Row:
    """A row of a table: its name, the params that it sets, the scores that the paper reports."""

    cells: list[str | int | float]  # under the study's columns
    set: dict[str, Any]  # dotted name of a param: value
    paper: Annotated[list[float | None], Field(min_length=len(SCORES), max_length=len(SCORES))]  # percent
    control: NonNegativeInt = 0  # row, from 1, that mAP is compared with, seed by seed; 0: none


@dataclass(frozen=True, config=STRICT)
class Study:
    """A table or figure of the paper."""

    caption: str
    dataset: str  # the paper's
    columns: list[str]
    rows: list[Row]
    queries: Queries = "occluded"  # whose scores the table shows
    cost: bool = False  # whether the table has the columns of `COSTS`


class Result(NamedTuple):
    """An experiment that is done, running, queued or failed, and its scores if it is done."""

    values: Values
    state: str  # done | queued | running | failed
    scores: dict[str, dict[str, float]]  # group of queries: name of a score: percent
    cost: dict[str, float]  # name in `COSTS`: value


def load(name: str, path: str | Path = TABLE) -> Study:
    """The study of that name.  Raises `BadInput` that lists the names there are."""
    names = params.load(path)
    if name not in names:
        raise BadInput(f"{path}: no study '{name}'. Choose one of {', '.join(names)}.")
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


def check_datasets(values: Values) -> None:
    """Raises `BadInput` unless params.yaml lists the datasets of an experiment."""
    for name in [values["train_on"], *values["test_on"]]:
        if name not in values["datasets"]:
            raise BadInput(
                f"params.yaml: datasets has no '{name}', which the study needs. Add "
                f"`{name}: {{layout: {name}, archive: data/raw/{name}.zip}}` there, with your archive."
            )


def check_presets(study: Study, values: Values) -> None:
    """Raises `BadInput` if methods of different presets, hence of different schedules, would be compared."""
    methods = dict.fromkeys(experiment(values, row, 1)["method"] for row in study.rows)
    presets = {f"{name}.preset": values[name]["preset"] for name in methods}
    if len(set(presets.values())) > 1:
        differing = " but ".join(f"{name} = {preset}" for name, preset in presets.items())
        raise BadInput(
            f"params.yaml: {differing}, so that rows of '{study.caption}' would differ in their schedules. "
            "Give all the same preset."
        )


def score_params(values: Values) -> Values:
    """The params that a row's scores depend on.

    Left out are those of `WITHOUT_EFFECT`, empty ones and the sections of other methods.
    """
    left_out = {*WITHOUT_EFFECT, *METHODS} - {values["method"]}
    return {
        section: {k: v for k, v in value.items() if f"{section}.{k}" not in left_out}
        if isinstance(value, dict)
        else value
        for section, value in values.items()
        if section not in left_out and value not in ({}, "")
    }


def digest(values: Values) -> str:
    """A short name of an experiment, the same for the same `score_params`."""
    return hashlib.sha256(json.dumps(score_params(values), sort_keys=True).encode()).hexdigest()[:12]


def find_result(results: Iterable[Result], values: Values) -> Result | None:
    """The result of an experiment: a finished one rather than one that is running, queued or failed."""
    same = [r for r in results if "method" in r.values and score_params(r.values) == score_params(values)]
    order = ("done", "running", "queued", "failed")
    return min(same, key=lambda result: order.index(result.state), default=None)


def missing(
    study: Study, values: Values, seeds: Iterable[int], results: list[Result]
) -> list[tuple[Row, int]]:
    """Rows and seeds whose experiment is not done, running or queued."""
    pairs = [(row, seed) for row in study.rows for seed in seeds]
    states = [find_result(results, experiment(values, row, seed)) for row, seed in pairs]
    return [p for p, result in zip(pairs, states, strict=True) if not result or result.state == "failed"]


# ------------------------------------------------------------------ DVC's experiments


def queue_command(row: Row, seeds: Iterable[int]) -> list[str]:
    """The words after `dvc` that queue a row, one experiment per seed."""
    words = ["exp", "run", "--queue"]
    for name, value in {**row.set, "seed": ",".join(map(str, seeds))}.items():
        words += ["--set-param", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def from_dvc(
    commits: list[dict[str, Any]], read: Callable[[str, str], Any] = lambda rev, path: {}
) -> list[Result]:
    """The experiments in the output of `dvc exp show --json`, without committed runs and the workspace.

    `read(rev, path)` returns the content of a JSON file of a finished experiment: the report.json that holds
    its scores, the model's record.json.  DVC keeps no times, as they differ from run to run.
    """
    results = []
    for commit in commits:
        for experiment in commit.get("experiments") or []:
            revision = experiment["revs"][0]
            data = revision["data"] or {}
            values = data.get("params", {}).get("params.yaml", {}).get("data", {})
            state = (experiment.get("executor") or {}).get("state") or "success"
            path = _metrics_path(data.get("metrics", {}), values) if state == "success" else None
            if state == "success":
                state = "done" if path else "failed"
            scores = read(revision["rev"], str(path.with_name(REPORT))) if path else {}
            record = read(revision["rev"], RECORD) if path else {}
            results.append(Result(values, state, scores, cost(scores, record)))
    return results


def cost(report: dict[str, Any], record: dict[str, Any], seconds: Sequence[float] = ()) -> dict[str, float]:
    """What a system costs, by the names in `COSTS`: as far as its report, its record and its steps say."""
    values = {
        "parameters": record.get("parameters", 0) / 1e6,
        "features": report.get("protocol", {}).get("features", 0),
        "step": 1000 * median(seconds) if len(seconds) else 0,
    }
    return {name: value for name, value in values.items() if value}


def _metrics_path(metrics: dict[str, Any], values: Values) -> Path | None:
    """The metrics.json of the first test set, if the experiment wrote it."""
    for path, content in metrics.items():
        if Path(path).name == "metrics.json" and Path(path).parent.name in values.get("test_on", [])[:1]:
            return Path(path) if content.get("data") else None
    return None


# ------------------------------------------------------------------ runs without DVC


def stage_commands(dag: dict[str, Any], values: Values, work: str | Path) -> list[tuple[str, list[str]]]:
    """The stages of one experiment and their arguments, as in dvc.yaml, with outputs moved below `work`.

    `dag` is the content of dvc.yaml.  Parsing maps and images are read where they are; of several test sets
    the first is used.
    """
    trained, tested = values["train_on"], values["test_on"][0]
    items = {"${datasets}": dict.fromkeys([trained, tested]), "${test_on}": [tested], None: [""]}
    moved: dict[str, str] = {}
    commands = []
    for name in STEPS:
        stage = dag["stages"][name]
        for item in items[stage.get("foreach")]:
            names = {**values, "key": item, "item": item}
            fill = lambda text: re.sub(r"\$\{(\w+)\}", lambda m: str(names[m[1]]), text)  # noqa: B023, E731
            body = stage.get("do", stage)
            outs = [*body.get("outs", []), *(path for entry in body.get("metrics", []) for path in entry)]
            moved |= {fill(out): str(Path(work) / fill(out)) for out in outs}
            words = [fill(word) for word in shlex.split(body["cmd"])[3:]]
            commands.append((name, [moved.get(word, word) for word in words]))
    return commands


def same_experiment(folder: str | Path, values: Values, labels: dict[str, str]) -> Path | None:
    """An experiment in the folder with the same labels and, but for `LABELLING`, the same params.

    `labels` holds the hash of each label file.
    """

    def later_params(values: Values) -> Values:
        return {k: v for k, v in score_params(values).items() if k not in LABELLING}

    for path in sorted(Path(folder).glob("[!.]*/labels.json")):
        other = params.load(path.parent / "params.yaml")
        if json.loads(path.read_text()) == labels and later_params(other) == later_params(values):
            return path.parent
    return None


def from_folder(folder: str | Path) -> list[Result]:
    """The results that `stages.study run` wrote to a folder.  Raises `BadInput` if there are none."""
    results = [_kept_result(path.parent) for path in sorted(Path(folder).glob(f"[!.]*/{REPORT}"))]
    if not results:
        raise BadInput(f"{folder}: no results. Run `python -m stages.study run <study> --results {folder}`.")
    return results


def _kept_result(folder: Path) -> Result:
    report, record = (json.loads((folder / name).read_text()) for name in (REPORT, Path(RECORD).name))
    times = folder / TIMES
    seconds = pd.read_csv(times)["seconds"].tolist() if times.exists() else []  # none in folders of old
    return Result(params.load(folder / "params.yaml"), "done", report, cost(report, record, seconds))
