"""From images and cached labels to batches: one image size, parsing maps, occlusion types z.

Unusual here:
- Training images are decoded once, into one array of bytes (a memory-mapped scratch file if it is large).
- Images are resized many at a time, straight into that array: fresh memory costs more than the resizing.
- The threshold of Eq. 2 is read back from the labels (the least count that they call visible).  Training
  therefore depends on the labels alone, and equal labels give an equal model.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
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

IN_MEMORY = 4 << 30  # bytes; larger sets live in a memory-mapped scratch file
DECODE_BATCH = 64  # images decoded, then resized together


# ------------------------------------------------------------------ a batch


@dataclasses.dataclass(frozen=True)
class View:
    """B images as the network's input."""

    image: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]  # bytes, or colours in [-1, 1]
    parsing: UInt8[Tensor, "B H W"]  # 0 background, 1..K the parts
    hidden: Bool[Tensor, "B C"]  # z, the occlusion type


@dataclasses.dataclass(frozen=True)
class Batch:
    """B images: their holistic view and, in training, their occluded view."""

    holistic: View
    camid: Int[Tensor, "B"]  # from 0; -1 unknown
    pid: Int[Tensor, "B"]  # in training, identities numbered from 0; otherwise as in the index
    occluded: View | None = None
    covered: Bool[Tensor, "B H W"] | None = None  # pixels that the obstacle covers

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return _to_device(self, device)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; the copy to a GPU is asynchronous, from pinned memory."""
    target = torch.device(device)
    return (tensor.pin_memory() if target.type == "cuda" else tensor).to(target, non_blocking=True)


def _to_device(value: Any, device: torch.device | str) -> Any:
    # a Batch or a View with every tensor on another device
    members = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for name, member in members.items():
        if member is not None:
            move = _to_device if isinstance(member, View) else to_device
            members[name] = move(member, device)
    return dataclasses.replace(value, **members)


def normalise(image: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes to colours in [-1, 1]: mean and standard deviation 0.5, as the ViT's weights expect."""
    return (image.contiguous().float() / 127.5).sub_(1)


# ------------------------------------------------------------------ decoded images and their labels


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size with their labels; row i of every array is image i."""

    image: UInt8[np.ndarray, "N H W 3"]
    parsing: UInt8[np.ndarray, "N H W"]
    hidden: Bool[np.ndarray, "N C"]  # z as cached
    camid: Int[np.ndarray, "N"]
    pid: Int[np.ndarray, "N"]
    threshold: float  # pixels of H x W; a part with fewer is hidden

    def __len__(self) -> int:
        return len(self.image)


def training_set(
    index: pd.DataFrame, images: Images, parsing: LabelFile, labels: LabelFile, size: tuple[int, int]
) -> ImageSet:
    """The training images of known identities, which are numbered from 0.

    Raises `BadInput` if the index has none.
    """
    rows = training_rows(index)
    if not len(rows):
        raise BadInput("index: no training images. Let `train_on` name a dataset with a training split.")
    image_set = read_images(index, images, parsing, labels, rows, size)
    return dataclasses.replace(image_set, pid=np.unique(image_set.pid, return_inverse=True)[1])


def training_rows(index: pd.DataFrame) -> Int[np.ndarray, "N"]:
    """Rows of the training images of known identities, which leaves out distractors and junk."""
    return np.flatnonzero((index["split"] == "train") & (index["pid"] > 0))


def read_images(
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    labels: LabelFile,
    rows: np.ndarray,
    size: tuple[int, int],
) -> ImageSet:
    """The images of `rows`, decoded and resized to `size` (height, width), with their labels.

    Colours are resized bicubically, parsing maps by nearest neighbour.  Nothing is random: an image is the
    same every time it is read.
    """
    image = _new_array((len(rows), *size, 3))
    maps = _new_array((len(rows), *size))
    stored = parsing["map"]
    with progress_bar(total=len(rows), desc="decode", disable=len(rows) < 500) as bar:
        for start in range(0, len(rows), DECODE_BATCH):
            block = np.s_[start : start + DECODE_BATCH]
            resize_images([images[int(row)] for row in rows[block]], out=image[block])
            for row, resized in zip(rows[block], maps[block], strict=True):
                resized[:] = resize_labels(np.asarray(stored[int(row)]), size)
            bar.update(len(maps[block]))
    pixels, hidden = labels["pixels"][:], labels["occluded"][:]
    grid = stored.shape[1:]
    return ImageSet(
        image=image,
        parsing=maps,
        hidden=hidden[rows].astype(bool),
        camid=index["camid"].to_numpy(np.int64)[rows],
        pid=index["pid"].to_numpy(np.int64)[rows],
        threshold=label_threshold(pixels, hidden) * (size[0] * size[1]) / (grid[0] * grid[1]),
    )


def label_threshold(pixels: Int[np.ndarray, "N C"], hidden: np.ndarray) -> float:
    """The least y(c) that the labels call visible: a part with fewer pixels is hidden (Eq. 2).

    Infinite if the labels call no part visible.
    Departs: lambda is read back from its labels.  On every labelled image the two agree.
    """
    visible = pixels[hidden == 0]
    return float(visible.min()) if len(visible) else float("inf")


def _new_array(shape: tuple[int, ...]) -> np.ndarray:
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    scratch = Path(".scratch")
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # it has no name, and disappears with the array
        return np.memmap(file, np.uint8, "w+", shape=shape)


# ------------------------------------------------------------------ resizing


def resize_images(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], out: UInt8[np.ndarray, "N H W 3"]) -> None:
    """Write images into `out`, each as `resize_image` makes it; images of one size are resized together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for n, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(n)
    for rows in by_shape.values():
        out[rows] = resize_image(np.stack([images[n] for n in rows]), out.shape[1:3])


