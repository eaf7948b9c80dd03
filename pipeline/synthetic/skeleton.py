"""A walking skeleton in three dimensions, and its projection by a camera.

Body frame, in units of the person's height: x to the person's left, y up, z forward, origin on the ground.
Left is the person's left: in a picture taken from the front it lies on the right.
"""

import dataclasses
from math import cos, sin

import numpy as np
from jaxtyping import Float

from pipeline.synthetic.people import Person

KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
"""COCO's 17 keypoints in COCO's order."""

THIGH, SHIN, ANKLE = 0.245, 0.240, 0.045
UPPER_ARM, FOREARM, HAND = 0.172, 0.145, 0.078
SPINE = 0.30  # hips to the base of the neck
HEAD = np.array([0.046, 0.066, 0.056])  # half axes: across, up, forward
SIDES = (("left", 1.0), ("right", -1.0))

Widths = float | Float[np.ndarray, "N"]
Joints = dict[str, Float[np.ndarray, "3"]]


@dataclasses.dataclass(frozen=True)
class Pose:
    """Pose of a person in one picture; angles in radians."""

    yaw: float  # 0 faces the camera, pi/2 walks to the right of the picture, pi shows the back
    phase: float  # of the gait cycle
    stride: float  # largest angle of a thigh
    head_yaw: float  # relative to the body
    lean: float
    abduction: tuple[float, float]  # of the left and right arm
    swing: tuple[float, float]  # of the left and right upper arm, on top of the gait's
    elbow: tuple[float, float]  # bend of the left and right elbow


def sample_pose(rng: np.random.Generator, person: Person, yaw: float | None = None) -> Pose:
    """A random pose: mostly walking; some stand, hold a telephone, or have a hand in a pocket."""
    stride = rng.uniform(0.22, 0.5) if rng.random() < 0.75 else rng.uniform(0.0, 0.12)
    swing, elbow, abduction = np.zeros(2), rng.uniform(0.1, 0.55, 2), rng.uniform(0.07, 0.2, 2)
    habit, arm = rng.random(), int(rng.integers(2))
    if habit < 0.12:
        swing[arm], elbow[arm], abduction[arm] = rng.uniform(0.2, 0.6), rng.uniform(1.5, 2.1), 0.1
    elif habit < 0.26:
        swing[arm], elbow[arm], abduction[arm] = -0.35, 0.75, 0.2
    if person.bag == "handbag":
        arm = 0 if person.bag_side > 0 else 1
        swing[arm], elbow[arm], abduction[arm] = 0.0, 0.08, 0.16
    return Pose(
        yaw=float(rng.uniform(-np.pi, np.pi) if yaw is None else yaw),
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(stride),
        head_yaw=float(np.clip(rng.normal(0, 0.25), -0.8, 0.8)),
        lean=float(rng.normal(0.03, 0.025)),
        abduction=(float(abduction[0]), float(abduction[1])),
        swing=(float(swing[0]), float(swing[1])),
        elbow=(float(elbow[0]), float(elbow[1])),
    )


def _leg(joints: Joints, name: str, side: float, person: Person, pose: Pose) -> None:
    phase = pose.phase if side > 0 else pose.phase + np.pi
    flex = pose.stride * np.cos(phase)
    knee = 0.06 + 2.0 * pose.stride * max(0.0, -np.sin(phase - 0.5)) ** 1.4
    pitch = (flex - knee) * 0.75 + 0.12 * pose.stride
    hip = np.array([side * 0.052 * person.width, 0.0, 0.0])
    joints[f"{name}_hip"] = hip
    thigh, shin = THIGH * person.legs, SHIN * person.legs
    joints[f"{name}_knee"] = hip + thigh * np.array([0.0, -np.cos(flex), np.sin(flex)])
    ankle = joints[f"{name}_knee"] + shin * np.array([0.0, -np.cos(flex - knee), np.sin(flex - knee)])
    joints[f"{name}_ankle"] = ankle
    forward = np.array([0.16 * side, np.sin(pitch), np.cos(pitch)])
    down = np.array([0.0, -np.cos(pitch), np.sin(pitch)])
    joints[f"{name}_heel"] = ankle - 0.022 * forward + 0.026 * down
    joints[f"{name}_ball"] = ankle + 0.062 * forward + 0.031 * down
    joints[f"{name}_toe"] = ankle + 0.094 * forward + 0.036 * down


