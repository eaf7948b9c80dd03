"""The search of a gallery by picture files."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.inference.api import Fault, refuse
from pipeline.methods.base import Embedding
from pipeline.search.embedder import Embedder
from pipeline.search.gallery import Gallery, visible_parts


@dataclass(frozen=True)
class Hit:
    """A picture of the gallery that was found."""

    row: int
    picture: str  # its path below the gallery's folder
    distance: float  # infinite if no part is visible in both
    visible: list[str]  # names of the body parts that it shows


@dataclass(frozen=True)
class Result:
    """A query and what is nearest to it, nearest first."""

    picture: str
    visible: list[str]
    hits: list[Hit]


def search(
    gallery: Gallery, embedder: Embedder, files: list[str], top: int, parts: Collection[str] | None = None
) -> list[Result]:
    """The `top` nearest pictures to each of these files; `parts` are those of `Gallery.nearest`.

    Raises `BadInput` for another model, and a list of all files that cannot be used.
    """
    embedder.check(gallery)
    gallery.check_parts(parts)  # before anything is computed
    faults: list[Fault] = []
    embeddings = []
    for _, images, bad in embedder.decode(files, Path()):
        faults += bad
        if not faults:  # else the rest is only looked at
            embeddings.append(embedder.embed(images)[0])
    refuse(faults)
    query = _concatenate(embeddings)
    distances, rows = gallery.nearest(query, top, parts=parts)
    results = []
    for file, visibility, *lists in zip(files, query.visibility.numpy(), distances, rows, strict=True):
        hits = [
            Hit(row, gallery.names[row], distance, gallery.visible_parts(row))
            for distance, row in zip(*(column.tolist() for column in lists), strict=True)
        ]
        results.append(Result(file, visible_parts(gallery.part_names, visibility), hits))
    return results


def _concatenate(embeddings: list[Embedding]) -> Embedding:
    parts = torch.cat([embedding.parts for embedding in embeddings])
    visibility = torch.cat([embedding.visibility for embedding in embeddings])
    gates = [embedding.gate for embedding in embeddings if embedding.gate is not None]
    return Embedding(parts, visibility, torch.cat(gates) if gates else None)
