"""One obstacle for an occluded view: where it comes from, and where it lies.

Two placements.  `anywhere`: an obstacle of the drawn area, at least half of each side within the image.
`border`: FED's bands (CVPR 2022; its public code, as the paper gives no sizes), which an opaque obstacle is
enlarged to.  Noise, TransReID's random erasing, has a rule of its own and always lies within the image.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from pipeline.batches.jitter import apply_jitter, sample_jitter
from pipeline.batches.views import resize_image
from pipeline.data import obstacles
from pipeline.data.obstacle_pictures import Pictures
from pipeline.data.obstacles import OPAQUE, Obstacle, Obstacles

TRIES = 10  # of timm's random erasing, until the box lies within the image
DONORS = 20  # that `background` looks at, until one has room beside its person
EIGHTHS = np.arange(8, 0, -1) / 8  # of the wanted sides, that a rectangle without a body may have
TALL = 2.0  # height / width above which FED's patch becomes a vertical band
BAND_JITTER = (0.5, 0.5, 0.5, 0.0)  # of a horizontal band


class Donor(NamedTuple):
    """Another training image, of the size of the view."""

    image: UInt8[np.ndarray, "H W 3"]
    parsing: UInt8[np.ndarray, "H W"]


class Placed(NamedTuple):
    """An obstacle, or none, and its position in the view."""

    obstacle: Obstacle | None
    position: tuple[int, int]  # top, left


NOTHING = Placed(None, (0, 0))


def sample_obstacle(
    params: Obstacles, donors: Iterator[Donor], pictures: Pictures, rng: np.random.Generator
) -> Placed:
    """An obstacle from a random source, placed; `donors` are random images of other people.

    A rectangle replaces a person where the donor shows none.  Half of the people, cut-outs, patches and bands
    are flipped, other rectangles never.
    """
    source = params.sources[int(rng.integers(len(params.sources)))]
    donor = next(donors)
    height, width = donor.parsing.shape
    if source == "noise":
        return sample_noise(params, height, width, rng)
    donors = chain([donor], donors)
    person = obstacles.cut_person(*donor) if source == "person" else None
    if source == "person" and person is None:
        source = "rectangle"
    if params.placement == "border" and source in OPAQUE:
        return sample_band(source, donors, pictures, rng)
    if source == "rectangle":
        obstacle = obstacles.cut_rectangle(donor.image, params.area, params.aspect, rng)
    elif source == "background":
        sides = obstacles.sample_sides(height, width, params.area, params.aspect, rng)
        obstacle = cut_background(donors, *sides, rng)
    else:
        obstacle = person or _any(pictures[source], rng)
        obstacle = obstacles.scale(obstacle, rng.uniform(*params.area) * height * width)
        obstacle = obstacles.flip(obstacle) if rng.random() < 0.5 else obstacle
    return Placed(obstacle, obstacles.sample_position(obstacle, height, width, rng))


def sample_noise(params: Obstacles, height: int, width: int, rng: np.random.Generator) -> Placed:
    """Random erasing of Zhong et al. as timm has it: a box of N(0, 1) in normalised colours; it may fail.

    Area and log aspect are uniform, drawn again until both sides are shorter than the image's, `TRIES` times.
    Departs: colours beyond the bytes, a third of them, are clipped to [-1, 1], as views are bytes.
    """
    for _ in range(TRIES):
        pixels = rng.uniform(*params.area) * height * width
        ratio = np.exp(rng.uniform(*np.log(params.aspect)))
        h, w = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if h < height and w < width:
            colours = 127.5 + 127.5 * rng.standard_normal((h, w, 3), np.float32)
            position = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Placed(obstacles.rectangle(np.rint(colours).clip(0, 255).astype(np.uint8)), position)
    return NOTHING


def sample_band(source: str, donors: Iterator[Donor], pictures: Pictures, rng: np.random.Generator) -> Placed:
    """A band along a side of the image, as FED pastes its patches: in one of the corners, half are mirrored.

    A picture taller than `TALL` becomes as high as the image and a quarter to a half as wide; another one as
    wide, a quarter to a half as high, and its colours are jittered.
    Assumed: rectangles and backgrounds, which stand for FED's patches, are either with equal probability, and
    are cut in the band's size.
    Departs: colours change after the resizing, not before it, which costs less.
    """
    donor = next(donors)
    height, width = donor.parsing.shape
    picture = _any(pictures["patch"], rng) if source == "patch" else None
    tall = is_tall(picture) if picture else bool(rng.random() < 0.5)
    side = width if tall else height  # of which the band has a share
    length = int(rng.integers(side // 4, side // 2 + 1))
    h, w = (height, length) if tall else (length, width)
    if picture:
        band = obstacles.rectangle(resize_image(picture.pixels, (h, w)))
    elif source == "background":
        band = cut_background(chain([donor], donors), h, w, rng)
    else:
        band = obstacles.cut_box(donor.image, h, w, rng)
    band = band if tall else _jittered(band, rng)
    band = obstacles.flip(band) if rng.random() < 0.5 else band
    bottom, right = rng.integers(2, size=2).tolist()
    return Placed(band, ((height - h) * bottom, (width - w) * right))


def is_tall(picture: Obstacle) -> bool:
    """Whether a picture becomes a vertical band."""
    h, w = picture.solid.shape
    return h > TALL * w


def cut_background(donors: Iterator[Donor], h: int, w: int, rng: np.random.Generator) -> Obstacle:
    """A rectangle of h x w pixels of the first donor that has one without a body, at a random position.

    It may have fewer eighths of both sides, as many as fit, and is then enlarged.  A donor whose map shows no
    body says nothing and is passed over.  After `DONORS` of them, a rectangle of the last one.
    Assumed: this stands for FED's cropped patches, a download whose origin and terms are not stated (`patch`
    takes them); the parsing map calls background what is not the target's body: things, and other people too.
    """
    for donor in islice(donors, DONORS):
        for share in EIGHTHS if donor.parsing.any() else ():
            rows, columns = max(round(h * share), 1), max(round(w * share), 1)
            tops, lefts = np.nonzero(free_of_body(donor.parsing, rows, columns))
            if len(tops):
                n = int(rng.integers(len(tops)))
                box = np.s_[tops[n] : tops[n] + rows, lefts[n] : lefts[n] + columns]
                return obstacles.rectangle(resize_image(donor.image[box], (h, w)))
    return obstacles.cut_box(donor.image, h, w, rng)


def free_of_body(parsing: UInt8[np.ndarray, "H W"], h: int, w: int) -> np.ndarray:
    """Whether a box of h x w pixels at each position (top, left) shows background alone."""
    total = cv2.integral((parsing > 0).view(np.uint8))
    return total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w] == 0


def _any(pictures: Sequence[Obstacle], rng: np.random.Generator) -> Obstacle:
    return pictures[int(rng.integers(len(pictures)))]


def _jittered(obstacle: Obstacle, rng: np.random.Generator) -> Obstacle:
    pixels = torch.from_numpy(np.require(obstacle.pixels, requirements="W"))[None]
    return Obstacle(apply_jitter(pixels, [sample_jitter(BAND_JITTER, rng)])[0].numpy(), obstacle.solid)
