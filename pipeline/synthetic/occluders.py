"""Objects in front of a person, sized to hide about a given share of it."""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from pipeline.synthetic.overlay import Layer, Overlay, centre_column, sample_paint, share_boundary
from pipeline.synthetic.textures import scaled
from pipeline.synthetic.vehicles import bicycle, car


def _bin(overlay: Overlay, rng, person, share: float) -> None:
    height = person.shape[0]
    top, colour = share_boundary(person, min(0.65, share * 1.15), 0, True), sample_paint(rng)
    middle, wide = centre_column(person) + rng.uniform(-14, 14), rng.uniform(26, 44)
    low = height + 8
    overlay.polygon(
        [
            (middle - wide, top + 10),
            (middle + wide, top + 10),
            (middle + wide * 0.86, low),
            (middle - wide * 0.86, low),
        ],
        colour,
    )
    overlay.polygon(
        [
            (middle - wide - 3, top + 12),
            (middle - wide * 0.8, top),
            (middle + wide * 0.8, top),
            (middle + wide + 3, top + 12),
        ],
        scaled(colour, 0.7),
    )
    for x in np.linspace(-0.6, 0.6, 5):
        overlay.line(
            [(middle + x * wide, top + 18), (middle + x * wide * 0.9, low)], scaled(colour, 0.8), 1.5
        )


def _hedge(overlay: Overlay, rng, person, share: float) -> None:
    height, width = person.shape
    top, leaf = share_boundary(person, share, 0, True), np.array((62, 84, 48)) * rng.uniform(0.7, 1.25)
    overlay.box(-4, top + 8, width + 4, height + 4, leaf.tolist())
    for _ in range(110):
        x, y = rng.uniform(-6, width + 6), top + 8 + rng.exponential(26)
        overlay.ellipse(x, y, rng.uniform(3, 8), rng.uniform(3, 7), (leaf * rng.uniform(0.6, 1.4)).tolist())


def _low_wall(overlay: Overlay, rng, person, share: float) -> None:
    height, width = person.shape
    top = share_boundary(person, share, 0, True)
    tilt = rng.uniform(-9, 9)
    colour = np.clip(rng.uniform(90, 190) + rng.normal(0, 14, 3), 20, 240)
    overlay.polygon(
        [(-4, top - tilt), (width + 4, top + tilt), (width + 4, height + 4), (-4, height + 4)],
        colour.tolist(),
    )
    size = int(rng.integers(10, 26))
    joint = (colour * rng.uniform(0.72, 0.9)).tolist()
    for row, y in enumerate(range(size, 320, size)):
        overlay.line([(-4, top - tilt + y), (width + 4, top + tilt + y)], joint, 1)
        for x in range(-size * (row % 2), width, 2 * size):
            overlay.line([(x, top + y - size), (x, top + y)], joint, 1)
    overlay.polygon(
        [
            (-4, top - tilt - 2),
            (width + 4, top + tilt - 2),
            (width + 4, top + tilt + 5),
            (-4, top - tilt + 5),
        ],
        np.clip(colour * 1.15, 0, 255).tolist(),
    )


def _pole(overlay: Overlay, rng, person, share: float) -> None:
    """An upright post or tree trunk over the body's middle, or a broad pillar from one side."""
    height = person.shape[0]
    centre = share_boundary(person, rng.uniform(0.3, 0.7), 1, False)
    counts = person.sum(0)
    half = 3
    while counts[max(0, centre - half) : centre + half + 1].sum() < share * counts.sum() and half < 60:
        half += 1
    colour = sample_paint(rng) if rng.random() < 0.6 else (86, 74, 60)
    lean = rng.uniform(-5, 5)
    for edge in np.linspace(-1, 0.8, 10):
        light = 1.2 - 0.6 * abs(edge + 0.35)
        x0, x1 = centre + edge * half, centre + (edge + 0.2) * half + 0.6
        overlay.polygon(
            [(x0 + lean, -4), (x1 + lean, -4), (x1 - lean, height + 4), (x0 - lean, height + 4)],
            scaled(colour, light),
        )


