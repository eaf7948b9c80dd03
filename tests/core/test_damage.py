"""Damaged and hostile files of weights: they give tensors, or an error that names the file, and no more."""

import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.core import torchscript, weights
from pipeline.core.params import BadInput

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half(), "n": torch.tensor(3)}


class Command:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return open, ("trace", "w")


class Counting(nn.Linear):
    """A network that an archive holds with its program."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("n", torch.tensor(3))


def old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


FORMS = {  # writes the file, and the name that it has
    "safetensors": (lambda path: save_file(TENSORS, path), "w.safetensors"),
    "zip": (lambda path: torch.save({"model": TENSORS, "epoch": 3}, path), "w.pth"),
    "zip of a command": (lambda path: torch.save([Command(), TENSORS], path), "w.pth"),
    "pickle": (lambda path: old({"model": TENSORS, "lr": np.float64(1)}, path), "w.pth"),
    "pickle of a command": (lambda path: old([Command(), TENSORS], path), "w.pth"),
    "archive": (lambda path: torch.jit.save(torch.jit.script(Counting()), path), "w.pt"),
}
# the place, as a share of the file; bytes that are put there, and how many there go
change = st.tuples(st.floats(0, 1), st.binary(max_size=8), st.sampled_from([0, 1, 2, 8, 64, 10_000]))


def damaged(content, changes):
    """The bytes of a file after each change in turn."""
    for share, new, cut in changes:
        start = int(share * len(content))
        content = content[:start] + new + content[start + cut :]
    return content


def read(path):
    """As `python -m pipeline convert` reads a file."""
    if torchscript.is_archive(path):
        return torchscript.read(path)
    return weights.read(path, weights.BESIDE)


@pytest.fixture(scope="module", params=FORMS)
def whole(request, tmp_path_factory):
    """A file's bytes and its name."""
    write, name = FORMS[request.param]
    path = tmp_path_factory.mktemp("whole") / name
    write(path)
    return path.read_bytes(), name


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Detected pickle protocol")
@given(changes=st.lists(change, min_size=1, max_size=3))
def test_a_damaged_file_gives_tensors_or_is_refused_by_name_and_runs_nothing(whole, changes):
    content, name = whole
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = Path(folder) / name
        path.write_bytes(damaged(content, changes))
        try:
            tensors = read(path)
        except BadInput as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            size = path.stat().st_size
            assert all(t.untyped_storage().nbytes() <= size >= t.numel() for t in tensors.values())
        assert list(Path(folder).iterdir()) == [path]


def packed(path, compression=zipfile.ZIP_DEFLATED):
    torch.save({"a": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for entry, content in entries.items():
            file.writestr(entry, content)


def listed_twice(path):
    torch.save({"a": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path, "a") as file:
        file.filelist.append(next(entry for entry in file.filelist if entry.filename.endswith("/data/0")))
        file._didModify = True


BOMBS = {  # small files of large tensors
    "compressed": (packed, "it is compressed"),
    "compressed by LZMA": (lambda path: packed(path, zipfile.ZIP_LZMA), "it is compressed"),
    "listed twice": (listed_twice, "lists the same bytes twice"),
    "repeated": (lambda path: torch.save({"a": torch.zeros(1).expand(10**9)}, path), r"1 tensor .*\(a\)"),
    "empty": (lambda path: torch.save({"a": torch.zeros(10**9, device="meta")}, path), r"1 tensor .*\(a\)"),
    "sparse": (lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), r"1 tensor .*\(a\)"),
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_whose_tensors_are_larger_than_itself_is_refused(tmp_path, case):
    write, message = BOMBS[case]
    write(tmp_path / "w.pth")
    with pytest.raises(BadInput, match=rf"w\.pth: .*{message}"):
        weights.read(tmp_path / "w.pth")


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clip/data.pkl", content)
        file.writestr("clip/constants.pkl", b"")
        file.writestr("clip/data/0", b"\0" * 8)


STORAGE = b"(S'storage'\nctorch\nFloatStorage\nS'0'\ntQ"
REPEATED = b"ctorch._utils\n_rebuild_tensor_v2\n(%bI0\n(I1000000000\nt(I0\nttR" % STORAGE
PICKLES = {
    "a tensor that repeats its number": (
        b"(c__torch__\nClip\no}S'a'\n" + REPEATED + b"sb.",
        "a tensor is out of bounds of its numbers",
    ),
    "a memo of 10 billion places": (b"Np10000000000\n.", "its pickle is damaged"),
    "nothing": (b"(c__torch__\nClip\no.", "it holds no tensor"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_an_archive_whose_pickle_asks_for_more_than_it_has_is_refused(tmp_path, case):
    content, message = PICKLES[case]
    archive(tmp_path / "clip.pt", content)
    with pytest.raises(BadInput, match=rf"clip\.pt: no TorchScript archive of tensors \({message}"):
        torchscript.read(tmp_path / "clip.pt")


def test_an_archive_that_is_not_there_is_named(tmp_path):
    assert not torchscript.is_archive(tmp_path / "clip.pt")
    with pytest.raises(BadInput, match=r"clip\.pt: .*No such file"):
        torchscript.read(tmp_path / "clip.pt")


class Misbuilt:
    """A dtype in a state that NumPy does not check: it reads memory that is not its own."""

    def __reduce__(self):
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lies_beside_the_tensors_reaches_none_of_its_classes(tmp_path, monkeypatch, zipped):
    torch.save(
        {"model": TENSORS, "lr": Misbuilt()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    assert weights.read(tmp_path / "w.pth", weights.BESIDE).keys() == TENSORS.keys()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.uint16])
def test_numbers_of_a_kind_that_no_network_has_are_mis_typed(tmp_path, dtype):
    network = nn.BatchNorm1d(2)
    tensors = network.state_dict()
    tensors = tensors | {name: tensors[name].to(dtype) for name in ("bias", "num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"w\.safetensors: .*2 mis-typed \(bias "):
        weights.load_strict(network, weights.read(tmp_path / "w.safetensors"), tmp_path / "w.safetensors", "")
