"""Vehicles that hide people: cars from the side and from their ends, a loaded bicycle."""

import numpy as np

from pipeline.synthetic.sheets import Sheet, level, middle_of, paint, scaled

WHEEL_DARK = (26, 26, 28)


def car(sheet: Sheet, rng, person, share: float) -> None:
    """A parked car seen from the side or from its end, its roof or bonnet at the wanted height."""
    height, width = person.shape
    top = level(person, share, 0, True)
    colour, glass = paint(rng), (44, 50, 58)
    middle = width / 2 + rng.uniform(-26, 26)
    low = max(height + 10.0, top + rng.uniform(60, 110))
    if rng.random() < 0.45:
        _car_end(sheet, rng, middle, top, low, colour, glass)
        return
    way, long_ = rng.choice((-1, 1)), rng.uniform(150, 230)
    body = top + (low - top) * rng.uniform(0.05, 0.35)
    nose = middle + way * rng.uniform(-0.1, 0.45) * long_
    back = nose - way * long_
    roof = [
        (nose - way * 0.25 * long_, body),
        (nose - way * 0.42 * long_, top),
        (nose - way * 0.78 * long_, top),
        (nose - way * 0.95 * long_, body),
    ]
    sheet.polygon(roof, scaled(colour, 0.95))
    pane = [
        (x + way * shift, y)
        for (x, y), shift in zip(
            [(roof[0][0], body - 1), (roof[1][0], top + 3), (roof[2][0], top + 3), (roof[3][0], body - 1)],
            (-9, -3, 5, 9),
            strict=True,
        )
    ]
    if body - top > 9:
        sheet.polygon(pane, glass)
        pillar = nose - way * 0.6 * long_
        sheet.box(pillar - 2, top, pillar + 2, body, scaled(colour, 0.9))
    sheet.polygon(
        [
            (nose, body + 12),
            (nose - way * 0.06 * long_, body),
            (back + way * 4, body - 1),
            (back, body + 14),
            (back, low),
            (nose, low),
        ],
        colour,
    )
    sheet.line([(nose, body + 16), (back, body + 16)], scaled(colour, 0.75), 1.5)
    for wheel in (0.2, 0.8):
        x = nose - way * wheel * long_
        sheet.ellipse(x, low - 4, 25, 25, scaled(colour, 0.4))
        sheet.ellipse(x, low - 2, 21, 21, WHEEL_DARK)
        sheet.ellipse(x, low - 2, 11, 11, (140, 142, 146))
    sheet.line(
        [(nose - way * 0.5 * long_, body + 2), (nose - way * 0.5 * long_, low - 8)], scaled(colour, 0.7), 1
    )
    sheet.ellipse(nose - way * 6, body + 20, 7, 4, (226, 222, 200))


def _car_end(sheet: Sheet, rng, middle: float, top: int, low: float, colour, glass) -> None:
    wide = rng.uniform(58, 84)
    deck = top + (low - top) * rng.uniform(0.0, 0.3)
    if deck - top > 10:
        sheet.polygon(
            [
                (middle - wide * 0.92, deck),
                (middle - wide * 0.68, top),
                (middle + wide * 0.68, top),
                (middle + wide * 0.92, deck),
            ],
            colour,
        )
        sheet.polygon(
            [
                (middle - wide * 0.82, deck),
                (middle - wide * 0.62, top + 4),
                (middle + wide * 0.62, top + 4),
                (middle + wide * 0.82, deck),
            ],
            glass,
        )
    sheet.polygon(
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
        sheet.ellipse(middle + way * wide * 0.78, deck + 20, 12, 6, lamp)
        sheet.box(middle + way * wide * 0.8 - 12, low - 26, middle + way * wide * 0.8 + 12, low, (24, 24, 26))
    sheet.box(middle - wide * 0.5, deck + 16, middle + wide * 0.5, deck + 25, (34, 34, 38))
    sheet.box(middle - 15, deck + 32, middle + 15, deck + 41, (210, 208, 190))
    sheet.box(middle - wide, deck + 46, middle + wide, deck + 52, scaled(colour, 0.6))


def bicycle(sheet: Sheet, rng, person, share: float) -> None:
    """A cargo bicycle: two wheels, a frame, and a box on its carrier that hides most."""
    height = person.shape[0]
    top = level(person, min(0.6, share * 1.1), 0, True)
    middle, colour, low = middle_of(person) + rng.uniform(-16, 16), paint(rng), height - rng.uniform(0, 10)
    wheel = rng.uniform(28, 36)
    for x in (middle - 46, middle + 46):
        for radius, thick, shade in ((wheel, 3.5, (28, 28, 30)), (wheel * 0.12, 4, (120, 120, 124))):
            angle = np.linspace(0, 2 * np.pi, 40)
            sheet.line(
                np.stack([x + radius * np.cos(angle), low - wheel + radius * np.sin(angle)], 1), shade, thick
            )
        for angle in np.linspace(0, np.pi, 6, endpoint=False):
            way = wheel * np.array([np.cos(angle), np.sin(angle)])
            sheet.line(
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
        sheet.line([start, end], colour, 3.2)
    sheet.box(
        middle - 42, top, middle + 30, low - wheel * 0.9, (132, 106, 76) if rng.random() < 0.5 else colour
    )
    sheet.line([(middle - 42, top + 9), (middle + 30, top + 9)], (70, 58, 44), 1.5)
