"""What anybody gives to be ranked, checked before it is used: a fault is said by its name and remedy."""

from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from pipeline.params import BadInput

Array = Any  # numpy's, PyTorch's, a list or a column of a table; what is none is refused in words
TEXT = (
    "text. Number them, queries and gallery together: numpy.unique(ids, return_inverse=True)[1] + 1 "
    "(pid 0 is a distractor)"
)


def choice(name: str, value: Any, choices: Any) -> None:
    """Raises `BadInput` that lists the choices, a `Literal`, unless the value is one of them."""
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{name} = {value!r}: no such choice. Choose one of {', '.join(known)}.")


def count(name: str, value: Any, least: int = 0) -> None:
    """Raises `BadInput` unless the value is a whole number from `least` on."""
    if not isinstance(value, int | np.integer) or value < least:
        raise BadInput(f"{name} = {value!r}: give a whole number, {least} or more.")


def device(value: Any) -> torch.device:
    """A device that there is.  Raises `BadInput` for any other."""
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise BadInput(f"device = {value!r}: no such device. Choose cpu or cuda.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device = {value!r}: PyTorch finds no such GPU here. Choose cpu, or another one.")
    return found


def features(given: Array) -> Float32[Tensor, "n P D"]:
    """Anyone's features, (n, D) or (n, P, D)."""
    found = _real("features", given)
    if found.ndim not in (2, 3) or 0 in found.shape[1:]:
        raise BadInput(
            f"features of {tuple(found.shape)}: give (images, channels) or (images, parts, channels)."
        )
    return found[:, None] if found.ndim == 2 else found


def visibility(given: Array) -> Float32[Tensor, "n P"]:
    """Anyone's visibilities, in [0, 1]."""
    found = _real("visibility", given)
    if found.ndim != 2:
        raise BadInput(f"visibility of {tuple(found.shape)}: give (images, parts).")
    inside = (found >= 0) & (found <= 1)  # no NaN is
    refuse_some("visibility", np.arange(len(found)), inside.all(1).numpy(), "values that are not in [0, 1]")
    return found


def numbers(name: str, given: Array) -> Int64[np.ndarray, "n"]:
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


def refuse_some(what: str, rows: np.ndarray, good: Bool[np.ndarray, "n"], fault: str) -> None:
    """Raises `BadInput` that tells how many images are faulty and which is the first, unless all are good."""
    bad = rows[~good]
    if len(bad):
        raise BadInput(
            f"{what}: {len(bad)} of the {len(rows)} images looked at hold {fault}, the first is image "
            f"{bad.min()}. Leave these out, or correct them; if a model made them, train it again with a "
            "smaller train.lr."
        )


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
