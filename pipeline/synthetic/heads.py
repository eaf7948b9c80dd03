"""A head: a tapered ellipsoid; surface coordinates decide which pixel is skin, hair, eyes or cap.

Surface coordinates lie on the unit sphere of the head: u to the person's left, v up, w forward.
"""

import cv2
import numpy as np

from pipeline.synthetic.canvas import Canvas, Cloth
from pipeline.synthetic.people import HAIR_COLOURS, SECOND_COLOURS, SKINS, Person
from pipeline.synthetic.skeleton import HEAD, Joints, View
from pipeline.synthetic.textures import scaled

LABEL = 1


def _hair(person: Person, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Where hair (or a cap) covers the head."""
    if person.hair_style == "bald":
        return np.zeros(u.shape, bool)
    if person.hair_style == "cap":
        return v > 0.34 - 0.1 * w
    line = 0.52 + 0.08 * np.cos(5 * u + person.variety % 7)
    crown = (v > line) | ((w < 0.28) & (v > 0.05 + 0.5 * w))
    low = {"short": -0.42, "ponytail": -0.3, "bob": -1.0, "long": -1.2}[person.hair_style]
    reach = {"short": -0.1, "ponytail": -0.02, "bob": 0.32, "long": 0.3}[person.hair_style]
    return crown | ((w < reach) & (v > low))


def _surface(
    person: Person, view: View, yaw: float, centre: np.ndarray, swell: float, x: np.ndarray, y: np.ndarray
):
    """Sphere coordinates of the nearest surface point at every pixel, and which pixels meet the head."""
    across, up, forward = HEAD * person.head * swell
    half = np.hypot(across * np.cos(yaw), forward * np.sin(yaw)) * view.scale_x * (1 + 0.5 * view.loom)
    v = (centre[1] - y) / (up * view.scale_y)
    jaw = 1 - 0.26 * np.clip(-v, 0, 1) ** 1.5
    side = (x - centre[0] + np.sin(yaw) * half * 0.16 * np.clip(-v - 1, -1, 0)) / (half * jaw)
    rest = 1 - v**2 - side**2
    near = np.sqrt(np.clip(rest, 0, 1))
    u = side * np.cos(yaw) - near * np.sin(yaw)
    w = side * np.sin(yaw) + near * np.cos(yaw)
    return u, v + 0.25 * near * np.sin(view.pitch), w, rest > 0


def _features(colour: np.ndarray, person: Person, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> None:
    """Eyes, brows, nose, mouth and perhaps a beard, drawn on the skin."""
    skin, hair = np.array(SKINS[person.skin]), np.array(HAIR_COLOURS[person.hair_colour])
    front = w > 0.1
    if person.variety % 5 == 0 and person.shape < 0.45:
        colour[front & (v < -0.38) & (np.abs(u) < 0.8)] = 0.6 * hair + 0.3 * skin
    socket = front & (np.abs(v - 0.1) < 0.1) & (np.abs(np.abs(u) - 0.4) < 0.22)
    colour[socket] = 0.88 * skin
    colour[front & (np.abs(v - 0.08) < 0.05) & (np.abs(np.abs(u) - 0.4) < 0.12)] = (52, 42, 40)
    colour[front & (np.abs(v - 0.27) < 0.03) & (np.abs(np.abs(u) - 0.4) < 0.19)] = 0.5 * hair + 0.4 * skin
    colour[front & (np.abs(u) < 0.16) & (np.abs(v + 0.27) < 0.05)] = 0.72 * skin
    lips = 0.72 * skin + np.array((34, 0, 4))
    colour[front & (np.abs(u) < 0.27) & (np.abs(v + 0.56) < 0.07)] = lips
    if person.variety % 6 == 1:
        rim = np.abs(np.hypot((np.abs(u) - 0.4) / 0.28, (v - 0.08) / 0.2) - 1) < 0.2
        colour[front & (rim | ((np.abs(v - 0.1) < 0.04) & (np.abs(u) < 0.15)))] = (30, 30, 34)


def _paint(canvas: Canvas, colour: np.ndarray, light: np.ndarray, inside: np.ndarray, x: int, y: int) -> None:
    area = (slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1]))
    np.copyto(canvas.albedo[area], np.clip(colour, 0, 255).astype(np.uint8), where=inside[..., None])
    np.copyto(canvas.light[area], light.astype(np.float32), where=inside)
    canvas.label[area][inside] = LABEL


def _small_parts(canvas: Canvas, person: Person, view: View, joints: Joints, yaw: float) -> None:
    """Ears and, in profile, the nose: they stick out of the ellipsoid."""
    skin = Cloth(SKINS[person.skin])
    size = view.scale_y * 0.0115 * person.head
    for name in ("left_ear", "right_ear"):
        point = view.project(joints[name][None])[0]
        hidden = person.hair_style in ("bob", "long")
        if not hidden and point[2] > view.project(joints["head"][None])[0, 2] - 0.045:
            tube = point[:2] + np.array([(0.0, -size), (0.0, size)])
            canvas.lay(canvas.tube(tube, [size, size * 0.7]), skin, tube, LABEL, shadow=0.25)
    if abs(np.sin(yaw)) > 0.55 and np.cos(yaw) > -0.4:
        nose, centre = view.project(np.stack([joints["nose"], joints["head"]]))
        out = nose[0] - centre[0]
        ridge = nose[:2] + np.array([(-0.12 * out, -1.6 * size), (0.05 * out, 0.3 * size)])
        canvas.lay(canvas.tube(ridge, [size * 0.5, size * 0.8]), skin, ridge, LABEL, shadow=0.0)


def paint_head(canvas: Canvas, person: Person, view: View, joints: Joints, yaw: float) -> None:
    """The head over whatever lies below it; `yaw` is the face's."""
    centre = view.project(joints["head"][None])[0]
    reach = 1.25 * HEAD[1] * view.scale_y * person.head
    window = canvas.window(centre[:2] - reach, centre[:2] + reach)
    if window is None:
        return
    _small_parts(canvas, person, view, joints, yaw)
    x, y = np.meshgrid(
        np.arange(window[0], window[2], dtype=np.float32), np.arange(window[1], window[3], dtype=np.float32)
    )
    u, v, w, inside = _surface(person, view, yaw, centre, 1.0, x, y)
    skin = np.array(SKINS[person.skin], np.float32)
    colour = np.broadcast_to(skin, (*u.shape, 3)).copy()
    _features(colour, person, u, v, w)
    light = _light(canvas, yaw, u, v, w)
    _paint(canvas, colour, light, inside, window[0], window[1])
    u, v, w, inside = _surface(person, view, yaw, centre, 1.1 if person.hair_style != "short" else 1.07, x, y)
    _paint_hair(canvas, person, (u, v, w), _light(canvas, yaw, u, v, w), inside, window)
    if person.hair_style == "cap" and np.cos(yaw) > -0.3:
        _peak(canvas, person, view, joints, yaw)


def _light(canvas: Canvas, yaw: float, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    side, near = u * np.cos(yaw) + w * np.sin(yaw), w * np.cos(yaw) - u * np.sin(yaw)
    return 0.74 + 0.2 * (canvas.direction[0] * side - canvas.direction[1] * v) + 0.2 * near


def _paint_hair(canvas: Canvas, person: Person, surface, light, inside, window) -> None:
    u, v, w = surface
    base = np.array(
        SECOND_COLOURS[person.second_colour]
        if person.hair_style == "cap"
        else HAIR_COLOURS[person.hair_colour],
        np.float32,
    )
    strands = 1 + (0.0 if person.hair_style == "cap" else 0.08) * np.sin(23 * u + 9 * w + 4 * np.sin(3 * v))
    colour = base * strands[..., None]
    _paint(canvas, colour, light, inside & _hair(person, u, v, w), window[0], window[1])


def _peak(canvas: Canvas, person: Person, view: View, joints: Joints, yaw: float) -> None:
    colour = scaled(SECOND_COLOURS[person.second_colour], 0.85)
    across, up, forward = HEAD * person.head
    turn = yaw - view.yaw
    points = []
    for u, w in ((0.85, 0.6), (0.55, 1.45), (0.0, 1.65), (-0.55, 1.45), (-0.85, 0.6)):
        x, z = u * across, w * forward
        offset = (
            x * np.cos(turn) + z * np.sin(turn),
            up * (0.42 - 0.05 * w),
            z * np.cos(turn) - x * np.sin(turn),
        )
        points.append(joints["head"] + np.array(offset))
    outline = view.project(np.stack(points))[:, :2]
    thick = np.concatenate([outline, outline[::-1] + np.array([0.0, view.scale_y * 0.012])])
    brim = cv2.convexHull(thick.astype(np.float32))[:, 0]
    canvas.lay(canvas.polygon(brim), Cloth(colour), outline[[0, -1]], LABEL, shadow=0.3)


def paint_long_hair(canvas: Canvas, person: Person, view: View, joints: Joints, yaw: float) -> None:
    """What hangs below the skull: long hair on the back, a bob's ends, a ponytail."""
    length = {"long": 0.155, "bob": 0.04, "ponytail": 0.12}.get(person.hair_style)
    if length is None:
        return
    back = np.array([-np.sin(yaw - view.yaw), 0.0, -np.cos(yaw - view.yaw)])
    top = joints["head"] + back * 0.032 * person.head
    if person.hair_style == "ponytail":
        path = np.stack(
            [top + back * 0.03 + (0, 0.02, 0), top + back * 0.052, top + back * 0.04 - (0, length, 0)]
        )
        radii = np.array([0.013, 0.02, 0.008]) * view.scale_x
    else:
        path = np.stack([top, top - (0, 0.05, 0), top + back * 0.015 - (0, 0.05 + length, 0)])
        wide = view.half_width(0.05, 0.03)
        radii = np.array([wide, wide * 1.04, wide * (0.86 if length > 0.1 else 0.95)])
    outline = view.project(path)[:, :2]
    cloth = Cloth(HAIR_COLOURS[person.hair_colour], folds=0, depth=1.6)
    canvas.lay(
        canvas.tube(outline, radii, cut=person.hair_style != "ponytail"),
        cloth,
        outline[[0, -1]],
        LABEL,
        roundness=0.9,
    )
