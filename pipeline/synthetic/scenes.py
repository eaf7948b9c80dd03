"""Backgrounds: a street, a wall, pavement, grass or an indoor floor, drawn anew for every picture."""

from functools import cache

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.synthetic.cameras import PLACES, Camera

Image = UInt8[np.ndarray, "H W 3"]
CAMERA_SCENE = 0.2  # share of pictures with the camera's own kind of background and colours
PLACE_PROBABILITIES = (0.3, 0.22, 0.28, 0.06, 0.14)  # of `PLACES`, in the other pictures
WARM = np.array([1.0, 0.2, -1.0])  # tints go along this axis: buildings are seldom purple or green


@cache
def grain(kind: int) -> np.ndarray:
    """Multi-scale noise of mean 1, larger than a picture, of which each picture takes a random window."""
    rng = np.random.default_rng([77, kind])
    total = np.zeros((512, 512), np.float32)
    for size, amount in ((4, 0.05), (16, 0.03), (64, 0.025), (512, (0.02, 0.04, 0.09)[kind])):
        noise = rng.standard_normal((size, size)).astype(np.float32)
        total += amount * cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC)
    return 1 + total


def _rough(
    image: Image, rng: np.random.Generator, kind: int, top: int, bottom: int, amount: float = 1.0
) -> None:
    """Multiply rows top..bottom with grain."""
    if bottom <= top:
        return
    y, x = int(rng.integers(0, 512 - (bottom - top))), int(rng.integers(0, 512 - image.shape[1]))
    window = 1 + amount * (grain(kind)[y : y + bottom - top, x : x + image.shape[1]] - 1)
    image[top:bottom] = np.clip(image[top:bottom] * window[..., None], 0, 255).astype(np.uint8)


def _tone(rng: np.random.Generator, low: float, high: float, tint: float = 10.0) -> tuple[int, int, int]:
    warmth = rng.normal(3, 0.7 * tint)
    values = np.clip(rng.uniform(low, high) + warmth * WARM + rng.normal(0, 0.25 * tint, 3), 5, 250)
    return int(values[0]), int(values[1]), int(values[2])


def _bricks(image: Image, rng: np.random.Generator, bottom: int) -> None:
    base, size = np.array(_tone(rng, 100.0, 160.0, 12.0)), int(rng.integers(7, 16))
    image[:bottom] = base
    joint = np.clip(base * rng.uniform(0.7, 1.25), 0, 255).tolist()
    shift = int(rng.integers(0, size))
    for row, y in enumerate(range(-shift, bottom, size)):
        cv2.line(image, (0, y), (image.shape[1], y), joint, 1)
        for x in range(-shift - (row % 2) * size, image.shape[1], 2 * size):
            cv2.line(image, (x, y), (x, min(y + size, bottom)), joint, 1)


