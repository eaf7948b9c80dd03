"""A gallery: the embedded pictures of one folder, to be searched."""

import io
import os
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from pipeline.core.params import BadInput, check_count
from pipeline.data import parts as body
from pipeline.data.index import DECODE_ERRORS
from pipeline.inference.api import fault_reason, read_picture
from pipeline.methods.base import Embedding
from pipeline.ranking import Embedded, Rerank
from pipeline.search import nearest
from pipeline.search.gallery_file import GalleryFile

GLOBAL = "global"  # name of the feature of the whole picture, which is always visible
THUMBNAIL = (192, 128)  # greatest height and width in pixels
Rows = Sequence[int] | Int[np.ndarray, "n"] | slice


class Gallery:
    """The embedded pictures of one folder.  `Gallery(path)` opens the file; `len(gallery)` is its count.

    A picture is known by its row, from 0; rows are in the order of the names.  A row that there is not raises
    `IndexError`.  An open gallery stays as it is while `index` replaces its file.  Threads may share it.

        names                the paths below `root`, as a sequence of strings; a name that is in no encoding
                             holds surrogates (`os.fsdecode`)
        root                 the folder that was indexed, a `Path`
        model                SHA-256 of the weights of the model that embedded it
        model_folder         the model's folder at that time, a `Path`
        part_names           names of its P features: "global", then the parts of pipeline/data/parts.py (or
                             their numbers, of methods with other parts)
        left_out             (name, reason) of the pictures that could not be used
        attrs                how they were embedded: `z` is "maps" or "guessed"

    Raises `BadInput` if the file is missing, damaged, or another kind of file.
    """

    def __init__(self, path: str | Path):
        self.path, self.file = str(path), GalleryFile(path)
        self.names, left_out, reasons = (self.file.texts(name) for name in ("name", "left_out", "reason"))
        self.left_out = list(zip(left_out, reasons, strict=True))
        self.attrs, source = self.file.attrs, self.file.attrs["source"]
        self.root, self.model_folder = Path(source["root"]), Path(source["model"])
        self.model: str = self.attrs["model"]
        self._camera = re.compile(source["pattern"]) if source["pattern"] else None

    def __len__(self) -> int:
        return len(self.names)

    # -------------------------------------------------------------- a row

    def folder(self, row: int) -> str:
        """The folder of a picture, below `root`; "" for `root` itself."""
        return os.path.dirname(self.names[row])

    def camera(self, row: int) -> str | None:
        """What the pattern given to `index` finds in the picture's name; None if it finds nothing."""
        match = self._camera and self._camera.search(self.names[row])
        return match[1] if match else None

    @property
    def part_names(self) -> tuple[str, ...]:
        count = self._parts.shape[1] - 1
        return (GLOBAL, *(body.FINE if count == len(body.FINE) else map(str, range(1, count + 1))))

    def visible_parts(self, row: int) -> list[str]:
        """Names of the body parts that a picture shows to the model, without the global feature."""
        return visible_parts(self.part_names, self._visibility[range(len(self))[row]])

    def embedding(self, rows: Rows) -> Embedding:
        """The embeddings of these rows, such as for a search by a picture of the gallery."""
        numbers = np.arange(len(self))[rows]
        parts, visibility = (torch.from_numpy(a[numbers]) for a in (self._parts, self._visibility))
        gate = torch.from_numpy(self.file.mapped("gate")[numbers]) if "gate" in self.file else None
        return Embedding(parts, visibility, gate)

    @property
    def has_maps(self) -> bool:
        """Whether the parsers' label maps are stored."""
        return "map" in self.file

    def map(self, row: int) -> UInt8[np.ndarray, "H W"] | None:
        """The label map of a picture, 0 background and 1..K the parts, by the picture stretched to its size.

        None if no maps were made.
        """
        return self.file["map"][range(len(self))[row]] if self.has_maps else None

    def thumbnail(self, row: int, size: tuple[int, int] = THUMBNAIL) -> bytes:
        """The picture as a JPEG file that is at most `size` (height, width) large, upright, read from `root`.

        Raises `BadInput` if the picture is gone or cannot be read any more.
        """
        name = self.names[row]
        if os.path.isabs(name) or ".." in PurePath(name).parts:  # a file from elsewhere may hold anything
            raise BadInput(f"{self.path}: row {row} names {name!r}, which is not below its folder.")
        try:
            return thumbnail(read_picture(self.root / name), size)
        except DECODE_ERRORS as error:
            raise BadInput(f"{self.root / name}: {fault_reason(error)}. Index the folder again.") from None

    # -------------------------------------------------------------- the nearest rows

    def nearest(
        self,
        query: Embedding,
        top: int = 20,
        offset: int = 0,
        allowed: Bool[np.ndarray, "N"] | None = None,
        parts: Collection[str] | None = None,
        rerank: Rerank | None = None,
    ) -> tuple[Float32[np.ndarray, "Q listed"], Int[np.ndarray, "Q listed"]]:
        """Distances and rows of the nearest pictures to each query, nearest first.

        The `top` after the first `offset` are given, fewer if there are no more.  The distance is the one by
        which `evaluate` ranks (Eq. 25): 0 is equal, 2 the opposite; infinite if no part is visible in both,
        which comes last.  Equal distances keep the order of the rows.  The result is that of sorting all
        distances, in one pass over the file by blocks: memory does not grow with the gallery.

            allowed    rows that may be found; None: all
            parts      those of `part_names` that count, as if a query hid all others; None: all
            rerank     k-reciprocal re-ranking of the nearest `rerank.depth`, among these alone; their
                       distances are then those of the paper's Eq. 12

        Raises `BadInput` for parts that there are not, for queries of another model's sizes, and to re-rank a
        method with gates.
        """
        check_count("top", top, 1)
        check_count("offset", offset)
        rows = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        queries = nearest.embedded(self.restrict(query, parts))
        depth = offset + top if rerank is None else max(offset + top, rerank.depth)
        lists = nearest.nearest(queries, self._embedded, rows, depth)
        if rerank is not None and rerank.depth:
            lists = nearest.rerank(queries, self._embedded, lists, rerank)
        distance, number = lists
        return distance[:, offset : offset + top], number[:, offset : offset + top]

    def check_parts(self, parts: Collection[str] | None) -> None:
        """Raises `BadInput` for a part that there is not, and for none at all."""
        unknown = [name for name in parts or () if name not in self.part_names]
        if unknown or (parts is not None and not parts):
            fault = f"{', '.join(unknown)}: no such part" if unknown else "none given"
            raise BadInput(f"parts: {fault}. Name some of {', '.join(self.part_names)}.")

    def restrict(self, query: Embedding, parts: Collection[str] | None) -> Embedding:
        """The queries as if they hid all other parts.  Raises `BadInput` for a part that there is not."""
        self.check_parts(parts)
        if parts is None:
            return query
        kept = torch.tensor([name in parts for name in self.part_names])
        return Embedding(query.parts, query.visibility * kept, query.gate)

    # -------------------------------------------------------------- arrays of the file

    @cached_property
    def _parts(self) -> Float32[np.ndarray, "N P D"]:
        return self.file.mapped("part")

    @cached_property
    def _visibility(self) -> Float32[np.ndarray, "N P"]:
        return self.file.mapped("visibility")

    @cached_property
    def _embedded(self) -> Embedded:
        parts, visibility = (torch.from_numpy(array) for array in (self._parts, self._visibility))
        return nearest.embedded(Embedding(parts, visibility), self.names)


def visible_parts(names: Sequence[str], visibility: Float32[np.ndarray, "P"]) -> list[str]:
    """Names of the body parts with a visibility above 0."""
    return [name for name, value in zip(names, visibility, strict=True) if value > 0 and name != GLOBAL]


def thumbnail(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] = THUMBNAIL) -> bytes:
    """An image as a JPEG file that is at most `size` (height, width) large."""
    picture, out = Image.fromarray(image), io.BytesIO()
    picture.thumbnail(size[::-1])
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
