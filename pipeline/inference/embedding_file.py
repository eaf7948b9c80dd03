"""The embeddings of many pictures in one HDF5 file, a row a picture, with the pictures' names.

    name          (N,) paths as they were given, or found in a folder
    part          (N, P, D) float32, visibility (N, P), and gate (N, P, D) of methods that have one
    left_out      name and reason (of equal lengths) of the pictures that could not be used

The attribute `model` is the SHA-256 of the model's weights.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from pipeline.core.label_file import LabelFile, create_file, row_hashes, write_attrs
from pipeline.methods.base import Embedding

KIND = "embeddings"
CHUNK = 1 << 18  # bytes
Append = Callable[[list[str], Embedding], None]
LeftOut = tuple[str, str]  # a picture's name, and why it could not be used


@dataclass(frozen=True)
class NamedEmbedding:
    """The content of a file."""

    names: list[str]  # N
    embedding: Embedding
    left_out: list[LeftOut]


class EmbeddingFile(LabelFile):
    """A file of embeddings to read by rows."""

    remedy = "Name a file that `embed` wrote, or embed the pictures again."

    def __init__(self, path: str | Path):
        super().__init__(path, KIND)


@contextmanager
def create(path: str | Path, attrs: dict[str, Any], left_out: list[LeftOut]) -> Iterator[Append]:
    """A function that appends pictures to a file, which appears at `path` when the block ends.

    `left_out` is read at the end.
    """
    digest = hashlib.sha256()
    with create_file(path) as file:

        def append(names: list[str], embedding: Embedding) -> None:
            arrays = {"part": embedding.parts.numpy(), "visibility": embedding.visibility.numpy()}
            if embedding.gate is not None:
                arrays["gate"] = embedding.gate.numpy()
            for name, rows in arrays.items():
                _append(file, name, rows)
            _append(file, "name", _as_bytes(names))
            digest.update(row_hashes(arrays).tobytes() + "\n".join(names).encode(errors="surrogateescape"))

        yield append
        for column, name in enumerate(("name", "reason")):
            _append(file, f"left_out/{name}", _as_bytes([entry[column] for entry in left_out]))
        write_attrs(file, KIND, attrs, ("torch",), digest.hexdigest())


def _append(file: h5py.File, name: str, rows: np.ndarray) -> None:
    text = rows.dtype == object  # which HDF5 stores aside, without a checksum
    dtype, shape = h5py.string_dtype() if text else rows.dtype, rows.shape[1:]
    if name not in file:
        chunk = max(1, CHUNK // (int(np.prod(shape)) * dtype.itemsize))
        file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape), fletcher32=not text
        )
    file[name].resize(len(file[name]) + len(rows), axis=0)
    file[name][len(file[name]) - len(rows) :] = rows


def _as_bytes(texts: list[str]) -> np.ndarray:
    # a name on disk need not be UTF-8
    array = np.empty(len(texts), object)
    array[:] = [text.encode(errors="surrogateescape") for text in texts]
    return array


# ------------------------------------------------------------------ reading


def read(path: str | Path) -> NamedEmbedding:
    """The content of a file.  Raises `BadInput` if it is missing, damaged or another kind of file."""
    file = EmbeddingFile(path)
    left_out = list(zip(names(file, "left_out/name"), names(file, "left_out/reason"), strict=True))
    return NamedEmbedding(names(file), rows(file, slice(None)), left_out)


def names(file: EmbeddingFile, dataset: str = "name") -> list[str]:
    """The names in a file."""
    return [os.fsdecode(name) for name in file[dataset][:]]


def rows(file: EmbeddingFile, which: slice) -> Embedding:
    """Some rows of a file."""
    part, visibility = (torch.from_numpy(file[name][which]) for name in ("part", "visibility"))
    return Embedding(part, visibility, torch.from_numpy(file["gate"][which]) if "gate" in file else None)
