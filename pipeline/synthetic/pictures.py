"""One picture of a person with its exact truth, composed of scene, people, occluder and camera."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pipeline.synthetic import occluders
from pipeline.synthetic.bodies import paint_body
from pipeline.synthetic.cameras import Camera, sample_camera
from pipeline.synthetic.canvas import BELONGING, SUPER, Canvas
from pipeline.synthetic.overlay import Layer
from pipeline.synthetic.people import Person, sample_person
from pipeline.synthetic.scenes import draw_scene
from pipeline.synthetic.skeleton import KEYPOINTS, View, sample_pose, skeleton

HEIGHT, WIDTH = 256, 128
# share of the target that an occluder hides, unless it hides whole parts
MIN_HIDDEN, MAX_HIDDEN = 0.15, 0.65
MAX_REST = 3  # pixels of a hidden part that may stay visible
HIDDEN_PARTS = (  # parts that an object hides entirely, the kinds of object that do, and the probability
    ((), (), 0.46),
    ((5, 6, 7, 8), ("car", "low wall", "hedge", "boxes"), 0.36),
    ((2, 3, 4, 5, 6, 7, 8), ("low wall", "hedge", "boxes"), 0.06),
    ((1,), ("umbrella",), 0.12),
)
TRAINING_STREAM = 0x7EA  # in the seeds of `training_picture`: its people are in no dataset

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
class Picture:
    """A crop and its truth."""

    jpeg: bytes
    map: UInt8[np.ndarray, "256 128"]  # visible parts, 0 elsewhere
    person: UInt8[np.ndarray, "256 128"]  # 1 where a part is visible
    keypoints: Float[np.ndarray, "17 3"]  # x, y, and 0 outside, 1 hidden or 2 visible
    visible: Int[np.ndarray, "8"]  # pixels of each part
    whole: Int[np.ndarray, "8"]  # the same without the occluder
    occluder: int  # 0 none, 1 object, 2 person
    identity: Person
    # masks and keypoints of the other people
    others: list[tuple[Bool[np.ndarray, "256 128"], Float[np.ndarray, "17 3"]]] = dataclasses.field(
        default_factory=list
    )

    @property
    def image(self) -> UInt8[np.ndarray, "256 128 3"]:
        """The decoded picture, RGB."""
        data = np.frombuffer(self.jpeg, np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


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


def _keypoint_visibility(figure: Figure, hidden: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "17 3"]:
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


def _sample_placement(rng: np.random.Generator, camera: Camera) -> Placement:
    """A placement as in a detector's crop: off-centre, too wide or too tight, some without feet or hair."""
    height = HEIGHT * rng.uniform(0.88, 0.98) / np.cos(camera.pitch) ** 0.5
    ground = HEIGHT * rng.uniform(0.955, 0.99)
    if rng.random() < 0.12:
        height *= rng.uniform(1.05, 1.22)
        ground += rng.uniform(0, 1) * (height - HEIGHT * 0.9)
    yaw = (
        rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.normal(camera.heading, 0.5 * camera.spread)
    )
    return Placement(WIDTH / 2 + rng.normal(0, 5), ground, height, float(yaw))


