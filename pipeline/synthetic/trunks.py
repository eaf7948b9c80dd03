"""The trunk with its garments, and the skirts and coat tails that hang from it."""

import numpy as np

from pipeline.synthetic import garments
from pipeline.synthetic.canvas import Canvas, Cloth, Stencil
from pipeline.synthetic.limbs import BULK, LEG
from pipeline.synthetic.people import LOWER_COLOURS, UPPER_COLOURS, Person
from pipeline.synthetic.skeleton import Joints, View
from pipeline.synthetic.textures import upper_tile

TORSO = 4
HEM = {"shirt": -0.035, "t-shirt": -0.03, "hoodie": -0.025, "jacket": -0.04, "coat": -0.04}  # above the hips
# (height above the hips, half width, half depth) up the trunk, in body heights
TRUNK = np.array(
    [
        (-0.045, 0.074, 0.062),
        (-0.015, 0.090, 0.072),
        (0.02, 0.096, 0.074),
        (0.09, 0.084, 0.064),
        (0.17, 0.092, 0.070),
        (0.225, 0.104, 0.074),
        (0.262, 0.116, 0.066),
        (0.280, 0.108, 0.058),
        (0.297, 0.078, 0.048),
        (0.310, 0.048, 0.040),
        (0.322, 0.034, 0.036),
    ]
)


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
        """The point of the spine at this height above the hips."""
        return self.foot + np.multiply.outer(np.asarray(height), self.spine / self.length)

    def at(self, height: float, angle: float) -> np.ndarray:
        """Canvas point x, y of the surface, and the cosine of its angle to the camera (> 0 if visible).

        `angle` runs from the front to the person's left.  A point behind the silhouette is moved onto it, so
        that a shape that wraps around the body ends there.
        """
        rotated = (angle + self.view.yaw + np.pi) % (2 * np.pi) - np.pi
        facing, angle = np.cos(rotated), np.clip(rotated, -np.pi / 2, np.pi / 2) - self.view.yaw
        across = np.interp(height, self.heights, self.across)
        depth = np.interp(height, self.heights, self.depth)
        point = self.centre(height) + np.array([across * np.sin(angle), 0.0, depth * np.cos(angle)])
        x, y, _ = self.view.project(point[None])[0]
        return np.array([x, y, facing])

    def outline(self) -> np.ndarray:
        """The silhouette, down one side and up the other."""
        centres = self.view.project(self.centre(self.heights))[:, :2]
        half = np.zeros_like(centres)
        half[:, 0] = self.view.half_width(self.across, self.depth, 0.7)
        return np.concatenate([centres - half, (centres + half)[::-1]])


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
    trunk = Trunk(person, view, joints, BULK[person.upper_kind] * 1.04, HEM[person.upper_kind])
    cloth = Cloth(upper_tile(person), folds=person.variety % 3, depth=1.2 * BULK[person.upper_kind])

    def details(albedo: np.ndarray, x: int, y: int) -> None:
        garments.draw_details(albedo, (x, y), person, trunk)

    canvas.lay(canvas.polygon(trunk.outline()), cloth, axis, TORSO, roundness=0.85, details=details)


def paint_skirts(canvas: Canvas, person: Person, view: View, joints: Joints) -> None:
    """Paint skirts and coat tails, which are labelled as the leg that they cover."""
    if person.lower_kind == "skirt":
        reach, flare = 0.13 + 0.16 * person.hem, 0.02 + 0.03 * (person.variety % 10) / 10
        _tail(canvas, person, view, joints, reach, flare, LOWER_COLOURS[person.lower_colour])
    if person.upper_kind == "coat":
        reach = 0.12 + 0.1 * person.hem
        _tail(canvas, person, view, joints, reach, 0.014, UPPER_COLOURS[person.upper_colour])


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
            (hips[0] - wide, hips[1]),
            (min(hips[0] - wide, 0.5 * (hips[0] - wide + left)), middle),
            (left, bottom),
            (0.5 * (left + right), bottom + 0.012 * view.scale_y),
            (right, bottom),
            (max(hips[0] + wide, 0.5 * (hips[0] + wide + right)), middle),
            (hips[0] + wide, hips[1]),
        ]
    )
    stencil = canvas.polygon(outline)
    if stencil is not None:
        axis = np.stack([hips[:2], np.array([0.5 * (left + right), bottom])])
        labels = _leg_labels(stencil, view, joints)
        canvas.lay(stencil, Cloth(colour, folds=1, depth=1.6), axis, labels, roundness=0.8)


def _leg_labels(stencil: Stencil, view: View, joints: Joints) -> np.ndarray:
    """Each pixel's part: torso above the hip joints, else the leg whose thigh is nearer."""
    rows, columns = np.mgrid[: stencil.mask.shape[0], : stencil.mask.shape[1]].astype(np.float32)
    distance = {}
    for side in ("left", "right"):
        (x0, y0, n0), (x1, y1, n1) = view.project(np.stack([joints[f"{side}_hip"], joints[f"{side}_knee"]]))
        share = np.clip((rows + stencil.y - y0) / max(y1 - y0, 1.0), 0, 1)
        aside = np.abs(columns + stencil.x - (x0 + share * (x1 - x0)))
        distance[side] = aside - 0.5 * view.scale_x * (n0 + n1)
    label = np.where(distance["left"] < distance["right"], LEG["left"], LEG["right"]).astype(np.uint8)
    hips = view.project(joints["pelvis"][None])[0, 1]
    label[rows + stencil.y < hips] = TORSO
    return label
