"""The loop: a step at each yield, equal seeds equal weights, and no loss that is not finite."""

import json
import math
import multiprocessing
import os
import signal
import time

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from pipeline import ranking
from pipeline.batches.views import eval_batch
from pipeline.core.params import BadInput
from pipeline.methods.base import Embedding, Method, Objective, ParamGroup, load_method, load_trained
from pipeline.model.distance import distances
from pipeline.model.layers import set_drop_path
from pipeline.training import checkpoint, selection
from pipeline.training import loop as steps
from pipeline.training.loop import TIMES
from pipeline.training.record import run_record
from pipeline.training.run import train_model
from pipeline.training.schedule import lr_factor
from tests import toy


class Duel(Method):
    """Two numbers: the second objective records what the first step left."""

    def __init__(self, nan_after=math.inf):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.weights, self.epochs, self.nan_after = [], [], nan_after

    def param_groups(self):
        return {"one": ParamGroup([self.a]), "two": ParamGroup([self.b], "sgd", 0.5)}

    def objectives(self, batch):
        self.weights.append(self.a.item())
        yield Objective("one", {"first": (3 * self.a).sum(), "small": self.a.sum()}, {"small": 2.0})
        self.weights.append(self.a.item())
        bad = float("nan") if len(self.weights) > self.nan_after else 1.0
        yield Objective("two", {"second": (self.a * self.b * bad).sum()}, metrics={"figure": self.b.detach()})
        self.weights.append(self.b.item())

    def begin_epoch(self, epoch, batches):
        self.epochs.append((epoch, sum(len(b.pid) for b in batches())))


PLAN = {"optimiser": "sgd", "lr": 0.1, "decay": 0.0, "warmup": 0.0, "clip": 0.0, "floor": 1.0, "epochs": 2}


def loop(duel, **changes):
    return steps.Loop(duel, toy.schedule(**{**PLAN, **changes}), torch.device("cpu"))


def test_a_step_is_taken_at_each_yield_and_the_next_objective_sees_it():
    duel = Duel()
    loop(duel).step(toy.batch(), 0.0)
    assert duel.weights == pytest.approx([1.0, 1.0 - 0.1 * 5, 1.0 - 0.5 * 0.5])


def test_an_objective_moves_its_param_group_alone():
    duel = Duel()
    loop(duel).step(toy.batch(), 0.0)
    assert duel.a.item() == pytest.approx(0.5)  # a stands in the second loss too


def test_gradients_are_clipped_per_param_group():
    duel = Duel()
    loop(duel, clip=1.0).step(toy.batch(), 0.0)
    assert duel.a.item() == pytest.approx(0.9)


class Sum(Duel):
    """One group's two numbers, whose gradients are one and the same tensor."""

    def param_groups(self):
        return {"both": ParamGroup([self.a, self.b])}

    def objectives(self, batch):
        yield Objective("both", {"sum": (self.a + self.b).sum()})


@pytest.mark.parametrize(("precision", "clip", "step"), [("float32", 1.0, 0.5**0.5), ("float16", 0.0, 1.0)])
def test_gradients_that_share_memory_are_scaled_once(precision, clip, step):
    both = Sum()
    running = loop(both, precision=precision, clip=clip)
    running.scalers["both"] = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "float16")
    running.step(toy.batch(), 0.0)
    assert both.a.item() == both.b.item() == pytest.approx(1 - 0.1 * step)


def test_the_log_has_every_raw_term_the_rate_and_the_methods_figures():
    duel = Duel()
    running = loop(duel)
    running.step(toy.batch(), 0.0)
    (row,) = running.log
    assert row["first"] == 3 and row["small"] == 1 and row["second"] == 0.5 and row["figure"] == 1
    assert row["loss"] == pytest.approx(5.5) and row["lr"] == 0.1
    assert row["norm_one"] == pytest.approx(5) and row["norm_two"] == pytest.approx(0.5)
    assert row["images_per_s"] > 0 and row["seconds"] > 0 and row["memory"] > 10


