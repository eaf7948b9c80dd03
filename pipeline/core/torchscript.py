"""The tensors of a TorchScript archive, as OpenAI published CLIP, without its program.

Such an archive is a zip file of code, numbers, and a pickle that joins numbers to tensors.

Unusual here: the code is not read, and the pickle is read by a loader that knows tensors alone.  Each class
of the archive is an empty one here.
"""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.params import BadInput

NUMBERS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
FAULTS = (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError, TypeError, RuntimeError)


def is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive."""
    return _pickle_name(path, "constants.pkl") != ""


def _pickle_name(path: str | Path, name: str) -> str:
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        return next((n for n in archive.namelist() if n.split("/")[1:] == [name]), "")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an archive by the names that its modules and their attributes give them.

    Raises `BadInput` for a damaged archive, and for one whose pickle holds anything but modules of tensors.
    """
    name = _pickle_name(path, "data.pkl")
    try:
        with zipfile.ZipFile(path) as archive:
            root = _Loader(archive, name).load()
        return dict(_named(root, ""))
    except FAULTS as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{path}: no TorchScript archive of tensors ({reason}). Save the `state_dict()` of its network."
        ) from None


class _Module:
    """In place of every class of the archive: attributes by name."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _tensor(numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return numbers.as_strided(size, stride, offset).clone()


TENSORS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): dict,
    **{("torch", name): dtype for name, dtype in NUMBERS.items()},
}


class _Loader(pickle.Unpickler):
    """Reads the pickle of an archive: modules of `TENSORS`, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        super().__init__(BytesIO(archive.read(name)))
        self.archive, self.folder = archive, f"{name.split('/')[0]}/data"

    def find_class(self, module: str, name: str) -> Any:
        """Ours in place of the archive's."""
        if module.split(".")[0] == "__torch__" or module == "torch.jit._pickle":
            return _Module
        if (module, name) not in TENSORS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return TENSORS[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers that a tensor is a view of."""
        _, dtype, key, *_ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}/{key}")), dtype=dtype)


def _named(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _named(value, f"{prefix}{name}.")
