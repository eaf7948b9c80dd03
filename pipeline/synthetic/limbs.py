"""Arms and legs with their sleeves, trousers, hands and shoes."""

from itertools import pairwise

import numpy as np

from pipeline.synthetic.canvas import Canvas, Cloth
from pipeline.synthetic.people import LOWER_COLOURS, SECOND_COLOURS, SHOE_COLOURS, SKINS, Person
from pipeline.synthetic.skeleton import Joints, View
from pipeline.synthetic.textures import scaled, upper_tile

ARM, LEG, FOOT = {"left": 2, "right": 3}, {"left": 5, "right": 6}, {"left": 7, "right": 8}
FOOT_FROM = 0.87  # share of the shin's length from the knee at which the part "foot" begins
BULK = {"shirt": 1.04, "t-shirt": 1.0, "hoodie": 1.14, "jacket": 1.13, "coat": 1.17}
"""Thickness of the upper garment relative to bare skin."""


def _bent(points: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A path through three or more points with its corners rounded, and the radii along it."""
    share = np.linspace(0, 1, 6, endpoint=False)[:, None]
    pieces = [start + share * (end - start) for start, end in pairwise(points[:, :2])]
    path = np.concatenate([*pieces, points[-1:, :2]])
    smooth = path.copy()
    smooth[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
    return smooth, np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(radii)), radii)


def _part_of_path(
    path: np.ndarray, radii: np.ndarray, start: float, end: float
) -> tuple[np.ndarray, np.ndarray]:
    share = np.linspace(0, 1, len(path))
    positions = np.linspace(start, end, max(3, int(len(path) * (end - start))))
    return np.stack([np.interp(positions, share, column) for column in path.T], 1), np.interp(
        positions, share, radii
    )


def lay_limb(canvas: Canvas, path, radii, cloth: Cloth, label: int, cut: bool = False, **options) -> None:
    """Paint a tube of cloth; `options` are those of `Canvas.lay`."""
    canvas.lay(canvas.tube(path, radii, cut), cloth, path[[0, -1]], label, **options)


def paint_leg(canvas: Canvas, person: Person, view: View, joints: Joints, side: str) -> None:
    """Paint one leg: skin, then trousers or shorts; the shoe is part of the foot."""
    points = view.project(np.stack([joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle")]))
    girth = person.width * view.scale_x
    skin = np.array([0.042, 0.05, 0.041, 0.036, 0.037, 0.03, 0.02]) * girth
    path, radii = _bent(points, skin)
    bare = person.lower_kind != "trousers"
    if bare:
        lay_limb(canvas, path, radii, Cloth(SKINS[person.skin]), LEG[side])
    _paint_foot(canvas, person, view, joints, side, path, radii)
    if person.lower_kind == "skirt":
        return
    colour = LOWER_COLOURS[person.lower_colour]
    loose = 1.0 + 0.22 * (person.variety % 100) / 100
    widths = np.array([0.044 / loose, 0.053, 0.046, 0.041, 0.040, 0.035, 0.029]) * girth * loose
    path, radii = _bent(points, widths)
    if person.lower_kind == "shorts":
        path, radii = _part_of_path(path, radii * 1.12, 0.0, 0.36 + 0.12 * person.hem)
    cloth = Cloth(colour, folds=2, depth=1.25)
    lay_limb(canvas, path, radii, cloth, LEG[side], cut=True)
    if not bare:
        _relabel_ankle(canvas, path, radii, side)


def _relabel_ankle(canvas: Canvas, path: np.ndarray, radii: np.ndarray, side: str) -> None:
    """Label the leg's last stretch as foot."""
    end, wide = _part_of_path(path, radii, 0.5 + 0.5 * FOOT_FROM, 1.0)
    stencil = canvas.tube(end, wide)
    if stencil is not None:
        height, width = stencil.mask.shape
        area = canvas.label[stencil.y : stencil.y + height, stencil.x : stencil.x + width]
        area[(stencil.mask > 0) & (area == LEG[side])] = FOOT[side]


def _paint_foot(canvas, person: Person, view: View, joints: Joints, side: str, path, radii) -> None:
    _relabel_ankle(canvas, path, radii, side)
    sole = view.project(np.stack([joints[f"{side}_{name}"] for name in ("heel", "ball", "toe")]))[:, :2]
    colour = SHOE_COLOURS[person.shoes]
    size = view.scale_x * np.array([0.019, 0.020, 0.013])
    rim = Cloth(scaled(colour, 0.6) if person.shoes != "black" else (96, 94, 92))
    lower = sole + np.array([0.0, view.scale_y * 0.005])
    lay_limb(canvas, lower, size, rim, FOOT[side], roundness=0.5)
    ankle = view.project(joints[f"{side}_ankle"][None])[:, :2]
    upper = np.concatenate([ankle, sole[1:]])
    lay_limb(canvas, sole, 0.92 * size, Cloth(colour), FOOT[side], shadow=0.0)
    size = view.scale_x * np.array([0.021, 0.019, 0.012])
    lay_limb(canvas, upper, size, Cloth(colour), FOOT[side], shadow=0.0)


def paint_arm(canvas: Canvas, person: Person, view: View, joints: Joints, side: str) -> None:
    """Paint one arm with its hand and sleeve."""
    points = view.project(np.stack([joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist")]))
    hand = view.project(np.stack([joints[f"{side}_wrist"], joints[f"{side}_hand"]]))[:, :2]
    girth = view.scale_x * (0.45 + 0.55 * person.width)
    skin = Cloth(SKINS[person.skin])
    palm = np.stack([hand[0], 0.55 * hand[0] + 0.45 * hand[1], hand[1]])
    lay_limb(canvas, palm, np.array([0.014, 0.0185, 0.011]) * view.scale_x, skin, ARM[side])
    if person.sleeve == "short":
        path, radii = _bent(points, np.array([0.034, 0.031, 0.027, 0.026, 0.027, 0.022, 0.0155]) * girth)
        lay_limb(canvas, path, radii, skin, ARM[side])
    path, radii = _bent(points, np.array([0.031, 0.034, 0.033, 0.031, 0.030, 0.027, 0.024]) * girth)
    if person.sleeve == "short":
        path, radii = _part_of_path(path, radii * 1.04, 0.0, 0.4)
    tile = upper_tile(person)
    if person.upper_pattern == "two-tone":
        tile = SECOND_COLOURS[person.second_colour]
    cloth = Cloth(tile, folds=1, depth=1.3 * BULK[person.upper_kind])
    lay_limb(
        canvas, path, radii * BULK[person.upper_kind], cloth, ARM[side], cut=True, shadow=0.18, roundness=0.85
    )
