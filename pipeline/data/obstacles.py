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

from pipeline.core.params import STRICT, BadInput

Source = Literal["rectangle", "person", "cutout"]


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
    cutouts: str  # folder of PNG files with alpha, for the source `cutout`; "" for none
    area: Shares | None  # minimum and maximum, as a share of the image
    aspect: Ratios | None  # of rectangles: minimum and maximum height / width

    @field_validator("cutouts")
    @classmethod
    def _check_cutouts(cls, cutouts: str, info: Any) -> str:
        if not cutouts and "cutout" in (info.data.get("sources") or ()):
            raise PydanticCustomError("folder", "The source `cutout` needs a folder of PNG files with alpha")
        return cutouts


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Pixels to paste, and which of them are solid; the others are transparent."""

    pixels: UInt8[np.ndarray, "h w 3"]
    solid: Bool[np.ndarray, "h w"]


def read_cutouts(folder: str) -> list[Obstacle]:
    """The PNG files of a folder as obstacles, ordered by name; solid where alpha is at least one half.

    Raises `BadInput` if there is none, or if one is no image with alpha.  [] for the folder "".
    """
    return [_read_cutout(file) for file in _cutout_files(folder)] if folder else []


def digest(folder: str) -> str:
    """Hex digest of the PNG files of a folder, ordered by name; raises `BadInput` if there is none."""
    hashes = [hashlib.sha256(file.read_bytes()).digest() for file in _cutout_files(folder)]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _cutout_files(folder: str) -> list[Path]:
    files = sorted(Path(folder).glob("*.png"))
    if not files:
        raise BadInput(f"{folder}: no PNG files. Put cut-outs with alpha there, or drop `cutout`.")
    return files


def _read_cutout(file: Path) -> Obstacle:
    try:
        with Image.open(file) as image:
            has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            array = np.asarray(image.convert("RGBA"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error}). Replace it.") from None
    solid = array[..., 3] >= 128
    if not has_alpha or not solid.any():
        raise BadInput(f"{file}: no solid pixel or no alpha channel. Save it as PNG with transparency.")
    return Obstacle(array[..., :3].copy(), solid)


def cut_rectangle(
    image: UInt8[np.ndarray, "H W 3"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Obstacle:
    """A rectangle of `image` at a random position.

    Its area, as a share of the image, is uniform in `area`.  Its height / width is log-uniform in `aspect`,
    changed where the image is too small for it.
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
    import torch  # not at the top: the workers of the stage `index` need no torch, which triples their size
    from torch.nn.functional import interpolate

    factor = np.sqrt(pixels / obstacle.solid.sum())
    size = tuple(max(1, round(n * factor)) for n in obstacle.solid.shape[::-1])  # width, height
    plane = torch.from_numpy(obstacle.pixels)[None].permute(0, 3, 1, 2)
    resized = interpolate(plane, size[::-1], mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    solid = cv2.resize(obstacle.solid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return Obstacle(resized, solid.view(bool))


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
    """A random position (top, left) with at least the share `inside` of each side within the image."""
    h, w = obstacle.solid.shape
    top = rng.uniform(-h * (1 - inside), max(height - h * inside, 0))
    left = rng.uniform(-w * (1 - inside), max(width - w * inside, 0))
    return round(top), round(left)
