"""Network weights: files of plain tensors, loaded strictly.

Unusual here:
- A file must fit its network exactly: a missing, unexpected or mis-shaped tensor is an error, and so are
  integers where the network has floats, and numbers that are not finite.
- A prefix that all names share (`module.` of a network in DataParallel) is stripped if exactly that makes
  them the network's names; one line says so.
- Files written here hold half-precision tensors, which are widened when loaded.
- A pickle is read for its tensors alone.  `python -m pipeline convert` reads one with a training script's
  arguments, too (`BESIDE`), and writes the tensors; no command reads any other.
- A downloaded file is hashed at every use; torch.hub checks it only during the download.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core import torchscript
from pipeline.core.distributed import rank
from pipeline.core.files import atomic_write, sha256
from pipeline.core.params import BadInput, one_line, plural, shorten
from pipeline.core.torchscript import DAMAGE, NUMBERS

NESTED = ("model", "state_dict", "teacher", "student")  # keys of a checkpoint that hold a state dict
# what training scripts leave beside tensors: their arguments, and rates as NumPy's numbers
BESIDE = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",  # before NumPy 2
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
NAMED = 3  # tensors of a kind that a message names
UNREAD = "which is refused: to load it may run code of the file."
FETCH = "Fetch it again with `git checkout`, `dvc checkout` or `dvc pull`"


class _LeftOut:
    """In place of every class of `BESIDE`: it keeps nothing, so that nothing of a file reaches the class."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read(path: str | Path, beside: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors by name of a `.safetensors` file, or of a state dict that `torch.save` wrote.

    The state dict may lie under one of the keys `NESTED`, the first that there is, beside plain values and
    objects of the classes `beside`, which are left out.  No code in the file is run.  Raises `BadInput` for a
    missing, empty or damaged file, and for a pickle that holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights. {FETCH}, or name another file in params.yaml.")
    return _safetensors(path) if path.suffix == ".safetensors" else _state_dict(path, beside)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *DAMAGE) as error:
        raise BadInput(f"{path}: no complete safetensors file ({one_line(error)}). {FETCH}.") from None


def _state_dict(path: Path, beside: Sequence[str]) -> dict[str, Tensor]:
    if torchscript.is_archive(path):
        raise BadInput(f"{path}: is a TorchScript archive, {UNREAD} {_conversion(path)}")
    try:
        if zipfile.is_zipfile(path):
            torchscript.check_entries(path)
        with torch.serialization.safe_globals([(_LeftOut, name) for name in beside]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise BadInput(f"{path}: {_refusal(str(error), path, bool(beside))}") from None
    if isinstance(content, Mapping):
        nested = (content.get(key) for key in NESTED)
        content = next((value for value in nested if isinstance(value, Mapping)), content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items())
    ):
        raise BadInput(f"{path}: holds no state dict (tensors by name). Save `network.state_dict()` instead.")
    if names := [name for name, tensor in content.items() if not _is_plain(tensor, path)]:
        raise BadInput(
            f"{path}: {plural(len(names), 'tensor')} without numbers of its own for each element "
            f"({', '.join(shorten(names, NAMED))}). Save dense, contiguous ones."
        )
    return dict(content)


def _is_plain(tensor: Tensor, path: Path) -> bool:
    """Whether a tensor is dense and in memory, and neither its storage nor the file is smaller."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    size = tensor.numel() * tensor.element_size()
    return size <= min(tensor.untyped_storage().nbytes(), path.stat().st_size)


def _refusal(error: str, path: Path, converts: bool) -> str:
    if not (name := re.search(r"(?:GLOBAL|class) '?([\w.]+\.\w+)", error)):
        return f"no checkpoint of plain tensors ({one_line(error)}). Give a state dict saved by torch.save."
    if converts:
        return f"holds {name[1]}, {UNREAD} Ask for the state dict alone, or for a .safetensors file."
    return f"holds {name[1]}, {UNREAD} {_conversion(path)}"


def _conversion(path: Path) -> str:
    out = path.with_suffix(".safetensors")
    return f"Convert it once, by `python -m pipeline convert {path} {out}`, and name the new file."


def load_strict(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, remedy: str) -> None:
    """Load tensors into a network, whose dtypes they take.

    Raises `BadInput` that names `path`, the first tensors that do not fit, and `remedy`.
    """
    expected = network.state_dict()
    tensors = strip_prefix(tensors, expected, path)
    check_shapes(expected, tensors, path, remedy)
    network.load_state_dict(tensors)


def strip_prefix(
    tensors: Mapping[str, Tensor], expected: Iterable[str], path: str | Path
) -> Mapping[str, Tensor]:
    """`tensors` without the prefix of all their names, if exactly that makes them the `expected` names."""
    names = set(expected)
    for prefix in prefixes(tensors, min(names, default="")):
        if {f"{prefix}{name}" for name in names} == set(tensors):
            report(path, prefix)
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def prefixes(tensors: Iterable[str], name: str) -> list[str]:
    """What stands before `name` and its dot in the names of tensors, a student's after all others."""
    before = (tensor.removesuffix(name) for tensor in tensors if tensor.endswith(f".{name}"))
    return sorted(before, key=lambda prefix: ("student" in prefix, len(prefix)))


