"""Two processes with half a batch each compute the losses and gradients of one with the whole batch."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import run

from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.methods import fed, transreid
from pipeline.methods.base import Method, Objective, ParamGroup, data_spec, load_method
from pipeline.methods.presets import resolve
from pipeline.model import losses
from pipeline.model.layers import set_drop_path
from pipeline.studies.tables import METHODS
from pipeline.training.loop import TIMES, Loop
from pipeline.training.run import train_model
from tests import toy

PEOPLE = toy.people()
PEOPLE.parsing[:3] = 0  # images without a person, all in the slice of rank 0
PIDS = torch.from_numpy(PEOPLE.pid)


def named(name):
    """A method by its name, with the parameters of params.yaml."""
    torch.manual_seed(0)
    module = load_method(name)
    values = replace(params.read("params.yaml", name, module.Params), **toy.FITTING.get(name, {}))
    settings = resolve(values, module.PRESETS, "recommended", name)
    return module.build(settings, data_spec(PEOPLE), toy.encoder())


def diffusing():
    """A FED whose memory holds other people already."""
    torch.manual_seed(0)
    section = replace(params.read("params.yaml", "fed", fed.Params), **toy.FITTING["fed"])
    model = fed.build(resolve(section, fed.PRESETS, "recommended", "fed"), data_spec(PEOPLE), toy.encoder())
    for memory in model.memories:
        memory.centres.normal_()
    return model


def dropping():
    """An OGFR, whose encoder takes both views as one batch, and leaves out branches of its last block."""
    model = toy.model(PEOPLE, agent_optimiser="sgd")
    set_drop_path(model.encoder.blocks, 0.5)
    return model


def dropping_locals():
    """A TransReID, whose local branch is a copy of a last block with drop-path."""
    torch.manual_seed(0)
    section = params.read("params.yaml", "transreid", transreid.Params)
    vit = toy.encoder()
    set_drop_path(vit.blocks, 0.5)
    settings = resolve(replace(section, stride=16), transreid.PRESETS, "recommended", "transreid")
    return transreid.build(settings, data_spec(PEOPLE), vit)


class Pair(Method):
    """Two groups of the same kind: a step for each, the second on new weights; `idle` is in no loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.idle = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def param_groups(self):
        scaled = [([self.first.weight], 3.0)]
        return {
            "reid": ParamGroup([*self.first.parameters(), *self.idle.parameters()], scaled=scaled),
            "mask": ParamGroup(list(self.second.parameters()), schedule="constant"),
        }

    def objectives(self, batch):
        for group in ("reid", "mask"):
            colour = batch.holistic.image[..., 0, 0] / 127.5 - 1  # of a pixel: means of noise are all alike
            yield Objective(group, {group: losses.triplet(self.second(self.first(colour)), batch.pid)})


MODELS = {
    "ogfr": lambda: toy.model(PEOPLE, agent_optimiser="sgd"),
    "ogfr with drop-path": dropping,
    "transreid with drop-path": dropping_locals,
    "two groups, one of them with idle parameters": Pair,
    "ogfr, both branches erased at random": lambda: toy.model(PEOPLE, erase="random", fep="both"),
    **{name: partial(named, name) for name in sorted(METHODS - {"ogfr"})},
    "fed": diffusing,
}


def train_two_steps(build, **changes):
    """The log, last gradients and weights of two steps of SGD; Adam would amplify rounding."""
    model = build().train()
    torch.manual_seed(7)
    loop = Loop(model, toy.schedule(optimiser="sgd", lr=1e-5, **changes), torch.device("cpu"))
    for seed in (1, 2):
        loop.step(toy.batch(PEOPLE, seed, share=distributed.local_slice(len(PIDS))), 1.0)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"log": loop.log, "gradients": gradients, "weights": model.state_dict()}


def triplet_loss(scope):
    """The loss of features on a line, and its gradient, averaged over processes."""
    features = torch.linspace(0, 3, 16)[:, None].square().sin().requires_grad_()
    rows = distributed.local_slice(16)
    with distributed.mining_scope(scope):
        loss = losses.triplet(features[rows], PIDS[rows])
    (gradient,) = torch.autograd.grad(loss, features)
    return distributed.all_reduce_mean(loss), distributed.all_reduce_mean(gradient)


def weights_error():
    """The message in processes whose weights differ."""
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, float(distributed.rank()))
    try:
        distributed.check_equal_weights(network)
    except BadInput as error:
        return str(error)


def batch_error():
    """The message for three identities in two processes."""
    try:
        train_model(toy.model(PEOPLE), PEOPLE, toy.schedule(identities=3, epochs=1), 1)
    except BadInput as error:
        return str(error)


