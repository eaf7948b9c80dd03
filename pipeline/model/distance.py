"""The distance between two sets of embeddings, the same for every method (OGFR's Eq. 25)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.core.params import BadInput, check_choice, plural, shorten

Metric = Literal["euclidean", "squared", "cosine"]
SHORTEST = 1e-12  # length of a feature that can be scaled to length 1: what `F.normalize` divides by at least


def distances(
    query: Float[Tensor, "*B Q P D"],
    gallery: Float[Tensor, "*B G P D"],
    query_visibility: Float[Tensor, "*B Q P"],
    gallery_visibility: Float[Tensor, "*B G P"],
    metric: Metric | str = "euclidean",
    gate: Float[Tensor, "*B Q P D"] | None = None,
) -> Float[Tensor, "*B Q G"]:
    """Distance of every query to every gallery image: the mean over the parts that both show.

    sum_p v_p^q v_p^g D_p / sum_p v_p^q v_p^g, where the global feature is a part with v = 1 (D_g and the + 1
    of Eq. 25).  D_p is the Euclidean distance, in [0, 2], its square, or 1 - the cosine, which is half the
    square.  Infinite where two images show no common part.  Features of a part without visibility are not
    looked at.  A query's `gate` is multiplied into the gallery's channels before these are scaled.
    Departs: parts are scaled to length 1 first, as long features would decide otherwise.
    Raises `BadInput` for another metric, and for other parts or channels.
    """
    check_choice("metric", metric, Metric)
    check_same_parts(query.shape[-2:], gallery.shape[-2:])
    total = weight = torch.zeros((), device=query.device)
    with torch.autocast(query.device.type, enabled=False):
        for p in range(query.shape[-2]):
            visible = query_visibility[..., p, None] * gallery_visibility[..., None, :, p]
            square = _squared_distances(
                _visible_features(query[..., p, :], query_visibility[..., p]),
                _visible_features(gallery[..., p, :], gallery_visibility[..., p]),
                None if gate is None else gate[..., p, :].float(),
            )
            distance = square.sqrt() if metric == "euclidean" else square
            total = total + (distance / 2 if metric == "cosine" else distance) * visible
            weight = weight + visible
    return (total / weight).masked_fill(weight == 0, torch.inf)


def _visible_features(
    features: Float[Tensor, "*n D"], visibility: Float[Tensor, "*n"]
) -> Float[Tensor, "*n D"]:
    return features.float().masked_fill(visibility[..., None] == 0, 0)


def _squared_distances(
    query: Float[Tensor, "*B Q D"], gallery: Float[Tensor, "*B G D"], gate: Float[Tensor, "*B Q D"] | None
) -> Float[Tensor, "*B Q G"]:
    """|q - g|^2 of features of length 1, in [0, 4]; a feature without length stays zero."""
    query = F.normalize(query, dim=-1)
    if gate is None:
        gallery = F.normalize(gallery, dim=-1)
        lengths, product = gallery.square().sum(-1)[..., None, :], query @ gallery.mT
    else:  # the gallery's features have another length for each query
        norm = (gate.square() @ gallery.square().mT).sqrt()
        lengths, product = (norm > 0).float(), (query * gate) @ gallery.mT / norm.clamp(min=1e-12)
    return (query.square().sum(-1, keepdim=True) + lengths - 2 * product).clamp(min=0)


# ------------------------------------------------------------------ checks


def check_same_parts(query: tuple[int, ...], gallery: tuple[int, ...]) -> None:
    """Raises `BadInput` unless queries and gallery have the same numbers of parts and channels."""
    if tuple(query) != tuple(gallery):
        raise BadInput(
            f"queries of {tuple(query)} parts and channels, gallery of {tuple(gallery)}: embed both with the "
            "same model."
        )


def check_embeddings(
    name: str,
    parts: Float[Tensor, "n P D"],
    visibility: Float[Tensor, "n P"],
    gate: Float[Tensor, "n P D"] | None = None,
) -> None:
    """Raises `BadInput` for visibilities outside [0, 1], and see `check_lengths`; of a gate, too."""
    check_visibility(f"{name} visibility", visibility)
    check_lengths(f"{name} features", parts.float().norm(dim=2), visibility)
    if gate is not None:
        check_lengths(f"{name} gate", gate.float().norm(dim=2), visibility)


def check_visibility(
    name: str,
    visibility: Float[Tensor, "n P"],
    rows: Int[np.ndarray, "n"] | None = None,
    keys: Sequence[str] | None = None,
) -> None:
    """Raises `BadInput` unless all values are in [0, 1]; see `check_images`."""
    inside = ((visibility >= 0) & (visibility <= 1)).all(1)  # NaN is not
    remedy = "Give the weight of each part, 0 where it is hidden."
    check_images(name, inside.cpu().numpy(), "values that are not in [0, 1]", remedy, rows, keys)


def check_lengths(
    name: str,
    lengths: Float[Tensor, "n P"],
    visibility: Float[Tensor, "n P"],
    rows: Int[np.ndarray, "n"] | None = None,
    keys: Sequence[str] | None = None,
) -> None:
    """Raises `BadInput` unless each visible part has a finite length above `SHORTEST`; see `check_images`.

    A part of zeros has no direction: it would be as far from a copy of itself as from a right angle.
    """
    shown = lengths.detach().masked_fill(visibility == 0, 1)
    finite, long = (good.all(1).cpu().numpy() for good in (shown.isfinite(), ~(shown <= SHORTEST)))
    leave_out = "Leave these out, or correct them"
    remedy = f"{leave_out}; if a model made them, train it again with a smaller train.lr."
    check_images(name, finite, "values that are NaN, infinite or beyond 1e19", remedy, rows, keys)
    remedy = f"{leave_out}, or give such a part the visibility 0."
    check_images(name, long, f"zeros, or a length below {SHORTEST:g}, in a visible part", remedy, rows, keys)


def check_images(
    name: str,
    good: Bool[np.ndarray, "n"],
    fault: str,
    remedy: str,
    rows: Int[np.ndarray, "n"] | None = None,
    keys: Sequence[str] | None = None,
) -> None:
    """Raises `BadInput` that counts the faulty images and names the first, unless all are good.

    `rows` are the numbers of the images, 0 to n - 1 if none are given; `keys` are the names of all images, by
    number.
    """
    faulty = np.sort((np.arange(len(good)) if rows is None else rows)[~good])
    if len(faulty):
        named = f", the first is image {faulty[0]}" if keys is None else f": {_join(keys, faulty)}"
        raise BadInput(
            f"{name}: {fault} in {len(faulty)} of {plural(len(good), 'image')} looked at{named}. {remedy}"
        )


def _join(keys: Sequence[str], numbers: Int[np.ndarray, "n"]) -> str:
    return ", ".join(shorten([keys[number] for number in numbers.tolist()]))
