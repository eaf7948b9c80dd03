"""What training says at its start: its table of params without effect is true, and what teaches little."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.batches.views import eval_batch
from pipeline.methods.base import data_spec, describe, load_method
from pipeline.training.loop import TIMES
from pipeline.training.remarks import rate_remarks, remarks, without_effect
from pipeline.training.run import train_model
from pipeline.training.start import load_start
from tests import toy

PEOPLE = toy.people(identities=2, each=4)
OGFR = load_method("ogfr")
# another value of every param that may be without effect
OTHER = {
    "ogfr.decoder": "plain", "ogfr.residual": False, "ogfr.erase": "labels", "ogfr.erase_rate": 0.9,
    "ogfr.erase_before": 1, "ogfr.global_token": "rebuilt",
    "ogfr.episodes": 2, "ogfr.agent_keep": 0.5, "ogfr.agent_optimiser": "sgd", "ogfr.agent_lr": 0.5,
    "ogfr.baseline": "image", "ogfr.baseline_epochs": 1, "ogfr.reward_floor": 0.9, "ogfr.reward_clip": 1e-3,
    "ogfr.alpha": 0.9, "ogfr.beta": 0.9, "ogfr.mu_1": 0.9, "ogfr.mu_2": 0.9, "ogfr.mse": "sum",
    "ogfr.mse_weight": 0.1, "ogfr.teacher_identity": 0.1, "ogfr.student_triplet": 0.1,
    "train.mining": "process", "train.statistics": "process", "train.obstacles.sources": ["rectangle"],
    "train.obstacles.area": (0.8, 0.9), "train.obstacles.aspect": (2.0, 3.0),
    "train.obstacles.cutouts": "no/such/folder", "train.obstacles.patches": "no/such/folder",
    "train.obstacles.placement": "border",
}  # fmt: skip
RUNS = {
    "as committed": {},
    "nothing erased": {"ogfr.fep": "none"},
    "erased at random": {"ogfr.erase": "random"},
    "one branch": {"ogfr.distil": False, "ogfr.fep": "none"},
    "one branch that erases": {"ogfr.distil": False, "ogfr.fep": "student"},
    "without a bias": {"ogfr.agent_bias": False},
    "the printed baseline": {"ogfr.baseline": "paper"},
    "started at random": {"ogfr.start": "random"},
    "no obstacles": {"train.obstacles.probability": 0.0},
    "bands": {"train.obstacles.sources": ["rectangle"], "train.obstacles.placement": "border"},
    "noise": {"train.obstacles.sources": ["noise"]},
}
# what each run lists beside or instead of what the committed one lists
COMMITTED = {"ogfr.erase_rate", "ogfr.baseline_epochs", "train.mining", "train.statistics"}


def resolved(changes):
    own, train, obstacles = {}, {}, {}
    for name, value in changes.items():
        section, _, param = name.rpartition(".")
        {"ogfr": own, "train": train, "train.obstacles": obstacles}[section][param] = value
    schedule = toy.schedule(epochs=1, **train)
    return toy.settings(**own), replace(schedule, obstacles=replace(schedule.obstacles, **obstacles))


def outcome(changes):
    """The log of a training and the embeddings after it."""
    settings, schedule = resolved(changes)
    torch.manual_seed(0)
    model = OGFR.build(settings, data_spec(PEOPLE), toy.encoder())
    log = train_model(model, PEOPLE, schedule, 1).drop(columns=[*TIMES])
    embedding = model.embed(eval_batch(PEOPLE))
    return log.to_json(double_precision=15), embedding.parts.tolist(), embedding.visibility.tolist()


@functools.cache
def reference(run):
    return outcome(RUNS[run])


@pytest.mark.parametrize("run", RUNS)
def test_a_param_is_said_to_have_no_effect_where_another_value_changes_nothing(run):
    listed = without_effect("ogfr", OGFR, *resolved(RUNS[run]))
    assert len(listed) >= 2 and set(listed) <= set(OTHER)
    assert outcome(RUNS[run] | {name: OTHER[name] for name in listed}) == reference(run)


# params that are silent in some runs, and one in which each is not
EFFECTIVE = {
    "started at random": [
        "ogfr.decoder", "ogfr.erase", "ogfr.erase_before", "ogfr.global_token", "ogfr.episodes",
        "ogfr.agent_lr", "ogfr.agent_optimiser",
        "ogfr.reward_floor", "ogfr.mu_2", "ogfr.mse", "train.obstacles.aspect",
    ],
    "erased at random": ["ogfr.erase_rate", "ogfr.decoder"],
    "noise": ["train.obstacles.area", "train.obstacles.aspect"],
    "as committed": ["train.obstacles.placement"],
}  # fmt: skip


@pytest.mark.parametrize(("run", "name"), [(run, name) for run, names in EFFECTIVE.items() for name in names])
def test_a_param_with_an_effect_is_not_listed(run, name):
    assert name not in without_effect("ogfr", OGFR, *resolved(RUNS[run]))
    assert outcome(RUNS[run] | {name: OTHER[name]}) != reference(run)


def test_how_a_model_starts_has_no_effect_where_it_goes_on_from_another(tmp_path):
    source, ends = toy.trained(tmp_path / "a"), []
    for changes in ({}, {"ogfr.start": "random", "ogfr.agent_keep": 0.5}):
        settings, schedule = resolved(changes | {"train.start_from": str(source)})
        assert {"ogfr.start", "ogfr.agent_keep"} <= set(without_effect("ogfr", OGFR, settings, schedule))
        torch.manual_seed(0)
        vit, spec = toy.encoder(), data_spec(PEOPLE)
        model = OGFR.build(settings, spec, vit)
        load_start(model, str(source), describe("ogfr", settings, spec, vit.architecture))
        ends.append(model.state_dict())
    assert all(torch.equal(t, ends[1][n]) for n, t in ends[0].items())


def test_the_committed_params_list_few():
    assert set(without_effect("ogfr", OGFR, *resolved({}))) == COMMITTED


def test_a_method_without_a_table_lists_the_schedules():
    baseline = load_method("vit_baseline")
    listed = without_effect("vit_baseline", baseline, None, toy.schedule())
    assert listed == ["train.mining", "train.statistics"]


def text(schedule=None, people=PEOPLE):
    return "\n".join(remarks(schedule or toy.schedule(), people))


def test_nothing_is_said_of_a_training_that_can_learn():
    assert text() == "" and rate_remarks(toy.schedule(epochs=8, warmup=1.0), [5] * 8) == []


def test_what_teaches_little_is_said_with_the_remedy():
    rows = np.array([0, 4, 5])
    single = replace(
        PEOPLE,
        **{n: getattr(PEOPLE, n)[rows] for n in ("image", "parsing", "hidden", "camid", "pid")},
    )
    assert text(people=single).startswith("1 identity of 2 with a single image: ")
    assert "nothing teaches the parts" in text(people=replace(PEOPLE, parsing=PEOPLE.parsing * 0))
    plan = toy.schedule()
    walls = replace(plan, obstacles=replace(plan.obstacles, sources=["background"]))
    assert text(walls) == ""
    for parsing in (PEOPLE.parsing * 0, PEOPLE.parsing * 0 + 1):
        assert "`background` cuts rectangles" in text(walls, replace(PEOPLE, parsing=parsing))
    unoccluded = replace(plan, obstacles=replace(plan.obstacles, probability=0.0))
    assert "no image is occluded" in text(unoccluded) and "hardly a gradient" in text(
        replace(plan, clip=1e-9)
    )


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "share"),
    [(8, 8.0, 10, 27), (1, 1.0, 10, 27), (2, 5.0, 1, 10), (1, 0.5, 1, 1)],
)
def test_a_rate_that_hardly_rises_is_said(epochs, warmup, steps, share):
    (remark,) = rate_remarks(toy.schedule(epochs=epochs, warmup=warmup), [steps] * epochs)
    assert (
        f"train.warmup = {warmup} of train.epochs = {epochs}: the learning rate reaches {share} %" in remark
    )
