"""The command that makes plain tensors of a checkpoint, as the error of a refused one says."""

import argparse
import shlex
import sys

import numpy as np
import pytest
import torch

from pipeline import __main__
from pipeline.core import weights
from pipeline.core.params import BadInput

TENSORS = {"module.backbone.norm.weight": torch.arange(4.0), "module.head.bias": torch.ones(2).half()}
CHECKPOINT = {
    "student": {n: t + 1 for n, t in TENSORS.items()},
    "teacher": TENSORS,
    "optimizer": {"param_groups": [{"lr": np.float64(1e-4)}]},
    "args": argparse.Namespace(arch="vit_small"),
}


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["x/__main__.py", *map(str, words)])
    __main__.main()
    return capsys.readouterr().out


def test_the_command_that_a_refusal_names_makes_a_file_that_is_read(tmp_path, monkeypatch, capsys):
    torch.save(CHECKPOINT, tmp_path / "ibot.pth")
    with pytest.raises(BadInput) as error:
        weights.read(tmp_path / "ibot.pth")
    command = shlex.split(str(error.value).split("`")[1])
    assert command[:3] == ["python", "-m", "pipeline"]
    out = tmp_path / "ibot.safetensors"
    assert run(monkeypatch, capsys, *command[3:]).startswith(f"{out}: 2 tensors, 0.0 MB")
    tensors = weights.read(out)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(t, TENSORS[n]) and t.dtype == TENSORS[n].dtype for n, t in tensors.items())


def test_views_of_one_buffer_are_written_apart(tmp_path, monkeypatch, capsys):
    buffer = torch.arange(12.0)
    torch.save({"a": buffer[:6].view(2, 3).T, "b": buffer, "c": buffer}, tmp_path / "views.pth")
    run(monkeypatch, capsys, "convert", tmp_path / "views.pth", tmp_path / "plain.safetensors")
    tensors = weights.read(tmp_path / "plain.safetensors")
    assert torch.equal(tensors["a"], buffer[:6].view(2, 3).T) and torch.equal(tensors["c"], buffer)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_becomes_plain_tensors(tmp_path, monkeypatch, capsys):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "clip.pt")
    run(monkeypatch, capsys, "convert", tmp_path / "clip.pt", tmp_path / "clip.safetensors")
    assert weights.read(tmp_path / "clip.safetensors").keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("file", "out", "message"),
    [
        ("none.pth", "a.safetensors", r"none\.pth: no such file of weights"),
        ("ibot.pth", "ibot.bin", r"ibot\.bin: not a \.safetensors file\. Name it ibot\.safetensors"),
        ("other.pth", "a.safetensors", r"other\.pth: holds pathlib\S*, which is refused"),
    ],
)
def test_what_cannot_be_converted_is_said_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, file, out, message
):
    monkeypatch.chdir(tmp_path)
    torch.save(CHECKPOINT, "ibot.pth")
    torch.save({"teacher": TENSORS, "folder": tmp_path}, "other.pth")
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, capsys, "convert", file, out)
    assert not (tmp_path / out).exists()
