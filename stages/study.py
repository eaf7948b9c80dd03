"""The paper's comparisons and ablations (pipeline/studies/tables.yaml).  Run by hand; no stage of the DAG.

python -m stages.study queue table5                     queue what is missing as DVC experiments
python -m stages.study run table5 --results RESULTS     train what is missing here, without DVC
python -m stages.study show table5 [--results RESULTS]  the paper's table, ours beside theirs
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.cli import command_line
from pipeline.core.files import atomic_write, sha256
from pipeline.core.params import BadInput
from pipeline.studies import markdown, tables

CONFIG, DAG = "params.yaml", "dvc.yaml"
KEPT = (tables.REPORT, "metrics.json", "cmc.csv", "log.csv", tables.TIMES, "record.json")


def dvc(*words: str) -> str:
    """The output of a DVC command.  Raises `BadInput` with its error."""
    process = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True)
    if process.returncode:
        raise BadInput(f"dvc {' '.join(words)}: {process.stderr.strip()[-2000:]}")
    return process.stdout


def experiments(rev: str, scores: bool = False, costs: bool = False) -> list[tables.Result]:
    """The experiments that start from a commit; what is asked for is read from DVC's cache."""
    commits = json.loads(dvc("exp", "show", "--json", "--rev", rev))

    def read(rev: str, path: str) -> dict:
        return read_json(rev, path) if costs or path != tables.RECORD else {}

    return tables.from_dvc(commits, read) if scores else tables.from_dvc(commits)


def read_json(rev: str, path: str) -> dict:
    """A JSON file of an experiment.  Raises `BadInput` if DVC's cache lacks it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "content.json"
        dvc("get", ".", path, "--rev", rev, "--out", str(out))
        return json.loads(out.read_text())


def load_studies(names: list[str], values: tables.Values) -> dict[str, tables.Study]:
    """The studies of those names.  Raises `BadInput` for unknown names and for rows of unequal presets."""
    studies = {name: tables.load(name) for name in names}
    for study in studies.values():
        tables.check_presets(study, values)
    return studies


def select_rows(name: str, study: tables.Study, number: int | None) -> list[tables.Row]:
    """One row of a study, counted from 1, or all.  Raises `BadInput` if there is none of that number."""
    if number is None:
        return study.rows
    if not 1 <= number <= len(study.rows):
        raise BadInput(f"{name} has no row {number}. Give --row 1 to {len(study.rows)}.")
    return [study.rows[number - 1]]


def queue(args: argparse.Namespace) -> None:
    """Queue the rows and seeds that are neither done, running nor queued."""
    values, results = params.load(CONFIG), experiments("HEAD")
    for name, study in load_studies(args.names, values).items():
        for row in study.rows:
            tables.check_datasets(tables.experiment(values, row, 1))
        missing = tables.missing(study, values, args.seeds, results)
        for row in study.rows:
            if seeds := [seed for other, seed in missing if other is row]:
                print(dvc(*tables.queue_command(row, seeds)), end="", flush=True)
        results += [tables.Result(tables.experiment(values, *pair), "queued", {}, {}) for pair in missing]
        total = len(study.rows) * len(args.seeds)
        print(f"{name}: {len(missing)} of {total} experiments queued. `dvc queue start` runs what is queued.")


def run(args: argparse.Namespace) -> None:
    """Label, train, embed and evaluate, one after the other, the rows and seeds that the folder lacks."""
    values, dag = params.load(CONFIG), params.load(DAG)
    studies = load_studies(args.names, values)
    rows = {name: select_rows(name, study, args.row) for name, study in studies.items()}
    for name in studies:
        for row, seed in product(rows[name], args.seeds):
            experiment = tables.experiment(values, row, seed)
            tables.check_datasets(experiment)
            place = Path(args.results) / tables.digest(experiment)
            print(f"{name}: {' '.join(map(str, row.cells))}, seed {seed}: {place}", flush=True)
            if not place.exists():
                with atomic_write(place) as folder:
                    run_experiment(experiment, dag, folder)


def run_experiment(values: tables.Values, dag: dict, folder: Path) -> None:
    """Fill a folder with an experiment's params, scores and logs.

    Where another threshold gave the same labels, model and scores are the same: they are copied.
    """
    folder.mkdir()
    config, work = folder / CONFIG, folder / "work"
    YAML().dump(values, config)
    steps = tables.stage_commands(dag, values, work)
    _run_stages([step for step in steps if step[0] == "label"], config)
    labels = {str(path.relative_to(work)): sha256(path) for path in work.rglob("*.h5")}
    if same := tables.same_experiment(folder.parent, values, labels):
        print(f"the labels are those of {same}, and so is all that follows", flush=True)
        outputs = [same / name for name in KEPT]
    else:
        _run_stages([step for step in steps if step[0] != "label"], config)
        outputs = [path for path in work.rglob("*") if path.name in KEPT]
    for path in outputs:
        shutil.copy(path, folder)
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
    shutil.rmtree(work)


def _run_stages(steps: list[tuple[str, list[str]]], config: Path) -> None:
    for stage, words in steps:
        importlib.import_module(f"stages.{stage}").main(*words, config=str(config))


def show(args: argparse.Namespace) -> None:
    """Print the tables: of a folder, or of DVC's experiments."""
    values = params.load(CONFIG)
    studies = load_studies(args.names, values)
    costs = any(study.cost for study in studies.values())
    results = tables.from_folder(args.results) if args.results else experiments(args.rev, True, costs)
    for name, study in studies.items():
        table = markdown.table(study, values, args.seeds, results, args.queries or study.queries)
        print(f"{name}: {table}", end="\n\n")


def seeds(word: str) -> range:
    """The seeds 1 to n, at least one."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word}: give how many, 1 or more")
    return range(1, int(word) + 1)


def main(words: list[str]) -> None:
    """Run the verb on each of the studies."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=["queue", "run", "show"], help="what to do, as above")
    parser.add_argument("names", nargs="+", help="studies, such as table5")
    parser.add_argument("--seeds", type=seeds, default=range(1, 4), help="how many; 3 are 1, 2, 3 (default)")
    parser.add_argument("--row", type=int, help="run: this row alone, counted from 1")
    parser.add_argument("--results", help="run, show: a folder with a folder for each experiment")
    parser.add_argument("--rev", default="HEAD", help="show: experiments that started from this commit")
    parser.add_argument(
        "--queries", choices=["all", "occluded", "holistic"], help="show: the study's own if not given"
    )
    args = parser.parse_args(words)
    if args.verb == "run" and not args.results:
        parser.error("run needs --results, a folder")
    with command_line():
        {"queue": queue, "run": run, "show": show}[args.verb](args)


if __name__ == "__main__":
    main(sys.argv[1:])
