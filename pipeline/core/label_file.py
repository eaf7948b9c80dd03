"""HDF5 label files: one row per image, written atomically, byte-reproducible.

Unusual here:
- Large rows are one checked chunk each, gzip's unless they are floats, so that `rows["map"][i]` reads one
  image; read single rows, not lists.
- The attribute `content` hashes the rows alone, so that it depends neither on shards nor on compression.
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

from pipeline.core.files import DeferredErrorFile, atomic_write
from pipeline.core.params import BadInput

FORMAT = 1
CHUNKED_FROM = 1024  # bytes a row; below, a dataset is stored in one piece
PACK_CHUNK = 1 << 16  # bytes; the unit of checksums in a packed file

Arrays = dict[str, np.ndarray]


# ------------------------------------------------------------------ writing


@contextmanager
def create_file(path: str | Path) -> Iterator[h5py.File]:
    with (
        atomic_write(path) as beside,
        DeferredErrorFile(beside, "w+") as output,
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
    """Write a small result at once; the first axis of every array is the row.

    `attrs` must hold `index`, the hash of the index whose rows these are.  `libraries` names the
    packages, beside numpy and h5py, whose versions shaped the result.
    """
    with create_file(path) as file:
        for name in sorted(arrays):
            create_dataset(file, name, arrays[name].shape, arrays[name].dtype)[...] = arrays[name]
        write_attrs(file, kind, attrs, libraries, content_hash(row_hashes(arrays)))


def write_packed(
    path: str | Path, kind: str, blobs: Iterable[bytes], sizes: np.ndarray, attrs: dict[str, Any]
) -> None:
    """Write byte strings one after the other: `data` and `offset`, blob i = data[offset[i]:offset[i + 1]].

    `sizes` gives the bytes of each blob beforehand, so that nothing but one blob is held.
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
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    if row_bytes < CHUNKED_FROM or shape[0] == 0:
        return file.create_dataset(name, shape, dtype)
    # features lose a fourteenth to gzip, which writes them 18 times as slowly and reads them 7 times
    packed = {} if np.dtype(dtype).kind == "f" else {"compression": "gzip", "compression_opts": 4}
    return file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), fletcher32=True, **packed)


def write_attrs(file: h5py.File, kind: str, attrs: dict, libraries: Iterable[str], content: str) -> None:
    names = sorted({"numpy", "h5py", *libraries})
    versions = {name: importlib.metadata.version(name) for name in names}
    own = {"format": FORMAT, "kind": kind, "content": content, "versions": versions}
    for name, value in sorted({**attrs, **own}.items()):
        plain = isinstance(value, str | int | float | np.integer | np.floating)
        file.attrs[name] = value if plain else json.dumps(value, sort_keys=True)


def row_hashes(arrays: Arrays) -> np.ndarray:
    # one digest a row, over all arrays by name: independent of shards and of compression
    rows = len(next(iter(arrays.values()))) if arrays else 0
    held = [np.ascontiguousarray(arrays[name]) for name in sorted(arrays)]
    digests = [hashlib.sha256(b"".join(a[i].tobytes() for a in held)).digest() for i in range(rows)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(rows, 32)


def content_hash(hashes: np.ndarray) -> str:
    return hashlib.sha256(hashes.tobytes()).hexdigest()


# ------------------------------------------------------------------ reading


class LabelFile:
    """A label file, opened on first use in each process: `rows["map"][i]` is image i's map.

    Raises `BadInput` if the file is missing, damaged, of another kind or format, or made for another index.
    """

    def __init__(self, path: str | Path, kind: str | None = None, index: str | None = None):
        self.path, self._file, self._pid = str(path), None, None
        self.attrs = {name: _plain_value(value) for name, value in self._open().attrs.items()}
        self._check(kind, index)
        self.close()

    def _check(self, kind: str | None, index: str | None) -> None:
        found = self.attrs.get("kind")
        if kind is not None and found != kind:
            raise BadInput(f"{self.path}: holds '{found}', not '{kind}'. Check the paths in dvc.yaml.")
        if self.attrs.get("format") != FORMAT:
            raise BadInput(
                f"{self.path}: format {self.attrs.get('format')}, this version reads {FORMAT}. "
                "Delete it and run `dvc repro`."
            )
        if index is not None and self.attrs.get("index") != index:
            raise BadInput(
                f"{self.path}: made for another index ({str(self.attrs.get('index'))[:12]}, this one is "
                f"{index[:12]}). Run `dvc repro`, or `dvc checkout` to get the files that belong together."
            )

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            if not Path(self.path).is_file():
                raise BadInput(f"{self.path}: no such file. Run `dvc repro`, or `dvc pull` to fetch it.")
            try:
                self._file, self._pid = h5py.File(self.path, "r", locking="best-effort"), os.getpid()
            except OSError as error:
                raise BadInput(f"{self.path}: {_damage(error)}") from None
        return self._file

    def names(self) -> list[str]:
        """The datasets in this file, groups spelt out (`model/part`)."""
        found: list[str] = []
        self._open().visititems(lambda n, o: found.append(n) if isinstance(o, h5py.Dataset) else None)
        return sorted(found)

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
    """One dataset of a label file; an int gives a row, a slice the rows, `[:]` everything."""

    def __init__(self, rows: LabelFile, name: str):
        self._rows, self._name = rows, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._rows._open()[self._name].shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> np.ndarray | np.generic:
        try:
            return self._rows._open()[self._name][where]
        except OSError as error:
            rows = f"rows from {where.start or 0}" if isinstance(where, slice) else f"row {where}"
            raise BadInput(f"{self._rows.path}: '{self._name}', {rows}: {_damage(error)}") from None


def _damage(error: OSError) -> str:
    return (
        f"cannot be read ({' '.join(str(error).split())[:120]}): damaged or no HDF5 file. Fetch it "
        "again with `dvc checkout` or `dvc pull`, or delete it and run `dvc repro`."
    )


def _plain_value(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value[:1] in "[{":
        return json.loads(value)
    return value
