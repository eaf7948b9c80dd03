"""Cameras: each has its own place, geometry, colours, sharpness and compression."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Camera:
    """Properties shared by all pictures of one camera."""

    balance: tuple[float, ...]  # gains of red, green, blue
    gamma: float
    contrast: float
    saturation: float
    blur: float  # sigma in pixels of the full picture
    noise: float  # sigma in grey levels
    resolution: float  # share of the picture's resolution that the sensor gave
    quality: int  # of JPEG
    pitch: float  # radians the camera looks down
    loom: float  # how much nearer, hence larger, the head is than the feet
    light: tuple[float, float]  # towards the light, x right, y down
    sun: float  # strength of shadows
    place: str  # kind of background
    palette: int  # seeds the background's colours
    aspect: float  # horizontal stretch
    heading: float  # radians: mean yaw of the people
    spread: float  # of the yaw around the mean

    def develop(
        self, picture: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The picture as this camera records it, before compression."""
        height, width = picture.shape[:2]
        small = (max(8, round(width * self.resolution)), max(16, round(height * self.resolution)))
        image = cv2.GaussianBlur(picture, (0, 0), self.blur) if self.blur > 0.3 else picture
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        exposure = float(np.exp(rng.normal(0, 0.08)))
        curve = self._curve(exposure)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        image = (grey + self.saturation * (image - grey)).clip(0, 255).astype(np.uint8)
        image = cv2.LUT(image, curve).astype(np.float32)
        noise = self.noise * rng.uniform(0.5, 1.5)
        image += noise * rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
        image += 0.5 * noise * rng.standard_normal(image.shape, dtype=np.float32)
        image = np.clip(image, 0, 255).astype(np.uint8)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def _curve(self, exposure: float) -> np.ndarray:
        level = np.arange(256)[:, None] / 255
        linear = np.clip(level * np.array(self.balance) * exposure, 0, 1.2) ** self.gamma
        return (255 * np.clip(0.46 + self.contrast * (linear - 0.46), 0, 1)).astype(np.uint8)[:, None]


PLACES = ("street", "wall", "pavement", "grass", "indoor")


def sample_camera(rng: np.random.Generator, place: str | None = None) -> Camera:
    """A random camera."""
    tint = rng.normal(0, 1, 3)
    angle = rng.uniform(-np.pi, np.pi)
    side = rng.uniform(-0.9, 0.9)
    return Camera(
        balance=_gains(0.07 * (tint - tint.mean()) + rng.normal(0.06, 0.1)),
        gamma=float(np.exp(rng.normal(0, 0.2))),
        contrast=float(rng.uniform(0.85, 1.2)),
        saturation=float(rng.uniform(0.6, 1.15)),
        blur=float(rng.uniform(0.2, 1.1)),
        noise=float(rng.uniform(1.5, 4.5)),
        resolution=float(rng.uniform(0.42, 0.95)),
        quality=int(rng.integers(55, 93)),
        pitch=float(rng.uniform(0.02, 0.34)),
        loom=float(rng.uniform(0, 0.22)),
        light=(float(side), float(-np.sqrt(1 - side**2) * 0.8)),
        sun=float(rng.uniform(0.3, 1)),
        place=str(rng.choice(PLACES)) if place is None else place,
        palette=int(rng.integers(2**31)),
        aspect=float(rng.uniform(1.0, 1.2)),
        heading=float(angle),
        spread=float(rng.uniform(0.9, 2.5)),
    )


def _gains(log_gains: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in np.exp(log_gains))
    return red, green, blue


def spread_cameras(seed: int, count: int) -> list[Camera]:
    """The `count` cameras of a dataset, with tints, gammas and places spread evenly instead of at random."""
    rng = np.random.default_rng([seed, 31])
    places = rng.permutation(PLACES)
    order = rng.permutation(count)
    start = rng.uniform(0, 2 * np.pi)
    cameras = []
    for number in range(count):
        camera = sample_camera(rng, str(places[number % len(PLACES)]))
        hue = start + 2 * np.pi * number / count
        tint = 0.02 * np.cos(hue + np.array([0, 2, 4]) * np.pi / 3)
        level = (order[number] + 0.5) / count * 2 - 1
        cameras.append(
            dataclasses.replace(
                camera,
                balance=_gains(tint + 0.06 + 0.03 * level),
                gamma=float(np.exp(-0.08 * level)),
                heading=float(hue),
                spread=1.6,
                contrast=1.02 + 0.06 * float(np.cos(2 * hue)),
                saturation=0.92 + 0.08 * level,
            )
        )
    return cameras
