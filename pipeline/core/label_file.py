"""HDF5 label files: one row per image, written atomically, byte-reproducible.

Unusual here:
- A large row is one chunk with a checksum, compressed by gzip unless it holds floats: `labels["map"][i]`
  reads one image.  Read single rows, not lists.
- The attribute `content` hashes the rows alone: it depends neither on shards nor on compression.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.core.files import DeferredErrorFile, atomic_write, check_file_path
from pipeline.core.params import BadInput

FORMAT = 1
CHUNKED_FROM = 1024  # bytes per row; a dataset of smaller rows is stored in one piece
PACK_CHUNK = 1 << 16  # bytes per checksum in a packed file

Arrays = dict[str, np.ndarray]  # by name; the first axis is the row


# ------------------------------------------------------------------ writing


@contextmanager
def create_file(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file to fill, which appears at `path` when the block ends.  It may replace no folder."""
    check_file_path(path)
    with (
        atomic_write(path) as temporary,
        DeferredErrorFile(temporary, "w+") as output,
        h5py.File(output, "w", libver="earliest") as file,
    ):
        yield file


def write_label_file(
    path: str | Path,
    kind: str,
    arrays: Arrays,
    attrs: dict[str, Any],
    libraries: Iterable[str] = (),
) -> None:
    """Write arrays that fit into memory.

    `attrs` must hold `index`, the hash of the index whose rows these are.  `libraries` names the packages,
    beside numpy and h5py, on whose versions the values depend.
    """
    with create_file(path) as file:
        for name in sorted(arrays):
            create_dataset(file, name, arrays[name].shape, arrays[name].dtype)[...] = arrays[name]
        write_attrs(file, kind, attrs, libraries, content_hash(row_hashes(arrays)))


def write_packed(
    path: str | Path, kind: str, blobs: Iterable[bytes], sizes: np.ndarray, attrs: dict[str, Any]
) -> None:
    """Write byte strings end to end: blob i is `data[offset[i]:offset[i + 1]]`.

    `sizes` (N,) holds the bytes of each blob, so that only one blob is in memory at a time.
    """
    offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    digest = hashlib.sha256()
    with create_file(path) as file:
        total = int(offset[-1])
        chunk = (min(PACK_CHUNK, max(total, 1)),)
        data = file.create_dataset("data", (total,), np.uint8, chunks=chunk, fletcher32=True)
        for start, blob in zip(offset, blobs, strict=False):
            data[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
            digest.update(hashlib.sha256(blob).digest())
        file["offset"] = offset
        write_attrs(file, kind, attrs, (), digest.hexdigest())


def create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """An empty dataset; large rows are one chunk each, with a checksum."""
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    if row_bytes < CHUNKED_FROM or shape[0] == 0:
        return file.create_dataset(name, shape, dtype)
    # gzip makes features only 7 % smaller, and takes 18 times as long to write and 7 times to read them
    compression = {} if np.dtype(dtype).kind == "f" else {"compression": "gzip", "compression_opts": 4}
    return file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), fletcher32=True, **compression)


def write_attrs(file: h5py.File, kind: str, attrs: dict, libraries: Iterable[str], content: str) -> None:
    """Write `attrs` with the file's format, kind, hash of content and versions of libraries."""
    names = sorted({"numpy", "h5py", *libraries})
    versions = {name: importlib.metadata.version(name) for name in names}
    header = {"format": FORMAT, "kind": kind, "content": content, "versions": versions}
    for name, value in sorted({**attrs, **header}.items()):
        plain = isinstance(value, str | int | float | np.integer | np.floating)
        file.attrs[name] = value if plain else json.dumps(value, sort_keys=True)


