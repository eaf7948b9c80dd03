"""The whole DAG on a reduced embedded dataset, with real networks, DVC and files, as a team uses it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import reduced

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARSERS = ("render", "index@embedded", "segment@embedded", "pose@embedded", "parse@embedded")
NOT_INSTALLED = "raise ImportError('not installed on this machine')"


def environment() -> dict[str, str]:
    """A user's: this process's, with its Python first and an author of commits."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "OMP_", "PYTEST_"))}
    author = {f"GIT_{role}_{part}": "tests" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return {**kept, **author, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


ENV = environment()


def command(folder: Path, *words: str, env: dict[str, str] | None = None, fails: bool = False) -> str:
    """A command's output, both streams; it must succeed, or fail if `fails`."""
    run = subprocess.run(words, cwd=folder, env={**ENV, **(env or {})}, capture_output=True, text=True)
    output = run.stdout + run.stderr
    assert (run.returncode != 0) == fails, f"{' '.join(words)} -> {run.returncode}\n{output[-6000:]}"
    return output


def dvc(folder: Path, *words: str, **kwargs) -> str:
    return command(folder, sys.executable, "-m", "dvc", *words, **kwargs)


def commit(folder: Path, message: str) -> None:
    command(folder, "git", "add", "--all")
    command(folder, "git", "commit", "--quiet", "--message", message)


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


def kill(folder: Path, stop: signal.Signals, condition: Callable[[], object], *words: str) -> None:
    """Stop DVC and all that it started as soon as a condition holds."""
    run = subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=folder, start_new_session=True, env=ENV)
    deadline = time.monotonic() + 300
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, stop)
    run.wait()


