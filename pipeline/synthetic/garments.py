"""Details of an upper garment: prints, tones, openings, collars, buttons, hoods."""

import cv2
import numpy as np

from pipeline.synthetic.people import SECOND_COLOURS, SKINS, UPPER_COLOURS, Person
from pipeline.synthetic.textures import scaled

SHIFT = 4  # cv2's fixed-point bits
Places = list[tuple[float, float]]


class Surface:
    """A window of the torso's cloth with body coordinates: height along the spine, angle from the front."""

    def __init__(self, albedo: np.ndarray, origin: tuple[int, int], trunk):
        self.albedo, self.origin, self.trunk = albedo, np.array(origin), trunk

    def points(self, places: Places) -> tuple[np.ndarray, float]:
        """Window coordinates of (height, angle) places, and the largest cosine between surface and camera."""
        points = np.array([self.trunk.at(height, angle) for height, angle in places])
        return points[:, :2] - self.origin, float(points[:, 2].max())

    def fill(self, places: Places, colour, min_facing: float = 0.15) -> None:
        points, facing = self.points(places)
        if facing > min_facing:
            fixed = np.round(points * (1 << SHIFT)).astype(np.int32)
            cv2.fillPoly(self.albedo, [fixed], colour, cv2.LINE_AA, SHIFT)

    def line(self, places: Places, colour, width: float, min_facing: float = 0.15) -> None:
        points, facing = self.points(places)
        if facing > min_facing:
            fixed = np.round(points * (1 << SHIFT)).astype(np.int32)
            thick = max(1, round(width * self.trunk.view.scale_x))
            cv2.polylines(self.albedo, [fixed], False, colour, thick, cv2.LINE_AA, SHIFT)


def draw_details(albedo: np.ndarray, origin: tuple[int, int], person: Person, trunk) -> None:
    """Draw the details of the person's upper garment that this view shows."""
    surface = Surface(albedo, origin, trunk)
    if person.upper_pattern == "two-tone":
        _yoke(surface, person)
    if person.upper_pattern == "print":
        _print(surface, person)
    {"shirt": _buttons, "t-shirt": _round_neck, "hoodie": _hood, "jacket": _opening, "coat": _lapels}[
        person.upper_kind
    ](surface, person)


def _edge(person: Person, share: float = 0.62):
    base = UPPER_COLOURS[person.upper_colour]
    return scaled(base, share) if sum(base) > 170 else tuple(channel + 34 for channel in base)


def _yoke(surface: Surface, person: Person) -> None:
    """The shoulders in the second colour."""
    low = 0.2 - 0.05 * (person.variety % 4) / 4
    bottom = surface.trunk.view.project(surface.trunk.centre(low)[None])[0, :2] - surface.origin
    rows = np.arange(surface.albedo.shape[0]) < bottom[1]
    surface.albedo[rows] = SECOND_COLOURS[person.second_colour]


def _print(surface: Surface, person: Person) -> None:
    """A block, disc or letters on the chest or the back."""
    colour = SECOND_COLOURS[person.second_colour]
    back = np.pi if person.variety % 3 == 2 else 0.0
    kind = person.variety // 3 % 3
    if kind == 0:
        angle = np.linspace(0, 2 * np.pi, 16)
        surface.fill([(0.185 + 0.045 * np.sin(a), back + 0.52 * np.cos(a)) for a in angle], colour)
    elif kind == 1:
        for top in (0.215, 0.18):
            low = top - 0.022
            surface.fill([(top, back - 0.6), (top, back + 0.6), (low, back + 0.6), (low, back - 0.6)], colour)
    else:
        surface.fill(
            [(0.23, back - 0.5), (0.23, back + 0.5), (0.13, back + 0.35), (0.13, back - 0.35)], colour
        )
        surface.fill([(0.2, back - 0.2), (0.2, back + 0.2), (0.16, back)], scaled(colour, 0.5))


def _round_neck(surface: Surface, person: Person) -> None:
    surface.fill([(0.325, -0.9), (0.302, -0.5), (0.292, 0.0), (0.302, 0.5), (0.325, 0.9)], SKINS[person.skin])
    surface.line([(0.31, -0.8), (0.298, -0.5), (0.288, 0.0), (0.298, 0.5), (0.31, 0.8)], _edge(person), 0.006)


def _buttons(surface: Surface, person: Person) -> None:
    surface.fill([(0.325, -0.7), (0.27, 0.0), (0.325, 0.7)], SKINS[person.skin])
    surface.line([(0.27, 0.0), (-0.03, 0.0)], _edge(person, 0.8), 0.004)
    for side in (-1, 1):
        collar = [(0.322, side * 0.7), (0.272, 0.0), (0.268, side * 0.45), (0.3, side * 1.1)]
        surface.fill(collar, scaled(UPPER_COLOURS[person.upper_colour], 1.18))


def _hood(surface: Surface, person: Person) -> None:
    shade = scaled(UPPER_COLOURS[person.upper_colour], 0.8)
    down = ((0.325, -1.2), (0.25, -0.7), (0.225, 0.0), (0.25, 0.7), (0.325, 1.2))
    surface.fill([(height, np.pi + angle) for height, angle in down], shade)
    surface.fill([(0.325, -1.1), (0.29, 0.0), (0.325, 1.1)], shade)
    for side in (-0.16, 0.16):
        surface.line([(0.288, side), (0.22, side)], (206, 204, 198), 0.004)
    surface.line([(0.02, -0.9), (0.085, -0.6), (0.085, 0.6), (0.02, 0.9)], _edge(person), 0.005)


def _opening(surface: Surface, person: Person) -> None:
    """A jacket's front, open over a garment of the second colour, or zipped."""
    if person.variety % 2:
        inside = SECOND_COLOURS[person.second_colour]
        surface.fill(
            [(0.325, -0.6), (0.2, -0.3), (-0.05, -0.22), (-0.05, 0.22), (0.2, 0.3), (0.325, 0.6)], inside
        )
        surface.fill([(0.325, -0.4), (0.295, 0.0), (0.325, 0.4)], SKINS[person.skin])
    surface.line([(0.31, 0.0), (-0.04, 0.0)], _edge(person), 0.005)
    for side in (-1, 1):
        surface.line([(0.075, side * 0.95), (0.03, side * 0.75)], _edge(person), 0.006)
    surface.line([(-0.015, angle) for angle in np.linspace(-1.2, 1.2, 7)], _edge(person, 0.8), 0.006)


def _lapels(surface: Surface, person: Person) -> None:
    inside = SECOND_COLOURS[person.second_colour]
    surface.fill([(0.325, -0.7), (0.19, 0.0), (0.325, 0.7)], inside)
    surface.fill([(0.325, -0.4), (0.288, 0.0), (0.325, 0.4)], SKINS[person.skin])
    for side in (-1, 1):
        surface.line([(0.32, side * 0.75), (0.25, side * 0.5), (0.19, 0.0)], _edge(person), 0.008)
    surface.line([(0.19, 0.05), (-0.05, 0.05)], _edge(person), 0.005)
    surface.line([(0.09, angle) for angle in np.linspace(-1.3, 1.3, 7)], _edge(person, 0.7), 0.009)
