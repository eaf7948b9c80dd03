"""A person painted on an empty canvas, with the part of every pixel and the keypoints."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline.synthetic.bodies import paint_body
from pipeline.synthetic.cameras import Camera
from pipeline.synthetic.canvas import BELONGING, SUPER, Canvas
from pipeline.synthetic.people import Person
from pipeline.synthetic.skeleton import KEYPOINTS, View, sample_pose, skeleton

HEIGHT, WIDTH = 256, 128

_PARTS = {
    "shoulder": ((2, 4, 1), (3, 4, 1)),
    "elbow": ((2,), (3,)),
    "wrist": ((2,), (3,)),
    "hip": ((4, 5), (4, 6)),
    "knee": ((5,), (6,)),
    "ankle": ((5, 7), (6, 8)),
}
KEYPOINT_PARTS = tuple(
    frozenset(_PARTS.get(name.partition("_")[2], ((1,), (1,)))[name.startswith("right")])
    for name in KEYPOINTS
)
"""Parts on which each keypoint counts as visible; any other label at its place hides it."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A painted person: premultiplied colour, coverage, part map, and keypoints before occlusion."""

    colour: Float[np.ndarray, "H W 3"]
    cover: Float[np.ndarray, "H W"]
    map: UInt8[np.ndarray, "H W"]  # 1..8, and BELONGING
    keypoints: Float[np.ndarray, "17 3"]
    far_side: Bool[np.ndarray, "17"]  # facial points on the far side of the head


@dataclasses.dataclass(frozen=True)
class Placement:
    """Position of a person in the crop, in pixels."""

    x: float
    ground: float  # row of the ground below the feet
    height: float
    yaw: float  # radians


def paint_figure(rng: np.random.Generator, person: Person, camera: Camera, place: Placement) -> Figure:
    """The person in a random pose, on an empty canvas."""
    pose = sample_pose(rng, person, place.yaw)
    joints = skeleton(person, pose)
    view = View(
        place.yaw,
        camera.pitch,
        place.x * SUPER,
        place.ground * SUPER,
        place.height * SUPER * camera.aspect,
        place.height * SUPER,
        camera.loom,
    )
    canvas = Canvas(HEIGHT * SUPER, WIDTH * SUPER, camera.light)
    canvas.unit = view.scale_y
    paint_body(canvas, person, pose, view, joints)
    colour = canvas.colour()
    cover = (canvas.label > 0).astype(np.float32)
    size = (WIDTH, HEIGHT)
    points = view.project(np.stack([joints[name] for name in KEYPOINTS]))
    far_side = points[:, 2] < view.project(joints["head"][None])[0, 2] - 0.012
    far_side[5:] = False
    keypoints = np.concatenate([points[:, :2] / SUPER, np.full((17, 1), 2.0)], 1).astype(np.float32)
    return Figure(
        cv2.resize(colour, size, interpolation=cv2.INTER_AREA).astype(np.float32),
        cv2.resize(cover, size, interpolation=cv2.INTER_AREA),
        canvas.label[::SUPER, ::SUPER].copy(),
        keypoints,
        far_side,
    )


def keypoint_visibility(figure: Figure, hidden: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "17 3"]:
    """Keypoints x, y, v; v is 0 outside the picture, 1 hidden, 2 visible."""
    labels = np.where(hidden, 0, figure.map)
    keypoints = figure.keypoints.copy()
    for number, (x, y, _) in enumerate(figure.keypoints):
        column, row = round(float(x)), round(float(y))
        if not (0 <= column < WIDTH and 0 <= row < HEIGHT):
            keypoints[number] = 0
            continue
        near = labels[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        visible = not figure.far_side[number] and not KEYPOINT_PARTS[number].isdisjoint(near.ravel().tolist())
        keypoints[number, 2] = 2 if visible else 1
    return keypoints


def body_pixels(figure: Figure) -> Bool[np.ndarray, "H W"]:
    """Pixels of the figure's parts, without belongings."""
    return (figure.map > 0) & (figure.map != BELONGING)
