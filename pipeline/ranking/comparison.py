"""The one distance of all methods, between a panel of queries and a tile of the gallery.

Unusual here:
- Queries and gallery images that hide a part are left out of that part's product.
- Products are folded into the weighted mean in one pass, compiled; on a GPU, and for gated queries, PyTorch's
  own operations do the same.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.model import distance as distance_module
from pipeline.model.compute import float32_matmul
from pipeline.model.distance import Metric, check_embeddings, check_finite
from pipeline.ranking import kernels
from pipeline.ranking.embedded import Embedded, Features, Stored, take

QUERIES_AT_ONCE, GALLERY_AT_ONCE = (
    {"cpu": 1024, "cuda": 2048},
    {"cpu": 512, "cuda": 1024},
)  # queries, gallery images at a time
ROW_MULTIPLE, COLUMN_MULTIPLE = (
    16,
    16,
)  # numbers of them in a product are multiples: each size is prepared anew


def distances(query: Embedded, gallery: Embedded, metric: Metric | str = "euclidean") -> Float[Tensor, "Q G"]:
    """`model.distance.distances` of every query to every gallery image, in one matrix on the CPU.

    Raises `BadInput` for another metric, other parts or channels, and features that are not finite.
    """
    tensors = {}
    for name, images in (("query", query), ("gallery", gallery)):
        rows = np.arange(len(images))
        tensors[name] = take(images.parts, rows), take(images.visibility, rows)
        check_embeddings(name, *tensors[name])
    gate = None if query.gate is None else take(query.gate, np.arange(len(query)))
    (q, q_visibility), (g, g_visibility) = tensors["query"], tensors["gallery"]
    with float32_matmul("default"):
        return distance_module.distances(q, g, q_visibility, g_visibility, metric, gate)


def round_up(count: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-count // step) * step


class TileBuffer:
    """Where the features of one tile after the other are put: fresh memory would cost as much as reading."""

    def __init__(self, gallery: Embedded, most: int):
        parts, channels = gallery.parts.shape[1:]
        self.images = torch.empty(most, parts, channels) if isinstance(gallery.parts, Stored) else None
        self.shown = _zeros(parts * round_up(most, COLUMN_MULTIPLE), channels)


def _zeros(*shape: int) -> Tensor:
    # numpy asks for large pages, PyTorch does not: to touch memory for the first time costs time
    return torch.from_numpy(np.empty(shape, np.float32)).zero_()


@dataclass(frozen=True)
class _Part:
    """One part of those images of a panel or a tile that show it."""

    places: Int[Tensor, "n"]  # of the images
    features: Float[Tensor, "n_padded D"]  # of length 1, times a query's gate; those behind n mean nothing
    present: Float[Tensor, "n"]  # squared lengths, 0 or 1
    weights: Float[Tensor, "n"]
    gate: Float[Tensor, "n D"] | None = None  # squared


class GalleryBlock:
    """Some images of the gallery, ready to be compared; no part is copied of those that hide it.

    What lies in `room` is lost.
    """

    def __init__(
        self, gallery: Embedded, rows: Int[np.ndarray, "w"], device: str | torch.device, room: TileBuffer
    ):
        self.rows = rows
        shown, self.visibility = _shown("gallery", gallery, rows, COLUMN_MULTIPLE, room)
        self.parts = [_on(part, device) for part in shown]
        self.visibility = self.visibility.to(device)


class QueryBlock:
    """Some queries, ready to be compared; a part takes no memory for those that hide it."""

    def __init__(self, query: Embedded, rows: Int[np.ndarray, "n"], device: str | torch.device):
        shown, self.visibility = _shown("query", query, rows, ROW_MULTIPLE)
        if query.gate is not None:
            gate = take(query.gate, rows)
            check_finite("query gate", gate, rows)
            shown = [_gated(part, gate[part.places, p]) for p, part in enumerate(shown)]
        self.parts = [_on(part, device) for part in shown]
        self.visibility = self.visibility.to(device)


def _shown(
    name: str, images: Embedded, rows: Int[np.ndarray, "n"], step: int, room: TileBuffer | None = None
) -> tuple[list[_Part], Float[Tensor, "n P"]]:
    """The parts that some images show, in `room` if it is given, and all their visibilities."""
    visibility = take(images.visibility, rows)
    check_finite(f"{name} visibility", visibility, rows)
    source, places = _within_reach(images.parts, rows, None if room is None else room.images)
    counts = [round_up(count, step) for count in (visibility != 0).sum(0).tolist()]
    units = _zeros(sum(counts), source.shape[2]) if room is None else room.shown[: sum(counts)]
    lengths, first = torch.zeros(visibility.shape), np.cumsum([0, *counts[:-1]])
    kernels.unit(source.numpy(), places, visibility.numpy(), first, units.numpy(), lengths.numpy())
    check_finite(f"{name} features", lengths, rows)
    parts = []
    for p, features in enumerate(units.split(counts)):
        some = visibility[:, p].nonzero().flatten()
        present = (lengths[some, p] > 0).float()
        parts.append(_Part(some, features, present, visibility[some, p]))
    return parts, visibility


def _gated(part: _Part, gate: Float[Tensor, "n D"]) -> _Part:
    part.features[: len(gate)] *= gate
    return replace(part, gate=gate.square())


def _on(part: _Part, device: str | torch.device) -> _Part:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return _Part(**{name: value if value is None else value.to(device) for name, value in values.items()})


def _within_reach(
    source: Features, rows: Int[np.ndarray, "taken"], room: Float[Tensor, "most P D"] | None = None
) -> tuple[Float[Tensor, "N P D"], Int[np.ndarray, "taken"]]:
    """Features in memory, and where in them those rows are; from a file, these alone are read."""
    if isinstance(source, Stored):
        return take(source, rows, room), np.arange(len(rows))
    return source.detach().cpu(), rows


class Workspace:
    """Where one thread puts the distances of a panel to a tile, and the products that they are made of."""

    def __init__(self, queries: int, images: int, device: str | torch.device):
        size = round_up(queries, ROW_MULTIPLE) * round_up(images, COLUMN_MULTIPLE)
        self.total, self.product = _zeros(2, size).to(device)


def block_distances(
    panel: QueryBlock, tile: GalleryBlock, metric: str, desk: Workspace
) -> Float[Tensor, "n w"]:
    """Distances of a panel's queries to a tile's images; they lie on the desk until it is used again."""
    total = _of_shape(desk.total, len(panel.visibility), len(tile.rows)).zero_()
    for part, shown in zip(panel.parts, tile.parts, strict=True):
        product = _of_shape(desk.product, len(part.features), len(shown.features))
        torch.mm(part.features, shown.features.T, out=product)
        _fold(total, part, product, shown, metric)
    weight = torch.mm(panel.visibility, tile.visibility.T, out=_of_shape(desk.product, *total.shape))
    if total.device.type == "cpu":
        kernels.divide(total.numpy(), weight.numpy())
        return total
    return total.div_(weight).masked_fill_(weight == 0, torch.inf)


def _of_shape(room: Float[Tensor, "most"], rows: int, columns: int) -> Float[Tensor, "n w"]:
    return room[: rows * columns].view(rows, columns)


def _fold(total: Tensor, part: _Part, product: Tensor, shown: _Part, metric: str) -> None:
    weights = part.weights / 2 if metric == "cosine" else part.weights
    rooted = metric == "euclidean"
    if total.device.type == "cpu" and part.gate is None:
        given = (part.places, shown.places, product, part.present, shown.present, weights, shown.weights)
        kernels.fold(total.numpy(), *(tensor.numpy() for tensor in given), rooted)
    else:
        fold(total, part, product[: len(part.places), : len(shown.places)], shown, weights, rooted)


def fold(
    total: Float[Tensor, "N W"],
    part: _Part,
    product: Float[Tensor, "n w"],
    shown: _Part,
    weights: Float[Tensor, "n"],
    rooted: bool,
) -> None:
    """`kernels.fold` in PyTorch, on any device; with a gate, the gallery's lengths are each query's own."""
    present = shown.present
    if part.gate is not None:
        lengths = (part.gate @ shown.features[: len(shown.places)].square().T).sqrt_()
        present = (lengths > 0).float()
        product = product / (lengths + (1 - present))
    square = (part.present[:, None] + present - 2 * product).clamp_(min=0)
    distance = square.sqrt_() if rooted else square
    spread = total.new_zeros(len(part.places), total.shape[1])
    spread[:, shown.places] = distance.mul_(weights[:, None]).mul_(shown.weights)
    total.index_add_(0, part.places, spread)
