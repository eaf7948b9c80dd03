"""A dressed, posed body painted from the far limbs to the near ones, each pixel labelled with its part."""

from itertools import pairwise

import numpy as np

from pipeline.synthetic import bags, garments, heads
from pipeline.synthetic.canvas import Canvas, Cloth
from pipeline.synthetic.people import (
    LOWER_COLOURS,
    SECOND_COLOURS,
    SHOE_COLOURS,
    SKINS,
    UPPER_COLOURS,
    Person,
)
from pipeline.synthetic.skeleton import Joints, Pose, View
from pipeline.synthetic.textures import darker, upper_tile

HEAD, ARM, TORSO, LEG, FOOT = 1, {"left": 2, "right": 3}, 4, {"left": 5, "right": 6}, {"left": 7, "right": 8}
FOOT_FROM = 0.87  # share of the shin's length from the knee at which the part "foot" begins
BULK = {"shirt": 1.04, "t-shirt": 1.0, "hoodie": 1.14, "jacket": 1.13, "coat": 1.17}
# (height above the hips, half width, half depth) up the trunk, in body heights
TRUNK = np.array(
    [
        (-0.045, 0.074, 0.062), (-0.015, 0.090, 0.072), (0.02, 0.096, 0.074), (0.09, 0.084, 0.064),
        (0.17, 0.092, 0.070), (0.225, 0.104, 0.074), (0.262, 0.116, 0.066), (0.280, 0.108, 0.058),
        (0.297, 0.078, 0.048), (0.310, 0.048, 0.040), (0.322, 0.034, 0.036),
    ]
)  # fmt: skip


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
    where = np.linspace(start, end, max(3, int(len(path) * (end - start))))
    return np.stack([np.interp(where, share, column) for column in path.T], 1), np.interp(where, share, radii)


def _lay_limb(canvas: Canvas, path: np.ndarray, radii: np.ndarray, cloth: Cloth, label: int, **how) -> None:
    canvas.lay(canvas.tube(path, radii), cloth, path[[0, -1]], label, **how)