def _composite(image: Float[np.ndarray, "H W 3"], colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return image * (1 - cover[..., None]) + colour


def _shadow(image: np.ndarray, place: Placement, camera: Camera) -> np.ndarray:
    """A contact shadow under the feet, elongated away from the light."""
    dark = np.zeros((HEIGHT, WIDTH), np.float32)
    size = place.height * 0.13
    centre = (int(place.x - camera.light[0] * size * 0.6), int(place.ground + 1))
    cv2.ellipse(dark, centre, (int(size), int(size * 0.22)), 0, 0, 360, 0.5, cv2.FILLED)
    tip = (int(place.x - camera.light[0] * size * 2.2), int(place.ground - size * 0.2))
    cv2.ellipse(dark, tip, (int(size * 1.9), int(size * 0.2)), 0, 0, 360, 0.22 * camera.sun, cv2.FILLED)
    return image * (1 - cv2.blur(dark, (9, 5)))[..., None]


def _passer_by(rng: np.random.Generator, camera: Camera) -> Figure:
    """Another person, farther away and partly in the frame."""
    height = HEIGHT * rng.uniform(0.5, 0.85)
    ground = HEIGHT * rng.uniform(0.72, 0.92)
    x = WIDTH * (0.5 + rng.choice((-1, 1)) * rng.uniform(0.25, 0.6))
    place = Placement(x, ground, height, float(rng.uniform(-np.pi, np.pi)))
    return paint_figure(rng, sample_person(rng), camera, place)


def _person_in_front(
    rng: np.random.Generator, camera: Camera, target: np.ndarray, share: float
) -> Figure | None:
    """A second pedestrian, nearer to the camera, moved sideways to hide about `share` of the target."""
    height = HEIGHT * rng.uniform(0.85, 1.15)
    ground = HEIGHT * rng.uniform(1.0, 1.25)
    side = int(rng.choice((-1, 1)))
    place = Placement(WIDTH / 2, ground, height, float(rng.uniform(-np.pi, np.pi)))
    figure = paint_figure(rng, sample_person(rng), camera, place)
    steps = range(0, WIDTH, 6)
    shares = [_hidden_share_at(target, figure, side * step) for step in steps]
    candidates = [
        (abs(value - share), step)
        for value, step in zip(shares, steps, strict=True)
        if MIN_HIDDEN <= value <= MAX_HIDDEN
    ]
    return _moved_figure(figure, side * min(candidates)[1]) if candidates else None


def _shifted(values: np.ndarray, step: int) -> np.ndarray:
    moved = np.zeros_like(values)
    if step >= 0:
        moved[:, step:] = values[:, : values.shape[1] - step]
    else:
        moved[:, :step] = values[:, -step:]
    return moved


def _hidden_share_at(target: np.ndarray, figure: Figure, step: int) -> float:
    return occluders.hidden_share(target, _shifted(figure.map > 0, step))


def _moved_figure(figure: Figure, step: int) -> Figure:
    keypoints = figure.keypoints + np.array([step, 0, 0], np.float32)
    colour, cover, labels = (_shifted(values, step) for values in (figure.colour, figure.cover, figure.map))
    return Figure(colour, cover, labels, keypoints, figure.far_side)


@dataclasses.dataclass(frozen=True)
class Foreground:
    """What is in front of the target."""

    kind: int  # 0 nothing, 1 object, 2 person
    colour: np.ndarray
    cover: np.ndarray
    mask: np.ndarray
    figure: Figure | None = None


def _foreground(
    rng: np.random.Generator, camera: Camera, labels: UInt8[np.ndarray, "H W"], occluded: bool
) -> Foreground:
    """A person or an object in front of the target, whose parts are `labels`; nothing if not `occluded`."""
    empty, target = np.zeros((HEIGHT, WIDTH), np.float32), labels > 0
    if not occluded:
        return Foreground(0, empty[..., None].repeat(3, 2), empty, empty > 0)
    share = rng.uniform(MIN_HIDDEN + 0.06, MAX_HIDDEN - 0.04)
    if rng.random() < 0.3:
        figure = _person_in_front(rng, camera, target, share)
        if figure is not None:
            return Foreground(2, figure.colour, figure.cover, figure.map > 0, figure)
    aim = HIDDEN_PARTS[rng.choice(len(HIDDEN_PARTS), p=[probability for *_, probability in HIDDEN_PARTS])]
    return Foreground(
        1, *(_object_over_parts(rng, labels, *aim[:2]) or _object_over_share(rng, target, share))
    )


def _object_over_share(rng: np.random.Generator, target: Bool[np.ndarray, "H W"], share: float) -> Layer:
    """An object that hides a share of the target between `MIN_HIDDEN` and `MAX_HIDDEN`."""
    for kind in (None, None, None, None, "low wall"):
        layer = occluders.draw_object(rng, target, share, kind)
        if MIN_HIDDEN <= occluders.hidden_share(target, layer[2]) <= MAX_HIDDEN:
            break
    return layer


def _object_over_parts(
    rng: np.random.Generator, labels: UInt8[np.ndarray, "H W"], aim: tuple[int, ...], kinds: tuple[str, ...]
) -> Layer | None:
    """An object of one of the kinds that hides all of these parts; `None` if three attempts fail."""
    target, goal = labels > 0, np.isin(labels, aim)
    if not goal.any():
        return None
    rows = np.flatnonzero(goal.any(1))
    within = target[: rows[-1] + 1] if aim == (1,) else target[rows[0] :]
    share = float(within.sum() / target.sum())
    for extra in (0.02, 0.05, 0.08):
        layer = occluders.draw_object(rng, target, min(share + extra, 0.97), str(rng.choice(kinds)))
        if (goal & ~layer[2]).sum() <= MAX_REST:
            return layer
    return None


def _part_pixels(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=9)[1:9].astype(np.int32)


def compose(rng: np.random.Generator, person: Person, camera: Camera, occluded: bool) -> Picture:
    """A picture of the person by the camera; everything else is random."""
    image = draw_scene(rng, camera, HEIGHT, WIDTH).astype(np.float32)
    behind = []
    for _ in range(int(rng.choice((0, 1, 2), p=(0.66, 0.27, 0.07)))):
        figure = _passer_by(rng, camera)
        behind.append(figure)
        image = _composite(image, figure.colour, figure.cover)
    place = _sample_placement(rng, camera)
    target = paint_figure(rng, person, camera, place)
    image = _composite(_shadow(image, place, camera), target.colour, target.cover)
    body = (target.map > 0) & (target.map != BELONGING)
    whole = np.where(body, target.map, 0).astype(np.uint8)
    front = _foreground(rng, camera, whole, occluded)
    image = np.clip(_composite(image, front.colour, front.cover), 0, 255).astype(np.uint8)
    visible = np.where(front.mask, 0, whole).astype(np.uint8)
    covering = (target.map > 0) | front.mask
    others = (
        [(front.figure.map > 0, _keypoint_visibility(front.figure, np.zeros_like(body)))]
        if front.figure
        else []
    )
    for figure in reversed(behind):
        others.append((_body(figure) & ~covering, _keypoint_visibility(figure, covering)))
        covering = covering | (figure.map > 0)
    return Picture(
        jpeg=_encode(camera.develop(image, rng), camera.quality),
        map=visible,
        person=(visible > 0).astype(np.uint8),
        keypoints=_keypoint_visibility(target, front.mask),
        visible=_part_pixels(visible),
        whole=_part_pixels(whole),
        occluder=front.kind,
        identity=person,
        others=others,
    )


def _body(figure: Figure) -> Bool[np.ndarray, "H W"]:
    return (figure.map > 0) & (figure.map != BELONGING)


def _encode(image: np.ndarray, quality: int) -> bytes:
    encoded, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert encoded
    return data.tobytes()


def training_picture(seed: int, i: int, identity: int | None = None) -> Picture:
    """Picture `i` of an endless, reproducible stream of people who are in no dataset.

    It shows person number `identity` of the stream, by default a new one in every picture.  Cameras vary more
    widely than a dataset's.  About half of the targets are occluded.
    """
    person_rng = np.random.default_rng([seed, TRAINING_STREAM, 0, i if identity is None else identity])
    rng = np.random.default_rng([seed, TRAINING_STREAM, 1, i])
    return compose(rng, sample_person(person_rng), sample_camera(rng), bool(rng.random() < 0.5))
