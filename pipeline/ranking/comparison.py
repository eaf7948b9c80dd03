"""The one distance of all methods, between a panel of queries and a tile of the gallery.

Unusual here:
- Queries that hide a part are left out of that part's product.
- Products are folded into the weighted mean in one pass, compiled; on a GPU, and for gated queries, PyTorch's
  own operations do the same.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.params import BadInput
from pipeline.ranking import kernels, products
from pipeline.ranking.embedded import Embedded, take

Metric = Literal["euclidean", "squared", "cosine"]
PANEL, TILE = {"cpu": 1024, "cuda": 2048}, {"cpu": 256, "cuda": 2048}  # queries, gallery images at a time


def distances(query: Embedded, gallery: Embedded, metric: Metric = "euclidean") -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery image: the mean over the parts that both show.

    sum_p v_p^q v_p^g D_p / sum_p v_p^q v_p^g, OGFR's Eq. 25, where the global feature is a part with v = 1
    (the D_g and the + 1 there).  D_p is the Euclidean distance, in [0, 2], its square, or 1 - the cosine,
    which is half the square.  Two images that show no common part are infinitely far apart.  A gate of the
    query weighs the gallery's channels before they are scaled.
    Departs: parts are scaled to length 1 first, or long ones would decide.
    """
    compatible(query, gallery)
    result = torch.empty(len(query), len(gallery))
    with products.chosen(query.parts.shape[2], "cpu"):
        for a in range(0, len(query), PANEL["cpu"]):
            panel = Panel(query, np.arange(a, min(a + PANEL["cpu"], len(query))), "cpu")
            for b in range(0, len(gallery), TILE["cpu"]):
                tile = Tile(gallery, np.arange(b, min(b + TILE["cpu"], len(gallery))), "cpu")
                result[a : a + len(panel.visibility), b : b + len(tile.rows)] = compare(panel, tile, metric)
    return result


def compatible(query: Embedded, gallery: Embedded) -> None:
    """Raises `BadInput` unless both have the same parts and channels."""
    if tuple(query.parts.shape[1:]) != tuple(gallery.parts.shape[1:]):
        raise BadInput(
            f"queries of {tuple(query.parts.shape[1:])} parts and channels, gallery of "
            f"{tuple(gallery.parts.shape[1:])}: embed both with the same model."
        )


class Tile:
    """Some images of the gallery, ready to be compared; their features are put into `room` if it is given."""

    def __init__(
        self,
        gallery: Embedded,
        rows: Int[np.ndarray, "w"],
        device: str | torch.device,
        room: Float[Tensor, "most P D"] | None = None,
    ):
        self.rows = rows
        self.parts = take(gallery.parts, rows, room).to(device)
        self.visibility = take(gallery.visibility, rows).to(device)
        lengths = self.parts.norm(dim=2).T.contiguous()
        _numbers("gallery", rows, lengths.T, self.visibility)
        self.present = (lengths > 0).float()
        self.scale = 2 / (lengths + (1 - self.present))
        self.weights = self.visibility.T.contiguous()


@dataclass(frozen=True)
class _Part:
    """One part of those queries of a panel that show it."""

    rows: Int[Tensor, "n"]
    features: Float[Tensor, "n D"]  # of length 1, times the gate if there is one
    own: Float[Tensor, "n"]  # squared lengths, 0 or 1
    weights: Float[Tensor, "n"]
    gate: Float[Tensor, "n D"] | None  # squared


class Panel:
    """Some queries, ready to be compared; a part takes no memory for those that hide it."""

    def __init__(self, query: Embedded, rows: Int[np.ndarray, "n"], device: str | torch.device):
        features = take(query.parts, rows).to(device)
        self.lengths = features.norm(dim=2)
        gate = None if query.gate is None else take(query.gate, rows).to(device)
        self.visibility = take(query.visibility, rows).to(device)
        _numbers("query", rows, self.lengths, self.visibility, gate)
        self.parts = [self._part(features, gate, p) for p in range(features.shape[1])]

    def _part(self, features: Tensor, gate: Tensor | None, p: int) -> _Part:
        rows = self.visibility[:, p].nonzero().flatten()
        length = self.lengths[rows, p]
        own = (length > 0).float()
        unit = features[rows, p].div_((length + (1 - own))[:, None])
        shown = self.visibility[rows, p]
        if gate is None:
            return _Part(rows, unit, own, shown, None)
        return _Part(rows, unit * gate[rows, p], own, shown, gate[rows, p].square())


def _numbers(name: str, rows: Int[np.ndarray, "n"], *values: Tensor | None) -> None:
    sums = sum(value.flatten(1).sum(1) for value in values if value is not None)
    bad = rows[~sums.isfinite().cpu().numpy()]
    if len(bad):
        raise BadInput(
            f"{name} features: hold values that are no numbers (image {bad[0]}). Train again, more gently."
        )


def compare(panel: Panel, tile: Tile, metric: Metric) -> Float[Tensor, "n w"]:
    """Distances of a panel's queries to a tile's images."""
    total = torch.zeros(len(panel.visibility), len(tile.rows), device=tile.parts.device)
    buffer = torch.empty_like(total)
    for p, part in enumerate(panel.parts):
        product = torch.mm(part.features, tile.parts[:, p].T, out=buffer[: len(part.rows)])
        _fold(total, part, product, tile, p, metric)
    weight = torch.mm(panel.visibility, tile.visibility.T, out=buffer)
    if total.device.type == "cpu":
        kernels.divide(total.numpy(), weight.numpy())
        return total
    return total.div_(weight).masked_fill_(weight == 0, torch.inf)


def _fold(total: Tensor, part: _Part, product: Tensor, tile: Tile, p: int, metric: Metric) -> None:
    weights = part.weights / 2 if metric == "cosine" else part.weights
    rooted = metric == "euclidean"
    if total.device.type == "cpu" and part.gate is None:
        given = (part.rows, product, tile.scale[p], part.own, tile.present[p], weights, tile.weights[p])
        kernels.fold(total.numpy(), *(tensor.numpy() for tensor in given), rooted)
    else:
        fold(total, part, product, tile, p, weights, rooted)


def fold(
    total: Float[Tensor, "N w"],
    part: _Part,
    product: Float[Tensor, "n w"],
    tile: Tile,
    p: int,
    weights: Float[Tensor, "n"],
    rooted: bool,
) -> None:
    """`kernels.fold` in PyTorch, on any device; with a gate, the gallery's lengths are each query's own."""
    scale, present = tile.scale[p], tile.present[p]
    if part.gate is not None:
        lengths = (part.gate @ tile.parts[:, p].square().T).sqrt_()
        present = (lengths > 0).float()
        scale = 2 / (lengths + (1 - present))
    square = (part.own[:, None] + present - product * scale).clamp_(min=0)
    distance = square.sqrt_() if rooted else square
    total.index_add_(0, part.rows, distance.mul_(weights[:, None]).mul_(tile.weights[p]))