def copy_project(folder: Path) -> Path:
    """The project's files as they are now, in a new git repository, with a reduced dataset and no results."""
    listed = command(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file() and not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    reduced.reduce(folder / "params.yaml")
    command(folder, "git", "init", "--quiet", "--initial-branch=main")
    return folder


class FirstRun(NamedTuple):
    project: Path
    output: str  # of `dvc repro`
    status: str  # of git, after it


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A copy of the project with a reduced dataset and a folder as remote, after one `dvc repro`."""
    project = copy_project(tmp_path_factory.mktemp("team") / "first")
    dvc(project, "remote", "add", "--default", "shared", str(project.parent / "remote"))
    commit(project, "A reduced embedded dataset")
    run = FirstRun(project, dvc(project, "repro"), command(project, "git", "status", "--short"))
    commit(project, "Results")
    command(project, "git", "tag", "--annotate", "embedded-parsing@v1.0.0", "--message", "Labels")
    dvc(project, "push")
    return run


def clone(project: Path, name: str) -> Path:
    command(project.parent, "git", "clone", "--quiet", str(project), name)
    return project.parent / name


def restore(project: Path) -> None:
    """Undo an experiment."""
    command(project, "git", "checkout", "--quiet", ".")
    dvc(project, "checkout")


def test_one_repro_runs_every_stage_and_ends_with_metrics(first):
    assert len(stages_run(first.output)) == 12
    embedded = first.project / "data/embedded"
    reduced.check(embedded / "report.json", embedded / "labels/report.json")


def test_the_metrics_fit_120_columns(first):
    table = dvc(first.project, "metrics", "show")
    assert "mAP" in table and max(map(len, table.splitlines())) <= 120


def test_a_repro_changes_no_file_in_git_but_the_lock_and_the_metrics(first):
    metrics = {f" M data/embedded/{name}.json" for name in ("labels", "metrics", "encoder", "histogram")}
    assert set(first.status.splitlines()) == {"?? dvc.lock", *metrics}


def test_a_second_repro_runs_nothing(first):
    output = dvc(first.project, "repro")
    assert "up to date" in output and not stages_run(output)


def test_lambda_runs_the_labels_and_what_follows_and_never_a_parser(first):
    again = stages_run(dvc(first.project, "exp", "run", "-S", "lambda=1000"))
    assert "label@embedded" in again and "train" in again and not set(again) & set(PARSERS)
    restore(first.project)


def test_labels_that_come_out_the_same_stop_the_run_there(first):
    again = stages_run(dvc(first.project, "exp", "run", "-S", "lambda=5.0001"))
    assert "label@embedded" in again and "train" not in again
    restore(first.project)


def test_a_misspelt_lambda_is_refused_and_nothing_runs(first):
    output = dvc(first.project, "exp", "run", "-S", "lamda=10", fails=True)
    assert "lamda" in output and not stages_run(output)


def test_a_clone_that_pulled_runs_nothing(first):
    second = clone(first.project, "second")
    dvc(second, "pull")
    assert not stages_run(dvc(second, "repro"))
    assert command(second, "git", "status", "--porcelain") == ""


def test_a_clone_without_parsers_studies_lambda_on_the_labels_it_fetches(first, tmp_path):
    third = clone(first.project, "third")
    for name in ("openpifpaf", "detectron2"):
        (tmp_path / f"{name}.py").write_text(NOT_INSTALLED)
    words = ("exp", "run", "--pull", "--allow-missing", "-S", "lambda=1000")
    again = stages_run(dvc(third, *words, env={"PYTHONPATH": str(tmp_path)}))
    assert "train" in again and not set(again) & set(PARSERS)
    assert not (third / "data/embedded/raw.zip").exists() and not (third / "data/embedded/fields.h5").exists()


def test_a_released_label_set_is_fetched_by_name(first, tmp_path):
    project = str(first.project)
    dvc(tmp_path, "artifacts", "get", project, "embedded-parsing", "--rev", "v1.0.0", "-o", "parsing.h5")
    labels = (first.project / "data/embedded/parsing.h5").read_bytes()
    assert (tmp_path / "parsing.h5").read_bytes() == labels
    # and into another project, where it is kept up to date
    command(tmp_path, "git", "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    dvc(tmp_path, "import", project, "data/embedded/occlusion.h5")
    assert (tmp_path / "occlusion.h5.dvc").is_file()


@pytest.mark.parametrize("stage", ["segment", "pose"])
def test_a_parser_killed_at_any_moment_goes_on_from_its_last_shard(first, stage):
    project = clone(first.project, f"killed-{stage}")
    dvc(project, "pull")
    # one worker: the second shard is far away when the first is finished
    reduced.change(project / "params.yaml", {"workers": 1})
    out = project / "data/embedded" / {"segment": "instances.h5", "pose": "fields.h5"}[stage]
    before = out.read_bytes()
    words = ("repro", "--force", "--no-run-cache", "--single-item", f"{stage}@embedded")
    shards = project / ".scratch"
    kill(project, signal.SIGKILL, lambda: list(shards.glob("*/0*.h5")), *words)
    kept = list(shards.glob("*/0*.h5"))
    assert kept and not out.exists()
    reduced.change(project / "params.yaml", {"processes": {stage: 2}})
    assert f" {128 * len(kept)}/" in dvc(project, *words)  # the bar starts where the killed run stopped
    assert out.read_bytes() == before


@pytest.fixture(scope="module")
def longer(first):
    """A clone that trains for sixteen steps, with a checkpoint after each, and the model it ends with."""
    project = clone(first.project, "longer")
    reduced.change(project / "params.yaml", {"train": {"identities": 4, "epochs": 4}, "checkpoint": 0})
    commit(project, "A longer training")
    dvc(project, "pull")
    dvc(project, "repro", "--single-item", "train")
    return project, (project / "models/trained/model.safetensors").read_bytes()


def steps(project: Path) -> int:
    """The steps of a training that is running, or was killed."""
    return sum(len(log.read_text().splitlines()) for log in project.glob(".scratch/train-*/log.jsonl"))


@pytest.mark.parametrize(("words", "stop"), [(("repro",), signal.SIGKILL), (("exp", "run"), signal.SIGTERM)])
def test_a_training_killed_at_any_step_goes_on_and_ends_with_the_same_model(longer, chance, words, stop):
    project = clone(longer[0], f"killed-{words[0]}")
    dvc(project, "pull")
    words = (*words, "--single-item", "train")
    last = chance.randint(2, 12)
    kill(project, stop, lambda: steps(project) >= last, *words)
    assert last <= steps(project) < 16 and not (project / "models/trained").exists()
    assert " 0/256" not in dvc(project, *words)  # images, at the start of the bar
    assert (project / "models/trained/model.safetensors").read_bytes() == longer[1]
