"""Weights: every tensor of a file has a place in its network, and every tensor of the network is set."""

import argparse
import contextlib
import io
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.core import weights
from pipeline.core.params import BadInput


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


TENSORS = network().state_dict()
prefix = st.lists(st.sampled_from(["module", "model", "net", "base", "backbone", "encoder"]), max_size=3)


@hypothesis.given(prefix)
def test_a_prefix_of_all_names_is_stripped_and_said(parts):
    before, target = "".join(f"{part}." for part in parts), network()
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        weights.load_strict(target, {f"{before}{n}": t for n, t in TENSORS.items()}, "w.pth", "")
    assert all(torch.equal(t, TENSORS[n]) for n, t in target.state_dict().items())
    assert printed.getvalue() == (f"w.pth: prefix '{before}' stripped\n" if before else "")


FAULTS = {
    "1 missing (0.bias)": lambda t: t.pop("0.bias"),
    "1 unexpected (head.weight)": lambda t: t.update({"head.weight": torch.zeros(1)}),
    "1 mis-shaped (2.weight (1, 4) instead of (1, 3))": lambda t: t.update({"2.weight": torch.zeros(1, 4)}),
    "1 mis-typed (2.weight torch.int8 instead of torch.float32)": lambda t: t.update(
        {"2.weight": torch.zeros(1, 3, dtype=torch.int8)}
    ),
    "1 tensor with numbers that are not finite (2.weight)": lambda t: t.update(
        {"2.weight": torch.full((1, 3), torch.nan)}
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_tensor_without_a_place_or_a_place_without_a_tensor_is_named(message):
    tensors = dict(TENSORS)
    FAULTS[message](tensors)
    with pytest.raises(BadInput) as error:
        weights.load_strict(network(), tensors, "w.pth", "Name another.")
    assert message in str(error.value) and str(error.value).endswith("Name another.")


def test_three_tensors_of_a_kind_are_named_and_the_rest_counted():
    with pytest.raises(BadInput) as error:
        weights.load_strict(network(), {f"x{n}": torch.zeros(1) for n in range(5)}, "w.pth", "")
    assert "9 missing (0.weight, 0.bias, 1.weight, and 6 more)" in str(error.value)
    assert "5 unexpected (x0, x1, x2, and 2 more)" in str(error.value)


def test_a_prefix_of_some_names_alone_is_no_prefix():
    tensors = {f"module.{n}": t for n, t in TENSORS.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(BadInput, match=r"unexpected \(module\.0\.weight"):
        weights.load_strict(network(), tensors, "w.pth", "")


@pytest.mark.parametrize("key", weights.NESTED)
def test_a_state_dict_is_read_from_a_checkpoint_of_plain_values(tmp_path, key):
    torch.save({key: TENSORS, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "checkpoint.pth")
    assert weights.read(tmp_path / "checkpoint.pth").keys() == TENSORS.keys()


class Malicious:
    """Runs a command where it is unpickled: it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


BESIDE = {  # what lies beside the tensors: the name of what is not read, and whether `convert` reads it
    "arguments": (lambda _: argparse.Namespace(lr=0.1), r"argparse\.Namespace", True),
    "a rate": (lambda _: [{"lr": np.float64(0.1), "step": np.int64(3)}], r"numpy\.\S*\.scalar", True),
    "arguments that are rates": (lambda _: argparse.Namespace(lr=np.float32(1)), r"argparse\S*", True),
    "a path": (Path, r"pathlib\.\w+", False),
    "an array": (lambda _: np.zeros(3), r"numpy\.\S*_reconstruct", False),
    "objects": (lambda _: np.array([Path()], object), r"numpy\.\S*_reconstruct", False),
    "a network": (lambda _: network(), r"torch\.nn\.\S*\.Sequential", False),
    "a command": (Malicious, r"\w+\.system", False),
    "a command in arguments": (lambda path: argparse.Namespace(x=Malicious(path)), r"\S+", False),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", BESIDE)
def test_a_pickle_of_more_than_tensors_is_named_and_never_run(tmp_path, case, zipped):
    make, name, converts = BESIDE[case]
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    content = {"teacher": TENSORS, "beside": make(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    command = rf"`python -m pipeline convert {path} {path.with_suffix('.safetensors')}`"
    with pytest.raises(
        BadInput, match=rf"checkpoint\.pth: holds {name}, which is refused.*{command}"
    ) as error:
        weights.read(path)
    assert error.value.args[0].count("\n") == 0
    if converts:
        assert weights.read(path, weights.BESIDE).keys() == TENSORS.keys()
    else:
        with pytest.raises(BadInput, match=r"holds (?!argparse)\S+, which is refused.*state dict alone"):
            weights.read(path, weights.BESIDE)
    assert not trace.exists()


def test_numbers_of_an_older_numpy_are_read_too(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {"model": TENSORS, "lr": np.float64(0.1)},
        path,
        pickle_protocol=2,
        _use_new_zipfile_serialization=False,
    )
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert weights.read(path, weights.BESIDE).keys() == TENSORS.keys()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.pth").write_text("no checkpoint" * 30)
    with pytest.raises(
        BadInput, match=r"notes\.pth: no checkpoint of plain tensors \(.*saved by torch\.save"
    ):
        weights.read(tmp_path / "notes.pth")


def test_a_teachers_weights_come_before_its_students(tmp_path):
    student = {n: t + 1 for n, t in TENSORS.items()}
    torch.save({"student": student, "teacher": TENSORS}, tmp_path / "dino.pth")
    assert torch.equal(weights.read(tmp_path / "dino.pth")["0.bias"], TENSORS["0.bias"])
    names = [f"{who}.{n}" for who in ("student.module", "teacher") for n in TENSORS]
    assert weights.prefixes(names, "0.bias") == ["teacher.", "student.module."]


def test_a_file_of_other_tensors_is_no_network_of_ours(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match=r"a\.st: made for another network: 9 missing.*1 unexpected \(a\)"):
        weights.load_strict(network(), weights.read(tmp_path / "a.safetensors"), "a.st", "")
