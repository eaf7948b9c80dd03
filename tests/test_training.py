"""The loop: a step at each yield, equal seeds equal weights, and no silent nonsense."""

import json
import math

import pytest
import torch
from torch import nn

from pipeline import method, training
from pipeline.method import Method, Objective, Player
from pipeline.params import BadInput
from tests import small


class Duel(Method):
    """Two numbers: the second objective records what the first step left."""

    def __init__(self, poison=math.inf):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.seen, self.epochs, self.poison = [], [], poison

    def players(self):
        return {"one": Player([self.a]), "two": Player([self.b], "sgd", 0.5)}

    def objectives(self, batch):
        self.seen.append(self.a.item())
        yield Objective("one", {"first": (3 * self.a).sum(), "small": self.a.sum()}, {"small": 2.0})
        self.seen.append(self.a.item())
        bad = float("nan") if len(self.seen) > self.poison else 1.0
        yield Objective("two", {"second": (self.a * self.b * bad).sum()}, noted={"figure": self.b.detach()})
        self.seen.append(self.b.item())

    def begin_epoch(self, epoch, batches):
        self.epochs.append((epoch, sum(len(b.pid) for b in batches())))


PLAN = {"optimiser": "sgd", "lr": 0.1, "decay": 0.0, "warmup": 0.0, "clip": 0.0, "floor": 1.0, "epochs": 2}


def loop(duel, **changes):
    return training.Loop(duel, small.schedule(**{**PLAN, **changes}), torch.device("cpu"))


def test_a_step_is_taken_at_each_yield_and_the_next_objective_sees_it():
    duel = Duel()
    loop(duel).step(small.batch(), 0.0)
    assert duel.seen == pytest.approx([1.0, 1.0 - 0.1 * 5, 1.0 - 0.5 * 0.5])


def test_an_objective_moves_its_player_alone():
    duel = Duel()
    loop(duel).step(small.batch(), 0.0)
    assert duel.a.item() == pytest.approx(0.5)  # a stands in the second loss too


def test_gradients_are_clipped_per_player():
    duel = Duel()
    loop(duel, clip=1.0).step(small.batch(), 0.0)
    assert duel.a.item() == pytest.approx(0.9)


def test_the_log_has_every_raw_term_the_rate_and_the_methods_figures():
    duel = Duel()
    running = loop(duel)
    running.step(small.batch(), 0.0)
    (row,) = running.log
    assert row["first"] == 3 and row["small"] == 1 and row["second"] == 0.5 and row["figure"] == 1
    assert row["loss"] == pytest.approx(5.5) and row["lr"] == 0.1 and row["images_per_s"] > 0


def test_a_loss_that_is_no_number_stops_and_names_the_term_and_the_step():
    running = loop(Duel(poison=4))
    running.step(small.batch(), 0.0)
    with pytest.raises(BadInput, match=r"step 1: the loss 'second' of 'two' is nan.*train\.lr"):
        running.step(small.batch(), 0.0)


def test_every_epoch_begins_with_the_plain_training_images():
    duel = Duel()
    log = training.train(duel, small.people(), small.schedule(**PLAN), 1)
    assert duel.epochs == [(0, 16), (1, 16)] and len(log) == 8 and not duel.training


RATES = {(0.0, 10, 0.0): 1, (5.0, 10, 0.0): 0.55, (10.0, 10, 0.0): 0.1, (0.0, 10, 2.0): 0.01}


@pytest.mark.parametrize(("at", "share"), RATES.items())
def test_the_rate_follows_a_cosine_under_a_linear_warm_up(at, share):
    assert training.rate(*at, floor=0.1) == pytest.approx(share)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_a_player_without_wishes_has_the_schedules_optimiser(name, kind):
    running = loop(Duel(), optimiser=name, decay=0.25)
    (group,) = running.optimisers["one"].param_groups
    assert (
        isinstance(running.optimisers["one"], kind) and group["weight_decay"] == 0.25 and group["lr"] == 0.1
    )
    assert isinstance(running.optimisers["two"], torch.optim.SGD) and running.base["two"] == 0.5


def test_the_same_seed_gives_the_same_weights():
    people = small.people()
    first, second, other = (small.model(people) for _ in range(3))
    plan = small.schedule(epochs=1)
    logs = [training.train(m, people, plan, s) for m, s in ((first, 1), (second, 1), (other, 2))]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert logs[0].drop(columns="images_per_s").equals(logs[1].drop(columns="images_per_s"))
    assert logs[0]["loss"].tolist() != logs[2]["loss"].tolist()


def test_bfloat16_is_for_the_network_and_float32_for_losses_and_weights():
    people = small.people()
    model = small.model(people)
    running = training.Loop(model, small.schedule(precision="bfloat16"), torch.device("cpu"))
    running.step(small.batch(people), 0.5)
    exact = training.Loop(small.model(people), small.schedule(), torch.device("cpu"))
    exact.step(small.batch(people), 0.5)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert running.log[0]["encoder"] == pytest.approx(exact.log[0]["encoder"], rel=0.02)


# ------------------------------------------------------------------ found by name, resolved, recorded


def test_a_method_is_found_by_its_name_and_an_unknown_one_lists_them():
    assert method.load("ogfr").OGFR
    with pytest.raises(BadInput, match=r"method = ogfrr.*ogfr"):
        method.load("ogfrr")


def test_null_means_the_presets_value_and_anything_else_stays():
    ours, theirs = small.schedule(lr=None), small.schedule("paper", lr=0.5)
    assert ours.optimiser == "adamw" and theirs.optimiser == "sgd" and theirs.lr == 0.5
    assert theirs.obstacles.area == (0.05, 0.2) and theirs.epochs == 120


def test_every_null_of_params_yaml_has_a_preset():
    for preset in ("recommended", "paper"):
        for settings in (small.settings(preset), small.schedule(preset)):
            assert None not in vars(settings).values()
            assert None not in vars(getattr(settings, "obstacles", settings)).values()


def test_a_folder_without_a_model_or_with_a_damaged_record_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="no trained model"):
        method.load_trained(tmp_path)
    (tmp_path / "record.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"record\.json: damaged"):
        method.load_trained(tmp_path)


def test_a_record_is_plain_json():
    plan = small.schedule()
    assert json.loads(json.dumps(training.record(plan, 1, {"index": "abc"})))["train"]["lr"] == plan.lr