def test_a_loss_that_is_no_number_stops_and_names_the_term_the_step_and_the_images():
    duel = Duel(nan_after=4)
    running = loop(duel)
    running.step(toy.batch(), 0.0)
    left = duel.b.item()
    with pytest.raises(
        BadInput, match=r"step 1: the loss 'second' of 'two' is nan.*train\.lr.*ann\.jpg, bob"
    ):
        running.step(toy.batch(), 0.0, ["ann.jpg", "bob.jpg"])
    assert duel.b.item() == left


class Cliff(Method):
    """A finite loss whose gradient is not: a square root at zero."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))

    def objectives(self, batch):
        yield Objective("reid", {"root": self.a.sqrt().sum()})


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights():
    cliff = Cliff()
    with pytest.raises(BadInput, match=r"step 0: the gradient of 'reid' has the norm inf"):
        loop(cliff, clip=1.0).step(toy.batch(), 0.0)
    assert cliff.a.item() == 0


def test_training_names_the_images_of_the_step_that_failed():
    with pytest.raises(BadInput, match=r"Images of the batch: (row \d+, ){3}row \d+\."):
        train_model(Cliff(), toy.people(), toy.schedule(**PLAN), 1)


def test_every_epoch_begins_with_the_plain_training_images():
    duel = Duel()
    log = train_model(duel, toy.people(), toy.schedule(**PLAN), 1)
    assert duel.epochs == [(0, 16), (1, 16)] and len(log) == 8 and not duel.training


RATES = {(0.0, 10, 0.0): 1, (5.0, 10, 0.0): 0.55, (10.0, 10, 0.0): 0.1, (0.0, 10, 2.0): 0.01}


@pytest.mark.parametrize(("at", "share"), RATES.items())
def test_the_rate_follows_a_cosine_under_a_linear_warm_up(at, share):
    assert lr_factor(*at, floor=0.1) == pytest.approx(share)


OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize(("name", "kind"), OPTIMISERS.items())
def test_a_param_group_without_settings_has_the_schedules_optimiser(name, kind):
    running = loop(Duel(), optimiser=name, decay=0.25)
    (group,) = running.optimisers["one"].param_groups
    assert (
        isinstance(running.optimisers["one"], kind) and group["weight_decay"] == 0.25 and group["lr"] == 0.1
    )
    assert isinstance(running.optimisers["two"], torch.optim.SGD) and running.base_lr["two"] == [0.5]


class Rates(Method):
    """Two layers, whose gradients are all 1, as parameters of one group."""

    def __init__(self, schedule=None):
        super().__init__()
        self.near, self.far, self.schedule = nn.Linear(1, 1), nn.Linear(1, 1), schedule
        for p in self.parameters():
            nn.init.zeros_(p)

    def param_groups(self):
        scaled = [([self.far.weight, self.far.bias], 0.25)]
        return {"reid": ParamGroup(list(self.parameters()), schedule=self.schedule, scaled=scaled)}

    def objectives(self, batch):
        yield Objective("reid", {"sum": sum(p.sum() for p in self.parameters())})


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_and_scaled_parameters_have_a_multiple_of_the_rate(name):
    model = Rates()
    running = loop(model, bias_lr=2.0, optimiser=name, floor=0.0, epochs=2)
    running.step(toy.batch(), 1.0)  # half of the cosine
    steps = [-model.near.weight, -model.near.bias, -model.far.weight, -model.far.bias]
    assert [s.item() for s in steps] == pytest.approx([0.05, 0.1, 0.0125, 0.025], rel=1e-4)
    assert running.log[0]["lr"] == pytest.approx(0.05) and running.log[0]["norm_reid"] == pytest.approx(2)


def test_one_limit_holds_for_all_rates_of_a_group():
    model = Rates()
    loop(model, clip=1.0).step(toy.batch(), 0.0)
    moved = [-model.near.weight.item(), -model.far.bias.item()]
    assert moved == pytest.approx([0.05, 0.0125])  # gradients of norm 2


def test_a_constant_rate_has_no_warm_up_and_no_cosine():
    plan = {"floor": 0.0, "epochs": 2, "warmup": 1.0}
    constant, cosine = Rates("constant"), Rates()
    for model in (constant, cosine):
        loop(model, **plan).step(toy.batch(), 0.0)
    assert constant.near.weight.item() == pytest.approx(-0.1) and cosine.near.weight.item() > -0.0011


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_group_of_several_rates_resumes_to_the_same_bytes(name, tmp_path):
    plan = {"bias_lr": 2.0, "optimiser": name, "floor": 0.0, "warmup": 1.0}
    whole, rng = Rates(), np.random.default_rng(0)
    running = loop(whole, **plan)
    for progress in (0.0, 0.5, 1.0):
        running.step(toy.batch(), progress)
        torn = Rates()  # a new process at each step
        resumed, saves = loop(torn, **plan), checkpoint.Checkpoints(tmp_path, 0.0)
        saves.resume(resumed, rng)
        resumed.step(toy.batch(), progress)
        saves.step(resumed, rng.bit_generator.state, None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), torn.parameters(), strict=True))


class Idle(Duel):
    """A group with a parameter that no loss reads."""

    def param_groups(self):
        return {"one": ParamGroup([self.a, self.b])}

    def objectives(self, batch):
        yield Objective("one", {"first": self.a.sum()})


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_parameter_without_a_gradient_stays_and_does_not_decay(name, precision):
    idle = Idle()
    running = loop(idle, optimiser=name, decay=0.5, clip=1.0, precision=precision)
    running.scalers["one"] = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "float16")
    running.step(toy.batch(), 0.0)
    assert idle.b.item() == 1 and idle.a.item() < 1


def test_the_same_seed_gives_the_same_weights():
    people = toy.people()
    first, second, other = (toy.model(people) for _ in range(3))
    plan = toy.schedule(epochs=1)
    logs = [train_model(m, people, plan, s) for m, s in ((first, 1), (second, 1), (other, 2))]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert logs[0].drop(columns=[*TIMES]).equals(logs[1].drop(columns=[*TIMES]))
    assert logs[0]["loss"].tolist() != logs[2]["loss"].tolist()


def test_bfloat16_is_for_the_network_and_float32_for_losses_and_weights():
    people = toy.people()
    model = toy.model(people)
    running = steps.Loop(model, toy.schedule(precision="bfloat16"), torch.device("cpu"))
    running.step(toy.batch(people), 0.5)
    exact = steps.Loop(toy.model(people), toy.schedule(), torch.device("cpu"))
    exact.step(toy.batch(people), 0.5)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert running.log[0]["encoder"] == pytest.approx(exact.log[0]["encoder"], rel=0.02)


def test_float16_learns_under_a_scaled_loss():
    people = toy.people()
    running = steps.Loop(toy.model(people), toy.schedule(precision="float16"), torch.device("cpu"))
    running.scalers["reid"] = torch.amp.GradScaler("cpu", init_scale=256.0)
    exact = steps.Loop(toy.model(people), toy.schedule(), torch.device("cpu"))
    running.step(toy.batch(people), 0.5)
    exact.step(toy.batch(people), 0.5)
    (row,), (wanted,) = running.log, exact.log
    assert row["scale_reid"] == 256 and row["norm_reid"] == pytest.approx(wanted["norm_reid"], rel=0.02)
    assert row["encoder"] == pytest.approx(wanted["encoder"], rel=0.02)


def test_a_gradient_that_overflows_float16_is_left_out_and_the_scale_halved():
    duel = Duel()
    running = loop(duel, precision="float16")
    running.scalers["one"] = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    running.step(toy.batch(), 0.0)
    assert duel.a.item() == 1.0 and running.log[0]["scale_one"] == 2.0**126


def test_momentum_begins_at_nothing_where_the_first_gradient_overflows(monkeypatch):
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))  # memory as found
    duel = Duel()
    running = loop(duel, precision="float16")
    running.scalers["one"] = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    running.step(toy.batch(), 0.0)
    running.scalers["one"] = torch.amp.GradScaler("cpu", init_scale=2.0)
    running.step(toy.batch(), 0.0)
    assert duel.a.item() == pytest.approx(1 - 0.1 * 5)


def test_a_gradient_that_overflows_float16_at_any_scale_stops_the_run():
    running = loop(Cliff(), precision="float16")
    running.scalers["reid"] = torch.amp.GradScaler("cpu", init_scale=2.0)
    running.step(toy.batch(), 0.0)
    with pytest.raises(BadInput, match="step 1: the gradient of 'reid' overflows float16"):
        running.step(toy.batch(), 0.0)


# ------------------------------------------------------------------ methods by name, presets, the record


def test_a_method_is_found_by_its_name_and_an_unknown_one_lists_them():
    assert load_method("ogfr").__name__ == "pipeline.methods.ogfr"
    for name in ("ogfrr", "__init__", ""):
        with pytest.raises(BadInput, match=rf"method = {name}: no such method.*ogfr, .*vit_baseline"):
            load_method(name)


def test_null_means_the_presets_value_and_anything_else_stays():
    ours, theirs = toy.schedule(lr=None), toy.schedule("paper", lr=0.5)
    assert ours.optimiser == "adamw" and theirs.optimiser == "sgd" and theirs.lr == 0.5
    assert theirs.obstacles.area == (0.05, 0.2) and theirs.epochs == 120


def test_every_null_of_params_yaml_has_a_preset():
    for preset in ("recommended", "paper"):
        for chosen in (toy.settings(preset), toy.schedule(preset)):
            assert None not in vars(chosen).values()
            assert None not in vars(getattr(chosen, "obstacles", chosen)).values()


def test_a_folder_without_a_model_or_with_a_damaged_record_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="no trained model"):
        load_trained(tmp_path)
    (tmp_path / "record.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"record\.json: damaged"):
        load_trained(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", "1", '{"method": ["ogfr"], "vit": null}'])
def test_a_record_of_something_else_is_no_trained_model(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BadInput, match=r"record\.json: has no method, params, data_spec, vit\. Name a"):
        load_trained(tmp_path)


def test_a_record_is_plain_json_and_holds_all_that_a_run_depends_on():
    plan, people = toy.schedule(), toy.people()
    records = [run_record(toy.model(people, seed), plan, 1, {"index": "abc"}) for seed in (0, 0, 1)]
    parsed = json.loads(json.dumps(records[0]))
    assert parsed["train"]["lr"] == plan.lr and parsed["seed"] == 1 and parsed["data"] == {"index": "abc"}
    assert parsed["machine"]["device"] == "cpu" and torch.__version__.startswith(parsed["versions"]["torch"])
    assert records[0] == records[1] and records[0]["start"] != records[2]["start"]


# ------------------------------------------------------------------ killed, and resumed


def run(folder, preset, every=0.0, precision="float32", held_out=False):
    """Train a tiny model with its state in a folder, and leave its weights and log there."""
    torch.set_num_threads(1)
    torch.manual_seed(99)  # what another process may have drawn before does not matter
    people = toy.people()
    plan = toy.schedule(preset, epochs=3, lr=1e-3, precision=precision)
    model, held_out_people = toy.model(people, preset=preset), toy.people(seed=3) if held_out else None
    set_drop_path(model.encoder.blocks, plan.drop_path)
    log = train_model(model, people, plan, 5, None, held_out_people, checkpoint.Checkpoints(folder, every))
    torch.save(model.state_dict(), folder / "end.pt")
    log.drop(columns=[*TIMES]).to_csv(folder / "end.csv")


def in_a_process(folder, arguments, until=None, stop=signal.SIGKILL):
    """Call `run` in a process of its own, and stop that when its log has so many lines."""
    context = multiprocessing.get_context("forkserver")  # no fork of this process, which may have threads
    context.set_forkserver_preload([__name__])
    child = context.Process(target=run, args=(folder, *arguments))
    child.start()
    rows = folder / "log.jsonl"
    while until and child.is_alive() and len(rows.read_text().split("\n") if rows.exists() else []) <= until:
        time.sleep(0.001)
    if until:
        os.kill(child.pid, stop)
    child.join()
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "arguments"),
    [
        (signal.SIGKILL, ("recommended", 0.0)),
        (signal.SIGTERM, ("paper", 0.3)),
        (signal.SIGKILL, ("recommended", 0.0, "bfloat16", True)),
        (signal.SIGKILL, ("recommended", 0.0, "float16")),
    ],
)
def test_a_run_that_was_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(
    tmp_path, stop, arguments, seed
):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    assert in_a_process(whole, arguments) == 0
    rng = np.random.default_rng(seed)
    for step in sorted(rng.integers(1, 9, 3)):
        assert in_a_process(torn, arguments, step, stop) == -stop
    assert in_a_process(torn, arguments) == 0
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (whole, torn)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (whole / "end.csv").read_text() == (torn / "end.csv").read_text()
    lines = [len((folder / "log.jsonl").read_text().splitlines()) for folder in (whole, torn)]
    assert lines[0] == lines[1] >= 9


def test_a_log_that_went_further_than_the_state_is_cut_to_it(tmp_path):
    running, rng = loop(Duel()), np.random.default_rng(0)
    running.step(toy.batch(), 0.0)
    checkpoint.Checkpoints(tmp_path, 0.0).step(running, rng.bit_generator.state, None)
    one = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(one + one + '{"step": 2, "epo')
    again = loop(Duel())
    checkpoint.Checkpoints(tmp_path, 0.0).resume(again, rng)
    assert (tmp_path / "log.jsonl").read_text() == one and again.log == running.log


def test_a_damaged_state_is_an_error_that_names_it(tmp_path):
    running, rng = loop(Duel()), np.random.default_rng(0)
    running.step(toy.batch(), 0.0)
    checkpoint.Checkpoints(tmp_path, 0.0).step(running, rng.bit_generator.state, None)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"state\.pt: cannot be read \(log\.jsonl ends before it\)"):
        checkpoint.Checkpoints(tmp_path, 0.0).resume(loop(Duel()), rng)
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(BadInput, match=r"state\.pt: cannot be read.*Delete"):
        checkpoint.Checkpoints(tmp_path, 0.0).resume(loop(Duel()), rng)


def test_the_state_is_written_no_more_often_than_asked(tmp_path):
    saves, running = checkpoint.Checkpoints(tmp_path, 3600.0), loop(Duel())
    running.step(toy.batch(), 0.0)
    saves.step(running, np.random.default_rng(0).bit_generator.state, None)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


# ------------------------------------------------------------------ which epoch is kept


def test_held_out_identities_are_not_trained_on_and_are_numbered_anew():
    people = toy.people(identities=5)
    names = [f"{p}-{i}" for i, p in enumerate(people.pid)]
    train, kept, aside = selection.hold_out(people, names, 2, 1)
    assert len(train) == 12 and len(aside) == 8 and len(kept) == 12
    assert set(train.pid) == {0, 1, 2} and set(aside.pid) == {0, 1}
    assert [train.image[i].tolist() for i in range(12)] == [
        people.image[int(name.split("-")[1])].tolist() for name in kept
    ]
    assert selection.hold_out(people, names, 0, 1) == (people, names, None)
    with pytest.raises(BadInput, match=r"train\.held_out = 5, but there are only 5"):
        selection.hold_out(people, names, 5, 1)


def test_a_camera_that_only_held_out_people_passed_is_unknown():
    people = toy.people(identities=2)
    people.camid[people.pid == 0] = 7
    for seed in range(4):
        train, _, aside = selection.hold_out(people, [""] * 8, 1, seed)
        assert set(aside.camid) == {-1}, set(train.camid)


PRECISION = {  # places on a line, persons, cameras: average precision of each image that has a match
    "all apart": ([0, 9, 1, 8], [1, 2, 1, 2], [0, 0, 1, 1], [1]),
    "nearest is another": ([0, 1, 3, 4], [1, 2, 1, 2], [0, 0, 1, 1], [1 / 2, 1 / 3, 1 / 3, 1 / 2]),
    "own camera is junk": (
        [0, 0, 5, 9],
        [1, 1, 2, 1],
        [0, 0, 0, 1],
        (1 / 2 + 1 / 2 + (1 / 2 + 2 / 3) / 2) / 3,
    ),
    "unknown cameras hide nothing": ([0, 1, 9], [1, 1, 2], [-1, -1, -1], [1]),
    "nor is an image found by itself": ([0, 1, 3], [1, 2, 1], [-1, -1, -1], [1 / 2, 1 / 2]),
    "nobody twice": ([0, 1], [1, 2], [0, 1], [0]),
}


@pytest.mark.parametrize("name", PRECISION)
def test_the_score_is_the_mean_average_precision_across_cameras(name):
    place, pid, camid, wanted = PRECISION[name]
    gap = np.abs(np.subtract.outer(place, place)).astype(np.float32)
    assert selection.mean_average_precision(gap, np.array(pid), np.array(camid)) == pytest.approx(
        np.mean(wanted)
    )


def test_hidden_parts_do_not_count_in_the_distance_and_none_in_common_is_infinitely_far():
    parts = torch.tensor([[[1.0, 0], [1, 0]], [[0, 2], [3, 0]], [[1, 0], [0, 1]]])
    visibility = torch.tensor([[1.0, 1], [0, 1], [1, 0]])
    gap = distances(parts, parts, visibility, visibility)
    assert gap[0, 1] == pytest.approx(0, abs=1e-5) and gap[0, 2] == pytest.approx(0, abs=1e-5)
    assert gap[1, 2] == math.inf


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.integers(0, 10**6), st.integers(2, 30))
def test_held_out_images_are_ranked_as_evaluate_ranks(seed, count):
    rng = np.random.default_rng(seed)
    parts = torch.from_numpy(rng.standard_normal((count, 3, 8), np.float32))
    visibility = torch.from_numpy(rng.choice([0, 0.5, 1], (count, 3)).astype(np.float32))
    visibility[:, 0] = 1  # the global feature
    pid, camid = rng.integers(1, 5, count), rng.integers(-1, 3, count)
    alone = np.where(camid < 0, 3 + np.arange(count), camid)  # unknown: a camera that took nothing else
    images = ranking.Embedded(parts, visibility, pid, alone)  # an image is on its own camera
    ap = ranking.rank(images, images, workers=1).ap
    wanted = np.nanmean(ap) if np.isfinite(ap).any() else 0
    gap = distances(parts, parts, visibility, visibility).numpy()
    assert selection.mean_average_precision(gap, pid, camid) == pytest.approx(wanted)


class Forgetful(Duel):
    """Sees an image's colours in its first epoch, and nothing from then on."""

    def embed(self, batch):
        image = batch.holistic.image.float().flatten(1)[:, None]
        features = image if len(self.epochs) == 1 else torch.ones_like(image)
        return Embedding(features, torch.ones(len(image), 1))


