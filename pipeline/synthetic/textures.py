"""Cloth: periodic tiles of patterns and folds, drawn once and reused."""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pipeline.synthetic.people import SECOND_COLOURS, UPPER_COLOURS, Colour, Person

TILE = 64  # pixels of a pattern's period


@cache
def folds(kind: int) -> Float[np.ndarray, "256 256"]:
    """Periodic brightness of creased cloth, mean 1; rows run across the limb, columns along it."""
    rng = np.random.default_rng([911, kind])
    stretch = ((26, 9), (12, 16), (7, 22))[kind % 3]
    height = sum(
        amount * _periodic_blur(rng.standard_normal((256, 256)), stretch[0] / scale, stretch[1] / scale)
        for amount, scale in ((1.0, 1.0), (0.28, 2.2), (0.05, 5.0))
    )
    slope = height - np.roll(height, (3, 2), axis=(0, 1))
    return (1 + 0.075 * np.clip(slope / slope.std(), -2.4, 2.4)).astype(np.float32)


def _periodic_blur(noise: np.ndarray, sigma_y: float, sigma_x: float) -> np.ndarray:
    rows, columns = np.fft.fftfreq(noise.shape[0])[:, None], np.fft.fftfreq(noise.shape[1])[None]
    transfer = np.exp(-2 * np.pi**2 * ((rows * sigma_y) ** 2 + (columns * sigma_x) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * transfer).real
    return smooth / smooth.std()


@cache
def pattern(kind: str, first: Colour, second: Colour, variety: int) -> UInt8[np.ndarray, "64 64 3"]:
    """A periodic tile: x runs along a limb (down the torso), y across it."""
    tile = np.full((TILE, TILE, 3), first, np.uint8)
    if kind == "stripes":
        count, share = (2, 3, 5)[variety % 3], (0.3, 0.5)[variety // 3 % 2]
        position = np.arange(TILE) * count / TILE % 1
        tile[:, position < share] = second
    elif kind == "checks":
        count = (2, 3, 4)[variety % 3]
        in_band = np.arange(TILE) * count / TILE % 1 < 0.45
        layers = in_band[:, None].astype(int) + in_band[None]
        mixed = (np.array(first) * 0.45 + np.array(second) * 0.55).astype(np.uint8)
        tile[layers == 1] = mixed
        tile[layers == 2] = second
    return tile


def upper_tile(person: Person) -> UInt8[np.ndarray, "64 64 3"] | Colour:
    """The upper garment's cloth; prints and two tones are drawn on the body, not here."""
    first, second = UPPER_COLOURS[person.upper_colour], SECOND_COLOURS[person.second_colour]
    if person.upper_pattern not in ("stripes", "checks"):
        return first
    return pattern(person.upper_pattern, first, second, person.variety % 6)


def sample(
    tile: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    origin: tuple[int, int],
    shape: tuple[int, int],
    scale: float,
) -> np.ndarray:
    """The tile laid along a limb from `start` to `end` (canvas pixels), in a window at `origin` (x, y)."""
    x, y = float(end[0] - start[0]), float(end[1] - start[1])
    shrink = scale / max((x * x + y * y) ** 0.5, 1e-6)
    x, y = x * shrink, y * shrink
    left, up = float(origin[0] - start[0]), float(origin[1] - start[1])
    matrix = np.array([[x, y, x * left + y * up], [-y, x, x * up - y * left + tile.shape[0] / 2]])
    return cv2.warpAffine(
        tile,
        matrix,
        (shape[1], shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )


def scaled(colour: Colour, share: float) -> Colour:
    """The colour scaled in brightness."""
    red, green, blue = (min(255, int(channel * share)) for channel in colour)
    return red, green, blue