def resize_image(
    image: UInt8[np.ndarray, "*N h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "*N H W 3"]:
    """One image or several, resized bicubically to (height, width); unchanged if that is its size.

    Equals Pillow's resizing but for a level or two of rounding, in a fraction of the time.
    """
    *leading, height, width, _ = image.shape
    if (height, width) == tuple(size):
        return image
    planes = torch.from_numpy(np.require(image, requirements=["C", "W"])).view(-1, height, width, 3)
    resized = F.interpolate(planes.permute(0, 3, 1, 2), tuple(size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy().reshape(*leading, *size, 3)


def resize_labels(parsing: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """A parsing map resized by nearest neighbour to (height, width); unchanged if that is its size."""
    if parsing.shape == tuple(size):
        return parsing
    return np.asarray(Image.fromarray(parsing).resize((size[1], size[0]), Image.Resampling.NEAREST))


# ------------------------------------------------------------------ evaluation batches


def eval_batch(image_set: ImageSet, rows: np.ndarray | slice = np.s_[:]) -> Batch:
    """The evaluation batch of these rows: images without augmentation, z as cached."""
    view = View(
        torch.from_numpy(image_set.image[rows]).permute(0, 3, 1, 2),
        torch.from_numpy(image_set.parsing[rows]),
        torch.from_numpy(image_set.hidden[rows]),
    )
    return Batch(view, torch.from_numpy(image_set.camid[rows]), torch.from_numpy(image_set.pid[rows]))


def eval_batches(image_set: ImageSet, size: int) -> Iterator[Batch]:
    """Evaluation batches of all images in order, `size` at a time."""
    for start in range(0, len(image_set), size):
        yield eval_batch(image_set, np.s_[start : start + size])


def stream_eval_batches(
    index: pd.DataFrame,
    images: Images,
    parsing: LabelFile,
    labels: LabelFile,
    rows: np.ndarray,
    size: tuple[int, int],
    count: int,
) -> Iterator[Batch]:
    """Evaluation batches of `rows` in order, `count` at a time; only one batch is in memory."""
    for start in range(0, len(rows), count):
        yield eval_batch(read_images(index, images, parsing, labels, rows[start : start + count], size))
