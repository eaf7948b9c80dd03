"""An overlay of objects before a person: colour and coverage, and helpers to position objects."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

from pipeline.synthetic.scenes import grain

SUPER = 2  # overlay pixels per picture pixel, each way
SHIFT = 4  # cv2's fixed-point bits

Number = int | float
Layer = tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]
"""Colour times coverage, coverage in [0, 1], and the pixels that count as covered."""

PAINTS = (
    (38, 38, 42),
    (196, 196, 194),
    (118, 120, 124),
    (128, 36, 36),
    (44, 62, 104),
    (160, 148, 120),
    (54, 84, 66),
)


class Overlay:
    """Colour and coverage at twice the picture's size; every shape is drawn into both."""

    def __init__(self, height: int, width: int):
        self.colour = np.zeros((height * SUPER, width * SUPER, 3), np.uint8)
        self.cover = np.zeros((height * SUPER, width * SUPER), np.uint8)

    def polygon(self, points, colour) -> None:
        fixed = _fixed(points)
        cv2.fillPoly(self.colour, [fixed], colour, cv2.LINE_8, SHIFT)
        cv2.fillPoly(self.cover, [fixed], 255, cv2.LINE_8, SHIFT)

    def box(self, x0: Number, y0: Number, x1: Number, y1: Number, colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(self, x: Number, y: Number, wide: Number, high: Number, colour) -> None:
        angle = np.linspace(0, 2 * np.pi, 40)
        self.polygon(np.stack([x + wide * np.cos(angle), y + high * np.sin(angle)], 1), colour)

    def line(self, points, colour, thick: Number) -> None:
        fixed = _fixed(points)
        thick = max(1, round(thick * SUPER))
        cv2.polylines(self.colour, [fixed], False, colour, thick, cv2.LINE_8, SHIFT)
        cv2.polylines(self.cover, [fixed], False, 255, thick, cv2.LINE_8, SHIFT)

    def shade(self, rng: np.random.Generator, across: bool, amount: float = 0.25) -> None:
        """Apply light that falls off along one direction, and some wear."""
        height, width = self.cover.shape
        y, x = int(rng.integers(0, 512 - height + 1)), int(rng.integers(0, 512 - width + 1))
        wear = 1 + 0.5 * (grain(0)[y : y + height, x : x + width] - 1)
        ramp = np.linspace(1 + amount, 1 - amount, width if across else height, dtype=np.float32)
        wear = wear * (ramp[None] if across else ramp[:, None])
        self.colour = np.clip(self.colour * wear[..., None], 0, 255).astype(np.uint8)

    def finish(self) -> Layer:
        """The overlay at the picture's size."""
        self.colour[self.cover == 0] = 0
        size = (self.cover.shape[1] // SUPER, self.cover.shape[0] // SUPER)
        colour = cv2.resize(self.colour, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        cover = cv2.resize(self.cover, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        return colour, cover, self.cover[::SUPER, ::SUPER] > 0


def _fixed(points) -> np.ndarray:
    return np.round(np.asarray(points, dtype=np.float64) * SUPER * (1 << SHIFT)).astype(np.int32)


def sample_paint(rng: np.random.Generator) -> tuple[int, int, int]:
    """A random colour near one of `PAINTS`."""
    values = np.clip(np.array(PAINTS[int(rng.integers(len(PAINTS)))]) + rng.normal(0, 8, 3), 8, 245)
    return int(values[0]), int(values[1]), int(values[2])


def centre_column(person: Bool[np.ndarray, "H W"]) -> float:
    """Mean of the columns that show the person."""
    columns = np.nonzero(person.any(0))[0]
    return float(columns.mean())


def share_boundary(person: Bool[np.ndarray, "H W"], share: float, axis: int, from_end: bool) -> int:
    """The row (axis 0) or column (axis 1) before (`from_end`: after) which `share` of the person lies."""
    counts = person.sum(1 - axis)[:: -1 if from_end else 1].cumsum()
    boundary = int(np.searchsorted(counts, share * counts[-1]))
    return len(counts) - 1 - boundary if from_end else boundary
