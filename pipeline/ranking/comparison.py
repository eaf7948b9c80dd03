"""Distances between a block of queries and a block of the gallery, for features that do not fit in memory.

Unusual here:
- Images that hide a part are left out of that part's matrix product.
- Products are folded into the weighted mean in one compiled pass; on a GPU, and for gated queries, by
  PyTorch's own operations.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.model import distance
from pipeline.model.compute import float32_matmul
from pipeline.model.distance import Metric, check_embeddings, check_lengths, check_visibility
from pipeline.ranking import kernels
from pipeline.ranking.embedded import Embedded, Features, Stored, take

QUERY_BLOCK = {"cpu": 1024, "cuda": 2048}  # queries at a time
GALLERY_BLOCK = {"cpu": 512, "cuda": 1024}  # gallery images at a time
MULTIPLE = 16  # of rows and columns of a product: the library prepares each size anew


def distances(query: Embedded, gallery: Embedded, metric: Metric | str = "euclidean") -> Float[Tensor, "Q G"]:
    """`model.distance.distances` of every query to every gallery image, in one matrix on the CPU.

    Raises `BadInput` for another metric, other parts or channels, visibilities outside [0, 1], and visible
    features that are not finite or shorter than 1e-12.
    """
    tensors = {}
    for name, images in (("query", query), ("gallery", gallery)):
        rows = np.arange(len(images))
        gate = None if images.gate is None else take(images.gate, rows)
        tensors[name] = take(images.parts, rows), take(images.visibility, rows), gate
        check_embeddings(name, *tensors[name])
    (q, q_visibility, gate), (g, g_visibility, _) = tensors["query"], tensors["gallery"]
    with float32_matmul("default"):
        return distance.distances(q, g, q_visibility, g_visibility, metric, gate)


def round_up(count: int) -> int:
    """The next multiple of `MULTIPLE`."""
    return -(-count // MULTIPLE) * MULTIPLE


# ------------------------------------------------------------------ blocks


class TileBuffer:
    """Memory for one gallery block after another: fresh memory would cost as much as reading."""

    def __init__(self, gallery: Embedded, size: int):
        parts, channels = gallery.parts.shape[1:]
        self.images = torch.empty(size, parts, channels) if isinstance(gallery.parts, Stored) else None
        self.units = _zeros(parts * round_up(size), channels)


def _zeros(*shape: int) -> Tensor:
    # numpy asks for large pages, PyTorch does not: to touch memory for the first time costs time
    return torch.from_numpy(np.empty(shape, np.float32)).zero_()


@dataclass(frozen=True)
class _Part:
    """One part of the n images of a block that show it."""

    places: Int[Tensor, "n"]  # of the images in the block
    features: Float[Tensor, "n_padded D"]  # of length 1, times a query's gate; rows from n on are undefined
    weights: Float[Tensor, "n"]  # visibility
    gate: Float[Tensor, "n D"] | None = None  # squared


class GalleryBlock:
    """w images of the gallery, ready to be compared; it overwrites `buffer`."""

    def __init__(
        self, gallery: Embedded, rows: Int[np.ndarray, "w"], device: str | torch.device, buffer: TileBuffer
    ):
        self.rows = rows
        parts, visibility = _visible_parts("gallery", gallery, rows, buffer)
        self.parts = [_to(part, device) for part in parts]
        self.visibility = visibility.to(device)


class QueryBlock:
    """n queries, ready to be compared; hidden parts take no memory."""

    def __init__(self, query: Embedded, rows: Int[np.ndarray, "n"], device: str | torch.device):
        parts, visibility = _visible_parts("query", query, rows)
        if query.gate is not None:
            gate = take(query.gate, rows)
            lengths = gate.norm(dim=2)
            check_lengths("query gate", lengths, visibility, rows, query.keys)
            parts = [_gated(part, gate[part.places, p]) for p, part in enumerate(parts)]
        self.parts = [_to(part, device) for part in parts]
        self.visibility = visibility.to(device)


def _visible_parts(
    name: str, images: Embedded, rows: Int[np.ndarray, "n"], buffer: TileBuffer | None = None
) -> tuple[list[_Part], Float[Tensor, "n P"]]:
    """The visible parts of these images, in `buffer` if there is one, and the visibility of all parts."""
    visibility = take(images.visibility, rows)
    check_visibility(f"{name} visibility", visibility, rows, images.keys)
    source, source_rows = _in_memory(images.parts, rows, None if buffer is None else buffer.images)
    counts = [round_up(count) for count in (visibility != 0).sum(0).tolist()]
    units = _zeros(sum(counts), source.shape[2]) if buffer is None else buffer.units[: sum(counts)]
    lengths, start = torch.zeros(visibility.shape), np.cumsum([0, *counts[:-1]])
    kernels.unit(source.numpy(), source_rows, visibility.numpy(), start, units.numpy(), lengths.numpy())
    check_lengths(f"{name} features", lengths, visibility, rows, images.keys)
    parts = []
    for p, features in enumerate(units.split(counts)):
        places = visibility[:, p].nonzero().flatten()
        parts.append(_Part(places, features, visibility[places, p]))
    return parts, visibility


def _gated(part: _Part, gate: Float[Tensor, "n D"]) -> _Part:
    part.features[: len(gate)] *= gate
    return replace(part, gate=gate.square())


def _to(part: _Part, device: str | torch.device) -> _Part:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return _Part(**{name: value if value is None else value.to(device) for name, value in values.items()})


def _in_memory(
    source: Features, rows: Int[np.ndarray, "taken"], buffer: Float[Tensor, "size P D"] | None = None
) -> tuple[Float[Tensor, "N P D"], Int[np.ndarray, "taken"]]:
    """Features in memory, and where in them those rows are; of a file, these rows alone are read."""
    if isinstance(source, Stored):
        return take(source, rows, buffer), np.arange(len(rows))
    return source.detach().cpu(), rows


# ------------------------------------------------------------------ distances of two blocks


class Workspace:
    """Memory of one thread for the distances of two blocks and the products that they are made of."""

    def __init__(self, queries: int, images: int, device: str | torch.device):
        self.total, self.product = _zeros(2, round_up(queries) * round_up(images)).to(device)


def block_distances(
    queries: QueryBlock, gallery: GalleryBlock, metric: str, workspace: Workspace
) -> Float[Tensor, "n w"]:
    """Distances (Eq. 25) between the images of two blocks, in the workspace until the next call."""
    total = _view(workspace.total, len(queries.visibility), len(gallery.rows)).zero_()
    for query_part, gallery_part in zip(queries.parts, gallery.parts, strict=True):
        product = _view(workspace.product, len(query_part.features), len(gallery_part.features))
        torch.mm(query_part.features, gallery_part.features.T, out=product)
        _add_part(total, query_part, gallery_part, product, metric)
    weight = _view(workspace.product, *total.shape)
    torch.mm(queries.visibility, gallery.visibility.T, out=weight)
    if total.device.type == "cpu":
        kernels.divide(total.numpy(), weight.numpy())
        return total
    return total.div_(weight).masked_fill_(weight == 0, torch.inf)


def _view(memory: Float[Tensor, "size"], rows: int, columns: int) -> Float[Tensor, "n w"]:
    return memory[: rows * columns].view(rows, columns)


def _add_part(total: Tensor, query: _Part, gallery: _Part, product: Tensor, metric: str) -> None:
    weights = query.weights / 2 if metric == "cosine" else query.weights
    rooted = metric == "euclidean"
    if total.device.type == "cpu" and query.gate is None:
        arguments = (query.places, gallery.places, product, weights, gallery.weights)
        kernels.fold(total.numpy(), *(tensor.numpy() for tensor in arguments), rooted)
    else:
        fold(total, query, gallery, product[: len(query.places), : len(gallery.places)], weights, rooted)


def fold(
    total: Float[Tensor, "N W"],
    query: _Part,
    gallery: _Part,
    product: Float[Tensor, "n w"],
    weights: Float[Tensor, "n"],
    rooted: bool,
) -> None:
    """`kernels.fold` in PyTorch, on any device; with a gate, the gallery's lengths differ for each query."""
    squared_distance = 2 - 2 * product
    if query.gate is not None:
        lengths = (query.gate @ gallery.features[: len(gallery.places)].square().T).sqrt_()
        square = (lengths > 0).float()  # 0 where the gate hides all of a feature
        squared_distance = 1 + square - 2 * product / (lengths + (1 - square))
    squared_distance.clamp_(min=0)
    distances = squared_distance.sqrt_() if rooted else squared_distance
    spread = total.new_zeros(len(query.places), total.shape[1])
    spread[:, gallery.places] = distances.mul_(weights[:, None]).mul_(gallery.weights)
    total.index_add_(0, query.places, spread)
