"""The gallery file: the embedded pictures of one folder, a row a picture, in the order of their names.

    part, visibility     (N, P, D) and (N, P) float32; gate (N, P, D) of methods that have one
    map                  (N, height, width) uint8 label maps, if the parsers made them
    size, changed        (N,) bytes of the picture file, and when it was last changed, in nanoseconds
    name                 (N,) paths below the folder
    left_out, reason     (M,) paths of the pictures that could not be used, and why

Text is stored as bytes end to end, since a name on disk need be in no encoding.  The attributes say of which
folder and model the rows are, and how they were embedded.

Unusual here: features lie in one piece, in float32 and without a checksum, so that a search maps them into
memory and reads nothing twice.  Half the bytes, in float16, would cost 2.5 times the time of a search.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from jaxtyping import Int, Shaped

from pipeline.core.label_file import Arrays, LabelFile, create_dataset, create_file, row_hashes, write_attrs

KIND = "gallery"
IN_ONE_PIECE = ("part", "visibility", "gate", "size", "changed")
Append = Callable[[list[str], Arrays], None]  # names, and the other datasets by name
LeftOut = tuple[str, str]  # a picture's path below the folder, and why it could not be used


@dataclass(frozen=True)
class Texts(Sequence[str]):
    """Texts in memory as their bytes end to end; a million names take a tenth of what a list takes."""

    data: bytes
    offset: Int[np.ndarray, "N_plus_1"]

    def __len__(self) -> int:
        return len(self.offset) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return os.fsdecode(self.data[self.offset[row] : self.offset[row + 1]])


@contextmanager
def create(path: str | Path, count: int, attrs: dict[str, Any], left_out: list[LeftOut]) -> Iterator[Append]:
    """A function that appends rows, `count` in all, to a file that appears at `path` when the block ends.

    `left_out` is read at the end.
    """
    digest = hashlib.sha256()
    names: list[str] = []
    with create_file(path) as file:

        def append(new: list[str], arrays: Arrays) -> None:
            start = len(names)
            names.extend(new)
            for name, rows in arrays.items():
                if name not in file:
                    _create_dataset(file, name, (count, *rows.shape[1:]), rows.dtype)
                file[name][start : len(names)] = rows
            digest.update(row_hashes(arrays).tobytes())

        yield append
        assert len(names) == count, f"{len(names)} rows of {count}"
        columns = {"name": names}
        columns |= {key: [entry[n] for entry in left_out] for n, key in enumerate(("left_out", "reason"))}
        for name, texts in columns.items():
            digest.update(_write_texts(file, name, texts))
        write_attrs(file, KIND, attrs, ("torch",), digest.hexdigest())


def _create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    if name in IN_ONE_PIECE:
        file.create_dataset(name, shape, dtype)
    else:
        create_dataset(file, name, shape, dtype)


def _write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> bytes:
    encoded = [os.fsencode(text) for text in texts]
    data = b"".join(encoded)
    file[name] = np.frombuffer(data, np.uint8)
    file[f"{name}_offset"] = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    return data


# ------------------------------------------------------------------ reading


class GalleryFile(LabelFile):
    """A gallery file to read, which stays open: `index` may replace it meanwhile."""

    remedy = "Name a file that `index` wrote, or index the folder again."

    def __init__(self, path: str | Path):
        super().__init__(path, KIND)

    def texts(self, name: str) -> Texts:
        """The texts of a column."""
        return Texts(self[name][:].tobytes(), self[f"{name}_offset"][:])

    def mapped(self, name: str) -> Shaped[np.ndarray, "N ..."]:
        """A dataset that lies in one piece, mapped into memory."""
        file = self._open()
        data = file[name]
        with open(os.dup(file.id.get_vfd_handle()), "rb") as stream:  # of the open file, wherever its name is
            # mode c: PyTorch wants arrays that could be written to
            return np.memmap(stream, data.dtype, "c", data.id.get_offset(), data.shape)
