"""Images as a method sees them, in memory or in a file, and what others give for them, checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from pipeline.core.label_file import Dataset
from pipeline.core.params import BadInput
from pipeline.model.distance import check_images

Array = Any  # numpy's, PyTorch's, a list or a column of a table; what is none is refused in words
TEXT = (
    "text. Number them, queries and gallery together: numpy.unique(ids, return_inverse=True)[1] + 1 "
    "(pid 0 is a distractor)"
)


@dataclass(frozen=True)
class Stored:
    """Rows `start` to `stop` of a dataset in an HDF5 file, read when they are asked for."""

    column: Dataset
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.column.shape[1:])

    def __getitem__(self, which: slice) -> "Stored":
        start, stop, _ = which.indices(self.stop - self.start)
        return Stored(self.column, self.start + start, self.start + stop)

    def take(self, rows: Int[np.ndarray, "taken"], found: np.ndarray) -> None:
        """Put those rows, in that order, into `found`; neighbours are read together."""
        pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        place = 0
        for piece in pieces:
            begin = self.start + int(piece[0])
            found[place : place + len(piece)] = self.column[begin : begin + len(piece)]
            place += len(piece)


Features = Float32[Tensor, "n P D"] | Stored
Visibility = Float32[Tensor, "n P"] | Stored


@dataclass(frozen=True)
class Embedded:
    """Images as a method sees them, and who they show.

    `parts` need not be normalised, the distance does that.  `visibility` weighs each part, 0 hidden to 1
    visible; a global feature is a part that is always visible.  `gate`, if any, is multiplied into the
    gallery's parts when these images are the queries.
    """

    parts: Features
    visibility: Visibility
    pid: Int[np.ndarray, "n"]  # 0 a distractor, below 0 junk
    camid: Int[np.ndarray, "n"]  # below 0 unknown
    gate: Features | None = None

    @classmethod
    def of(
        cls,
        features: Array,
        pid: Array,
        camid: Array | None = None,
        visibility: Array | None = None,
    ) -> "Embedded":
        """Anyone's features, (n, D) or (n, P, D); all parts visible and cameras unknown unless given.

        Raises `BadInput` for anything that is not as the fields above say, and if the numbers of images
        differ.  Whether features are finite is seen when they are compared.
        """
        parts, people = features_of(features), numbers_of("pid", pid)
        seen = torch.ones(parts.shape[:2]) if visibility is None else visibility_of(visibility)
        cameras = np.full(len(parts), -1) if camid is None else numbers_of("camid", camid)
        counts = {"features": len(parts), "pid": len(people), "camid": len(cameras), "visibility": len(seen)}
        if len(set(counts.values())) > 1 or seen.shape != parts.shape[:2]:
            raise BadInput(
                f"features of {tuple(parts.shape)}, visibility of {tuple(seen.shape)}: {counts} images. "
                "Give one row an image, and one visibility a part."
            )
        return cls(parts, seen, people, cameras)

    def __len__(self) -> int:
        return len(self.pid)

    def __getitem__(self, which: slice) -> "Embedded":
        gate = None if self.gate is None else self.gate[which]
        return Embedded(self.parts[which], self.visibility[which], self.pid[which], self.camid[which], gate)


def take(
    source: Features | Visibility, rows: Int[np.ndarray, "taken"], room: Tensor | None = None
) -> Float32[Tensor, "taken ..."]:
    """Those rows as a tensor of their own, in the first rows of `room` if it is given."""
    shape = (len(rows), *source.shape[1:])
    found = torch.empty(shape) if room is None else room[: len(rows)]
    if isinstance(source, Stored):
        source.take(rows, found.numpy())
        return found
    return torch.index_select(source.detach().cpu(), 0, torch.from_numpy(rows), out=found)


# ------------------------------------------------------------------ what anybody gives, checked


def features_of(given: Array) -> Float32[Tensor, "n P D"]:
    """Anyone's features, (n, D) or (n, P, D)."""
    found = _real("features", given)
    if found.ndim not in (2, 3) or 0 in found.shape[1:]:
        raise BadInput(
            f"features of {tuple(found.shape)}: give (images, channels) or (images, parts, channels)."
        )
    return found[:, None] if found.ndim == 2 else found


def visibility_of(given: Array) -> Float32[Tensor, "n P"]:
    """Anyone's visibilities, in [0, 1]."""
    found = _real("visibility", given)
    if found.ndim != 2:
        raise BadInput(f"visibility of {tuple(found.shape)}: give (images, parts).")
    inside = (found >= 0) & (found <= 1)  # no NaN is
    check_images("visibility", inside.all(1).numpy(), "values that are not in [0, 1]")
    return found


def numbers_of(name: str, given: Array) -> Int64[np.ndarray, "n"]:
    """Anyone's numbers of people or cameras."""
    found = _array(name, given)
    found = found.astype(np.int64) if found.size == 0 and found.dtype.kind == "f" else found  # an empty list
    if found.dtype.kind in "USO" and all(isinstance(value, str | bytes) for value in found.flat[:1]):
        raise BadInput(f"{name}: {TEXT}.")
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise BadInput(
            f"{name}: {found.dtype} of {found.shape}. Give one whole number for each image, "
            f"{'below 0 where the camera is unknown' if name == 'camid' else '0 for a distractor'}."
        )
    return found.astype(np.int64)


def _real(name: str, given: Array) -> Float32[Tensor, "*shape"]:
    if isinstance(given, Tensor) and not given.is_complex():
        return given.detach().float().cpu()
    found = _array(name, given)
    if found.dtype.kind not in "biuf":
        raise BadInput(f"{name}: {found.dtype} of {found.shape}. Give real numbers.")
    return torch.from_numpy(np.array(found, np.float32, order="C"))


def _array(name: str, given: Array) -> np.ndarray:
    try:
        return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (TypeError, ValueError):
        raise BadInput(
            f"{name}: a {type(given).__name__} that is no array. Give rows of one length."
        ) from None
