"""Two processes with half a batch each are one process with the whole."""

import multiprocessing
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import run

from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.methods import vit_baseline
from pipeline.methods.base import data_spec, resolve
from pipeline.model import losses
from pipeline.training.loop import Loop
from pipeline.training.run import train_model
from tests import toy
from tests.training.test_training import MEASURED

PEOPLE = toy.people()
PEOPLE.parsing[:3] = 0  # nobody was found on these, and they lie in one share
PIDS = torch.from_numpy(PEOPLE.pid)


def baseline():
    torch.manual_seed(0)
    given = params.read("params.yaml", "vit_baseline", vit_baseline.Params)
    settings = resolve(given, vit_baseline.PRESETS, "recommended", "vit_baseline")
    return vit_baseline.build(settings, data_spec(PEOPLE), toy.encoder())


MODELS = {
    "ogfr": lambda: toy.model(PEOPLE, agent_optimiser="sgd"),
    "ogfr, both branches erased at random": lambda: toy.model(PEOPLE, erase="random", fep="both"),
    "vit_baseline": baseline,
}


def learn(build, **changes):
    """Two steps of SGD, as Adam makes much of rounding; the log, the last gradients, the weights left."""
    model = build().train()
    torch.manual_seed(7)
    loop = Loop(model, toy.schedule(optimiser="sgd", lr=1e-5, **changes), torch.device("cpu"))
    for seed in (1, 2):
        loop.step(toy.batch(PEOPLE, seed, own=distributed.local_slice(len(PIDS))), 1.0)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"log": loop.log, "gradients": gradients, "weights": model.state_dict()}


def triplet(scope):
    """The loss of features on a line, and its gradient, averaged over processes."""
    features = torch.linspace(0, 3, 16)[:, None].square().sin().requires_grad_()
    own = distributed.local_slice(16)
    with distributed.mining_scope(scope):
        loss = losses.triplet(features[own], PIDS[own])
    (gradient,) = torch.autograd.grad(loss, features)
    return distributed.all_reduce_mean(loss), distributed.all_reduce_mean(gradient)


def unequal():
    """What two processes say that differ."""
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, float(distributed.rank()))
    try:
        distributed.check_equal_weights(network)
    except BadInput as error:
        return str(error)


def odd():
    try:
        train_model(toy.model(PEOPLE), PEOPLE, toy.schedule(identities=3, epochs=1), 1)
    except BadInput as error:
        return str(error)


def missing():
    """Gradients of three parameters: of the second the loss of process 1 alone is made, of the third none."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in (2, (2, 2), 1)]
    n = distributed.rank()
    loss = (1.0 + n) * parameters[0].sum() + (parameters[1].sum() if n else 0)
    averaged = distributed.average_gradients(parameters)
    averaged(loss).backward(inputs=parameters)
    return [p.grad for p in parameters]


def all_of_it():
    return {
        **{name: learn(build) for name, build in MODELS.items()},
        "own statistics": learn(baseline, statistics="process"),
        "triplet": {scope: triplet(scope) for scope in ("batch", "process")},
        "missing": missing(),
    }


def one_of_two(number, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    found = all_of_it() | {"unequal": unequal(), "odd": odd(), "first": distributed.broadcast_object(number)}
    torch.save(found, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds, and what each of two does."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=one_of_two, args=(n, folder)) for n in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    two = [torch.load(folder / f"{n}.pt", weights_only=True) for n in (0, 1)]
    return all_of_it(), *two


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_losses_the_figures_and_the_gradient_of_one(found, name):
    whole, *halves = (run[name] for run in found)
    for half in halves:
        for row, wanted in zip(half["log"], whole["log"], strict=True):
            assert row.keys() == wanted.keys()
            same = {column: row[column] for column in row if column not in MEASURED}
            assert same == pytest.approx({column: wanted[column] for column in same}, rel=1e-5, abs=1e-6)
        assert half["gradients"].keys() == whole["gradients"].keys()
        got, wanted = (torch.cat([g.flatten() for g in r["gradients"].values()]) for r in (half, whole))
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_hold_the_same_weights_and_statistics(found, name):
    whole, first, second = (run[name]["weights"] for run in found)
    for n in first:
        assert torch.equal(first[n], second[n]), n
        torch.testing.assert_close(first[n], whole[n], rtol=1e-5, atol=1e-6, msg=n)


def test_statistics_of_ones_own_share_differ_and_weights_do_not(found):
    _, first, second = (run["own statistics"]["weights"] for run in found)
    differ = {n for n in first if not torch.equal(first[n], second[n])}
    assert differ == {"neck.running_mean", "neck.running_var"}


def test_mining_in_the_batch_is_one_processes_and_in_a_share_the_mean_of_the_shares(found):
    whole, *halves = (run["triplet"] for run in found)
    shares = torch.stack([found_loss(own) for own in (slice(0, 8), slice(8, 16))]).mean()
    for half in halves:
        for got, wanted in zip(half["batch"], whole["batch"], strict=True):
            torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(half["process"][0], shares)
    assert not torch.isclose(shares, whole["batch"][0])


def found_loss(own):
    return losses.triplet(torch.linspace(0, 3, 16)[own, None].square().sin(), PIDS[own])


def test_a_gradient_that_some_process_has_is_averaged_and_one_that_none_has_is_none(found):
    for half in found[1:]:
        first, second, third = half["missing"]
        assert first.tolist() == [1.5, 1.5] and second.tolist() == [[0.5] * 2] * 2 and third is None


def test_processes_that_differ_stop(found):
    for half in found[1:]:
        assert "the 2 processes differ in their weights" in half["unequal"] and half["first"] == 0


def test_a_batch_that_cannot_be_shared_is_an_error(found):
    assert "train.identities = 3 cannot be shared by 2 processes" in found[1]["odd"]


def test_alone_everything_is_as_given():
    x = torch.ones(2)
    assert (
        distributed.all_gather(x) is x
        and distributed.all_reduce_mean(x) is x
        and distributed.gather_candidates(x) is x
    )
    assert distributed.local_slice(6) == slice(0, 6) and not distributed.run_torchrun(1, "stages.train", [])


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
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
    with pytest.raises(BadInput, match=r"segment\.processes = 2, but this machine has 1 GPU\."):
        distributed.run_torchrun(2, "stages.segment", ["index"], "cuda")
    assert not started and distributed.run_torchrun(2, "stages.segment", ["index"], "cpu")
    assert started == [["--standalone", "--nproc-per-node=2", "-m", "stages.segment", "index"]]


FAILS = """
from pipeline import processes, store
from pipeline.params import BadInput

def main():
    if not distributed.run_torchrun(2, "fails", []):
        with distributed.process_group():
            if distributed.rank() == 1:
                raise BadInput("of process 1")
            distributed.check_equal_across_ranks("all", 0)  # waits for the one that is gone

if __name__ == "__main__":
    cli.run_stage(main, [])
"""


def test_one_that_fails_ends_all_with_an_error(tmp_path):
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
