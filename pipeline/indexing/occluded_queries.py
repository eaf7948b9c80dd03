"""Occluded queries made of real ones: an obstacle pasted into a copy, and exactly what it covers.

Such queries are half ours: figures on them are never those of the set.  Each depends on the seed and its own
key alone, and on the training images that obstacles are cut from.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT, BadInput
from pipeline.data import obstacles
from pipeline.data.index import UNDECODABLE, decode
from pipeline.data.obstacles import Obstacle, Ratios, Shares
from pipeline.indexing.layout import COPIES, Picture


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Occlude:
    """Whose queries get an occluded copy, and what is pasted."""

    datasets: list[str]  # names in params.yaml; none: off
    seed: int = Field(ge=0)
    area: Shares  # least and most, as a share of the image
    aspect: Ratios  # least and most height / width, of rectangles
    cutouts: str  # folder of PNG files with alpha; "": rectangles of training images


class Covered(NamedTuple):
    """What an obstacle covers of an image."""

    share: float  # of its pixels
    box: tuple[int, int, int, int]  # top, left, bottom, right; the last two exclusive

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "H W"]) -> "Covered":
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):  # a cut-out that is solid only where it reaches beyond the image
            return cls(0.0, (0, 0, 0, 0))
        box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        return cls(float(mask.mean()), box)


class Queries:
    """The occluded copies of a dataset's queries; `read` gives an archive's file by name.

    Raises `BadInput` if there is nothing to cut obstacles from.
    """

    def __init__(self, pictures: Sequence[Picture], options: Occlude, read: Callable[[str], bytes]):
        self._options, self._read = options, read
        self._donors = sorted((p for p in pictures if p.split == "train"), key=lambda p: p.key)
        self._cutouts: Sequence[Obstacle] = obstacles.read_cutouts(options.cutouts)
        queries = [p for p in pictures if p.split == "query"]
        self.pictures = [replace(p, key=COPIES + p.key.removeprefix("query/")) for p in queries]
        self._covered: dict[str, Covered] = {}  # by key, once drawn
        if self.pictures and not (self._donors or self._cutouts):
            raise BadInput(
                "params.yaml: index.occlude.cutouts is empty, and the set has no training images to cut "
                "obstacles from. Name a folder of PNG files with alpha."
            )

    def draw(self, picture: Picture) -> bytes:
        """The occluded copy as a PNG file; an image that cannot be decoded is given as it is."""
        blob = self._read(picture.name)
        rng = np.random.default_rng([self._options.seed, zlib.crc32(picture.key.encode())])
        donor = None if self._cutouts else self._stranger(picture.pid, rng)
        try:
            image = decode(blob)
            pixels = None if donor is None else decode(self._read(donor.name))
        except UNDECODABLE:
            return blob
        obstacle = self._obstacle(pixels, image.shape[:2], rng)
        top, left = obstacles.place(obstacle, *image.shape[:2], rng, inside=1.0)
        image, mask = obstacles.paste(image, obstacle, top, left)
        self._covered[picture.key] = Covered.of(mask)
        return _png(image)

    def _obstacle(
        self, donor: UInt8[np.ndarray, "h w 3"] | None, size: tuple[int, int], rng: np.random.Generator
    ) -> Obstacle:
        if donor is None:
            found = self._cutouts[rng.integers(len(self._cutouts))]
            return obstacles.scale(found, rng.uniform(*self._options.area) * size[0] * size[1])
        donor = np.asarray(Image.fromarray(donor).resize(size[::-1], Image.Resampling.BILINEAR))
        return obstacles.cut_rectangle(donor, self._options.area, self._options.aspect, rng)

    def _stranger(self, pid: int, rng: np.random.Generator) -> Picture:
        first = int(rng.integers(len(self._donors)))
        turned = (self._donors[(first + n) % len(self._donors)] for n in range(len(self._donors)))
        return next((picture for picture in turned if picture.pid != pid), self._donors[first])

    def truth(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """What is pasted into the images of the given keys, a row each; nothing into most.

        `occluder` is 1 where something is, `covered` the share of the image's pixels, `box` the rows and
        columns (top, left, bottom, right; the last two exclusive) in its own pixels, all 0 without.
        """
        found = [self._covered.get(key, Covered(0.0, (0, 0, 0, 0))) for key in keys]
        return {
            "occluder": np.array([one.share > 0 for one in found], np.uint8),
            "covered": np.array([one.share for one in found], np.float32),
            "box": np.array([one.box for one in found], np.int32),
        }


def _png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()