def _umbrella(overlay: Overlay, rng, person, share: float) -> None:
    """An umbrella over the head and shoulders."""
    low = share_boundary(person, min(share, 0.45), 0, False)
    middle, wide = centre_column(person) + rng.uniform(-18, 18), rng.uniform(58, 84)
    colour, high = sample_paint(rng), rng.uniform(34, 56)
    tip = low - high
    for left, right in pairwise(np.linspace(-1, 1, 7)):
        arc = [(middle + s * wide, low - high * np.sqrt(1 - s * s)) for s in np.linspace(left, right, 8)]
        hem = [
            (middle + right * wide, low),
            (middle + 0.5 * (left + right) * wide, low - 6),
            (middle + left * wide, low),
        ]
        overlay.polygon([*arc, *hem], scaled(colour, 1.1 - 0.35 * abs(left + 0.4)))
        overlay.line([(middle, tip), (middle + right * wide, low)], scaled(colour, 0.7), 0.8)
    overlay.line([(middle, tip - 8), (middle + 3, low + 40)], (60, 58, 56), 1.6)


def _sign(overlay: Overlay, rng, person, share: float) -> None:
    height = person.shape[0]
    middle = centre_column(person) + rng.uniform(-12, 12)
    top = share_boundary(person, rng.uniform(0.08, 0.45), 0, False)
    wide = rng.uniform(28, 46)
    low = top
    while (
        low < height
        and person[top:low, max(0, int(middle - wide)) : int(middle + wide)].sum() < share * person.sum()
    ):
        low += 1
    colour, back = sample_paint(rng), (222, 220, 212)
    overlay.box(middle - 3, low, middle + 3, height + 4, (98, 100, 104))
    overlay.box(middle - wide, top, middle + wide, low, colour)
    overlay.box(middle - wide + 4, top + 4, middle + wide - 4, low - 4, back)
    for y in np.linspace(top + 12, low - 12, max(2, int((low - top) / 16))):
        overlay.line([(middle - wide * 0.7, y), (middle + wide * rng.uniform(0.1, 0.7), y)], colour, 3)


def _boxes(overlay: Overlay, rng, person, share: float) -> None:
    height = person.shape[0]
    top = share_boundary(person, share, 0, True)
    y, middle = height + 6.0, centre_column(person) + rng.uniform(-10, 10)
    while y > top:
        high = min(rng.uniform(28, 54), max(y - top, 8))
        wide, shift = rng.uniform(34, 58), rng.uniform(-8, 8)
        tone = np.array((164, 130, 92)) * rng.uniform(0.7, 1.15)
        overlay.box(middle + shift - wide, y - high, middle + shift + wide, y, tone.tolist())
        overlay.box(
            middle + shift - 4,
            y - high,
            middle + shift + 4,
            y - high * 0.6,
            (tone * 1.12).clip(0, 255).tolist(),
        )
        overlay.line([(middle + shift - wide, y), (middle + shift + wide, y)], (tone * 0.6).tolist(), 1.5)
        y -= high


def _door_frame(overlay: Overlay, rng, person, share: float) -> None:
    """The edge of a wall, door or van that covers one side."""
    height, width = person.shape
    left = rng.random() < 0.5
    edge = share_boundary(person, share, 1, not left)
    colour, lean = sample_paint(rng), rng.uniform(-4, 4)
    outer = -4 if left else width + 4
    overlay.polygon([(outer, -4), (edge + lean, -4), (edge - lean, height + 4), (outer, height + 4)], colour)
    overlay.line([(edge + lean, -4), (edge - lean, height + 4)], scaled(colour, 0.6), 4)
    for y in rng.uniform(0, height, 3):
        overlay.line([(outer, y), (edge, y)], scaled(colour, 0.8), 1.2)


OBJECTS = {
    "car": (car, 0.2),
    "bin": (_bin, 0.09),
    "hedge": (_hedge, 0.09),
    "low wall": (_low_wall, 0.13),
    "pole": (_pole, 0.12),
    "umbrella": (_umbrella, 0.09),
    "sign": (_sign, 0.08),
    "bicycle": (bicycle, 0.08),
    "boxes": (_boxes, 0.06),
    "door frame": (_door_frame, 0.06),
}
"""Kind of object -> the function that draws it, and its probability."""


def draw_object(
    rng: np.random.Generator, person: Bool[np.ndarray, "H W"], share: float, kind: str | None = None
) -> Layer:
    """An object over the person that hides roughly `share` of it."""
    if kind is None:
        kind = str(rng.choice(list(OBJECTS), p=[probability for _, probability in OBJECTS.values()]))
    overlay = Overlay(*person.shape)
    OBJECTS[kind][0](overlay, rng, person, share)
    overlay.shade(rng, across=bool(rng.integers(2)), amount=float(rng.uniform(0, 0.2)))
    return overlay.finish()


def hidden_share(person: Bool[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> float:
    """Share of the person's pixels under the mask."""
    return float((person & mask).sum() / max(int(person.sum()), 1))
