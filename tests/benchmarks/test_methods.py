"""The cost of the methods is a ratio to the control's of the same round."""

import numpy as np

from benchmarks.methods import steps
from benchmarks.methods.steps import CONTROL, noise, ratios
from tests import toy


def test_a_ratio_compares_runs_of_one_round_and_leaves_the_first_round_out(monkeypatch):
    clock, rounds = [0.0], []

    def run(seconds):
        clock[0] += seconds(len(rounds))

    def control():
        rounds.append(None)
        run(lambda n: [100, 1, 2, 4, 8][n - 1])  # a machine that gets slower

    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])
    twice = lambda: run(lambda n: [1, 2, 4, 8, 24][n - 1])  # noqa: E731
    rows = ratios({CONTROL: control, "other": twice}, 4)
    assert len(rounds) == 5
    assert rows[CONTROL] == dict.fromkeys(("lower_quartile", "median", "upper_quartile"), 1.0)
    assert rows["other"] == {"lower_quartile": 2.0, "median": 2.0, "upper_quartile": 2.25}


def test_the_batch_has_as_many_images_of_each_identity_as_a_training():
    images = noise(toy.TRAIN)
    _, counts = np.unique(images.pid, return_counts=True)
    assert len(counts) == toy.TRAIN.identities and set(counts) == {toy.TRAIN.images}
    assert images.image.shape[1:3] == toy.TRAIN.size
