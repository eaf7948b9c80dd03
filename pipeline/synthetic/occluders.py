"""Objects in front of a person: drawn so that they hide about a wanted share."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline.synthetic.scenes import grain

SUPER = 2
KINDS = ("car", "bin", "hedge", "low wall", "pole", "umbrella", "sign", "bicycle", "boxes", "door frame")
CHANCES = (0.2, 0.09, 0.09, 0.13, 0.12, 0.09, 0.08, 0.08, 0.06, 0.06)


class Sheet:
    """Colour and coverage at twice the picture's size, drawn together."""

    def __init__(self, height: int, width: int):
        self.colour = np.zeros((height * SUPER, width * SUPER, 3), np.uint8)
        self.cover = np.zeros((height * SUPER, width * SUPER), np.uint8)

    def polygon(self, points, colour) -> None:
        fixed = np.round(np.asarray(points, dtype=np.float64) * SUPER * 16).astype(np.int32)
        cv2.fillPoly(self.colour, [fixed], colour, cv2.LINE_8, 4)
        cv2.fillPoly(self.cover, [fixed], 255, cv2.LINE_8, 4)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(
        self, x: float, y: float, wide: float, high: float, colour, start: float = 0, end: float = 360
    ) -> None:
        angle = np.radians(np.linspace(start, end, 40))
        self.polygon(np.stack([x + wide * np.cos(angle), y + high * np.sin(angle)], 1), colour)

    def line(self, points, colour, thick: float) -> None:
        fixed = np.round(np.asarray(points, dtype=np.float64) * SUPER * 16).astype(np.int32)
        thick = max(1, round(thick * SUPER))
        cv2.polylines(self.colour, [fixed], False, colour, thick, cv2.LINE_8, 4)
        cv2.polylines(self.cover, [fixed], False, 255, thick, cv2.LINE_8, 4)

    def shade(self, rng: np.random.Generator, across: bool, amount: float = 0.25) -> None:
        """Light that falls off along one direction, and some wear."""
        height, width = self.cover.shape
        y, x = int(rng.integers(0, 512 - height + 1)), int(rng.integers(0, 512 - width + 1))
        wear = 1 + 0.5 * (grain(0)[y : y + height, x : x + width] - 1)
        ramp = np.linspace(1 + amount, 1 - amount, width if across else height, dtype=np.float32)
        wear = wear * (ramp[None] if across else ramp[:, None])
        self.colour = np.clip(self.colour * wear[..., None], 0, 255).astype(np.uint8)

    def finish(self) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
        """Colour times coverage, coverage in [0, 1], and the pixels that count as covered."""
        self.colour[self.cover == 0] = 0
        size = (self.cover.shape[1] // SUPER, self.cover.shape[0] // SUPER)
        colour = cv2.resize(self.colour, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        cover = cv2.resize(self.cover, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        return colour, cover, self.cover[::SUPER, ::SUPER] > 0


PAINTS = (
    (38, 38, 42),
    (196, 196, 194),
    (118, 120, 124),
    (128, 36, 36),
    (44, 62, 104),
    (160, 148, 120),
    (54, 84, 66),
)


def _paint(rng: np.random.Generator) -> tuple[int, int, int]:
    values = np.clip(np.array(PAINTS[int(rng.integers(len(PAINTS)))]) + rng.normal(0, 8, 3), 8, 245)
    return int(values[0]), int(values[1]), int(values[2])


def _scaled(colour, share: float) -> tuple[int, int, int]:
    return tuple(int(min(255, channel * share)) for channel in colour)


def level(person: Bool[np.ndarray, "H W"], share: float, axis: int, from_end: bool) -> int:
    """The row (axis 0) or column (axis 1) beyond which that share of the person lies."""
    counts = person.sum(1 - axis)[:: -1 if from_end else 1].cumsum()
    place = int(np.searchsorted(counts, share * counts[-1]))
    return len(counts) - 1 - place if from_end else place


def _car(sheet: Sheet, rng, person, share: float) -> None:
    """A parked car seen from the side or from its end, its roof or bonnet at the wanted height."""
    height, width = person.shape
    top = level(person, share, 0, True)
    colour, glass = _paint(rng), (44, 50, 58)
    middle = width / 2 + rng.uniform(-26, 26)
    low = max(height + 10.0, top + rng.uniform(60, 110))
    if rng.random() < 0.45:
        _car_end(sheet, rng, middle, top, low, colour, glass)
        return
    way, long_ = rng.choice((-1, 1)), rng.uniform(150, 230)
    body = top + (low - top) * rng.uniform(0.05, 0.35)
    nose = middle + way * rng.uniform(-0.1, 0.45) * long_
    back = nose - way * long_
    roof = [(nose - way * 0.25 * long_, body), (nose - way * 0.42 * long_, top), (nose - way * 0.78 * long_, top),
            (nose - way * 0.95 * long_, body)]  # fmt: skip
    sheet.polygon(roof, _scaled(colour, 0.95))
    pane = [(x + way * shift, y) for (x, y), shift in zip(
        [(roof[0][0], body - 1), (roof[1][0], top + 3), (roof[2][0], top + 3), (roof[3][0], body - 1)],
        (-9, -3, 5, 9), strict=True)]  # fmt: skip
    if body - top > 9:
        sheet.polygon(pane, glass)
        pillar = nose - way * 0.6 * long_
        sheet.box(pillar - 2, top, pillar + 2, body, _scaled(colour, 0.9))
    sheet.polygon([(nose, body + 12), (nose - way * 0.06 * long_, body), (back + way * 4, body - 1), (back, body + 14),
                   (back, low), (nose, low)], colour)  # fmt: skip
    sheet.line([(nose, body + 16), (back, body + 16)], _scaled(colour, 0.75), 1.5)
    for wheel in (0.2, 0.8):
        x = nose - way * wheel * long_
        sheet.ellipse(x, low - 4, 25, 25, _scaled(colour, 0.4))
        sheet.ellipse(x, low - 2, 21, 21, (26, 26, 28))
        sheet.ellipse(x, low - 2, 11, 11, (140, 142, 146))
    sheet.line(
        [(nose - way * 0.5 * long_, body + 2), (nose - way * 0.5 * long_, low - 8)], _scaled(colour, 0.7), 1
    )
    sheet.ellipse(nose - way * 6, body + 20, 7, 4, (226, 222, 200))


def _car_end(sheet: Sheet, rng, middle: float, top: int, low: float, colour, glass) -> None:
    wide = rng.uniform(58, 84)
    deck = top + (low - top) * rng.uniform(0.0, 0.3)
    if deck - top > 10:
        sheet.polygon([(middle - wide * 0.92, deck), (middle - wide * 0.68, top), (middle + wide * 0.68, top),
                       (middle + wide * 0.92, deck)], colour)  # fmt: skip
        sheet.polygon([(middle - wide * 0.82, deck), (middle - wide * 0.62, top + 4), (middle + wide * 0.62, top + 4),
                       (middle + wide * 0.82, deck)], glass)  # fmt: skip
    sheet.polygon([(middle - wide, deck + 12), (middle - wide * 0.9, deck), (middle + wide * 0.9, deck),
                   (middle + wide, deck + 12), (middle + wide, low), (middle - wide, low)], colour)  # fmt: skip
    lamp = (222, 216, 196) if rng.random() < 0.5 else (150, 30, 28)
    for way in (-1, 1):
        sheet.ellipse(middle + way * wide * 0.78, deck + 20, 12, 6, lamp)
        sheet.box(middle + way * wide * 0.8 - 12, low - 26, middle + way * wide * 0.8 + 12, low, (24, 24, 26))
    sheet.box(middle - wide * 0.5, deck + 16, middle + wide * 0.5, deck + 25, (34, 34, 38))
    sheet.box(middle - 15, deck + 32, middle + 15, deck + 41, (210, 208, 190))
    sheet.box(middle - wide, deck + 46, middle + wide, deck + 52, _scaled(colour, 0.6))


def _bin(sheet: Sheet, rng, person, share: float) -> None:
    height, width = person.shape
    top, colour = level(person, min(0.65, share * 1.15), 0, True), _paint(rng)
    middle, wide = _middle(person) + rng.uniform(-14, 14), rng.uniform(26, 44)
    low = height + 8
    sheet.polygon([(middle - wide, top + 10), (middle + wide, top + 10), (middle + wide * 0.86, low),
                   (middle - wide * 0.86, low)], colour)  # fmt: skip
    sheet.polygon([(middle - wide - 3, top + 12), (middle - wide * 0.8, top), (middle + wide * 0.8, top),
                   (middle + wide + 3, top + 12)], _scaled(colour, 0.7))  # fmt: skip
    for x in np.linspace(-0.6, 0.6, 5):
        sheet.line([(middle + x * wide, top + 18), (middle + x * wide * 0.9, low)], _scaled(colour, 0.8), 1.5)


def _hedge(sheet: Sheet, rng, person, share: float) -> None:
    height, width = person.shape
    top, leaf = level(person, share, 0, True), np.array((62, 84, 48)) * rng.uniform(0.7, 1.25)
    sheet.box(-4, top + 8, width + 4, height + 4, leaf.tolist())
    for _ in range(110):
        x, y = rng.uniform(-6, width + 6), top + 8 + rng.exponential(26)
        sheet.ellipse(x, y, rng.uniform(3, 8), rng.uniform(3, 7), (leaf * rng.uniform(0.6, 1.4)).tolist())


def _low_wall(sheet: Sheet, rng, person, share: float) -> None:
    height, width = person.shape
    top = level(person, share, 0, True)
    tilt = rng.uniform(-9, 9)
    colour = np.clip(rng.uniform(90, 190) + rng.normal(0, 14, 3), 20, 240)
    sheet.polygon(
        [(-4, top - tilt), (width + 4, top + tilt), (width + 4, height + 4), (-4, height + 4)],
        colour.tolist(),
    )
    size = int(rng.integers(10, 26))
    joint = (colour * rng.uniform(0.72, 0.9)).tolist()
    for row, y in enumerate(range(size, 320, size)):
        sheet.line([(-4, top - tilt + y), (width + 4, top + tilt + y)], joint, 1)
        for x in range(-size * (row % 2), width, 2 * size):
            sheet.line([(x, top + y - size), (x, top + y)], joint, 1)
    sheet.polygon([(-4, top - tilt - 2), (width + 4, top + tilt - 2), (width + 4, top + tilt + 5), (-4, top - tilt + 5)],
                  np.clip(colour * 1.15, 0, 255).tolist())  # fmt: skip


def _middle(person) -> float:
    columns = np.nonzero(person.any(0))[0]
    return float(columns.mean())


def _pole(sheet: Sheet, rng, person, share: float) -> None:
    """An upright post or tree trunk over the body's middle, or a broad pillar from one side."""
    height, width = person.shape
    centre = level(person, rng.uniform(0.3, 0.7), 1, False)
    counts = person.sum(0)
    half = 3
    while counts[max(0, centre - half) : centre + half + 1].sum() < share * counts.sum() and half < 60:
        half += 1
    colour = _paint(rng) if rng.random() < 0.6 else (86, 74, 60)
    lean = rng.uniform(-5, 5)
    for edge in np.linspace(-1, 0.8, 10):
        light = 1.2 - 0.6 * abs(edge + 0.35)
        x0, x1 = centre + edge * half, centre + (edge + 0.2) * half + 0.6
        sheet.polygon([(x0 + lean, -4), (x1 + lean, -4), (x1 - lean, height + 4), (x0 - lean, height + 4)],
                      _scaled(colour, light))  # fmt: skip


def _umbrella(sheet: Sheet, rng, person, share: float) -> None:
    """Somebody's umbrella over the head and shoulders."""
    low = level(person, min(share, 0.45), 0, False)
    middle, wide = _middle(person) + rng.uniform(-18, 18), rng.uniform(58, 84)
    colour, high = _paint(rng), rng.uniform(34, 56)
    tip = low - high
    ribs = np.linspace(-1, 1, 7)
    for left, right in zip(ribs[:-1], ribs[1:], strict=True):
        steps = np.linspace(left, right, 6)
        arc = [(middle + s * wide, low - high * np.sqrt(max(0, 1 - s * s)) * 1.0) for s in steps]
        sag = [(middle + 0.5 * (left + right) * wide, low - 5)]
        sheet.polygon([*arc, *sag, arc[0]], _scaled(colour, 1.1 - 0.35 * abs(left + 0.4)))
        sheet.line([(middle, tip), arc[0]], _scaled(colour, 0.7), 0.8)
    sheet.line([(middle, tip - 8), (middle + 3, low + 40)], (60, 58, 56), 1.6)


def _sign(sheet: Sheet, rng, person, share: float) -> None:
    height, width = person.shape
    middle = _middle(person) + rng.uniform(-12, 12)
    top = level(person, rng.uniform(0.08, 0.45), 0, False)
    wide = rng.uniform(28, 46)
    low = top
    while (
        low < height
        and person[top:low, max(0, int(middle - wide)) : int(middle + wide)].sum() < share * person.sum()
    ):
        low += 1
    colour, back = _paint(rng), (222, 220, 212)
    sheet.box(middle - 3, low, middle + 3, height + 4, (98, 100, 104))
    sheet.box(middle - wide, top, middle + wide, low, colour)
    sheet.box(middle - wide + 4, top + 4, middle + wide - 4, low - 4, back)
    for y in np.linspace(top + 12, low - 12, max(2, int((low - top) / 16))):
        sheet.line([(middle - wide * 0.7, y), (middle + wide * rng.uniform(0.1, 0.7), y)], colour, 3)


def _bicycle(sheet: Sheet, rng, person, share: float) -> None:
    """A cargo bicycle: two wheels, a frame, and a box on its carrier that hides most."""
    height, width = person.shape
    top = level(person, min(0.6, share * 1.1), 0, True)
    middle, colour, low = _middle(person) + rng.uniform(-16, 16), _paint(rng), height - rng.uniform(0, 10)
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
    for start, end in (((middle - 46, low - wheel), seat), (seat, (middle + 34, top + 16)),
                       ((middle + 46, low - wheel), (middle + 34, top + 16)), ((middle, low - wheel), seat),
                       ((middle, low - wheel), (middle + 34, top + 16))):  # fmt: skip
        sheet.line([start, end], colour, 3.2)
    sheet.box(
        middle - 42, top, middle + 30, low - wheel * 0.9, (132, 106, 76) if rng.random() < 0.5 else colour
    )
    sheet.line([(middle - 42, top + 9), (middle + 30, top + 9)], (70, 58, 44), 1.5)


def _boxes(sheet: Sheet, rng, person, share: float) -> None:
    height, width = person.shape
    top = level(person, share, 0, True)
    y, middle = height + 6.0, _middle(person) + rng.uniform(-10, 10)
    while y > top:
        high = min(rng.uniform(28, 54), max(y - top, 8))
        wide, shift = rng.uniform(34, 58), rng.uniform(-8, 8)
        tone = np.array((164, 130, 92)) * rng.uniform(0.7, 1.15)
        sheet.box(middle + shift - wide, y - high, middle + shift + wide, y, tone.tolist())
        sheet.box(
            middle + shift - 4,
            y - high,
            middle + shift + 4,
            y - high * 0.6,
            (tone * 1.12).clip(0, 255).tolist(),
        )
        sheet.line([(middle + shift - wide, y), (middle + shift + wide, y)], (tone * 0.6).tolist(), 1.5)
        y -= high


def _door_frame(sheet: Sheet, rng, person, share: float) -> None:
    """The edge of a wall, door or van that covers one side."""
    height, width = person.shape
    left = rng.random() < 0.5
    edge = level(person, share, 1, not left)
    colour, lean = _paint(rng), rng.uniform(-4, 4)
    outer = -4 if left else width + 4
    sheet.polygon([(outer, -4), (edge + lean, -4), (edge - lean, height + 4), (outer, height + 4)], colour)
    sheet.line([(edge + lean, -4), (edge - lean, height + 4)], _scaled(colour, 0.6), 4)
    for y in rng.uniform(0, height, 3):
        sheet.line([(outer, y), (edge, y)], _scaled(colour, 0.8), 1.2)


DRAW = dict(zip(KINDS, (_car, _bin, _hedge, _low_wall, _pole, _umbrella, _sign, _bicycle, _boxes, _door_frame),
                strict=True))  # fmt: skip


def draw_object(
    rng: np.random.Generator, person: Bool[np.ndarray, "H W"], share: float, kind: str | None = None
):
    """An object over the person that hides roughly `share` of it; colour, coverage and mask as `Sheet.finish`."""
    kind = str(rng.choice(KINDS, p=CHANCES)) if kind is None else kind
    sheet = Sheet(*person.shape)
    DRAW[kind](sheet, rng, person, share)
    sheet.shade(rng, across=bool(rng.integers(2)), amount=float(rng.uniform(0, 0.2)))
    return sheet.finish()


def hidden_share(
    person: Bool[np.ndarray, "H W"], mask: UInt8[np.ndarray, "H W"] | Bool[np.ndarray, "H W"]
) -> float:
    """Share of the person's pixels under the mask."""
    return float((person & mask.astype(bool)).sum() / max(int(person.sum()), 1))