def _arm(joints: Joints, name: str, side: float, person: Person, pose: Pose, shoulders: np.ndarray) -> None:
    arm = 0 if side > 0 else 1
    phase = pose.phase if side > 0 else pose.phase + np.pi
    flex = pose.swing[arm] - 0.85 * pose.stride * np.cos(phase)
    bend = flex + pose.elbow[arm] + 0.3 * max(0.0, flex)
    out = pose.abduction[arm] + 0.12 * (person.width - 1)
    across = 0.094 * person.width**0.6 * (1 - 0.12 * person.shape)
    twist = 0.25 * pose.stride * np.cos(pose.phase)
    joints[f"{name}_shoulder"] = shoulders + across * np.array([side, 0.0, -side * np.sin(twist)])
    direction = np.array([side * np.sin(out), -np.cos(flex) * np.cos(out), np.sin(flex)])
    joints[f"{name}_elbow"] = joints[f"{name}_shoulder"] + UPPER_ARM * direction
    direction = np.array([side * 0.4 * np.sin(out) - side * 0.2 * np.sin(bend), -np.cos(bend), np.sin(bend)])
    direction /= np.linalg.norm(direction)
    joints[f"{name}_wrist"] = joints[f"{name}_elbow"] + FOREARM * direction
    joints[f"{name}_hand"] = joints[f"{name}_wrist"] + HAND * direction


def _head(joints: Joints, person: Person, pose: Pose) -> None:
    across, up, forward = HEAD * person.head
    turn = pose.head_yaw
    centre = joints["neck"] + np.array([0.0, 0.098, 0.012])
    joints["head"] = centre

    def on_head(x: float, y: float, z: float) -> np.ndarray:
        local = np.array([x * across, y * up, z * forward])
        return centre + np.array(
            [
                local[0] * np.cos(turn) + local[2] * np.sin(turn),
                local[1],
                local[2] * np.cos(turn) - local[0] * np.sin(turn),
            ]
        )

    joints["nose"] = on_head(0.0, -0.18, 1.05)
    for name, side in SIDES:
        joints[f"{name}_eye"] = on_head(0.42 * side, 0.08, 0.86)
        joints[f"{name}_ear"] = on_head(1.0 * side, -0.02, -0.05)


def skeleton(person: Person, pose: Pose) -> Joints:
    """All joints of a posed person, standing on y = 0."""
    joints: Joints = {}
    for name, side in SIDES:
        _leg(joints, name, side, person, pose)
    tilt = np.array([0.0, np.cos(pose.lean), np.sin(pose.lean)])
    joints["pelvis"] = np.zeros(3)
    joints["neck"] = SPINE * tilt
    for name, side in SIDES:
        _arm(joints, name, side, person, pose, (SPINE - 0.045) * tilt)
    _head(joints, person, pose)
    ground = min(point[1] for point in joints.values()) - 0.012
    return {name: point - np.array([0.0, ground, 0.0]) for name, point in joints.items()}


@dataclasses.dataclass(frozen=True)
class View:
    """Projection of one person by a camera, in pixels of the canvas."""

    yaw: float
    pitch: float  # the camera looks down by this angle
    x: float  # the person's middle
    y: float  # the ground below the person
    scale_x: float  # pixels per body height, across
    scale_y: float  # and up
    loom: float = 0.0  # how much nearer, hence larger, the head is than the feet

    def project(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Picture coordinates x, y in pixels, and nearness (greater is nearer to the camera)."""
        x, y, z = points.T
        projected = np.empty((len(points), 3))
        near = z * cos(self.yaw) - x * sin(self.yaw)
        across = x * cos(self.yaw) + z * sin(self.yaw)
        projected[:, 0] = self.x + self.scale_x * across * (1 + self.loom * (y - 0.5))
        projected[:, 1] = self.y - self.scale_y * (y * cos(self.pitch) - near * sin(self.pitch))
        projected[:, 2] = near
        return projected

    def half_width(self, across: Widths, forward: Widths, up: float = 0.5) -> Widths:
        """Half the silhouette's width in pixels of upright elliptic cylinders of these half axes."""
        grow = 1 + self.loom * (up - 0.5)
        return self.scale_x * grow * np.hypot(across * cos(self.yaw), forward * sin(self.yaw))
