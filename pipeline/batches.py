"""From cached labels to batches: identities in each, two views of each image, one geometry for both.

The holistic view is the training image flipped, padded and cropped; the occluded view is the same pixels
with an obstacle pasted.  Parsing map and occlusion type z of each view are its own: the map is flipped with
its sides swapped, what is padded or pasted becomes background, and only then are the parts counted.

Unusual here:
- Training images are decoded once into one array of bytes (a memory-mapped scratch file if large).
- The threshold of Eq. 2 is read back from the labels (the least count that they call visible), so that
  training depends on the labels alone, and labels that come out the same leave the model as it is.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline import obstacles, occlusion, parts
from pipeline.datasets import Images
from pipeline.obstacles import Obstacle, Obstacles
from pipeline.params import BadInput
from pipeline.store import Rows, progress

T = TypeVar("T")
IN_MEMORY = 4 << 30  # bytes; larger sets live in a memory-mapped scratch file


@dataclass(frozen=True)
class View:
    """What a network is shown of B images."""

    image: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]  # bytes, or colours in [-1, 1]
    parsing: UInt8[Tensor, "B H W"]  # 0 background, 1..K the parts
    hidden: Bool[Tensor, "B C"]  # z, the occlusion type


@dataclass(frozen=True)
class Batch:
    """B images, as they are and, in training, occluded."""

    holistic: View
    camid: Int[Tensor, "B"]  # 0-based; -1 unknown
    pid: Int[Tensor, "B"]  # training: the identity's number from 0; otherwise as in the index
    occluded: View | None = None
    covered: Bool[Tensor, "B H W"] | None = None  # pixels that the obstacle covers

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return _each(self, lambda part: part.to(device, non_blocking=True))

    def take(self, rows: slice) -> "Batch":
        """Some of the images."""
        return _each(self, lambda part: part[rows])


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    # a batch or view with every tensor changed
    changed = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, part in changed.items():
        if isinstance(part, View):
            changed[name] = _each(part, change)
        elif part is not None:
            changed[name] = change(part)
    return replace(value, **changed)


@dataclass(frozen=True)
class Pictures:
    """Decoded images of one size and their labels, row by row."""

    image: UInt8[np.ndarray, "N H W 3"]
    parsing: UInt8[np.ndarray, "N H W"]
    hidden: Bool[np.ndarray, "N C"]  # z as cached
    camid: Int[np.ndarray, "N"]
    pid: Int[np.ndarray, "N"]
    threshold: float  # a part with fewer pixels counts as hidden

    def __len__(self) -> int:
        return len(self.image)


def threshold(pixels: Int[np.ndarray, "N C"], hidden: np.ndarray) -> float:
    """The least y(c) that the labels call visible: hidden means fewer pixels than this (Eq. 2).

    Departs: lambda is read back from its labels; on every labelled image the two agree.
    """
    seen = pixels[hidden == 0]
    return float(seen.min()) if len(seen) else float("inf")


def read(
    index: pd.DataFrame, images: Images, parsing: Rows, labels: Rows, rows: np.ndarray, size: tuple[int, int]
) -> Pictures:
    """Decode the given rows of the index, resized to `size` (height, width), with their labels.

    Colours are resized bicubically, parsing maps by nearest neighbour.  Nothing random comes before: an image
    is the same whenever it is read.
    """
    picture = _array((len(rows), *size, 3))
    maps = _array((len(rows), *size))
    stored = parsing["map"]
    for i, row in enumerate(progress(iterable=rows, desc="decode", disable=len(rows) < 500)):
        picture[i] = resize_colours(images[int(row)], size)
        maps[i] = resize_labels(np.asarray(stored[int(row)]), size)
    pixels, hidden = labels["pixels"][:], labels["occluded"][:]
    grid = stored.shape[1:]
    return Pictures(
        image=picture,
        parsing=maps,
        hidden=hidden[rows].astype(bool),
        camid=index["camid"].to_numpy(np.int64)[rows],
        pid=index["pid"].to_numpy(np.int64)[rows],
        threshold=threshold(pixels, hidden) * (size[0] * size[1]) / (grid[0] * grid[1]),
    )


def resize_colours(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture resized bicubically to (height, width); as it is if it has that size.

    As Pillow does it, but for a level or two where rounding differs, in a fraction of the time.
    """
    if picture.shape[:2] == tuple(size):
        return picture
    plane = torch.from_numpy(np.require(picture, requirements="CW"))[None].permute(0, 3, 1, 2)
    return F.interpolate(plane, tuple(size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def resize_labels(parsing: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """A parsing map resized to (height, width): the nearest label; as it is if it has that size."""
    if parsing.shape == tuple(size):
        return parsing
    return np.asarray(Image.fromarray(parsing).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _array(shape: tuple[int, ...]) -> np.ndarray:
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    scratch = Path(".scratch")
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # has no name: gone when the array is
        return np.memmap(file, np.uint8, "w+", shape=shape)


def training(
    index: pd.DataFrame, images: Images, parsing: Rows, labels: Rows, size: tuple[int, int]
) -> Pictures:
    """The training images that show somebody, identities numbered from 0.

    Raises `BadInput` if the index has none.
    """
    rows = training_rows(index)
    if not len(rows):
        raise BadInput("index: no training images. Let `train_on` name a dataset with a training split.")
    pictures = read(index, images, parsing, labels, rows, size)
    return replace(pictures, pid=np.unique(pictures.pid, return_inverse=True)[1])


def training_rows(index: pd.DataFrame) -> Int[np.ndarray, "N"]:
    """Rows of the training images that show somebody."""
    return np.flatnonzero((index["split"] == "train") & (index["pid"] > 0))


# ------------------------------------------------------------------ which images


def by_identity(
    pid: Int[np.ndarray, "N"], identities: int, images: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """One epoch of batches of P identities x K images: a list of rows for each batch.

    Each identity's images are shuffled and cut into chunks of K (an identity with fewer is drawn with
    replacement; a rest is left for the next epoch); batches take a chunk of each of P identities while
    P identities have one.  Raises `BadInput` if the set has fewer than P identities.
    """
    chunks = {int(i): _chunks(np.flatnonzero(pid == i), images, rng) for i in np.unique(pid)}
    if len(chunks) < identities:
        raise BadInput(
            f"params.yaml: train.identities = {identities}, but the training set has only {len(chunks)}. "
            "Lower it."
        )
    batches = []
    while len(chunks) >= identities:
        chosen = rng.permutation(sorted(chunks))[:identities]
        batches.append(np.concatenate([chunks[i].pop() for i in chosen]))
        chunks = {i: c for i, c in chunks.items() if c}
    return batches


def _chunks(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    if len(rows) < size:
        rows = rng.choice(rows, size)
    rows = rng.permutation(rows)
    return [rows[a : a + size] for a in range(0, len(rows) - size + 1, size)]


# ------------------------------------------------------------------ how they are shown


def flip(image: np.ndarray, parsing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image and its parsing map: what was a left arm is a right arm now."""
    return cv2.flip(image, 1), parts.flip(parsing)


def shift(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    """The picture moved inside its frame, zeros where nothing is left: pad, then crop to the same size."""
    height, width = picture.shape[:2]
    down, right = max(-height, min(down, height)), max(-width, min(right, width))
    moved = np.zeros_like(picture)
    to_y, to_x = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    from_y, from_x = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    moved[to_y, to_x] = picture[from_y, from_x]
    return moved


def augment(
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    mirror: float,
    pad: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Flip with probability `mirror`, pad by `pad` pixels and crop at random; one draw for both."""
    if rng.random() < mirror:
        image, parsing = flip(image, parsing)
    down, right = rng.integers(-pad, pad + 1, 2).tolist()
    return shift(image, down, right), shift(parsing, down, right)


def pair(
    pictures: Pictures,
    row: int,
    donor: int,
    mirror: float,
    pad: int,
    params: Obstacles,
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One image's two views: image, parsing map, occluded image, and the pixels that the obstacle covers."""
    image, parsing = augment(pictures.image[row], pictures.parsing[row], mirror, pad, rng)
    if rng.random() >= params.probability:
        return image, parsing, image, np.zeros(parsing.shape, bool)
    obstacle = obstacles.draw(params, pictures.image[donor], pictures.parsing[donor], cutouts, rng)
    top, left = obstacles.place(obstacle, *parsing.shape, rng)
    occluded, covered = obstacles.paste(image, obstacle, top, left)
    return image, parsing, occluded, covered


def pairs(
    pictures: Pictures,
    rows: np.ndarray,
    mirror: float,
    pad: int,
    params: Obstacles,
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> Batch:
    """A training batch; each obstacle comes from an image of another identity."""
    drawn = [
        pair(pictures, row, _stranger(pictures.pid, row, rng), mirror, pad, params, cutouts, rng)
        for row in rows.tolist()
    ]
    image, parsing, occluded, covered = (
        torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True)
    )
    return Batch(
        holistic=view(image, parsing, pictures),
        occluded=view(occluded, parsing.masked_fill(covered, 0), pictures),
        covered=covered,
        camid=torch.from_numpy(pictures.camid[rows]),
        pid=torch.from_numpy(pictures.pid[rows]),
    )


def _stranger(pid: np.ndarray, row: int, rng: np.random.Generator) -> int:
    for _ in range(20):
        donor = int(rng.integers(len(pid)))
        if pid[donor] != pid[row]:
            break
    return donor


def ahead(made: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same batches in the same order, the next `count` of them made while one is used.

    One thread makes them all, so that whatever they draw is drawn in their order.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, made, None) for _ in range(count))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, made, None))
            yield batch


def view(image: UInt8[Tensor, "B H W 3"], parsing: UInt8[Tensor, "B H W"], pictures: Pictures) -> View:
    """Images and their own parsing maps as a view, z counted on those maps."""
    counts = occlusion.pixels(parsing.int(), pictures.hidden.shape[1])
    hidden = occlusion.hidden(counts, pictures.threshold, strict=True)
    return View(image.permute(0, 3, 1, 2), parsing, hidden)


def colours(image: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes to colours in [-1, 1]: mean and standard deviation 0.5, as the ViT's weights expect."""
    return (image.contiguous().float() / 127.5).sub_(1)


def plain(pictures: Pictures, rows: np.ndarray | slice = np.s_[:]) -> Batch:
    """An evaluation batch: the images as they are, z as cached."""
    own = View(
        torch.from_numpy(pictures.image[rows]).permute(0, 3, 1, 2),
        torch.from_numpy(pictures.parsing[rows]),
        torch.from_numpy(pictures.hidden[rows]),
    )
    return Batch(own, torch.from_numpy(pictures.camid[rows]), torch.from_numpy(pictures.pid[rows]))


def plain_batches(pictures: Pictures, size: int) -> Iterator[Batch]:
    """All pictures in order, `size` at a time, as they are."""
    for start in range(0, len(pictures), size):
        yield plain(pictures, np.s_[start : start + size])


def evaluation(
    index: pd.DataFrame,
    images: Images,
    parsing: Rows,
    labels: Rows,
    rows: np.ndarray,
    size: tuple[int, int],
    count: int,
) -> Iterator[Batch]:
    """The given rows in order, `count` at a time, as they are; holds no more than one batch."""
    for start in range(0, len(rows), count):
        yield plain(read(index, images, parsing, labels, rows[start : start + count], size))
