"""From cached labels to batches: identities in each, two views of each image, one geometry for both.

The holistic view is the training image flipped, padded and cropped; the occluded view is the same pixels
with an obstacle pasted.  Parsing map and occlusion type z of each view are its own: the map is flipped with
its sides swapped, what is padded or pasted becomes background, and only then are the parts counted.

Unusual here:
- Training images are decoded once into one array of bytes (a memory-mapped scratch file if large).
- Pictures are resized many at a time, and drawn straight into the batch: fresh memory costs more than both.
- The threshold of Eq. 2 is read back from the labels (the least count that they call visible), so that
  training depends on the labels alone, and labels that come out the same leave the model as it is.
"""

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
TOGETHER = 64  # pictures decoded, then resized


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
        return _sent(self, device)


def sent(part: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; a GPU fetches it by itself, while the next one is made."""
    there = torch.device(device)
    return (part.pin_memory() if there.type == "cuda" else part).to(there, non_blocking=True)


def _sent(value: Any, device: torch.device | str) -> Any:
    # a batch or view with every tensor on another device
    held = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, part in held.items():
        if part is not None:
            held[name] = _sent(part, device) if isinstance(part, View) else sent(part, device)
    return replace(value, **held)


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
    with progress(total=len(rows), desc="decode", disable=len(rows) < 500) as bar:
        for start in range(0, len(rows), TOGETHER):
            some = np.s_[start : start + TOGETHER]
            resize_all([images[int(row)] for row in rows[some]], picture[some])
            for row, resized in zip(rows[some], maps[some], strict=True):
                resized[:] = resize_labels(np.asarray(stored[int(row)]), size)
            bar.update(len(maps[some]))
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


def resize_all(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], resized: UInt8[np.ndarray, "N H W 3"]) -> None:
    """Write pictures into `resized`, each as `resize_colours` makes it; those of one size cost less."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        alike.setdefault(picture.shape, []).append(number)
    for numbers in alike.values():
        resized[numbers] = resize_colours(np.stack([pictures[n] for n in numbers]), resized.shape[1:3])


def resize_colours(
    picture: UInt8[np.ndarray, "*N h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "*N H W 3"]:
    """A picture, or several, resized bicubically to (height, width); as it is if it has that size.

    As Pillow does it, but for a level or two where rounding differs, in a fraction of the time.
    """
    *several, height, width, _ = picture.shape
    if (height, width) == tuple(size):
        return picture
    plane = torch.from_numpy(np.require(picture, requirements="CW")).view(-1, height, width, 3)
    made = F.interpolate(plane.permute(0, 3, 1, 2), tuple(size), mode="bicubic", antialias=True)
    return made.permute(0, 2, 3, 1).numpy().reshape(*several, *size, 3)


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


def shift(picture: np.ndarray, mirrored: bool, down: int, right: int, shown: np.ndarray) -> None:
    """Draw a picture into `shown`, zeros of its shape: mirrored or as it is, then moved inside its frame.

    That is to pad it with zeros and to crop it to the same size.
    """
    height, width = picture.shape[:2]
    if abs(down) >= height or abs(right) >= width:
        return
    to_y, from_y = _moved(down, height)
    to_x, from_x = _moved(right, width)
    if mirrored:
        _, from_x = _moved(-right, width)
        cv2.flip(picture[from_y, from_x], 1, shown[to_y, to_x])
    else:
        shown[to_y, to_x] = picture[from_y, from_x]


def _moved(by: int, length: int) -> tuple[slice, slice]:
    # where what stays in the frame goes, and where it was
    return slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))


class Turn(NamedTuple):
    """How an image is shown: mirrored or not, then moved by so many pixels inside its frame."""

    mirrored: bool
    down: int
    right: int


def turn(mirror: float, pad: int, rng: np.random.Generator) -> Turn:
    """Mirrored with probability `mirror`, padded by `pad` pixels and cropped at random."""
    mirrored = rng.random() < mirror
    return Turn(mirrored, *rng.integers(-pad, pad + 1, 2).tolist())


def turned(
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    how: Turn,
    shown: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]],
) -> None:
    """Draw an image and its parsing map into `shown`, two arrays of zeros.

    What was a left arm is a right arm in a mirror.
    """
    mirrored, down, right = how
    shift(image, mirrored, down, right, shown[0])
    shift(parts.flip(parsing) if mirrored else parsing, False, down, right, shown[1])


def augmented(
    images: UInt8[np.ndarray, "N H W 3"],
    parsing: UInt8[np.ndarray, "N H W"],
    rows: Int[np.ndarray, "B"],
    mirror: float,
    pad: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W"]]:
    """Some images and their parsing maps, each flipped, padded and cropped at random."""
    shown = tuple(np.zeros((len(rows), *whole.shape[1:]), np.uint8) for whole in (images, parsing))
    for row, image, labels in zip(rows.tolist(), *shown, strict=True):
        turned(images[row], parsing[row], turn(mirror, pad, rng), (image, labels))
    return shown


class Chance(NamedTuple):
    """What chance decides for a pair of views."""

    turn: Turn
    obstacle: Obstacle | None
    place: tuple[int, int]  # of the obstacle: top, left


def draw(
    pictures: Pictures,
    rows: np.ndarray,
    mirror: float,
    pad: int,
    params: Obstacles,
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> list[Chance]:
    """What chance decides for each image of a batch; an obstacle comes from an image of another identity."""
    size = pictures.parsing.shape[1:]
    chances = []
    for row in rows.tolist():
        donor = _stranger(pictures.pid, row, rng)
        how, obstacle, place = turn(mirror, pad, rng), None, (0, 0)
        if rng.random() < params.probability:
            obstacle = obstacles.draw(params, pictures.image[donor], pictures.parsing[donor], cutouts, rng)
            place = obstacles.place(obstacle, *size, rng)
        chances.append(Chance(how, obstacle, place))
    return chances


def pairs(pictures: Pictures, rows: np.ndarray, chances: Sequence[Chance]) -> Batch:
    """A training batch of what was drawn."""
    size = pictures.parsing.shape[1:]
    image, occluded = np.zeros((2, len(rows), *size, 3), np.uint8)
    parsing, covered = np.zeros((len(rows), *size), np.uint8), np.zeros((len(rows), *size), bool)
    for n, (row, chance) in enumerate(zip(rows.tolist(), chances, strict=True)):
        turned(pictures.image[row], pictures.parsing[row], chance.turn, (image[n], parsing[n]))
        if chance.obstacle is None:
            occluded[n] = image[n]
        else:
            occluded[n], covered[n] = obstacles.paste(image[n], chance.obstacle, *chance.place)
    return Batch(
        holistic=view(image, parsing, pictures),
        occluded=view(occluded, parsing * ~covered, pictures),
        covered=torch.from_numpy(covered),
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


def view(
    image: UInt8[np.ndarray, "B H W 3"], parsing: UInt8[np.ndarray, "B H W"], pictures: Pictures
) -> View:
    """Images and their own parsing maps as a view, z counted on those maps."""
    maps = torch.from_numpy(parsing)
    counts = occlusion.pixels(maps, pictures.hidden.shape[1])
    hidden = occlusion.hidden(counts, pictures.threshold, strict=True)
    return View(torch.from_numpy(image).permute(0, 3, 1, 2), maps, hidden)


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
