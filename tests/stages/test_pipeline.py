"""The whole DAG on a reduced embedded dataset, with real networks, DVC and files: what a team does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import reduced

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARSERS = ("render", "index@embedded", "segment@embedded", "pose@embedded", "parse@embedded")
WITHOUT = "raise ImportError('not installed on this machine')"


def environment() -> dict[str, str]:
    """This process's, with its Python first and a name for commits, without what DVC set for itself."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "OMP_"))}
    names = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**own, **names, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


ENV = environment()


def command(where: Path, *words: str, env: dict[str, str] | None = None, fails: bool = False) -> str:
    """What a command says, both streams; it must succeed, or fail if so asked."""
    done = subprocess.run(words, cwd=where, env={**ENV, **(env or {})}, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{' '.join(words)} -> {done.returncode}\n{said[-6000:]}"
    return said


def dvc(where: Path, *words: str, **kwargs) -> str:
    return command(where, sys.executable, "-m", "dvc", *words, **kwargs)


def commit(where: Path, message: str) -> None:
    command(where, "git", "add", "--all")
    command(where, "git", "commit", "--quiet", "--message", message)


def ran(said: str) -> list[str]:
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage '")]


def kill(where: Path, stop: signal.Signals, when: Callable[[], object], *words: str) -> None:
    """Stop DVC and all that it started as soon as something holds."""
    run = subprocess.Popen([sys.executable, "-m", "dvc", *words], cwd=where, start_new_session=True, env=ENV)
    deadline = time.monotonic() + 300
    while not when() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, stop)
    run.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A copy of the project with a reduced dataset, a folder as remote, and one finished run."""
    where = tmp_path_factory.mktemp("team") / "first"
    listed = command(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file() and not name.endswith("dvc.lock"):
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, where / name)
    reduced.reduce(where / "params.yaml")
    command(where, "git", "init", "--quiet", "--initial-branch=main")
    dvc(where, "remote", "add", "--default", "shared", str(where.parent / "remote"))
    commit(where, "A reduced embedded dataset")
    said = dvc(where, "repro")
    commit(where, "Results")
    command(where, "git", "tag", "--annotate", "embedded-parsing@v1.0.0", "--message", "Labels")
    dvc(where, "push")
    return where, said


def clone(world: Path, name: str) -> Path:
    command(world.parent, "git", "clone", "--quiet", str(world), name)
    return world.parent / name


def test_one_repro_runs_every_stage_and_ends_with_metrics(world):
    where, said = world
    assert len(ran(said)) == 11
    reduced.check(where / "data/embedded/metrics.json", where / "data/embedded/labels.json")
    assert "mAP" in dvc(where, "metrics", "show")


def test_a_second_repro_runs_nothing(world):
    assert "up to date" in dvc(world[0], "repro")


def test_lambda_runs_the_labels_and_what_follows_and_never_a_parser(world):
    again = ran(dvc(world[0], "exp", "run", "-S", "lambda=1000"))
    assert "label@embedded" in again and "train" in again and not set(again) & set(PARSERS)
    command(world[0], "git", "checkout", "--quiet", ".")
    dvc(world[0], "checkout")


def test_labels_that_come_out_the_same_stop_the_run_there(world):
    again = ran(dvc(world[0], "exp", "run", "-S", "lambda=5.0001"))
    assert "label@embedded" in again and "train" not in again
    command(world[0], "git", "checkout", "--quiet", ".")
    dvc(world[0], "checkout")


def test_a_misspelt_lambda_is_refused_and_nothing_runs(world):
    said = dvc(world[0], "exp", "run", "-S", "lamda=10", fails=True)
    assert "lamda" in said and not ran(said)


def test_a_clone_that_pulled_runs_nothing(world):
    second = clone(world[0], "second")
    dvc(second, "pull")
    assert not ran(dvc(second, "repro"))
    assert command(second, "git", "status", "--porcelain") == ""


def test_a_clone_without_parsers_studies_lambda_on_the_labels_it_fetches(world, tmp_path):
    third = clone(world[0], "third")
    for name in ("openpifpaf", "detectron2"):
        (tmp_path / f"{name}.py").write_text(WITHOUT)
    said = dvc(
        third,
        "exp",
        "run",
        "--pull",
        "--allow-missing",
        "-S",
        "lambda=1000",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert "train" in ran(said) and not set(ran(said)) & set(PARSERS)
    assert not (third / "data/embedded/raw.zip").exists() and not (third / "data/embedded/fields.h5").exists()


def test_a_released_label_set_is_fetched_by_name(world, tmp_path):
    words = ("artifacts", "get", str(world[0]), "embedded-parsing", "--rev", "v1.0.0", "-o", "parsing.h5")
    dvc(tmp_path, *words)
    assert (tmp_path / "parsing.h5").read_bytes() == (world[0] / "data/embedded/parsing.h5").read_bytes()
    # and into another project, where it is kept up to date
    command(tmp_path, "git", "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    dvc(tmp_path, "import", str(world[0]), "data/embedded/occlusion.h5")
    assert (tmp_path / "occlusion.h5.dvc").is_file()


@pytest.mark.parametrize("stage", ["segment", "pose"])
def test_a_parser_killed_at_any_moment_goes_on_from_its_last_shard(world, stage):
    fourth = clone(world[0], f"killed-{stage}")
    dvc(fourth, "pull")
    lone = fourth / "params.yaml"  # one worker: the second shard is far away when the first is done
    lone.write_text(lone.read_text().replace("workers: 0", "workers: 1"))
    out = fourth / "data/embedded" / {"segment": "instances.h5", "pose": "fields.h5"}[stage]
    before = out.read_bytes()
    words = ("repro", "--force", "--no-run-cache", "--single-item", f"{stage}@embedded")
    shards = fourth / ".scratch"
    kill(fourth, signal.SIGKILL, lambda: list(shards.glob("*/0*.h5")), *words)
    kept = list(shards.glob("*/0*.h5"))
    assert kept and not out.exists()
    lone.write_text(lone.read_text().replace("{segment: 1, pose: 1,", "{segment: 2, pose: 2,"))
    assert f" {128 * len(kept)}/" in dvc(fourth, *words)  # the bar starts where the killed run stopped
    assert out.read_bytes() == before


@pytest.fixture(scope="module")
def longer(world):
    """A clone that trains for sixteen steps, with a state saved after each, and the model it ends with."""
    where = clone(world[0], "longer")
    reduced.change(where / "params.yaml", {"train": {"identities": 4, "epochs": 4}, "checkpoint": 0})
    commit(where, "A longer training")
    dvc(where, "pull")
    dvc(where, "repro", "--single-item", "train")
    return where, (where / "models/trained/model.safetensors").read_bytes()


def steps(where: Path) -> int:
    """How many a training has taken that is under way, or was killed."""
    return sum(len(log.read_text().splitlines()) for log in where.glob(".scratch/train-*/log.jsonl"))


@pytest.mark.parametrize(("words", "stop"), [(("repro",), signal.SIGKILL), (("exp", "run"), signal.SIGTERM)])
def test_a_training_killed_at_any_step_goes_on_and_ends_with_the_same_model(longer, chance, words, stop):
    fifth = clone(longer[0], f"killed-{words[0]}")
    dvc(fifth, "pull")
    words = (*words, "--single-item", "train")
    until = chance.randint(2, 12)
    kill(fifth, stop, lambda: steps(fifth) >= until, *words)
    assert until <= steps(fifth) < 16 and not (fifth / "models/trained").exists()
    assert " 0/256" not in dvc(fifth, *words)  # images, at the start of the bar
    assert (fifth / "models/trained/model.safetensors").read_bytes() == longer[1]
