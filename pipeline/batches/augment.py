"""Augmentation of a training batch: one geometry for both views of an image.

The holistic view is the image flipped, padded and cropped; the occluded view is the same pixels with an
obstacle pasted.  Parsing map and occlusion type z of each view are counted on that view: the map is flipped
with its sides swapped, padded and pasted pixels become background, and only then are the parts counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8

from pipeline.batches.views import Batch, ImageSet, make_view
from pipeline.data import obstacles, parts
from pipeline.data.obstacles import Obstacle, Obstacles

# ------------------------------------------------------------------ how they are shown


def flip_and_shift(picture: np.ndarray, mirrored: bool, down: int, right: int, shown: np.ndarray) -> None:
    """Draw a picture into `shown`, zeros of its shape: mirrored or as it is, then moved inside its frame.

    That is to pad it with zeros and to crop it to the same size.
    """
    height, width = picture.shape[:2]
    if abs(down) >= height or abs(right) >= width:
        return
    to_y, from_y = _shift_slices(down, height)
    to_x, from_x = _shift_slices(right, width)
    if mirrored:
        _, from_x = _shift_slices(-right, width)
        cv2.flip(picture[from_y, from_x], 1, shown[to_y, to_x])
    else:
        shown[to_y, to_x] = picture[from_y, from_x]


def _shift_slices(by: int, length: int) -> tuple[slice, slice]:
    # where what stays in the frame goes, and where it was
    return slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))


class FlipCrop(NamedTuple):
    """How an image is shown: mirrored or not, then moved by so many pixels inside its frame."""

    mirrored: bool
    down: int
    right: int


def sample_flip_crop(mirror: float, pad: int, rng: np.random.Generator) -> FlipCrop:
    """Mirrored with probability `mirror`, padded by `pad` pixels and cropped at random."""
    mirrored = rng.random() < mirror
    return FlipCrop(mirrored, *rng.integers(-pad, pad + 1, 2).tolist())


def apply_flip_crop(
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    how: FlipCrop,
    shown: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]],
) -> None:
    """Draw an image and its parsing map into `shown`, two arrays of zeros.

    What was a left arm is a right arm in a mirror.
    """
    mirrored, down, right = how
    flip_and_shift(image, mirrored, down, right, shown[0])
    flip_and_shift(parts.flip(parsing) if mirrored else parsing, False, down, right, shown[1])


def augment(
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
        apply_flip_crop(images[row], parsing[row], sample_flip_crop(mirror, pad, rng), (image, labels))
    return shown


class Augmentation(NamedTuple):
    """What chance decides for a pair of views."""

    turn: FlipCrop
    obstacle: Obstacle | None
    place: tuple[int, int]  # of the obstacle: top, left


def sample_augmentations(
    pictures: ImageSet,
    rows: np.ndarray,
    mirror: float,
    pad: int,
    params: Obstacles,
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> list[Augmentation]:
    """What chance decides for each image of a batch; an obstacle comes from an image of another identity."""
    size = pictures.parsing.shape[1:]
    chances = []
    for row in rows.tolist():
        donor = _other_identity(pictures.pid, row, rng)
        how, obstacle, place = sample_flip_crop(mirror, pad, rng), None, (0, 0)
        if rng.random() < params.probability:
            obstacle = obstacles.draw(params, pictures.image[donor], pictures.parsing[donor], cutouts, rng)
            place = obstacles.place(obstacle, *size, rng)
        chances.append(Augmentation(how, obstacle, place))
    return chances


def training_batch(pictures: ImageSet, rows: np.ndarray, chances: Sequence[Augmentation]) -> Batch:
    """A training batch of what was drawn."""
    size = pictures.parsing.shape[1:]
    image, occluded = np.zeros((2, len(rows), *size, 3), np.uint8)
    parsing, covered = np.zeros((len(rows), *size), np.uint8), np.zeros((len(rows), *size), bool)
    for n, (row, chance) in enumerate(zip(rows.tolist(), chances, strict=True)):
        apply_flip_crop(pictures.image[row], pictures.parsing[row], chance.turn, (image[n], parsing[n]))
        if chance.obstacle is None:
            occluded[n] = image[n]
        else:
            occluded[n], covered[n] = obstacles.paste(image[n], chance.obstacle, *chance.place)
    return Batch(
        holistic=make_view(image, parsing, pictures),
        occluded=make_view(occluded, parsing * ~covered, pictures),
        covered=torch.from_numpy(covered),
        camid=torch.from_numpy(pictures.camid[rows]),
        pid=torch.from_numpy(pictures.pid[rows]),
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
    out = tuple(np.zeros((len(rows), *array.shape[1:]), np.uint8) for array in (images, parsing))
    for row, image, labels in zip(rows.tolist(), *out, strict=True):
        apply_flip_crop(images[row], parsing[row], sample_flip_crop(flip, pad, rng), out=(image, labels))
    return out


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