def report(path: str | Path, prefix: str, left_out: Iterable[str] = (), *more: str) -> None:
    """Print in one line how a file's tensors became a network's: prefix, tensors left out, and `more`.

    One process of a run prints it, and nothing is printed if the file is the network's as it is.
    """
    names = list(left_out)
    facts = [f"prefix '{prefix}' stripped"] if prefix else []
    facts += (
        [f"{plural(len(names), 'tensor')} left out ({', '.join(shorten(names, NAMED))})"] if names else []
    )
    if (facts := [*facts, *more]) and rank() == 0 and parent_process() is None:
        print(f"{path}: {'; '.join(facts)}", flush=True)


def check_shapes(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path, remedy: str
) -> None:
    """Raise `BadInput` unless both hold the same names with the same shapes, and finite floats where due."""
    both = [name for name in expected if name in tensors]
    mis_shaped = [name for name in both if tensors[name].shape != expected[name].shape]
    mis_typed = [
        name
        for name in both
        if tensors[name].is_floating_point() != expected[name].is_floating_point()
        or tensors[name].dtype not in NUMBERS.values()
    ]
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "mis-shaped": [
            f"{n} {tuple(tensors[n].shape)} instead of {tuple(expected[n].shape)}" for n in mis_shaped
        ],
        "mis-typed": [f"{n} {tensors[n].dtype} instead of {expected[n].dtype}" for n in mis_typed],
    }
    messages = [
        f"{len(names)} {kind} ({', '.join(shorten(names, NAMED))})" for kind, names in faults.items() if names
    ]
    if messages:
        raise BadInput(f"{path}: made for another network: {'; '.join(messages)}. {remedy}")
    if broken := [name for name in both if not tensors[name].isfinite().all()]:
        raise BadInput(
            f"{path}: damaged: {plural(len(broken), 'tensor')} with numbers that are not finite "
            f"({', '.join(shorten(broken, NAMED))}). {remedy}"
        )


def write(path: str | Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Save floats in half precision as safetensors, and `record` with the file's size and hash as .json."""
    half = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(half))
    record = {**record, "bytes": Path(path).stat().st_size, "sha256": sha256(path)}
    with atomic_write(Path(path).with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fingerprint(path: str | Path) -> str:
    """The SHA-256 of a file of weights.  Raises `BadInput` if it is missing."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file of weights. {FETCH}, or name another file in params.yaml.")
    return sha256(path)


# ------------------------------------------------------------------ published files


def choose_network(network: str, parsers: str, coco: str) -> str:
    """`network`, the param of a parser's section, or `coco` if the param `parsers` is `coco`."""
    if parsers not in ("", "coco"):
        raise BadInput(f"params.yaml: parsers = {parsers!r} is unknown. Name coco, or leave it empty.")
    return coco if parsers else network


def download(url: str, algorithm: str = "sha256") -> Path:
    """The path of a published file, `<name>-<first digits of its hash>.<suffix>`, downloaded by torch.hub.

    Raises `BadInput` if its hash is wrong, or, with the path to put it, if it cannot be downloaded.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digits = _digits(path) if algorithm == "sha256" else None  # torch.hub knows no other
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits)
        except (URLError, OSError, RuntimeError) as error:
            raise BadInput(
                f"{path}: not there, and {url} cannot be downloaded ({one_line(error)}). "
                "Download it elsewhere and put it there; TORCH_HOME chooses another place."
            ) from None
    verify(path, algorithm)
    return path


def verify(path: Path, algorithm: str = "sha256") -> None:
    """Raise `BadInput` unless the file's hash begins with the hex digits at the end of its name."""
    digits = _digits(path)
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if not digits or not actual.startswith(digits):
        raise BadInput(
            f"{path}: is not the published file (its {algorithm} begins {actual[:8]}, the name says "
            f"{digits or 'nothing'}). Delete it and download it again under its own name."
        )


def _digits(path: Path) -> str:
    match = re.search(r"[-_]([0-9a-f]{6,64})$", path.stem)
    return match.group(1) if match else ""
