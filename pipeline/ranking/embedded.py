"""Images as a method sees them, in memory or in a file that need not fit there."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from pipeline.params import BadInput
from pipeline.ranking import checks
from pipeline.ranking.checks import Array
from pipeline.store import Column


@dataclass(frozen=True)
class Stored:
    """Rows `start` to `stop` of a dataset in an HDF5 file, read when they are asked for."""

    column: Column
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
        parts, people = checks.features(features), checks.numbers("pid", pid)
        seen = torch.ones(parts.shape[:2]) if visibility is None else checks.visibility(visibility)
        cameras = np.full(len(parts), -1) if camid is None else checks.numbers("camid", camid)
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