def paint_leg(canvas: Canvas, person: Person, view: View, joints: Joints, side: str) -> None:
    """One leg: skin below, then trousers or shorts; the shoe is part of the foot."""
    points = view.project(np.stack([joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle")]))
    girth = person.width * view.scale_x
    skin = np.array([0.058, 0.05, 0.041, 0.036, 0.037, 0.03, 0.02]) * girth
    path, radii = _bent(points, skin)
    bare = person.lower_kind != "trousers"
    if bare:
        _lay_limb(canvas, path, radii, Cloth(SKINS[person.skin]), LEG[side])
    _paint_foot(canvas, person, view, joints, side, path, radii)
    if person.lower_kind == "skirt":
        return
    colour = LOWER_COLOURS[person.lower_colour]
    loose = 1.0 + 0.22 * (person.variety % 100) / 100
    widths = np.array([0.062, 0.054, 0.046, 0.041, 0.040, 0.035, 0.029]) * girth * loose
    path, radii = _bent(points, widths)
    if person.lower_kind == "shorts":
        path, radii = _part_of_path(path, radii * 1.12, 0.0, 0.36 + 0.12 * person.hem)
    cloth = Cloth(colour, folds=2, depth=1.25)
    _lay_limb(canvas, path, radii, cloth, LEG[side])
    if not bare:
        _relabel_ankle(canvas, path, radii, side)


def _relabel_ankle(canvas: Canvas, path: np.ndarray, radii: np.ndarray, side: str) -> None:
    """The leg's last stretch belongs to the foot."""
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
    rim = Cloth(darker(colour, 0.6) if person.shoes != "black" else (96, 94, 92))
    lower = sole + (0, view.scale_y * 0.005)
    _lay_limb(canvas, lower, size, rim, FOOT[side], roundness=0.5)
    ankle = view.project(joints[f"{side}_ankle"][None])[:, :2]
    shoe = np.concatenate([ankle, sole[1:]])
    _lay_limb(
        canvas,
        np.concatenate([sole[:1], sole[1:]]),
        size * 0.92,
        Cloth(colour),
        FOOT[side],
        shadow=0.0,
    )
    _lay_limb(
        canvas,
        shoe,
        view.scale_x * np.array([0.021, 0.019, 0.012]),
        Cloth(colour),
        FOOT[side],
        shadow=0,
    )


def paint_arm(canvas: Canvas, person: Person, view: View, joints: Joints, side: str) -> None:
    """One arm with its hand and sleeve."""
    points = view.project(np.stack([joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist")]))
    hand = view.project(np.stack([joints[f"{side}_wrist"], joints[f"{side}_hand"]]))[:, :2]
    girth = view.scale_x * (0.45 + 0.55 * person.width)
    skin = Cloth(SKINS[person.skin])
    palm = np.stack([hand[0], 0.55 * hand[0] + 0.45 * hand[1], hand[1]])
    _lay_limb(canvas, palm, np.array([0.014, 0.0185, 0.011]) * view.scale_x, skin, ARM[side])
    if person.sleeve == "short":
        path, radii = _bent(points, np.array([0.034, 0.031, 0.027, 0.026, 0.027, 0.022, 0.0155]) * girth)
        _lay_limb(canvas, path, radii, skin, ARM[side])
    path, radii = _bent(points, np.array([0.032, 0.036, 0.034, 0.032, 0.031, 0.028, 0.024]) * girth)
    if person.sleeve == "short":
        path, radii = _part_of_path(path, radii * 1.08, 0.0, 0.38)
    tile = upper_tile(person)
    if person.upper_pattern == "two-tone":
        tile = SECOND_COLOURS[person.second_colour]
    cloth = Cloth(tile, folds=1, depth=1.3 * BULK[person.upper_kind])
    _lay_limb(canvas, path, radii * BULK[person.upper_kind] ** 1.5, cloth, ARM[side], shadow=0.3)


class Trunk:
    """The torso's outline in one view: an elliptic cylinder of changing width along the spine."""

    def __init__(self, person: Person, view: View, joints: Joints, bulk: float, low: float = -0.045):
        self.view, self.spine = view, joints["neck"] - joints["pelvis"]
        self.foot, self.length = joints["pelvis"], float(np.linalg.norm(joints["neck"] - joints["pelvis"]))
        waist, hips = 1 - 0.16 * person.shape, 1 + 0.06 * person.shape
        curve = np.interp(TRUNK[:, 0], [0.0, 0.09, 0.2, 0.26], [hips, waist, 1.0, 1 - 0.1 * person.shape])
        girth = person.width ** np.interp(TRUNK[:, 0], [0.1, 0.3], [1.0, 0.4]) * curve
        cloth = np.interp(TRUNK[:, 0], [0.28, 0.31], [bulk, 1.0])
        self.heights = np.linspace(low, TRUNK[-1, 0], 26)
        self.across = np.interp(self.heights, TRUNK[:, 0], TRUNK[:, 1] * girth * cloth)
        chest = 1 + 0.14 * person.shape * np.exp(-(((self.heights - 0.2) / 0.04) ** 2))
        self.depth = np.interp(self.heights, TRUNK[:, 0], TRUNK[:, 2] * girth * cloth) * chest

    def centre(self, height: float | np.ndarray) -> np.ndarray:
        return self.foot + np.multiply.outer(np.asarray(height), self.spine / self.length)

    def at(self, height: float, angle: float) -> np.ndarray:
        """Canvas point x, y and facing (> 0 when seen) of the surface, `angle` from the front to the person's left.

        What lies behind the silhouette is drawn on it, so that a shape that wraps around the body ends there.
        """
        turned = (angle + self.view.yaw + np.pi) % (2 * np.pi) - np.pi
        facing, angle = np.cos(turned), np.clip(turned, -np.pi / 2, np.pi / 2) - self.view.yaw
        across, depth = (
            np.interp(height, self.heights, self.across),
            np.interp(height, self.heights, self.depth),
        )
        point = self.centre(height) + np.array([across * np.sin(angle), 0.0, depth * np.cos(angle)])
        x, y, _ = self.view.project(point[None])[0]
        return np.array([x, y, facing])

    def outline(self) -> np.ndarray:
        centres = self.view.project(self.centre(self.heights))[:, :2]
        half = np.array(
            [self.view.half_width(a, d, 0.7) for a, d in zip(self.across, self.depth, strict=True)]
        )
        left, right = centres - np.stack([half, 0 * half], 1), centres + np.stack([half, 0 * half], 1)
        return np.concatenate([left, right[::-1]])


def _axis(view: View, joints: Joints) -> np.ndarray:
    return view.project(np.stack([joints["neck"], joints["pelvis"]]))[:, :2]


def paint_torso(canvas: Canvas, person: Person, view: View, joints: Joints) -> None:
    """Pelvis in the lower garment's colour, then the upper garment with its details."""
    lower = LOWER_COLOURS[person.lower_colour]
    pelvis = Trunk(person, view, joints, 1.06)
    outline = pelvis.outline()
    keep = np.abs(np.arange(len(outline)) - (len(outline) - 1) / 2) > 14
    stencil = canvas.polygon(outline[keep])
    axis = _axis(view, joints)
    canvas.lay(stencil, Cloth(lower, folds=1), axis, TORSO, roundness=0.6)
    low = {"shirt": -0.035, "t-shirt": -0.03, "hoodie": -0.025, "jacket": -0.04, "coat": -0.04}[
        person.upper_kind
    ]
    trunk = Trunk(person, view, joints, BULK[person.upper_kind] * 1.04, low)
    cloth = Cloth(upper_tile(person), folds=person.variety % 3, depth=1.2 * BULK[person.upper_kind])

    def details(albedo: np.ndarray, x: int, y: int) -> None:
        garments.draw_details(albedo, (x, y), person, trunk)

    canvas.lay(canvas.polygon(trunk.outline()), cloth, axis, TORSO, roundness=0.85, details=details)


def paint_skirts(canvas: Canvas, person: Person, view: View, joints: Joints) -> None:
    """Skirts and coat tails: they hang from the hips over the thighs and count as the leg they cover."""
    if person.lower_kind == "skirt":
        reach, flare = 0.13 + 0.16 * person.hem, 0.02 + 0.03 * (person.variety % 10) / 10
        _tail(canvas, person, view, joints, reach, flare, LOWER_COLOURS[person.lower_colour])
    if person.upper_kind == "coat":
        _tail(
            canvas, person, view, joints, 0.12 + 0.1 * person.hem, 0.014, UPPER_COLOURS[person.upper_colour]
        )


def _tail(canvas, person: Person, view: View, joints: Joints, reach: float, flare: float, colour) -> None:
    trunk = Trunk(person, view, joints, BULK[person.upper_kind] * 1.04)
    hips = view.project(joints["pelvis"][None] + (0, 0.02, 0))[0]
    wide = view.half_width(trunk.across[6], trunk.depth[6]) * 1.02
    hem, spread = joints["pelvis"][1] - reach, []
    for side in ("left", "right"):
        hip, knee, ankle = (joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        above = hem > knee[1]
        top, low = (hip, knee) if above else (knee, ankle)
        share = np.clip((top[1] - hem) / max(top[1] - low[1], 1e-3), 0, 1)
        x = view.project((top + share * (low - top))[None])[0, 0]
        spread += [x - 0.052 * person.width * view.scale_x, x + 0.052 * person.width * view.scale_x]
    bottom = view.project(np.array([[0, hem, 0.0]]))[0, 1]
    left, right = min(spread) - flare * view.scale_x, max(spread) + flare * view.scale_x
    middle = (hips[1] + bottom) / 2
    outline = np.array(
        [
            (hips[0] - wide, hips[1]), (min(hips[0] - wide, 0.5 * (hips[0] - wide + left)), middle), (left, bottom),
            (0.5 * (left + right), bottom + 0.012 * view.scale_y), (right, bottom),
            (max(hips[0] + wide, 0.5 * (hips[0] + wide + right)), middle), (hips[0] + wide, hips[1]),
        ]
    )  # fmt: skip
    stencil = canvas.polygon(outline)
    if stencil is not None:
        axis = np.stack([hips[:2], np.array([0.5 * (left + right), bottom])])
        canvas.lay(stencil, Cloth(colour, folds=1, depth=1.6), axis,
                   _leg_labels(stencil, view, joints), roundness=0.8)  # fmt: skip


def _leg_labels(stencil, view: View, joints: Joints) -> np.ndarray:
    """Each pixel's part: torso above the hip joints, else the leg whose thigh is nearer (the near one when both are)."""
    rows, columns = np.mgrid[: stencil.mask.shape[0], : stencil.mask.shape[1]].astype(np.float32)
    distance = {}
    for side in ("left", "right"):
        (x0, y0, n0), (x1, y1, n1) = view.project(np.stack([joints[f"{side}_hip"], joints[f"{side}_knee"]]))
        share = np.clip((rows + stencil.y - y0) / max(y1 - y0, 1.0), 0, 1)
        distance[side] = np.abs(columns + stencil.x - (x0 + share * (x1 - x0))) - 0.5 * view.scale_x * (
            n0 + n1
        )
    label = np.where(distance["left"] < distance["right"], LEG["left"], LEG["right"]).astype(np.uint8)
    hips = view.project(joints["pelvis"][None])[0, 1]
    label[rows + stencil.y < hips] = TORSO
    return label


def _paint_neck(canvas: Canvas, person: Person, view: View, joints: Joints) -> None:
    path = view.project(np.stack([joints["neck"] - (0, 0.01, 0), joints["head"] - (0, 0.035, 0.008)]))[:, :2]
    radius = 0.029 * view.scale_x * person.width**0.5
    cloth = Cloth(darker(SKINS[person.skin], 0.9))
    _lay_limb(canvas, path, np.array([radius * 1.1, radius]), cloth, HEAD)


def paint_body(canvas: Canvas, person: Person, pose: Pose, view: View, joints: Joints) -> None:
    """Everything of one person, far parts first."""
    near = dict(zip(joints, view.project(np.stack(list(joints.values())))[:, 2].tolist(), strict=True))
    legs = sorted(("left", "right"), key=lambda side: near[f"{side}_hip"] + 0.6 * near[f"{side}_knee"])
    arms = {side: 0.4 * near[f"{side}_shoulder"] + 0.6 * near[f"{side}_elbow"] + 0.5 * near[f"{side}_wrist"]
            for side in ("left", "right")}  # fmt: skip
    behind = [side for side in ("left", "right") if arms[side] < -0.03]
    face = view.yaw + pose.head_yaw
    facing = np.cos(face) > -0.15
    bags.paint(canvas, person, view, joints, front=False)
    if facing:
        heads.paint_long_hair(canvas, person, view, joints, face)
    for side in behind:
        paint_arm(canvas, person, view, joints, side)
    for side in legs:
        paint_leg(canvas, person, view, joints, side)
    if person.upper_kind != "coat":
        paint_skirts(canvas, person, view, joints)
    _paint_neck(canvas, person, view, joints)
    paint_torso(canvas, person, view, joints)
    if person.upper_kind == "coat":
        paint_skirts(canvas, person, view, joints)
    heads.paint_head(canvas, person, view, joints, face)
    if not facing:
        heads.paint_long_hair(canvas, person, view, joints, face)
    bags.paint(canvas, person, view, joints, front=True)
    for side in sorted(set(arms) - set(behind), key=arms.get):
        paint_arm(canvas, person, view, joints, side)
