"""Occluded copies of a dataset's real queries: an obstacle is pasted, and what it covers is recorded.

Such queries are half synthetic, so scores on them are never scores of the dataset.  A copy depends on the
seed, on its own key and on the training images that obstacles are cut from, and on no other query.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT, BadInput
from pipeline.data import obstacle_pictures, obstacles
from pipeline.data.index import DECODE_ERRORS, ValueRange, decode, encode_png
from pipeline.data.obstacles import Obstacle, Ratios, Shares
from pipeline.indexing.layout import OCCLUDED_PREFIX, ImageEntry


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Occlude:
    """Which datasets get occluded copies of their queries, and what is pasted."""

    datasets: list[str]  # names in params.yaml; []: off
    seed: int = Field(ge=0)
    area: Shares  # of an obstacle: minimum and maximum, as a share of the image
    aspect: Ratios  # of rectangles: minimum and maximum height / width
    cutouts: str  # folder of pictures with alpha; "": rectangles of training images


class Coverage(NamedTuple):
    """What an obstacle covers of an image."""

    share: float  # of its pixels
    box: tuple[int, int, int, int]  # top, left, bottom, right; the last two exclusive

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "H W"]) -> "Coverage":
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):  # a cut-out that is solid only where it reaches beyond the image
            return cls(0.0, (0, 0, 0, 0))
        box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        return cls(float(mask.mean()), box)


class OccludedQueries:
    """The occluded copies of a dataset's queries; `read` returns an archive's file by name.

    `value_range` is that of deep pictures (`decode`).  Raises `BadInput` if there is no image to cut
    obstacles from.
    """

    def __init__(
        self,
        images: Sequence[ImageEntry],
        options: Occlude,
        read: Callable[[str], bytes],
        value_range: ValueRange | None = None,
    ):
        self._options, self._read, self._value_range = options, read, value_range
        self._donors = sorted((i for i in images if i.split == "train"), key=lambda i: i.key)
        queries = [i for i in images if i.split == "query"]
        self._cutouts = obstacle_pictures.read_pictures("cutout", options.cutouts) if queries else []
        self.images = [
            dataclasses.replace(i, key=OCCLUDED_PREFIX + i.key.removeprefix("query/")) for i in queries
        ]
        self._coverage: dict[str, Coverage] = {}  # by key, once rendered
        if self.images and not (self._donors or self._cutouts):
            raise BadInput(
                "params.yaml: index.occlude.cutouts is empty, and the set has no training images to cut "
                "obstacles from. Name a folder of pictures with alpha, such as PNG."
            )

    def render(self, image: ImageEntry) -> bytes:
        """An occluded copy as a PNG file; the original file if it, or the donor, cannot be decoded."""
        blob = self._read(image.name)
        rng = np.random.default_rng([self._options.seed, zlib.crc32(image.key.encode())])
        donor = None if self._cutouts else self._other_identity(image.pid, rng)
        try:
            pixels = decode(blob, self._value_range)
            donor_pixels = None if donor is None else decode(self._read(donor.name), self._value_range)
        except DECODE_ERRORS:
            return blob
        obstacle, top, left = self._place(donor_pixels, pixels.shape[:2], rng)
        pixels, mask = obstacles.paste(pixels, obstacle, top, left)
        self._coverage[image.key] = Coverage.of(mask)
        return encode_png(pixels)

    def _place(
        self, donor: UInt8[np.ndarray, "h w 3"] | None, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Obstacle, int, int]:
        area = self._options.area
        if donor is None:
            cutout = self._cutouts[int(rng.integers(len(self._cutouts)))]
            return obstacles.fit(cutout, rng.uniform(*area) * size[0] * size[1], *size, rng)
        donor = np.asarray(Image.fromarray(donor).resize(size[::-1], Image.Resampling.BILINEAR))
        obstacle = obstacles.cut_rectangle(donor, area, self._options.aspect, rng)
        return obstacle, *obstacles.sample_position(obstacle, *size, rng, inside=1.0)

    def _other_identity(self, pid: int, rng: np.random.Generator) -> ImageEntry:
        # a random training image of another identity; any, if there is none
        start = int(rng.integers(len(self._donors)))
        donors = (self._donors[(start + n) % len(self._donors)] for n in range(len(self._donors)))
        return next((donor for donor in donors if donor.pid != pid), self._donors[start])

    def truth(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """What is pasted into the images of these keys: one row per image.

        `occluder` is 1 where an obstacle covers something, `covered` the share of the image's pixels, `box`
        the rows and columns (top, left, bottom, right; the last two exclusive) in the image's own pixels.
        All are 0 for an image without an obstacle.
        """
        coverage = [self._coverage.get(key, Coverage(0.0, (0, 0, 0, 0))) for key in keys]
        return {
            "occluder": np.array([c.share > 0 for c in coverage], np.uint8),
            "covered": np.array([c.share for c in coverage], np.float32),
            "box": np.array([c.box for c in coverage], np.int32),
        }
