"""A training that TensorBoard shows: every step is there, and nothing else comes out differently."""

import json
import resource
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.training import tensorboard
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import TIMES
from pipeline.training.run import train_model
from stages import train
from tests import toy
from tests.training.test_train import WORDS, folder, trained  # noqa: F401  # `folder` is a fixture
from tests.training.test_training import PLAN, Duel

installed = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="the dependency group tensorboard is not installed"
)


class Rows(tensorboard.EventFiles):
    """Event files that keep in memory what they get."""

    def __init__(self, place=""):
        self.folder, self.rows = place, []

    def write(self, rows):
        self.rows += [dict(row) for row in rows]

    def __exit__(self, *error):
        Path(self.folder).mkdir(parents=True)
        Path(self.folder, "rows").write_text(str(len(self.rows)))


def learn(events=None, checkpoints=None, seed=1):
    """Four steps of two numbers, and two scores of held-out people: the log and the numbers."""
    duel = Duel()
    duel.embed = toy.model().eval().embed
    plan = toy.schedule(**PLAN)
    log = train_model(duel, toy.people(), plan, seed, None, toy.people(seed=3), checkpoints, events)
    return log.drop(columns=[*TIMES]), torch.stack([duel.a, duel.b]).detach()


def scalars(run):
    """What TensorBoard shows of a run: tag -> its steps and values."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run))
    events.Reload()
    return {
        tag: ([event.step for event in events.Scalars(tag)], [event.value for event in events.Scalars(tag)])
        for tag in events.Tags()["scalars"]
    }


class Killed(Checkpoints):
    """Checkpoints of a process that dies after its third step."""

    def step(self, loop, *state):
        super().step(loop, *state)
        if len(loop.log) == 3:
            raise KeyboardInterrupt


def test_a_training_hands_over_each_step_with_its_held_out_score():
    events = Rows()
    log, _ = learn(events)
    assert [row["step"] for row in events.rows] == log["step"].tolist()
    assert [row["loss"] for row in events.rows] == log["loss"].tolist()
    scores = {row["step"]: row["held_out_mAP"] for row in events.rows if "held_out_mAP" in row}
    assert scores == log["held_out_mAP"].dropna().to_dict() and len(scores) == 2


def test_a_training_that_resumes_hands_over_the_earlier_steps_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learn(checkpoints=Killed(tmp_path, 0.0))
    events = Rows()
    log, _ = learn(events, Checkpoints(tmp_path, 0.0))
    assert [row["step"] for row in events.rows] == log["step"].tolist()


@installed
def test_event_files_change_neither_the_log_nor_the_weights(tmp_path):
    log, weights = learn()
    with tensorboard.EventFiles(tmp_path) as events:
        watched_log, watched_weights = learn(events)
    assert watched_log.equals(log) and torch.equal(watched_weights, weights)


@installed
def test_tensorboard_shows_what_the_log_holds_and_times_apart(tmp_path):
    with tensorboard.EventFiles(tmp_path) as events:
        log, _ = learn(events)
    shown = scalars(tmp_path)
    columns = log.columns.drop("step")
    assert set(shown) == {f"train/{name}" for name in columns} | {f"speed/{name}" for name in TIMES}
    for name in columns:
        values = log.set_index("step")[name].dropna()
        steps, points = shown[f"train/{name}"]
        assert steps == values.index.tolist() and points == pytest.approx(values.tolist())


@installed
def test_tensorboard_shows_the_steps_of_a_resumed_run_once(tmp_path):
    with pytest.raises(KeyboardInterrupt), tensorboard.EventFiles(tmp_path / "run") as events:
        learn(events, Killed(tmp_path, 0.0))
    with tensorboard.EventFiles(tmp_path / "run") as events:
        log, _ = learn(events, Checkpoints(tmp_path, 0.0))
    assert scalars(tmp_path / "run")["train/loss"] == (
        log["step"].tolist(),
        pytest.approx(log["loss"].tolist()),
    )


@installed
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own thread
def test_a_full_disk_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        message = f"{tmp_path}: the disk is full or over quota. Free some space"
        with pytest.raises(BadInput, match=message), tensorboard.EventFiles(tmp_path) as events:
            learn(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------------------ where they lie, and who writes them


RUNS = {  # name of the DVC experiment, rank: folder of the event files
    (None, 0): "runs/train-12ab",
    ("puffy-daks", 0): "runs/puffy-daks-train-12ab",
    (None, 1): None,
}


@pytest.mark.parametrize("case", RUNS)
def test_rank_0_alone_writes_in_the_project_under_the_experiments_name(tmp_path, monkeypatch, case):
    experiment, rank = case
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(tensorboard, "EventFiles", Rows)
    with tensorboard.open_events("runs", "train-12ab") as events:
        assert (events.folder if events else None) == (tmp_path / RUNS[case] if RUNS[case] else None)


def test_no_folder_means_no_event_files():
    with tensorboard.open_events("", "train-12ab") as events:
        assert events is None


def watched(place):
    """The record of a run whose param `tensorboard` is `place`."""
    values = params.load("params.yaml")
    Path("params.yaml").write_text(json.dumps(values | {"tensorboard": place}))
    return trained()


def test_the_stage_writes_the_same_files_with_event_files_and_without(folder, monkeypatch):  # noqa: F811
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setattr(tensorboard, "EventFiles", Rows)
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: True)
    outputs = ("model/model.safetensors", "model/record.json", "log.csv", "curves/loss.csv")
    watched("")
    plain = [Path(name).read_bytes() for name in outputs]
    watched("runs")
    assert [Path(name).read_bytes() for name in outputs] == plain
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("train-") and (run / "rows").read_text() == "5"


def test_a_training_without_the_package_is_refused_before_it_begins(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    monkeypatch.setattr(train, "read_index", lambda *words: 1 / 0)  # what follows
    with pytest.raises(BadInput, match=r"tensorboard = runs: needs.*`uv sync --group tensorboard`, or set"):
        watched("runs")
    with pytest.raises(ZeroDivisionError):
        watched("")
