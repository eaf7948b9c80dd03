"""TorchScript archives: their tensors are read, and their programs are not."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from pipeline.core import torchscript, weights
from pipeline.core.params import BadInput


class Tower(nn.Module):
    """Named as in OpenAI's CLIP, with everything that an archive holds beside weights."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.resblocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.sizes, self.scale, self.label = [1, 2], 0.5, "tower"

    def forward(self, image):
        return self.resblocks(self.conv1(image).flatten(2).transpose(1, 2) + self.class_embedding)


class Clip(nn.Module):
    """A tower in half precision, as published."""

    def __init__(self):
        super().__init__()
        self.visual = Tower().half()
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, image):
        return self.visual(image) * self.vocab_size


@pytest.fixture(params=[torch.jit.script, lambda clip: torch.jit.trace_module(clip.float(), TRACED)])
def archive(request, tmp_path):
    torch.manual_seed(0)
    torch.jit.save(request.param(Clip()), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


TRACED = {"forward": torch.zeros(1, 3, 4, 4)}
ignored = pytest.mark.filterwarnings("ignore:`torch.jit")


@ignored
def test_its_tensors_are_those_of_the_network_by_name(archive):
    tensors, wanted = torchscript.read(archive), torch.jit.load(archive).state_dict()
    assert torchscript.is_archive(archive) and tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


@ignored
def test_it_is_refused_where_weights_are_read_and_the_command_is_named(archive):
    with pytest.raises(BadInput, match=r"clip\.pt: is a TorchScript archive, .*`python -m pipeline convert"):
        weights.read(archive)


def test_a_state_dict_is_no_archive(tmp_path):
    torch.save(Clip().state_dict(), tmp_path / "clip.pth")
    (tmp_path / "notes.txt").write_text("notes")
    assert not torchscript.is_archive(tmp_path / "clip.pth")
    assert not torchscript.is_archive(tmp_path / "notes.txt")


class Malicious:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch trace",)


class Short:
    """A tensor that is larger than its numbers."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (KEY, 0, (1000,), (1,), False, None)


KEY = ("storage", torch.FloatStorage, "0", "cpu", 1000)


class Pickler(pickle.Pickler):
    """Writes tensors as an archive does."""

    def persistent_id(self, value):
        return value if value is KEY else None


def damaged(path, content):
    with zipfile.ZipFile(path, "w") as file, file.open("clip/data.pkl", "w") as pickled:
        Pickler(pickled, 2).dump(content)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("clip/constants.pkl", b"")
        file.writestr("clip/data/0", b"\0" * 8)


@pytest.mark.parametrize(
    ("content", "fault"),
    [({"weight": Malicious()}, r"it holds \w+\.system"), (Short(), "out of bounds|storage")],
)
def test_an_archive_of_anything_else_is_refused_and_never_run(tmp_path, monkeypatch, content, fault):
    monkeypatch.chdir(tmp_path)
    damaged("clip.pt", content)
    assert torchscript.is_archive("clip.pt")
    with pytest.raises(BadInput, match=rf"clip\.pt: no TorchScript archive of tensors \(.*({fault})"):
        torchscript.read("clip.pt")
    assert not (tmp_path / "trace").exists()
