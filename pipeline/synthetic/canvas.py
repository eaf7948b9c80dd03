"""The canvas of one person, at twice the picture's size: colour, light and part label of every pixel."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pipeline.synthetic import textures

SUPER = 2  # canvas pixels per picture pixel, each way
BELONGING = 9  # label of carried things: painted, but no part of the body
SHIFT = 4  # cv2's fixed-point bits


@dataclasses.dataclass(frozen=True)
class Stencil:
    """Which pixels of a window of the canvas a shape covers (255) or not (0)."""

    mask: UInt8[np.ndarray, "h w"]
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Cloth:
    """Surface of a shape: one colour, or a tile of a pattern."""

    tile: UInt8[np.ndarray, "s s 3"] | tuple[int, int, int]
    folds: int = -1  # kind of folds, -1 smooth
    depth: float = 1.0  # of the folds


Points = Float[np.ndarray, "N 2"]
Radii = Float[np.ndarray, "N"] | list[float]


class Canvas:
    """Shapes are painted over one another, the nearest last."""

    def __init__(self, height: int, width: int, light: tuple[float, float]):
        self.albedo = np.zeros((height, width, 3), np.uint8)
        self.light = np.ones((height, width), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.direction = light  # towards the light, x right, y down
        self.unit = 480.0  # pixels per body height, for thicknesses

    def window(self, low: np.ndarray, high: np.ndarray) -> tuple[int, int, int, int] | None:
        """Integer bounds x0, y0, x1, y1 inside the canvas, or `None` if it lies outside."""
        x0, y0 = (max(0, int(np.floor(value)) - 2) for value in low)
        x1 = min(self.label.shape[1], int(np.ceil(high[0])) + 3)
        y1 = min(self.label.shape[0], int(np.ceil(high[1])) + 3)
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def polygon(self, points: Float[np.ndarray, "N 2"]) -> Stencil | None:
        """The inside of a closed outline."""
        points = np.asarray(points)[:, :2]
        window = self.window(points.min(0), points.max(0))
        if window is None:
            return None
        mask = np.zeros((window[3] - window[1], window[2] - window[0]), np.uint8)
        cv2.fillPoly(mask, [_fixed(points - window[:2])], 255, cv2.LINE_8, SHIFT)
        return Stencil(mask, window[0], window[1])

    def tube(self, points: Points, radii: Radii, cut: bool = False) -> Stencil | None:
        """A tapered tube along a path, with round ends; `cut` leaves the far end flat, like a sleeve's."""
        points, radii = np.asarray(points)[:, :2], np.asarray(radii, dtype=np.float64)
        window = self.window((points - radii[:, None]).min(0), (points + radii[:, None]).max(0))
        if window is None:
            return None
        mask = np.zeros((window[3] - window[1], window[2] - window[0]), np.uint8)
        points = points - window[:2]
        step = np.diff(points, axis=0)
        normal = (
            np.stack([-step[:, 1], step[:, 0]], 1)
            / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)[:, None]
        )
        start, end = normal * radii[:-1, None], normal * radii[1:, None]
        quads = _fixed(
            np.stack([points[:-1] + start, points[1:] + end, points[1:] - end, points[:-1] - start], 1)
        )
        for quad in quads:
            cv2.fillConvexPoly(mask, quad, 255, cv2.LINE_8, SHIFT)
        for centre, radius in zip(_fixed(points)[: -1 if cut else None], _fixed(radii), strict=False):
            cv2.circle(mask, centre.tolist(), int(radius), 255, cv2.FILLED, cv2.LINE_8, SHIFT)
        return Stencil(mask, window[0], window[1])

    def lay(
        self,
        stencil: Stencil | None,
        cloth: Cloth,
        axis: Float[np.ndarray, "2 2"],
        label: int | UInt8[np.ndarray, "h w"],
        roundness: float = 1.0,
        shadow: float = 0.22,
        details=None,
    ) -> None:
        """Paint cloth through a stencil, shaded as a round shape that casts a shadow on what lies below.

        `axis` runs along the limb; `details(albedo, x, y)` may draw on the cloth before it is
        cut out; `label` is a part, or an array of one part per pixel of the stencil.
        """
        if stencil is None:
            return
        mask, x, y = stencil.mask, stencil.x, stencil.y
        height, width = mask.shape
        area = (slice(y, y + height), slice(x, x + width))
        start, end = axis
        scale = 480.0 / self.unit
        if isinstance(cloth.tile, tuple):
            albedo = np.full((height, width, 3), cloth.tile, np.uint8)
        else:
            albedo = textures.sample(cloth.tile, start, end, (x, y), mask.shape, scale)
        if details is not None:
            details(albedo, x, y)
        if shadow:
            cast = cv2.blur(mask, (9, 9), anchor=self._anchor(9, 0.8)).astype(np.float32)
            self.light[area] *= 1 - cast * (shadow / 255)
        light = self._shade(mask, roundness)
        if cloth.folds >= 0:
            crease = textures.sample(
                textures.folds(cloth.folds), start + 37.0, end, (x, y), mask.shape, scale
            )
            light *= (1 - cloth.depth) + cloth.depth * crease
        cv2.copyTo(albedo, mask, self.albedo[area])
        cv2.copyTo(light, mask, self.light[area])
        if isinstance(label, int):
            self.label[area][mask > 0] = label
        else:
            np.copyto(self.label[area], label, where=mask > 0)

    def _anchor(self, size: int, share: float) -> tuple[int, int]:
        half = size // 2
        x, y = (round(half + share * half * way) for way in self.direction)
        return min(max(x, 0), size - 1), min(max(y, 0), size - 1)

    def _shade(self, mask: np.ndarray, roundness: float) -> np.ndarray:
        """Light on a round shape: box blurs of the mask, shifted towards the light and away from it."""
        thick = 2 * int(min(max(cv2.countNonZero(mask) ** 0.5 * 0.16, 3), 14)) + 1
        towards = cv2.blur(
            mask, (thick, thick), anchor=self._anchor(thick, -0.8), borderType=cv2.BORDER_CONSTANT
        )
        away = cv2.blur(mask, (thick, thick), anchor=self._anchor(thick, 0.8), borderType=cv2.BORDER_CONSTANT)
        return cv2.addWeighted(
            away,
            0.50 * roundness / 255,
            towards,
            0.10 * roundness / 255,
            1 - 0.56 * roundness,
            dtype=cv2.CV_32F,
        )

    def colour(self) -> UInt8[np.ndarray, "h w 3"]:
        """The lit colours, black where nothing was painted."""
        return cv2.multiply(self.albedo, cv2.merge([self.light] * 3), dtype=cv2.CV_8U)


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(values) * (1 << SHIFT)).astype(np.int32)
