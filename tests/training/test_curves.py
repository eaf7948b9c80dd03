"""Curves of a training: few points that tell the truth about the log, and plots of DVC's for any method."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.render.match import match_defs_renderers
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import params
from pipeline.training import curves
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.curves import POINTS, training_curves
from pipeline.training.loop import TIMES
from tests.training.test_train import WORDS, folder, train, trained  # noqa: F401  # `folder` is a fixture

ROOT = Path(__file__).parents[2]


def log_of(**columns):
    """A log of those columns, four steps an epoch."""
    steps = range(len(next(iter(columns.values()))))
    return pd.DataFrame(
        {"step": steps, "epoch": [n / 4 for n in steps], **dict.fromkeys(TIMES, 1.0), **columns}
    )


def test_each_column_of_the_log_but_times_has_a_curve_of_its_own():
    log = log_of(lr=[1.0, 2.0], triplet=[4.0, 3.0])
    assert {name: list(curve) for name, curve in training_curves(log).items()} == {
        "lr": ["epoch", "lr"],
        "triplet": ["epoch", "triplet"],  # the values come last, where DVC looks for them
    }


def test_a_log_of_few_steps_is_its_own_curve():
    losses = np.linspace(9, 1, POINTS).tolist()
    curve = training_curves(log_of(loss=losses))["loss"]
    assert curve["loss"].tolist() == losses and curve["epoch"].tolist() == [n / 4 for n in range(POINTS)]


def test_a_point_of_a_long_log_is_the_mean_of_a_stretch_of_steps(monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 2)
    curve = training_curves(log_of(loss=[8.0, 6.0, 4.0, 5.0, 2.0]))["loss"]
    assert curve.to_numpy().tolist() == [[0.25, 6.0], [0.875, 3.5]]  # steps 0 to 2, and 3 and 4


def test_steps_without_a_finite_value_are_left_out():
    scores, norms = [math.nan, 30.0, math.nan, 40.0], [1.0, math.inf, 3.0, math.nan]
    tables = training_curves(log_of(held_out_mAP=scores, norm_reid=norms))
    assert tables["held_out_mAP"].to_numpy().tolist() == [[0.25, 30.0], [0.75, 40.0]]
    assert tables["norm_reid"].to_numpy().tolist() == [[0.0, 1.0], [0.5, 3.0]]


def test_a_column_that_is_never_finite_is_an_empty_curve():
    assert training_curves(log_of(norm_reid=[math.inf] * 3))["norm_reid"].empty


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=5 * POINTS))
def test_a_curve_has_few_points_and_is_the_mean_taken_in_a_slow_loop(losses):
    curve = training_curves(log_of(loss=losses))["loss"]
    length = next(n for n in range(1, 6) if len(losses) <= n * POINTS)
    stretches = [losses[start : start + length] for start in range(0, len(losses), length)]
    assert len(curve) == len(stretches) <= POINTS
    assert np.allclose(curve["loss"], [sum(stretch) / len(stretch) for stretch in stretches])
    assert curve["epoch"].is_monotonic_increasing


# ------------------------------------------------------------------ files of the stage, and DVC's plots


def files():
    return {path.name: path.read_bytes() for path in Path("curves").iterdir()}


def test_a_training_leaves_a_file_for_each_quantity_of_its_log(folder):  # noqa: F811
    trained(held_out=2)
    columns = pd.read_csv("log.csv").columns.drop(["step", "epoch"])
    assert set(files()) == {f"{name}.csv" for name in columns} and "held_out_mAP.csv" in files()
    assert pd.read_csv("curves/lr.csv").equals(
        pd.read_csv("log.csv")[["epoch", "lr"]].map(lambda x: float(f"{x:.6g}"))
    )


def test_curves_of_another_method_leave_no_file_of_the_first(folder):  # noqa: F811
    Path("curves").mkdir()
    Path("curves/policy.csv").touch()
    trained()
    assert "policy.csv" not in files()


@pytest.mark.parametrize("last", [1, 3])
def test_a_training_that_was_killed_leaves_no_curve_and_resumed_the_same_bytes(folder, monkeypatch, last):  # noqa: F811
    values = params.load("params.yaml")
    Path("params.yaml").write_text(json.dumps(values | {"checkpoint": 0}))
    trained()
    whole = files()
    shutil.rmtree("curves")
    step = Checkpoints.step

    def killed(self, loop, *state):
        step(self, loop, *state)
        if len(loop.log) == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "step", killed)
        train.main(*WORDS, "params.yaml")
    assert not [path for path in Path().iterdir() if "curves" in path.name]
    train.main(*WORDS, "params.yaml")
    assert files() == whole


def plots(project):
    """What `dvc plots show` draws: the name of a plot -> its x, y and number of points."""
    with Repo(str(project)) as repo:
        renderers = [match.renderer for match in match_defs_renderers(repo.plots.show())]
    return {
        r.name: (r.properties["x"], r.properties["y"], len(r.datapoints)) for r in renderers if r.datapoints
    }


def test_dvc_plots_whatever_curves_a_method_has_over_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    Path("models/curves").mkdir(parents=True)
    for name in ("loss", "arc"):
        pd.DataFrame({"epoch": [0.0, 0.5, 1.0], name: [3.0, 2.0, 1.0]}).to_csv(
            f"models/curves/{name}.csv", index=False
        )
    Repo.init(str(tmp_path), no_scm=True).close()
    assert plots(tmp_path) == {f"models/curves/{name}.csv": ("epoch", name, 3) for name in ("arc", "loss")}
