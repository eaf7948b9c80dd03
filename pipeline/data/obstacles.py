"""Occlusion augmentation: an obstacle pasted into a person crop, and the pixels that it covers.

The paper superimposes "an obstacle patch onto a randomly chosen region" (section 4.2).  It specifies neither
the patch nor its size.  The sources here: a rectangle of another training image (which may show a torso, as
a pedestrian would), another pedestrian cut out along the parsing map, and cut-outs with alpha.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import AfterValidator, Field, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.data.index import DECODE_ERRORS, error_detail, is_deep
from pipeline.data.pictures import expand, is_picture

FIT_STEPS = 8  # of the search for an obstacle's size

Source = Literal["rectangle", "person", "cutout", "noise", "patch", "background"]
Placement = Literal["anywhere", "border"]


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
    area: Shares | None  # minimum and maximum, as a share of the image
    aspect: Ratios | None  # of rectangles: minimum and maximum height / width
    placement: Placement | None

    @field_validator("cutouts")
    @classmethod
    def _check_cutouts(cls, cutouts: str, info: Any) -> str:
        if not cutouts and "cutout" in (info.data.get("sources") or ()):
            raise PydanticCustomError("folder", "The source `cutout` needs a folder of pictures with alpha")
        return cutouts


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Pixels to paste, and which of them are solid; the others are transparent."""

    pixels: UInt8[np.ndarray, "h w 3"]
    solid: Bool[np.ndarray, "h w"]


def read_cutouts(folder: str) -> list[Obstacle]:
    """The pictures below a folder as obstacles, ordered by path; solid where alpha is at least one half.

    Raises `BadInput` if there is none, or that lists all that are no pictures with alpha.  [] for "".
    """
    cutouts, faults = [], []
    for file in cutout_files(folder)[0] if folder else []:
        try:
            cutouts.append(_read_cutout(file))
        except DECODE_ERRORS as error:
            faults.append(f"{file}: no cut-out{error_detail(error)}. Save it as PNG with transparency.")
    if faults:
        raise BadInput("\n".join(shorten(faults)))
    return cutouts


def digest(folder: str) -> str:
    """Hex digest of the pictures below a folder, ordered by path; raises `BadInput` if there is none."""
    hashes = [hashlib.sha256(file.read_bytes()).digest() for file in cutout_files(folder)[0]]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def cutout_files(folder: str) -> tuple[list[Path], list[Path]]:
    """The pictures at any depth below a folder, and its other files; both without hidden ones.

    Raises `BadInput` if the folder is missing or holds no picture.
    """
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: no such folder. Put cut-outs there, pictures with alpha, or name another.")
    files, _ = expand(folder)
    pictures = {file: is_picture(file) for file in files}
    cutouts, others = ([Path(file) for file in files if pictures[file] is wanted] for wanted in (True, False))
    if not cutouts:
        names = ", ".join(shorten([file.name for file in others])) or "no file"
        raise BadInput(
            f"{folder}: no picture in it or below it, but {names}. Put cut-outs there, as PNG with "
            "transparency, or do without them."
        )
    return cutouts, others


def describe_cutouts(folder: str) -> list[str]:
    """A line about a folder: its number of cut-outs, and the files that are none; no line for ""."""
    if not folder:
        return []
    cutouts, others = cutout_files(folder)
    names = ", ".join(shorten([str(file.relative_to(folder)) for file in others]))
    left_out = f"; {plural(len(others), 'other file')} left out: {names}" if others else ""
    return [f"{folder}: {plural(len(cutouts), 'cut-out')}{left_out}"]


def _read_cutout(file: Path) -> Obstacle:
    with Image.open(file) as image:
        has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
        if is_deep(image):
            raise ValueError("more than 8 bits a sample")
        array = np.asarray(image.convert("RGBA"))
    solid = array[..., 3] >= 128
    if not has_alpha:
        raise ValueError("no alpha channel")
    if not solid.any():
        raise ValueError("no solid pixel")
    return Obstacle(array[..., :3].copy(), solid)


def cut_rectangle(
    image: UInt8[np.ndarray, "H W 3"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Obstacle:
    """A rectangle of `image` at a random position.

    Its area, as a share of the image, is uniform in `area`.  Its height / width is log-uniform in `aspect`,
    changed where the image is too small for it.  One that would be wider than the image is cut to its width,
    so that it covers less.
    """
    height, width = image.shape[:2]
    pixels = rng.uniform(*area) * height * width
    ratio = np.exp(rng.uniform(*np.log(aspect)))
    h = min(max(round(np.sqrt(pixels * ratio)), 1), height)
    w = min(max(round(pixels / h), 1), width)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return Obstacle(image[top : top + h, left : left + w], np.ones((h, w), bool))


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


def sample_obstacle(
    params: Obstacles,
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> Obstacle:
    """An obstacle from a random source; `image` and `parsing` are another training image.

    A rectangle replaces the source `person` if that image shows no person.  Half of the people and cut-outs
    are flipped, rectangles never.
    """
    source = params.sources[int(rng.integers(len(params.sources)))]
    obstacle = None
    if source == "person":
        obstacle = cut_person(image, parsing)
    if source == "cutout":
        obstacle = cutouts[int(rng.integers(len(cutouts)))]
    if obstacle is None:
        return cut_rectangle(image, params.area, params.aspect, rng)
    obstacle = scale(obstacle, rng.uniform(*params.area) * parsing.size)
    return flip(obstacle) if rng.random() < 0.5 else obstacle


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
