"""A dressed, posed body painted from the far limbs to the near ones, each pixel labelled with its part."""

import numpy as np

from pipeline.synthetic import bags, heads
from pipeline.synthetic.canvas import Canvas, Cloth
from pipeline.synthetic.limbs import lay_limb, paint_arm, paint_leg
from pipeline.synthetic.people import SKINS, Person
from pipeline.synthetic.skeleton import Joints, Pose, View
from pipeline.synthetic.textures import scaled
from pipeline.synthetic.trunks import paint_skirts, paint_torso


def _paint_neck(canvas: Canvas, person: Person, view: View, joints: Joints) -> None:
    path = view.project(np.stack([joints["neck"] - (0, 0.01, 0), joints["head"] - (0, 0.035, 0.008)]))[:, :2]
    radius = 0.029 * view.scale_x * person.width**0.5
    cloth = Cloth(scaled(SKINS[person.skin], 0.9))
    lay_limb(canvas, path, np.array([radius * 1.1, radius]), cloth, heads.LABEL)


def paint_body(canvas: Canvas, person: Person, pose: Pose, view: View, joints: Joints) -> None:
    """Paint one whole person, far parts first."""
    nearness = dict(zip(joints, view.project(np.stack(list(joints.values())))[:, 2].tolist(), strict=True))
    legs = sorted(
        ("left", "right"), key=lambda side: nearness[f"{side}_hip"] + 0.6 * nearness[f"{side}_knee"]
    )
    arms = {
        side: 0.4 * nearness[f"{side}_shoulder"]
        + 0.6 * nearness[f"{side}_elbow"]
        + 0.5 * nearness[f"{side}_wrist"]
        for side in ("left", "right")
    }
    behind = [side for side in ("left", "right") if arms[side] < -0.03]
    head_yaw = view.yaw + pose.head_yaw
    facing = np.cos(head_yaw) > -0.15
    bags.paint(canvas, person, view, joints, front=False)
    if facing:
        heads.paint_long_hair(canvas, person, view, joints, head_yaw)
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
    heads.paint_head(canvas, person, view, joints, head_yaw)
    if not facing:
        heads.paint_long_hair(canvas, person, view, joints, head_yaw)
    bags.paint(canvas, person, view, joints, front=True)
    for side in sorted(set(arms) - set(behind), key=arms.get):
        paint_arm(canvas, person, view, joints, side)