def _facade(image: Image, rng: np.random.Generator, bottom: int) -> None:
    image[:bottom] = _tone(rng, 96.0, 176.0, 10.0)
    wide, high = int(rng.integers(22, 50)), int(rng.integers(34, 70))
    glass, frame = _tone(rng, 30.0, 90.0), _tone(rng, 120.0, 210.0)
    x0, y0 = -int(rng.integers(0, wide)), -int(rng.integers(0, high))
    for x in range(x0, image.shape[1], wide + int(wide * 0.45)):
        for y in range(y0, bottom - high // 2, high + int(high * 0.5)):
            cv2.rectangle(image, (x, y), (x + wide, y + high), frame, cv2.FILLED)
            cv2.rectangle(image, (x + 2, y + 2), (x + wide - 2, y + high - 2), glass, cv2.FILLED)
            cv2.line(image, (x + wide // 2, y), (x + wide // 2, y + high), frame, 1)


def _trees(image: Image, rng: np.random.Generator, bottom: int) -> None:
    image[:bottom] = _tone(rng, 110.0, 200.0, 12.0)
    leaf = np.array((78, 90, 64)) * rng.uniform(0.7, 1.2)
    for _ in range(14):
        centre = (int(rng.integers(-10, image.shape[1] + 10)), int(rng.integers(-20, max(bottom, 1))))
        size = int(rng.integers(10, 34))
        cv2.circle(image, centre, size, (leaf * rng.uniform(0.7, 1.25)).tolist(), cv2.FILLED)
    for _ in range(int(rng.integers(0, 3))):
        x, wide = int(rng.integers(0, image.shape[1])), int(rng.integers(3, 9))
        cv2.rectangle(image, (x, 0), (x + wide, bottom), _tone(rng, 50.0, 80.0, 6.0), cv2.FILLED)


def _shop(image: Image, rng: np.random.Generator, bottom: int) -> None:
    image[:bottom] = _tone(rng, 120.0, 210.0, 10.0)
    x = -int(rng.integers(0, 60))
    while x < image.shape[1]:
        wide = int(rng.integers(18, 60))
        cv2.rectangle(
            image,
            (x, int(rng.integers(0, 40))),
            (x + wide, bottom),
            _tone(rng, 40.0, 210.0, 18.0),
            cv2.FILLED,
        )
        x += wide + int(rng.integers(3, 26))


def _ground(
    image: Image, rng: np.random.Generator, top: int, kind: str, palette: np.random.Generator
) -> None:
    height = image.shape[0]
    colour = np.array(_tone(palette, 108.0, 150.0, 6.0))
    if kind == "grass":
        colour = np.array((98, 108, 78)) * palette.uniform(0.85, 1.15)
    fade = np.linspace(rng.uniform(0.85, 1.0), rng.uniform(0.95, 1.12), max(height - top, 1))
    image[top:] = np.clip(fade[:, None, None] * colour, 0, 255).astype(np.uint8)
    if kind in ("pavement", "indoor", "wall"):
        _tiles(image, rng, top, np.clip(colour * palette.choice((0.8, 0.88, 1.12)), 0, 255).tolist())
    elif kind == "street" and rng.random() < 0.6:
        _kerb(image, rng, top)


def _tiles(image: Image, rng: np.random.Generator, top: int, joint) -> None:
    """Joints along the view meet at a vanishing point; those across it get denser towards the horizon."""
    height, width = image.shape[:2]
    vanishing = (int(rng.integers(-60, width + 60)), top - int(rng.integers(20, 160)))
    gap = int(rng.integers(26, 60))
    for x in range(-4 * width, 5 * width, gap):
        end = np.array([x, height + 40])
        cv2.line(
            image[top:],
            (vanishing[0], vanishing[1] - top),
            (int(end[0]), int(end[1]) - top),
            joint,
            1,
            cv2.LINE_AA,
        )
    step, y = rng.uniform(7, 14), float(top)
    while y < height:
        cv2.line(image, (0, int(y)), (width, int(y)), joint, 1)
        y, step = y + step, step * 1.3


def _kerb(image: Image, rng: np.random.Generator, top: int) -> None:
    height, width = image.shape[:2]
    left, right = (int(rng.integers(top, height + 40)) for _ in range(2))
    points = np.array([(0, left), (width, right), (width, height + 60), (0, height + 60)])
    cv2.fillPoly(image, [points], _tone(rng, 80.0, 150.0, 5.0), cv2.LINE_AA)
    cv2.line(
        image, (0, left), (width, right), _tone(rng, 150.0, 210.0, 5.0), int(rng.integers(2, 6)), cv2.LINE_AA
    )


def draw_scene(rng: np.random.Generator, camera: Camera, height: int, width: int) -> Image:
    """A background of the camera's kind and colours, or of a random kind."""
    from_camera = rng.random() < CAMERA_SCENE
    palette = np.random.default_rng(camera.palette + int(rng.integers(3))) if from_camera else rng
    place = camera.place if from_camera else str(rng.choice(PLACES, p=PLACE_PROBABILITIES))
    image = np.zeros((height, width, 3), np.uint8)
    horizon = int(np.clip(height * (0.62 - 1.6 * camera.pitch) + rng.normal(0, 22), -1, height * 0.8))
    horizon = max(horizon, 0)
    if horizon:
        back = {
            "street": (_facade, _shop),
            "wall": (_bricks, _facade),
            "pavement": (_shop, _trees),
            "grass": (_trees, _trees),
            "indoor": (_shop, _shop),
        }[place]
        back[int(rng.integers(2))](image, palette if rng.random() < 0.5 else rng, horizon)
        _rough(image, rng, 0, 0, horizon)
    _ground(image, rng, horizon, place, palette)
    _rough(image, rng, 2 if place == "grass" else 1, horizon, height)
    return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.8)))
