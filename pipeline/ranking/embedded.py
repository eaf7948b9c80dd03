"""Embeddings of images with their identities and cameras, in memory or in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from pipeline.core.label_file import Dataset
from pipeline.core.params import BadInput
from pipeline.model.distance import check_visibility

Array: TypeAlias = Tensor | np.ndarray | pd.Series | pd.DataFrame | Sequence  # of numbers


@dataclass(frozen=True)
class Stored:
    """Rows `start` to `stop` of a dataset in an HDF5 file, read when they are needed."""

    dataset: Dataset
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.dataset.shape[1:])

    def __getitem__(self, rows: slice) -> "Stored":
        start, stop, _ = rows.indices(self.stop - self.start)
        return Stored(self.dataset, self.start + start, self.start + stop)

    def read_into(self, out: np.ndarray, rows: Int[np.ndarray, "n"]) -> None:
        """Read `rows`, in their order, into the array `out`; consecutive rows are read together."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        place = 0
        for run in runs:
            begin = self.start + int(run[0])
            out[place : place + len(run)] = self.dataset[begin : begin + len(run)]
            place += len(run)


Features = Float32[Tensor, "n P D"] | Stored
Visibility = Float32[Tensor, "n P"] | Stored


@dataclass(frozen=True)
class Embedded:
    """Embeddings of n images with their identities and cameras: the queries, or the gallery.

    `parts` need not be normalised, as the distance does that.  `visibility` is the weight of each part in
    [0, 1]; a global feature is a part that is always visible.  The gate of queries, if there is one, is
    multiplied into the gallery's parts.
    """

    parts: Features
    visibility: Visibility
    pid: Int[np.ndarray, "n"]  # 0 a distractor, below 0 junk
    camid: Int[np.ndarray, "n"]  # below 0 unknown
    gate: Features | None = None
    keys: Sequence[str] | None = None  # names of the images, for messages

    @classmethod
    def of(
        cls,
        features: Array,
        pid: Array,
        camid: Array | None = None,
        visibility: Array | None = None,
        gate: Array | None = None,
    ) -> "Embedded":
        """Features of any origin, (n, D) or (n, P, D), with n identities.

        Without `camid` all cameras are unknown, without `visibility` (n, P) all parts are visible.  The
        `gate` of queries, of the features' shape, is multiplied into the gallery's features.
        Raises `BadInput` for other shapes or numbers of images, identities and cameras that are not whole
        numbers, and visibilities outside [0, 1].  Whether features are finite and not zero is checked when
        they are compared.
        """
        parts = _features(features)
        visible = torch.ones(parts.shape[:2]) if visibility is None else _visibility(visibility)
        identities = whole_numbers("pid", pid)
        cameras = np.full(len(parts), -1) if camid is None else whole_numbers("camid", camid)
        counts = {
            "features": len(parts),
            "pid": len(identities),
            "camid": len(cameras),
            "visibility": len(visible),
        }
        if len(set(counts.values())) > 1 or visible.shape != parts.shape[:2]:
            raise BadInput(
                f"features of {tuple(parts.shape)}, visibility of {tuple(visible.shape)}: {counts} images. "
                "Give one row per image, and one visibility per part."
            )
        gates = None if gate is None else _features(gate)
        if gates is not None and gates.shape != parts.shape:
            raise BadInput(
                f"gate of {tuple(gates.shape)}, features of {tuple(parts.shape)}: give one per channel."
            )
        return cls(parts, visible, identities, cameras, gates)

    def __len__(self) -> int:
        return len(self.pid)

    def __getitem__(self, rows: slice) -> "Embedded":
        gate = None if self.gate is None else self.gate[rows]
        keys = None if self.keys is None else self.keys[rows]
        return Embedded(self.parts[rows], self.visibility[rows], self.pid[rows], self.camid[rows], gate, keys)


def take(
    source: Features | Visibility, rows: Int[np.ndarray, "taken"], out: Tensor | None = None
) -> Float32[Tensor, "taken ..."]:
    """Those rows, copied on the CPU into the first rows of `out`, or into a new tensor."""
    shape = (len(rows), *source.shape[1:])
    copy = torch.empty(shape) if out is None else out[: len(rows)]
    if isinstance(source, Stored):
        source.read_into(copy.numpy(), rows)
        return copy
    return torch.index_select(source.detach().cpu(), 0, torch.from_numpy(rows), out=copy)


# ------------------------------------------------------------------ arrays of any origin


def _features(values: Array) -> Float32[Tensor, "n P D"]:
    features = _float32("features", values)
    if features.ndim not in (2, 3) or 0 in features.shape[1:]:
        raise BadInput(
            f"features of {tuple(features.shape)}: give (images, channels) or (images, parts, channels)."
        )
    return features[:, None] if features.ndim == 2 else features


def _visibility(values: Array) -> Float32[Tensor, "n P"]:
    visibility = _float32("visibility", values)
    if visibility.ndim != 2:
        raise BadInput(f"visibility of {tuple(visibility.shape)}: give (images, parts).")
    check_visibility("visibility", visibility)
    return visibility


def _float32(name: str, values: Array) -> Float32[Tensor, "..."]:
    array = values.detach().cpu() if isinstance(values, Tensor) else as_array(name, values)
    if array.is_complex() if isinstance(array, Tensor) else array.dtype.kind not in "biufO":
        raise BadInput(f"{name}: {array.dtype}. Give real numbers.")
    if isinstance(array, Tensor):
        return array.float()
    try:  # objects may be numbers, as those of a table with several types of columns are
        return torch.from_numpy(np.array(array, np.float32, order="C"))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: {array.dtype} ({error}). Give real numbers.") from None


def as_array(name: str, values: Array) -> np.ndarray:
    """Lists, tables and tensors as an array, on the CPU.  Raises `BadInput` for rows of several lengths."""
    try:
        return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError) as error:  # NumPy has no bfloat16
        raise BadInput(f"{name}: no array of numbers ({error}). Give rows of equal length.") from None


def whole_numbers(name: str, values: Array) -> Int64[np.ndarray, "n"]:
    """Identities or cameras as 64-bit integers.  Raises `BadInput` for fractions, text and other shapes."""
    numbers = as_array(name, values)
    if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and len(numbers)):
        raise BadInput(
            f"{name}: {numbers.dtype} of {numbers.shape}. Give one whole number per image, "
            f"{'below 0 where the camera is unknown' if name == 'camid' else '0 for a distractor'}. Number "
            "text by numpy.unique(ids, return_inverse=True)[1] + 1, queries and gallery together."
        )
    if numbers.max(initial=0) > np.iinfo(np.int64).max:
        raise BadInput(f"{name}: {numbers.max()} of {numbers.dtype}. Give numbers below 2^63.")
    return numbers.astype(np.int64)
