"""Bags: one worn on the body is labelled as torso, one held in a hand as a belonging (no body part)."""

import numpy as np

from pipeline.synthetic.canvas import BELONGING, Canvas, Cloth
from pipeline.synthetic.people import BAG_COLOURS, Person
from pipeline.synthetic.skeleton import Joints, View
from pipeline.synthetic.textures import scaled

TORSO = 4


def paint(canvas: Canvas, person: Person, view: View, joints: Joints, front: bool) -> None:
    """Paint the parts of the bag that lie in front of the torso (`front`) or behind it."""
    if person.bag == "backpack":
        _backpack(canvas, person, view, joints, front)
    elif person.bag == "shoulder bag":
        _shoulder_bag(canvas, person, view, joints, front)
    elif person.bag == "handbag":
        _handbag(canvas, person, view, joints, front)


def _cloth(person: Person, share: float = 1.0) -> Cloth:
    return Cloth(scaled(BAG_COLOURS[person.bag_colour], share), folds=2, depth=0.8)


def _box(view: View, centre: np.ndarray, across: float, forward: float, up: float) -> np.ndarray:
    """The rounded silhouette of an upright box."""
    x, y, _ = view.project(centre[None])[0]
    wide, high = view.half_width(across, forward, 0.6), up * view.scale_y
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.array([x, y]) + np.sign(circle) * np.abs(circle) ** 0.45 * np.array([wide, high])


def _backpack(canvas: Canvas, person: Person, view: View, joints: Joints, front: bool) -> None:
    spine = joints["neck"] - joints["pelvis"]
    centre = joints["pelvis"] + 0.62 * spine + np.array([0.0, 0.0, -0.094])
    from_behind = np.cos(view.yaw) < 0.15
    axis = view.project(np.stack([joints["neck"], joints["pelvis"]]))[:, :2]
    if front == from_behind:
        body = _box(view, centre, 0.078, 0.045, 0.105)
        canvas.lay(canvas.polygon(body), _cloth(person), axis, TORSO, roundness=0.9)
        if from_behind:
            pocket = _box(view, centre + np.array([0, -0.045, -0.03]), 0.058, 0.03, 0.042)
            canvas.lay(canvas.polygon(pocket), _cloth(person, 0.85), axis, TORSO, roundness=0.6)
    if front and np.cos(view.yaw) > -0.35:
        for side in (1.0, -1.0):
            facing = np.cos(view.yaw) - 0.55 * side * np.sin(view.yaw)
            if facing > 0.1:
                points = joints["pelvis"] + np.array(
                    [(side * 0.068, 0.292, 0.0), (side * 0.066, 0.22, 0.066), (side * 0.088, 0.13, 0.03)]
                )
                path = view.project(points)[:, :2]
                canvas.lay(
                    canvas.tube(path, np.full(3, 0.0105 * view.scale_x)), _cloth(person, 0.9), axis, TORSO
                )


def _shoulder_bag(canvas: Canvas, person: Person, view: View, joints: Joints, front: bool) -> None:
    side = float(person.bag_side)
    across = 0.105 * person.width
    centre = joints["pelvis"] + np.array([side * across, 0.005, -0.015])
    is_near = -side * np.sin(view.yaw) > -0.3
    axis = view.project(np.stack([joints["neck"], joints["pelvis"]]))[:, :2]
    if front:
        way = 1.0 if np.cos(view.yaw) > 0 else -1.0
        points = joints["pelvis"] + np.array(
            [
                (-side * 0.062, 0.296, 0.0),
                (-side * 0.02, 0.21, way * 0.08),
                (side * across * 0.85, 0.05, way * 0.04),
            ]
        )
        path = view.project(points)[:, :2]
        canvas.lay(canvas.tube(path, np.full(3, 0.0075 * view.scale_x)), _cloth(person, 0.8), axis, TORSO)
    if front == is_near:
        body = _box(view, centre, 0.03, 0.078, 0.06)
        canvas.lay(canvas.polygon(body), _cloth(person), axis, TORSO, roundness=0.8)
        flap = _box(view, centre + np.array([side * 0.004, 0.024, 0]), 0.03, 0.078, 0.036)
        canvas.lay(canvas.polygon(flap), _cloth(person, 0.88), axis, TORSO, roundness=0.5, shadow=0.3)


def _handbag(canvas: Canvas, person: Person, view: View, joints: Joints, front: bool) -> None:
    name = "left" if person.bag_side > 0 else "right"
    hand = joints[f"{name}_hand"]
    is_near = -person.bag_side * np.sin(view.yaw) > -0.25
    if front != is_near:
        return
    axis = view.project(np.stack([hand, hand - (0, 0.1, 0)]))[:, :2]
    ring = view.project(
        hand
        + np.array([(0, -0.075, 0.04), (0, -0.02, 0.02), (0, 0, 0), (0, -0.02, -0.02), (0, -0.075, -0.04)])
    )[:, :2]
    canvas.lay(canvas.tube(ring, np.full(5, 0.006 * view.scale_x)), _cloth(person, 0.8), axis, BELONGING)
    body = _box(view, hand + np.array([0, -0.115, 0]), 0.03, 0.072, 0.055)
    canvas.lay(canvas.polygon(body), _cloth(person), axis, BELONGING, roundness=0.8)
