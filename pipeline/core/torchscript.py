"""The tensors of a TorchScript archive, as OpenAI published CLIP, without its program.

Such an archive is a zip file of code, numbers, and a pickle that joins numbers to tensors.

Unusual here: the code is not read, and the pickle is read by a loader that knows tensors alone.  Each class
of the archive is an empty one here.  Nothing is unpacked that is larger than the file.
"""

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.params import BadInput, one_line

NUMBERS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DAMAGE = (  # what a damaged file of weights raises where it is unpacked, in `pipeline.core.weights`, too
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive.  A zip file whose contents cannot be listed is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _entry(archive, "constants.pkl") != ""
    except DAMAGE:
        return False


def _entry(archive: zipfile.ZipFile, file: str) -> str:
    return next((name for name in archive.namelist() if name.split("/")[1:] == [file]), "")


def check_entries(path: str | Path) -> None:
    """Raise `BadZipFile` for a zip file whose pickles and numbers unpack to more bytes than it has.

    torch writes them as they are, and compresses only the code of an archive, which is not read.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]]
    size = Path(path).stat().st_size
    if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
        raise zipfile.BadZipFile("it is compressed, or lists the same bytes twice")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an archive by the names that its modules and their attributes give them.

    Raises `BadInput` for a damaged archive, and for one whose pickle holds anything but modules of tensors.
    """
    try:
        check_entries(path)
        with zipfile.ZipFile(path) as archive:
            root = _Loader(archive, _entry(archive, "data.pkl")).load()
        if not (tensors := dict(_named(root, ""))):
            raise pickle.UnpicklingError("it holds no tensor")
        return tensors
    except DAMAGE as error:
        raise BadInput(
            f"{path}: no TorchScript archive of tensors ({one_line(error)}). "
            "Fetch it again, or save the `state_dict()` of its network."
        ) from None


class _Module:
    """In place of every class of the archive: attributes by name."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _tensor(numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    if prod(size) > len(numbers):  # repeated by a stride of 0
        raise pickle.UnpicklingError("a tensor is out of bounds of its numbers")
    return numbers.as_strided(size, stride, offset).clone()


TENSORS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): dict,
    **{("torch", name): dtype for name, dtype in NUMBERS.items()},
}


class _Loader(pickle.Unpickler):
    """Reads the pickle of an archive: modules of `TENSORS`, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        content = archive.read(name)
        for opcode, argument, _ in pickletools.genops(content):
            if "PUT" in opcode.name and argument > len(content):  # Python makes that many places
                raise pickle.UnpicklingError("its pickle is damaged")
        super().__init__(BytesIO(content))
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
