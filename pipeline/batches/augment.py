"""Augmentation of a training batch: the two views of an image share one geometry.

The holistic view is the image, its colours jittered, flipped, padded and cropped.  The occluded view is the
same pixels with an obstacle pasted.  Each view has a parsing map and an occlusion type z of its own: the map
is flipped with left and right parts swapped, padded and pasted pixels become background, and then the parts'
pixels are counted.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8

from pipeline.batches.jitter import NO_JITTER, Jitter, Strengths, apply_jitter, sample_jitter
from pipeline.batches.placing import NOTHING, Donor, sample_obstacle
from pipeline.batches.views import Batch, ImageSet, View
from pipeline.data import obstacles, parts
from pipeline.data.obstacle_pictures import Pictures
from pipeline.data.obstacles import Obstacle, Obstacles
from pipeline.labels import occlusion


class FlipCrop(NamedTuple):
    """Geometry of one image: flipped or not, then shifted inside its frame, which is to pad and to crop."""

    flipped: bool
    down: int  # pixels
    right: int


class Augmentation(NamedTuple):
    """Everything random about the two views of one image."""

    flip_crop: FlipCrop
    obstacle: Obstacle | None
    position: tuple[int, int]  # of the obstacle: top, left
    jitter: Jitter | None = None


# ------------------------------------------------------------------ sampling


def sample_flip_crop(flip: float, pad: int, rng: np.random.Generator) -> FlipCrop:
    """A flip with probability `flip`, and a random crop after padding by `pad` pixels."""
    flipped = rng.random() < flip
    return FlipCrop(flipped, *rng.integers(-pad, pad + 1, 2).tolist())


def sample_augmentations(
    image_set: ImageSet,
    rows: Int[np.ndarray, "B"],
    flip: float,
    pad: int,
    params: Obstacles,
    pictures: Pictures,
    rng: np.random.Generator,
    jitter: Strengths = NO_JITTER,
) -> list[Augmentation]:
    """One augmentation per image of a batch.  Obstacles are cut from images of other identities.

    A jitter of zeros draws nothing.
    """
    augmentations = []
    for row in rows.tolist():
        donors = _donors(image_set, row, rng)
        donor, flip_crop = next(donors), sample_flip_crop(flip, pad, rng)
        colours = sample_jitter(jitter, rng) if any(jitter) else None
        placed = NOTHING
        if rng.random() < params.probability:
            placed = sample_obstacle(params, chain([donor], donors), pictures, rng)
        augmentations.append(Augmentation(flip_crop, *placed, colours))
    return augmentations


def _donors(image_set: ImageSet, row: int, rng: np.random.Generator) -> Iterator[Donor]:
    while True:
        donor = _other_identity(image_set.pid, row, rng)
        yield Donor(image_set.image[donor], image_set.parsing[donor])


def _other_identity(pid: np.ndarray, row: int, rng: np.random.Generator) -> int:
    # a random row of another identity; any row after 20 attempts, as in a set of one identity
    for _ in range(20):
        donor = int(rng.integers(len(pid)))
        if pid[donor] != pid[row]:
            break
    return donor


# ------------------------------------------------------------------ applying


def training_batch(
    image_set: ImageSet, rows: Int[np.ndarray, "B"], augmentations: Sequence[Augmentation]
) -> Batch:
    """The training batch of these rows: both views of every image, with its augmentation applied."""
    size = image_set.parsing.shape[1:]
    image, occluded = np.zeros((2, len(rows), *size, 3), np.uint8)
    parsing, covered = np.zeros((len(rows), *size), np.uint8), np.zeros((len(rows), *size), bool)
    for n, (row, augmentation) in enumerate(zip(rows.tolist(), augmentations, strict=True)):
        flip_crop, obstacle, position, jitter = augmentation
        pixels = image_set.image[row]
        if jitter is not None:
            pixels = apply_jitter(torch.from_numpy(pixels)[None], [jitter])[0].numpy()
        apply_flip_crop(pixels, image_set.parsing[row], flip_crop, out=(image[n], parsing[n]))
        if obstacle is None:
            occluded[n] = image[n]
        else:
            occluded[n], covered[n] = obstacles.paste(image[n], obstacle, *position)
    return Batch(
        holistic=_view(image, parsing, image_set),
        occluded=_view(occluded, parsing * ~covered, image_set),
        covered=torch.from_numpy(covered),
        camid=torch.from_numpy(image_set.camid[rows]),
        pid=torch.from_numpy(image_set.pid[rows]),
    )


def _view(
    image: UInt8[np.ndarray, "B H W 3"], parsing: UInt8[np.ndarray, "B H W"], image_set: ImageSet
) -> View:
    # z is counted on the view's own maps
    maps = torch.from_numpy(parsing)
    counts = occlusion.count_pixels(maps, image_set.hidden.shape[1])
    hidden = occlusion.hidden_parts(counts, image_set.threshold, strict=True)
    return View(torch.from_numpy(image).permute(0, 3, 1, 2), maps, hidden)


def random_flip_crop(
    images: UInt8[np.ndarray, "N H W 3"],
    parsing: UInt8[np.ndarray, "N H W"],
    rows: Int[np.ndarray, "B"],
    flip: float,
    pad: int,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W"]]:
    """The images and parsing maps of `rows`, each flipped, padded and cropped at random."""
    image, maps = (np.zeros((len(rows), *array.shape[1:]), np.uint8) for array in (images, parsing))
    for n, row in enumerate(rows.tolist()):
        apply_flip_crop(images[row], parsing[row], sample_flip_crop(flip, pad, rng), out=(image[n], maps[n]))
    return image, maps


def apply_flip_crop(
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    flip_crop: FlipCrop,
    out: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]],
) -> None:
    """Write an image and its parsing map, flipped and cropped, into `out`, two arrays of zeros.

    A flip swaps the labels of left and right parts.
    """
    flipped, down, right = flip_crop
    apply_flip_shift(image, flipped, down, right, out[0])
    apply_flip_shift(parts.flip(parsing) if flipped else parsing, False, down, right, out[1])


def apply_flip_shift(source: np.ndarray, flipped: bool, down: int, right: int, out: np.ndarray) -> None:
    """Write `source`, flipped or not and then shifted, into `out`, zeros of its shape.

    Equals padding with zeros and cropping to the same size.
    """
    height, width = source.shape[:2]
    if abs(down) >= height or abs(right) >= width:
        return
    to_y, from_y = _shift_slices(down, height)
    to_x, from_x = _shift_slices(right, width)
    if flipped:
        _, from_x = _shift_slices(-right, width)
        cv2.flip(source[from_y, from_x], 1, out[to_y, to_x])
    else:
        out[to_y, to_x] = source[from_y, from_x]


def _shift_slices(shift: int, length: int) -> tuple[slice, slice]:
    # target and source of what stays in the frame
    return slice(max(shift, 0), length + min(shift, 0)), slice(max(-shift, 0), length - max(shift, 0))
