"""From cached labels to batches: images of one size, their parsing maps and their occlusion types z.

Unusual here:
- Training images are decoded once into one array of bytes (a memory-mapped scratch file if large).
- Images are resized many at a time and written straight into the batch: fresh memory costs more than both.
- The threshold of Eq. 2 is read back from the labels (the least count that they call visible), so that
  training depends on the labels alone, and equal labels leave the model as it is.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.core.workers import progress_bar
from pipeline.data.index import Images
from pipeline.labels import occlusion

IN_MEMORY = 4 << 30  # bytes; larger sets live in a memory-mapped scratch file
DECODE_BATCH = 64  # pictures decoded, then resized


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
        return _to_device(self, device)


def to_device(part: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; a GPU fetches it by itself, while the next one is made."""
    there = torch.device(device)
    return (part.pin_memory() if there.type == "cuda" else part).to(there, non_blocking=True)


def _to_device(value: Any, device: torch.device | str) -> Any:
    # a batch or view with every tensor on another device
    held = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, part in held.items():
        if part is not None:
            held[name] = _to_device(part, device) if isinstance(part, View) else to_device(part, device)
    return replace(value, **held)


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size and their labels, row by row."""

    image: UInt8[np.ndarray, "N H W 3"]
    parsing: UInt8[np.ndarray, "N H W"]
    hidden: Bool[np.ndarray, "N C"]  # z as cached
    camid: Int[np.ndarray, "N"]
    pid: Int[np.ndarray, "N"]
    threshold: float  # a part with fewer pixels counts as hidden

    def __len__(self) -> int:
        return len(self.image)


def label_threshold(pixels: Int[np.ndarray, "N C"], hidden: np.ndarray) -> float:
    """The least y(c) that the labels call visible: hidden means fewer pixels than this (Eq. 2).

    Departs: lambda is read back from its labels; on every labelled image the two agree.
    """
    seen = pixels[hidden == 0]
    return float(seen.min()) if len(seen) else float("inf")


def read_images(
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    labels: LabelFile,
    rows: np.ndarray,
    size: tuple[int, int],
) -> ImageSet:
    """Decode the given rows of the index, resized to `size` (height, width), with their labels.

    Colours are resized bicubically, parsing maps by nearest neighbour.  Nothing random comes before: an image
    is the same whenever it is read.
    """
    picture = _new_array((len(rows), *size, 3))
    maps = _new_array((len(rows), *size))
    stored = parsing["map"]
    with progress_bar(total=len(rows), desc="decode", disable=len(rows) < 500) as bar:
        for start in range(0, len(rows), DECODE_BATCH):
            some = np.s_[start : start + DECODE_BATCH]
            resize_images([images[int(row)] for row in rows[some]], picture[some])
            for row, resized in zip(rows[some], maps[some], strict=True):
                resized[:] = resize_labels(np.asarray(stored[int(row)]), size)
            bar.update(len(maps[some]))
    pixels, hidden = labels["pixels"][:], labels["occluded"][:]
    grid = stored.shape[1:]
    return ImageSet(
        image=picture,
        parsing=maps,
        hidden=hidden[rows].astype(bool),
        camid=index["camid"].to_numpy(np.int64)[rows],
        pid=index["pid"].to_numpy(np.int64)[rows],
        threshold=label_threshold(pixels, hidden) * (size[0] * size[1]) / (grid[0] * grid[1]),
    )


def resize_images(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], resized: UInt8[np.ndarray, "N H W 3"]
) -> None:
    """Write pictures into `resized`, each as `resize_colours` makes it; those of one size cost less."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        alike.setdefault(picture.shape, []).append(number)
    for numbers in alike.values():
        resized[numbers] = resize_image(np.stack([pictures[n] for n in numbers]), resized.shape[1:3])


def resize_image(
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


def _new_array(shape: tuple[int, ...]) -> np.ndarray:
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    scratch = Path(".scratch")
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # has no name: gone when the array is
        return np.memmap(file, np.uint8, "w+", shape=shape)


def training_set(
    index: pd.DataFrame, images: Images, parsing: LabelFile, labels: LabelFile, size: tuple[int, int]
) -> ImageSet:
    """The training images that show somebody, identities numbered from 0.

    Raises `BadInput` if the index has none.
    """
    rows = training_rows(index)
    if not len(rows):
        raise BadInput("index: no training images. Let `train_on` name a dataset with a training split.")
    pictures = read_images(index, images, parsing, labels, rows, size)
    return replace(pictures, pid=np.unique(pictures.pid, return_inverse=True)[1])


def training_rows(index: pd.DataFrame) -> Int[np.ndarray, "N"]:
    """Rows of the training images that show somebody."""
    return np.flatnonzero((index["split"] == "train") & (index["pid"] > 0))


def make_view(
    image: UInt8[np.ndarray, "B H W 3"], parsing: UInt8[np.ndarray, "B H W"], pictures: ImageSet
) -> View:
    """Images and their own parsing maps as a view, z counted on those maps."""
    maps = torch.from_numpy(parsing)
    counts = occlusion.pixels(maps, pictures.hidden.shape[1])
    hidden = occlusion.hidden(counts, pictures.threshold, strict=True)
    return View(torch.from_numpy(image).permute(0, 3, 1, 2), maps, hidden)


def normalise(image: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes to colours in [-1, 1]: mean and standard deviation 0.5, as the ViT's weights expect."""
    return (image.contiguous().float() / 127.5).sub_(1)


def eval_batch(pictures: ImageSet, rows: np.ndarray | slice = np.s_[:]) -> Batch:
    """An evaluation batch: the images as they are, z as cached."""
    own = View(
        torch.from_numpy(pictures.image[rows]).permute(0, 3, 1, 2),
        torch.from_numpy(pictures.parsing[rows]),
        torch.from_numpy(pictures.hidden[rows]),
    )
    return Batch(own, torch.from_numpy(pictures.camid[rows]), torch.from_numpy(pictures.pid[rows]))


def eval_batches(pictures: ImageSet, size: int) -> Iterator[Batch]:
    """All pictures in order, `size` at a time, as they are."""
    for start in range(0, len(pictures), size):
        yield eval_batch(pictures, np.s_[start : start + size])


def stream_eval_batches(
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    labels: LabelFile,
    rows: np.ndarray,
    size: tuple[int, int],
    count: int,
) -> Iterator[Batch]:
    """The given rows in order, `count` at a time, as they are; holds no more than one batch."""
    for start in range(0, len(rows), count):
        yield eval_batch(read_images(index, images, parsing, labels, rows[start : start + count], size))
