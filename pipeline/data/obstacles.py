"""Occlusion augmentation: an obstacle pasted into a person crop, and the pixels that it covers.

The paper superimposes "an obstacle patch onto a randomly chosen region" (section 4.2).  It specifies neither
the patch nor its size.  The sources here: a rectangle of another training image (which may show a torso, as
a pedestrian would), another pedestrian cut out along the parsing map, a rectangle without a body, noise,
cut-outs with alpha, and opaque pictures.
"""

import dataclasses
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import AfterValidator, Field, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pipeline.core.params import STRICT

FIT_STEPS = 8  # of the search for an obstacle's size

Source = Literal["rectangle", "person", "cutout", "noise", "patch", "background"]
Placement = Literal["anywhere", "border"]
OPAQUE = frozenset({"rectangle", "patch", "background"})  # sources that `border` enlarges to a band
FOLDERS = {  # param: its source, and what the folder holds
    "cutouts": ("cutout", "pictures with alpha"),
    "patches": ("patch", "opaque pictures"),
}


def _check_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("rising", "The least comes first")
    return bounds


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_check_order)]  # minimum and maximum
Ratios = Annotated[tuple[Ratio, Ratio], AfterValidator(_check_order)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Obstacles:
    """What is pasted into the occluded view; `null` selects the preset's value."""

    probability: float | None = Field(ge=0, le=1)  # of an obstacle in an occluded view
    sources: list[Source] | None = Field(min_length=1)  # each obstacle comes from one of these, at random
    cutouts: str  # folder of pictures with alpha, for the source `cutout`; "" for none
    patches: str  # folder of opaque pictures, for the source `patch`; "" for none
    area: Shares | None  # minimum and maximum, as a share of the image
    aspect: Ratios | None  # of rectangles: minimum and maximum height / width
    placement: Placement | None  # border: opaque sources become bands along a side, as FED's

    @field_validator("cutouts", "patches")
    @classmethod
    def _check_folder(cls, folder: str, info: Any) -> str:
        source, content = FOLDERS[info.field_name]
        if not folder and source in (info.data.get("sources") or ()):
            raise PydanticCustomError("folder", f"The source `{source}` needs a folder of {content}")
        return folder


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Pixels to paste, and which of them are solid; the others are transparent."""

    pixels: UInt8[np.ndarray, "h w 3"]
    solid: Bool[np.ndarray, "h w"]


def cut_rectangle(
    image: UInt8[np.ndarray, "H W 3"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Obstacle:
    """A rectangle of `image` of a random size (`sample_sides`) at a random position."""
    height, width = image.shape[:2]
    return cut_box(image, *sample_sides(height, width, area, aspect, rng), rng)


def sample_sides(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Height and width of a random rectangle within an image of height x width.

    Its area, as a share of the image, is uniform in `area`.  Its height / width is log-uniform in `aspect`,
    changed where the image is too small for it, so that the area stays.
    """
    pixels = rng.uniform(*area) * height * width
    ratio = np.exp(rng.uniform(*np.log(aspect)))
    h = min(max(round(np.sqrt(pixels * ratio)), round(pixels / width), 1), height)
    return h, min(max(round(pixels / h), 1), width)


def cut_box(image: UInt8[np.ndarray, "H W 3"], h: int, w: int, rng: np.random.Generator) -> Obstacle:
    """A rectangle of h x w pixels of `image` at a random position."""
    top, left = rng.integers(image.shape[0] - h + 1), rng.integers(image.shape[1] - w + 1)
    return rectangle(image[top : top + h, left : left + w])


def rectangle(pixels: UInt8[np.ndarray, "h w 3"]) -> Obstacle:
    """An obstacle of which every pixel is solid."""
    return Obstacle(pixels, np.ones(pixels.shape[:2], bool))


def cut_person(
    image: UInt8[np.ndarray, "H W 3"], parsing: UInt8[np.ndarray, "H W"], background: int = 0
) -> Obstacle | None:
    """The person of `image`, solid where the parsing map shows a part; `None` if it shows no part."""
    body = parsing != background
    if not body.any():
        return None
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Obstacle(image[box], body[box])


def scale(obstacle: Obstacle, pixels: float) -> Obstacle:
    """The obstacle resized to cover about `pixels` pixels, its aspect kept."""
    import torch  # not at the top: the stage `index` calls `fit`, and torch would triple its size
    from torch.nn.functional import interpolate

    solid = _resize_solid(obstacle, np.sqrt(pixels / obstacle.solid.sum()))
    plane = torch.from_numpy(obstacle.pixels)[None].permute(0, 3, 1, 2)
    resized = interpolate(plane, solid.shape, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return Obstacle(resized, solid)


def _resize_solid(obstacle: Obstacle, factor: float) -> Bool[np.ndarray, "h w"]:
    size = tuple(max(1, round(n * factor)) for n in obstacle.solid.shape[::-1])  # width, height
    solid = cv2.resize(obstacle.solid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return solid.view(bool)


def fit(
    obstacle: Obstacle, pixels: float, height: int, width: int, rng: np.random.Generator
) -> tuple[Obstacle, int, int]:
    """The obstacle, resized and at a random position (top, left), to cover about `pixels` pixels of an image.

    A side that fits lies within the image.  A longer one reaches over both of its edges, and what it loses
    there is made good by a larger size, up to one at which both sides reach over them.
    """
    down, right = rng.random(2)
    h, w = obstacle.solid.shape
    factor = np.sqrt(pixels / obstacle.solid.sum())
    largest = max(factor, height / h, width / w)
    placed = []
    for _ in range(FIT_STEPS):
        solid = _resize_solid(obstacle, factor)
        top, left = round((height - solid.shape[0]) * down), round((width - solid.shape[1]) * right)
        covered = solid[max(-top, 0) :, max(-left, 0) :][:height, :width].sum()
        placed.append((abs(covered - pixels), factor, top, left))
        factor = min(factor * np.sqrt(pixels / max(covered, 1)), largest)
    _, factor, top, left = min(placed)
    solid = _resize_solid(obstacle, factor)
    resized = Image.fromarray(obstacle.pixels).resize(solid.shape[::-1], Image.Resampling.BILINEAR)
    return Obstacle(np.asarray(resized), solid), top, left


def flip(obstacle: Obstacle) -> Obstacle:
    """The obstacle flipped left to right."""
    return Obstacle(cv2.flip(obstacle.pixels, 1), cv2.flip(obstacle.solid.view(np.uint8), 1).view(bool))


def paste(
    image: UInt8[np.ndarray, "H W 3"], obstacle: Obstacle, top: int, left: int
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A copy of `image` with the obstacle pasted at (top, left), and the pixels that it covers.

    The part of the obstacle that reaches beyond the image is cut off.
    """
    image, covered = image.copy(), np.zeros(image.shape[:2], bool)
    h, w = obstacle.solid.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + h, image.shape[0]), min(left + w, image.shape[1])
    if y0 >= y1 or x0 >= x1:
        return image, covered
    inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    solid = obstacle.solid[inner]
    cv2.copyTo(obstacle.pixels[inner], solid.view(np.uint8), image[y0:y1, x0:x1])
    covered[y0:y1, x0:x1] = solid
    return image, covered


def sample_position(
    obstacle: Obstacle, height: int, width: int, rng: np.random.Generator, inside: float = 0.5
) -> tuple[int, int]:
    """A random position (top, left) with at least the share `inside` of each side within the image.

    A side too long for that reaches over both edges of the image.
    """
    h, w = obstacle.solid.shape
    least_h, least_w = min(h * inside, height), min(w * inside, width)  # pixels within the image
    top = rng.uniform(least_h - h, height - least_h)
    left = rng.uniform(least_w - w, width - least_w)
    return round(top), round(left)