def averaged_gradients():
    """Gradients of three parameters: the second is in the loss of rank 1 alone, the third in none."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in (2, (2, 2), 1)]
    rank = distributed.rank()
    loss = (1.0 + rank) * parameters[0].sum() + (parameters[1].sum() if rank else 0)
    averaged = distributed.average_gradients(parameters)
    averaged(loss).backward(inputs=parameters)
    return [p.grad for p in parameters]


def measure():
    return {
        **{name: train_two_steps(build) for name, build in MODELS.items()},
        "statistics of each process": train_two_steps(MODELS["vit_baseline"], statistics="process"),
        "triplet": {scope: triplet_loss(scope) for scope in ("batch", "process")},
        "gradients": averaged_gradients(),
    }


def measure_as_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    errors = {"weights_error": weights_error(), "batch_error": batch_error()}
    torch.save(measure() | errors | {"first": distributed.broadcast_object(rank)}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The measurements of one process alone, then those of each of two."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=measure_as_rank, args=(rank, folder)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    halves = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return measure(), *halves


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_losses_the_figures_and_the_gradient_of_one(runs, name):
    whole, *halves = (run[name] for run in runs)
    for half in halves:
        for row, wanted in zip(half["log"], whole["log"], strict=True):
            assert row.keys() == wanted.keys()
            same = {column: row[column] for column in row if column not in TIMES}
            assert same == pytest.approx({column: wanted[column] for column in same}, rel=1e-5, abs=1e-6)
        assert half["gradients"].keys() == whole["gradients"].keys()
        got, wanted = (torch.cat([g.flatten() for g in r["gradients"].values()]) for r in (half, whole))
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_hold_the_same_weights_and_statistics(runs, name):
    whole, first, second = (run[name]["weights"] for run in runs)
    for n in first:
        assert torch.equal(first[n], second[n]), n
        torch.testing.assert_close(first[n], whole[n], rtol=1e-5, atol=1e-6, msg=n)


def test_batch_statistics_of_a_local_slice_differ_and_weights_do_not(runs):
    _, first, second = (run["statistics of each process"]["weights"] for run in runs)
    differ = {n for n in first if not torch.equal(first[n], second[n])}
    assert differ == {"head.necks.0.running_mean", "head.necks.0.running_var"}


def test_mining_in_the_batch_equals_one_process_and_in_slices_their_mean(runs):
    whole, *halves = (run["triplet"] for run in runs)
    mean_of_slices = torch.stack([local_loss(rows) for rows in (slice(0, 8), slice(8, 16))]).mean()
    for half in halves:
        for got, wanted in zip(half["batch"], whole["batch"], strict=True):
            torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(half["process"][0], mean_of_slices)
    assert not torch.isclose(mean_of_slices, whole["batch"][0])


def local_loss(rows):
    return losses.triplet(torch.linspace(0, 3, 16)[rows, None].square().sin(), PIDS[rows])


def test_a_gradient_that_some_process_has_is_averaged_and_one_that_none_has_is_none(runs):
    for half in runs[1:]:
        first, second, third = half["gradients"]
        assert first.tolist() == [1.5, 1.5] and second.tolist() == [[0.5] * 2] * 2 and third is None


def test_processes_that_differ_stop(runs):
    for half in runs[1:]:
        assert "the 2 processes differ in their weights" in half["weights_error"] and half["first"] == 0


def test_a_batch_that_the_world_size_does_not_divide_is_an_error(runs):
    assert "train.identities = 3 cannot be shared by 2 processes" in runs[1]["batch_error"]


def test_without_torchrun_values_stay_as_they_are():
    x = torch.ones(2)
    assert (
        distributed.all_gather(x) is x
        and distributed.all_reduce_mean(x) is x
        and distributed.gather_candidates(x) is x
    )
    assert distributed.local_slice(6) == slice(0, 6) and not distributed.run_torchrun(1, "stages.train", [])


def test_each_process_of_a_machine_has_another_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.local_device("cuda") == distributed.local_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (
        distributed.local_device("cuda") == torch.device("cuda", 1)
        and distributed.local_device("cpu").type == "cpu"
    )
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadInput, match="process 2 has no GPU: torch sees 2"):
        distributed.local_device("cuda")


NO_DEVICE = {  # what a caller gives: what the user reads
    "gpu": "device = 'gpu': no such device. Choose cpu or cuda.",
    "meta": "device = 'meta': no such device",
    None: "device = None: no such device",
    "cuda": "device = 'cuda': torch sees no such GPU",
    "cuda:99": "device = 'cuda:99': torch sees no such GPU",
}


@pytest.mark.parametrize("name", NO_DEVICE)
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BadInput, match=NO_DEVICE[name]):
        distributed.parse_device(name)


def test_a_device_may_be_named_or_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (
        distributed.parse_device("cpu")
        == distributed.parse_device(torch.device("cpu"))
        == torch.device("cpu")
    )
    assert distributed.parse_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput, match="Choose cpu, or another one"):
        distributed.parse_device("cuda:2")


def test_more_processes_than_gpus_are_refused_but_any_number_computes_on_the_cpu(monkeypatch):
    started = []
    monkeypatch.setattr(run, "main", started.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match=r"processes\.segment = 2, but this machine has 1 GPU\."):
        distributed.run_torchrun(2, "stages.segment", ["index"], "cuda")
    assert not started and distributed.run_torchrun(2, "stages.segment", ["index"], "cpu")
    assert started == [["--standalone", "--nproc-per-node=2", "-m", "stages.segment", "index"]]


FAILS = """
from pipeline.core import distributed
from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput

def main():
    if not distributed.run_torchrun(2, "fails", []):
        with distributed.process_group():
            if distributed.rank() == 1:
                raise BadInput("of process 1")
            distributed.check_equal_across_ranks("all", 0)  # waits for the one that is gone

if __name__ == "__main__":
    run_stage(main, [])
"""


@pytest.mark.slow
def test_a_failing_process_stops_all_with_an_error(tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    done = subprocess.run(
        [sys.executable, "-m", "fails"],
        env={"PYTHONPATH": f".:{tmp_path}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "of process 1" in done.stderr
    assert done.stderr.endswith("\nfails: one of 2 processes failed, as said above; all are stopped.\n")