class Masked(Duel):
    """Embeds the noise of an image's ground, of which its own query looks at some."""

    def embed(self, batch):
        noise = batch.holistic.image.float()[:, :, 0] / 120 - 1
        return Embedding(noise[:, :1], torch.ones(len(noise), 1), noise[:, 1:2].abs() + 0.01)


def test_held_out_images_are_ranked_under_the_gate_of_each_query():
    people = toy.people(identities=5, seed=2)
    embedding = Masked().embed(eval_batch(people))
    score = lambda gate: ranking.rank(  # noqa: E731
        ranking.Embedded(embedding.parts, embedding.visibility, people.pid + 1, people.camid, gate),
        ranking.Embedded(embedding.parts, embedding.visibility, people.pid + 1, people.camid),
    ).ap.mean()
    held_out = selection.score(Masked(), people, 7, torch.device("cpu"))
    assert held_out == pytest.approx(score(embedding.gate)) != pytest.approx(score(None), abs=1e-3)


class Empty(Duel):
    """Embeds every image as nothing."""

    def embed(self, batch):
        return Embedding(torch.zeros(len(batch.pid), 1, 2), torch.ones(len(batch.pid), 1))


def test_held_out_images_that_embed_as_nothing_rank_no_epoch():
    with pytest.raises(BadInput, match=r"held-out features: zeros, or .* in a visible part in 16 of 16"):
        selection.score(Empty(), toy.people(), 8, torch.device("cpu"))


def test_the_epoch_that_ranks_held_out_people_best_is_kept():
    people, plan = toy.people(), toy.schedule(**PLAN)
    first, both = Forgetful(), Forgetful()
    train_model(first, people, toy.schedule(**{**PLAN, "epochs": 1}), 1)
    log = train_model(both, people, plan, 1, held_out=people)
    scores = log["held_out_mAP"].dropna()
    assert scores.index.tolist() == [3, 7] and scores[3] > scores[7]
    assert both.a.item() == first.a.item()