def row_hashes(arrays: Arrays) -> np.ndarray:
    """SHA-256 of each row over all arrays that reach it, in the order of their names: (N, 32) bytes."""
    rows = max(map(len, arrays.values()), default=0)
    ordered = [np.ascontiguousarray(arrays[name]) for name in sorted(arrays)]
    digests = [
        hashlib.sha256(b"".join(a[i : i + 1].tobytes() for a in ordered)).digest() for i in range(rows)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(rows, 32)


def content_hash(hashes: np.ndarray) -> str:
    """The hash of a file's content, from the hashes of its rows."""
    return hashlib.sha256(hashes.tobytes()).hexdigest()


# ------------------------------------------------------------------ reading


class LabelFile:
    """A label file to read: `LabelFile(path)["map"][i]` is the map of image i.

    Each process opens the file when it first reads.  Raises `BadInput` if the file is missing, damaged, of
    another kind or format, or made for another index.
    """

    remedy = ""  # for files that no stage makes; else `dvc repro` is one

    def __init__(self, path: str | Path, kind: str | None = None, index: str | None = None):
        self.path = str(path)
        self._file: h5py.File | None = None
        self._pid: int | None = None
        self.attrs = {name: _plain_value(value) for name, value in self._open().attrs.items()}
        self._check(kind, index)
        self.close()

    def _check(self, kind: str | None, index: str | None) -> None:
        actual = self.attrs.get("kind")
        if kind is not None and actual != kind:
            remedy = self.remedy or "Check the paths in dvc.yaml."
            raise BadInput(f"{self.path}: holds '{actual}', not '{kind}'. {remedy}")
        if self.attrs.get("format") != FORMAT:
            raise BadInput(
                f"{self.path}: format {self.attrs.get('format')}, this version reads {FORMAT}. "
                f"{self.remedy or 'Delete it and run `dvc repro`.'}"
            )
        if index is not None and self.attrs.get("index") != index:
            raise BadInput(
                f"{self.path}: made for another index ({str(self.attrs.get('index'))[:12]}, this one is "
                f"{index[:12]}). Run `dvc repro`, or `dvc checkout` to get the files that belong together."
            )

    def _open(self) -> h5py.File:
        if self._file is not None and self._pid == os.getpid():
            return self._file
        if not Path(self.path).is_file():
            remedy = self.remedy or "Run `dvc repro`, or `dvc pull` to fetch it."
            raise BadInput(f"{self.path}: no such file. {remedy}")
        try:
            file = h5py.File(self.path, "r", locking=False)  # it is replaced whole, never changed in place
        except OSError as error:
            raise BadInput(f"{self.path}: {self._damage(error)}") from None
        self._file, self._pid = file, os.getpid()
        return file

    def _damage(self, error: OSError) -> str:
        fetch = "Fetch it again with `dvc checkout` or `dvc pull`, or delete it and run `dvc repro`."
        detail = " ".join(str(error).split())[:120]
        return f"cannot be read ({detail}): damaged or no HDF5 file. {self.remedy or fetch}"

    def names(self) -> list[str]:
        """The paths of the datasets in this file, such as `model/part`."""
        names: list[str] = []
        self._open().visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
        return sorted(names)

    def __getitem__(self, name: str) -> "Dataset":
        if name not in self._open():
            raise BadInput(f"{self.path}: holds no '{name}', only {', '.join(self.names()) or 'nothing'}.")
        return Dataset(self, name)

    def __contains__(self, name: str) -> bool:
        return name in self._open()

    def close(self) -> None:
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": None}  # a handle survives no pickling


class Dataset:
    """One dataset of a label file: `[i]` reads a row, `[i:j]` rows, `[:]` all."""

    def __init__(self, file: LabelFile, name: str):
        self._file, self._name = file, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._file._open()[self._name].shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:  # an array, or a number for one row of a vector
        try:
            return self._file._open()[self._name][index]
        except OSError as error:
            rows = f"rows from {index.start or 0}" if isinstance(index, slice) else f"row {index}"
            damage = self._file._damage(error)
            raise BadInput(f"{self._file.path}: '{self._name}', {rows}: {damage}") from None


def _plain_value(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value.startswith(("[", "{")):
        return json.loads(value)
    return value
