"""Vehicles that hide people: cars from the side and from the front or rear, a loaded bicycle."""

import numpy as np

from pipeline.synthetic.overlay import Overlay, centre_column, sample_paint, share_boundary
from pipeline.synthetic.textures import scaled

WHEEL_DARK = (26, 26, 28)


def car(overlay: Overlay, rng, person, share: float) -> None:
    """A parked car seen from the side or from its end, its roof or bonnet at the wanted height."""
    height, width = person.shape
    top = share_boundary(person, share, 0, True)
    colour, glass = sample_paint(rng), (44, 50, 58)
    middle = width / 2 + rng.uniform(-26, 26)
    low = max(height + 10.0, top + rng.uniform(60, 110))
    if rng.random() < 0.45:
        _car_end(overlay, rng, middle, top, low, colour, glass)
        return
    way, length = rng.choice((-1, 1)), rng.uniform(150, 230)
    body = top + (low - top) * rng.uniform(0.05, 0.35)
    nose = middle + way * rng.uniform(-0.1, 0.45) * length
    back = nose - way * length
    roof = [
        (nose - way * 0.25 * length, body),
        (nose - way * 0.42 * length, top),
        (nose - way * 0.78 * length, top),
        (nose - way * 0.95 * length, body),
    ]
    overlay.polygon(roof, scaled(colour, 0.95))
    pane = [
        (x + way * shift, y)
        for (x, y), shift in zip(
            [(roof[0][0], body - 1), (roof[1][0], top + 3), (roof[2][0], top + 3), (roof[3][0], body - 1)],
            (-9, -3, 5, 9),
            strict=True,
        )
    ]
    if body - top > 9:
        overlay.polygon(pane, glass)
        pillar = nose - way * 0.6 * length
        overlay.box(pillar - 2, top, pillar + 2, body, scaled(colour, 0.9))
    overlay.polygon(
        [
            (nose, body + 12),
            (nose - way * 0.06 * length, body),
            (back + way * 4, body - 1),
            (back, body + 14),
            (back, low),
            (nose, low),
        ],
        colour,
    )
    overlay.line([(nose, body + 16), (back, body + 16)], scaled(colour, 0.75), 1.5)
    for wheel in (0.2, 0.8):
        x = nose - way * wheel * length
        overlay.ellipse(x, low - 4, 25, 25, scaled(colour, 0.4))
        overlay.ellipse(x, low - 2, 21, 21, WHEEL_DARK)
        overlay.ellipse(x, low - 2, 11, 11, (140, 142, 146))
    overlay.line(
        [(nose - way * 0.5 * length, body + 2), (nose - way * 0.5 * length, low - 8)], scaled(colour, 0.7), 1
    )
    overlay.ellipse(nose - way * 6, body + 20, 7, 4, (226, 222, 200))


def _car_end(overlay: Overlay, rng, middle: float, top: int, low: float, colour, glass) -> None:
    wide = rng.uniform(58, 84)
    deck = top + (low - top) * rng.uniform(0.0, 0.3)
    if deck - top > 10:
        overlay.polygon(
            [
                (middle - wide * 0.92, deck),
                (middle - wide * 0.68, top),
                (middle + wide * 0.68, top),
                (middle + wide * 0.92, deck),
            ],
            colour,
        )
        overlay.polygon(
            [
                (middle - wide * 0.82, deck),
                (middle - wide * 0.62, top + 4),
                (middle + wide * 0.62, top + 4),
                (middle + wide * 0.82, deck),
            ],
            glass,
        )
    overlay.polygon(
        [
            (middle - wide, deck + 12),
            (middle - wide * 0.9, deck),
            (middle + wide * 0.9, deck),
            (middle + wide, deck + 12),
            (middle + wide, low),
            (middle - wide, low),
        ],
        colour,
    )
    lamp = (222, 216, 196) if rng.random() < 0.5 else (150, 30, 28)
    for way in (-1, 1):
        overlay.ellipse(middle + way * wide * 0.78, deck + 20, 12, 6, lamp)
        overlay.box(
            middle + way * wide * 0.8 - 12, low - 26, middle + way * wide * 0.8 + 12, low, (24, 24, 26)
        )
    overlay.box(middle - wide * 0.5, deck + 16, middle + wide * 0.5, deck + 25, (34, 34, 38))
    overlay.box(middle - 15, deck + 32, middle + 15, deck + 41, (210, 208, 190))
    overlay.box(middle - wide, deck + 46, middle + wide, deck + 52, scaled(colour, 0.6))


def bicycle(overlay: Overlay, rng, person, share: float) -> None:
    """A cargo bicycle: two wheels, a frame, and a box on its carrier that hides most."""
    height = person.shape[0]
    top = share_boundary(person, min(0.6, share * 1.1), 0, True)
    middle, colour, low = (
        centre_column(person) + rng.uniform(-16, 16),
        sample_paint(rng),
        height - rng.uniform(0, 10),
    )
    wheel = rng.uniform(28, 36)
    for x in (middle - 46, middle + 46):
        for radius, thick, shade in ((wheel, 3.5, (28, 28, 30)), (wheel * 0.12, 4, (120, 120, 124))):
            angle = np.linspace(0, 2 * np.pi, 40)
            overlay.line(
                np.stack([x + radius * np.cos(angle), low - wheel + radius * np.sin(angle)], 1), shade, thick
            )
        for angle in np.linspace(0, np.pi, 6, endpoint=False):
            way = wheel * np.array([np.cos(angle), np.sin(angle)])
            overlay.line(
                [np.array([x, low - wheel]) - way, np.array([x, low - wheel]) + way], (130, 130, 134), 0.6
            )
    seat = (middle - 16, top + 8)
    for start, end in (
        ((middle - 46, low - wheel), seat),
        (seat, (middle + 34, top + 16)),
        ((middle + 46, low - wheel), (middle + 34, top + 16)),
        ((middle, low - wheel), seat),
        ((middle, low - wheel), (middle + 34, top + 16)),
    ):
        overlay.line([start, end], colour, 3.2)
    overlay.box(
        middle - 42, top, middle + 30, low - wheel * 0.9, (132, 106, 76) if rng.random() < 0.5 else colour
    )
    overlay.line([(middle - 42, top + 9), (middle + 30, top + 9)], (70, 58, 44), 1.5)
