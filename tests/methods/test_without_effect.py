"""What a method's table says has no effect changes neither the log nor an embedding.

OGFR's table depends on the schedule, too (`tests/training/test_remarks.py`), and DPM++'s on texts
(`test_dpmpp.py`).
"""

from dataclasses import replace

import pytest
import torch

from pipeline.batches.views import eval_batch
from pipeline.core import params
from pipeline.methods.base import data_spec, load_method
from pipeline.methods.presets import resolve
from pipeline.training.loop import TIMES
from pipeline.training.remarks import without_effect
from pipeline.training.run import train_model
from tests import toy

PEOPLE = toy.people()
RUNS = {  # method, what is off in a run, another value of each param that then has no effect, the obstacles
    "transreid, no JPM": ({"jpm": False}, {"shift": 2, "groups": 3, "divide": 2}, {}),
    "dpm, flat masks": (
        {"mask": "none"},
        {"taps": (1,), "steps": "joint", "mask_lr": 1.0, "mask_schedule": "constant"},
        {},
    ),
    "dpm, joint": ({"steps": "joint"}, {"mask_lr": 1.0, "mask_schedule": "constant"}, {}),
    "fed, nothing": ({}, {}, {}),
    "fed, no OEM": ({"oem": False}, {"oem_weight": 3.0, "label": "difference"}, {}),
    "fed, no FDM": ({"fdm": False}, {"neighbours": 3, "banks": "one", "contrast_diffused": 3.0}, {}),
    "fed, no augmentation": ({}, {"label": "difference"}, {"probability": 0.0}),
}


def settings(name, **changes):
    module = load_method(name)
    values = params.read("params.yaml", name, module.Params)
    values = replace(values, **{"stride": 16, **toy.FITTING.get(name, {}), **changes})
    return resolve(values, module.PRESETS, values.preset, name)


def plan(obstacles):
    """A schedule whose obstacles have these values."""
    schedule = toy.schedule(epochs=1)
    return replace(schedule, obstacles=replace(schedule.obstacles, **obstacles))


def outcome(name, schedule, **changes):
    """The log of a training and the embeddings after it."""
    torch.manual_seed(0)
    model = load_method(name).build(settings(name, **changes), data_spec(PEOPLE), toy.encoder())
    log = train_model(model, PEOPLE, schedule, 1).drop(columns=[*TIMES])
    embedding = model.embed(eval_batch(PEOPLE))
    return log.to_json(double_precision=15), embedding.parts.tolist(), embedding.visibility.tolist()


@pytest.mark.parametrize("run", RUNS)
def test_a_param_is_said_to_have_no_effect_where_another_value_changes_nothing(run):
    name, (changes, others, obstacles) = run.split(",")[0], RUNS[run]
    now, schedule = settings(name, **changes), plan(obstacles)
    listed = without_effect(name, load_method(name), now, schedule)
    assert {param for param in listed if param.startswith(f"{name}.")} == {
        f"{name}.{other}" for other in others
    }
    assert all(getattr(now, param) != value for param, value in others.items())
    assert outcome(name, schedule, **changes, **others) == outcome(name, schedule, **changes)


@pytest.mark.parametrize("name", sorted({run.split(",")[0] for run in RUNS}))
def test_every_row_of_a_table_applies_to_some_run(name):
    others = [set(others) for run, (_, others, _) in RUNS.items() if run.startswith(f"{name},")]
    assert set.union(*others) == set(load_method(name).WITHOUT_EFFECT)
