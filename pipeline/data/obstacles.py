"""Occlusion augmentation: an obstacle pasted into a person crop, and what it takes away from the labels.

The paper superimposes "an obstacle patch onto a randomly chosen region" (section 4.2) and says neither what
nor how large.  Sources: a rectangle of another training image (it may hold a torso, which stands for a
pedestrian in the way), another pedestrian cut out along the parsing map, and cut-outs with alpha.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
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


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("rising", "The least comes first")
    return bounds


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]  # least and most
Ratios = Annotated[tuple[Ratio, Ratio], AfterValidator(_rising)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Obstacles:
    """What is pasted into the occluded view; null means the preset's value."""

    probability: float | None = Field(ge=0, le=1)  # of an obstacle in an occluded view
    sources: list[Source] | None = Field(min_length=1)  # each obstacle comes from one of these, at random
    cutouts: str  # folder of PNG files with alpha, for the source `cutout`; "" for none
    area: Shares | None  # least and most, as a share of the image
    aspect: Ratios | None  # least and most height / width, of rectangles

    @field_validator("cutouts")
    @classmethod
    def _given(cls, cutouts: str, others: Any) -> str:
        if not cutouts and "cutout" in (others.data.get("sources") or ()):
            raise PydanticCustomError("folder", "The source `cutout` needs a folder of PNG files with alpha")
        return cutouts


@plain_dataclass(frozen=True)
class Obstacle:
    """Pixels to paste and where they are solid."""

    pixels: UInt8[np.ndarray, "h w 3"]
    solid: Bool[np.ndarray, "h w"]


def read_cutouts(folder: str) -> list[Obstacle]:
    """The PNG files of a folder, by name; solid where alpha is at least one half.

    Raises `BadInput` if there is none, or if one is no picture with alpha.
    """
    return [_read_cutout(file) for file in _cutouts(folder)] if folder else []


def digest(folder: str) -> str:
    """Hex digest of the PNG files of a folder, in the order of their names; raises `BadInput` if none is."""
    each = [hashlib.sha256(file.read_bytes()).digest() for file in _cutouts(folder)]
    return hashlib.sha256(b"".join(each)).hexdigest()


def _cutouts(folder: str) -> list[Path]:
    files = sorted(Path(folder).glob("*.png"))
    if not files:
        raise BadInput(f"{folder}: no PNG files. Put cut-outs with alpha there, or drop `cutout`.")
    return files


def _read_cutout(file: Path) -> Obstacle:
    try:
        with Image.open(file) as picture:
            alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            array = np.asarray(picture.convert("RGBA"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error}). Replace it.") from None
    solid = array[..., 3] >= 128
    if not alpha or not solid.any():
        raise BadInput(f"{file}: no solid pixel or no alpha channel. Save it as PNG with transparency.")
    return Obstacle(array[..., :3].copy(), solid)


def cut_rectangle(
    image: UInt8[np.ndarray, "H W 3"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Obstacle:
    """A rectangle of `image` at a random place; its area is a share drawn from `area`.

    The ratio height / width is drawn evenly on a logarithmic scale and bent where the image is too small.
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
    """The person of `image`, solid where the parsing map shows a part; none if it shows no part."""
    body = parsing != background
    if not body.any():
        return None
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Obstacle(image[box], body[box])


def scale(obstacle: Obstacle, pixels: float) -> Obstacle:
    """The obstacle resized to cover about so many pixels, its shape kept."""
    import torch  # here, or `index` and its workers, which need none, would be three times as large
    from torch.nn.functional import interpolate

    factor = np.sqrt(pixels / obstacle.solid.sum())
    size = tuple(max(1, round(n * factor)) for n in obstacle.solid.shape[::-1])  # width, height
    plane = torch.from_numpy(obstacle.pixels)[None].permute(0, 3, 1, 2)
    pixels = interpolate(plane, size[::-1], mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    solid = cv2.resize(obstacle.solid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return Obstacle(pixels, solid.view(bool))


def mirror(obstacle: Obstacle) -> Obstacle:
    """The obstacle seen in a mirror."""
    return Obstacle(cv2.flip(obstacle.pixels, 1), cv2.flip(obstacle.solid.view(np.uint8), 1).view(bool))


def draw(
    params: Obstacles,
    image: UInt8[np.ndarray, "H W 3"],
    parsing: UInt8[np.ndarray, "H W"],
    cutouts: Sequence[Obstacle],
    rng: np.random.Generator,
) -> Obstacle:
    """An obstacle from one of the sources at random; `image` and `parsing` are another training image.

    Where that image shows no person, a rectangle stands in for the source `person`.  People and cut-outs are
    mirrored every other time, rectangles never.
    """
    source = params.sources[rng.integers(len(params.sources))]
    found = None
    if source == "person":
        found = cut_person(image, parsing)
    if source == "cutout":
        found = cutouts[rng.integers(len(cutouts))]
    if found is None:
        return cut_rectangle(image, params.area, params.aspect, rng)
    found = scale(found, rng.uniform(*params.area) * parsing.size)
    return mirror(found) if rng.random() < 0.5 else found


def paste(
    image: UInt8[np.ndarray, "H W 3"], obstacle: Obstacle, top: int, left: int
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A copy of `image` with the obstacle on it, and the pixels it covers.

    The obstacle may reach beyond the image; what is outside is lost.
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


def place(
    obstacle: Obstacle, height: int, width: int, rng: np.random.Generator, inside: float = 0.5
) -> tuple[int, int]:
    """A random place (top, left) with at least the share `inside` of each side in the picture."""
    h, w = obstacle.solid.shape
    top = rng.uniform(-h * (1 - inside), max(height - h * inside, 0))
    left = rng.uniform(-w * (1 - inside), max(width - w * inside, 0))
    return round(top), round(left)
