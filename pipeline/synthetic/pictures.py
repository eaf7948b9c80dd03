"""One picture of one person with its exact truth: scene, people, occluder and camera put together."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pipeline.synthetic import occluders
from pipeline.synthetic.bodies import paint_body
from pipeline.synthetic.cameras import Camera, draw_camera
from pipeline.synthetic.canvas import BELONGING, SUPER, Canvas
from pipeline.synthetic.people import Person, draw_person
from pipeline.synthetic.scenes import draw_scene
from pipeline.synthetic.sheets import Layer
from pipeline.synthetic.skeleton import KEYPOINTS, View, draw_pose, skeleton

HEIGHT, WIDTH = 256, 128
PARTS = ("head", "left_arm", "right_arm", "torso", "left_leg", "right_leg", "left_foot", "right_foot")
LEAST, MOST = 0.15, 0.65  # share of the target that an occluder hides, unless it aims at whole parts
FEW = 3  # pixels of a part that count as none
AIMS = (  # parts that an object hides entirely, what does so, and how often
    ((), (), 0.46),
    ((5, 6, 7, 8), ("car", "low wall", "hedge", "boxes"), 0.36),
    ((2, 3, 4, 5, 6, 7, 8), ("low wall", "hedge", "boxes"), 0.06),
    ((1,), ("umbrella",), 0.12),
)
TRAINING = 0x7EA  # sets the people of `training_picture` apart from every dataset's

_PARTS = {
    "shoulder": ((2, 4, 1), (3, 4, 1)),
    "elbow": ((2,), (3,)),
    "wrist": ((2,), (3,)),
    "hip": ((4, 5), (4, 6)),
    "knee": ((5,), (6,)),
    "ankle": ((5, 7), (6, 8)),
}
ACCEPTED = tuple(
    frozenset(_PARTS.get(name.partition("_")[2], ((1,), (1,)))[name.startswith("right")])
    for name in KEYPOINTS
)
"""Parts on which each keypoint may be seen; anything else at its place hides it."""


@dataclass(frozen=True)
class Figure:
    """A painted person: premultiplied colour, coverage, part map, and keypoints before occlusion."""

    colour: Float[np.ndarray, "H W 3"]
    cover: Float[np.ndarray, "H W"]
    map: UInt8[np.ndarray, "H W"]  # 1..8, and BELONGING
    keypoints: Float[np.ndarray, "17 3"]
    turned: Bool[np.ndarray, "17"]  # facial points on the far side of the head


@dataclass(frozen=True)
class Picture:
    """A crop and everything that is true about it."""

    jpeg: bytes
    map: UInt8[np.ndarray, "256 128"]
    person: UInt8[np.ndarray, "256 128"]
    keypoints: Float[np.ndarray, "17 3"]
    visible: Int[np.ndarray, "8"]
    whole: Int[np.ndarray, "8"]
    occluder: int  # 0 none, 1 object, 2 person
    identity: Person
    others: list[tuple[Bool[np.ndarray, "256 128"], Float[np.ndarray, "17 3"]]] = field(default_factory=list)

    @property
    def image(self) -> UInt8[np.ndarray, "256 128 3"]:
        """The decoded picture, RGB."""
        data = np.frombuffer(self.jpeg, np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class Placement:
    """Where a person stands in the crop, in pixels."""

    x: float
    ground: float
    tall: float
    yaw: float


def paint_figure(rng: np.random.Generator, person: Person, camera: Camera, place: Placement) -> Figure:
    """The person in a drawn pose, on an empty layer."""
    pose = draw_pose(rng, person, place.yaw)
    joints = skeleton(person, pose)
    view = View(
        place.yaw,
        camera.pitch,
        place.x * SUPER,
        place.ground * SUPER,
        place.tall * SUPER * camera.aspect,
        place.tall * SUPER,
        camera.loom,
    )
    canvas = Canvas(HEIGHT * SUPER, WIDTH * SUPER, camera.light)
    canvas.unit = view.scale_y
    paint_body(canvas, person, pose, view, joints)
    colour = canvas.colour()
    cover = (canvas.label > 0).astype(np.float32)
    size = (WIDTH, HEIGHT)
    points = view.project(np.stack([joints[name] for name in KEYPOINTS]))
    turned = points[:, 2] < view.project(joints["head"][None])[0, 2] - 0.012
    turned[5:] = False
    keypoints = np.concatenate([points[:, :2] / SUPER, np.full((17, 1), 2.0)], 1).astype(np.float32)
    return Figure(
        cv2.resize(colour, size, interpolation=cv2.INTER_AREA).astype(np.float32),
        cv2.resize(cover, size, interpolation=cv2.INTER_AREA),
        canvas.label[::SUPER, ::SUPER].copy(),
        keypoints,
        turned,
    )


def _see(figure: Figure, hidden: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "17 3"]:
    """Keypoints with v: 0 out of the picture, 1 hidden by anything, 2 visible."""
    seen = np.where(hidden, 0, figure.map)
    keypoints = figure.keypoints.copy()
    for number, (x, y, _) in enumerate(figure.keypoints):
        column, row = round(float(x)), round(float(y))
        if not (0 <= column < WIDTH and 0 <= row < HEIGHT):
            keypoints[number] = 0
            continue
        near = seen[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        found = not figure.turned[number] and not ACCEPTED[number].isdisjoint(near.ravel().tolist())
        keypoints[number, 2] = 2 if found else 1
    return keypoints


def _place(rng: np.random.Generator, camera: Camera) -> Placement:
    """An imperfect detector's crop: off-centre, too wide or too tight, sometimes without feet or hair."""
    tall = HEIGHT * rng.uniform(0.88, 0.98) / np.cos(camera.pitch) ** 0.5
    ground = HEIGHT * rng.uniform(0.955, 0.99)
    if rng.random() < 0.12:
        tall *= rng.uniform(1.05, 1.22)
        ground += rng.uniform(0, 1) * (tall - HEIGHT * 0.9)
    yaw = (
        rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.normal(camera.heading, 0.5 * camera.spread)
    )
    return Placement(WIDTH / 2 + rng.normal(0, 5), ground, tall, float(yaw))


def _over(image: Float[np.ndarray, "H W 3"], colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return image * (1 - cover[..., None]) + colour


def _shadow(image: np.ndarray, place: Placement, camera: Camera) -> np.ndarray:
    """A contact shadow under the feet, drawn out away from the light."""
    dark = np.zeros((HEIGHT, WIDTH), np.float32)
    size = place.tall * 0.13
    centre = (int(place.x - camera.light[0] * size * 0.6), int(place.ground + 1))
    cv2.ellipse(dark, centre, (int(size), int(size * 0.22)), 0, 0, 360, 0.5, cv2.FILLED)
    long_ = (int(place.x - camera.light[0] * size * 2.2), int(place.ground - size * 0.2))
    cv2.ellipse(dark, long_, (int(size * 1.9), int(size * 0.2)), 0, 0, 360, 0.22 * camera.sun, cv2.FILLED)
    return image * (1 - cv2.blur(dark, (9, 5)))[..., None]


def _passer_by(rng: np.random.Generator, camera: Camera) -> Figure:
    """Somebody farther away, partly in the frame."""
    tall = HEIGHT * rng.uniform(0.5, 0.85)
    ground = HEIGHT * rng.uniform(0.72, 0.92)
    x = WIDTH * (0.5 + rng.choice((-1, 1)) * rng.uniform(0.25, 0.6))
    place = Placement(x, ground, tall, float(rng.uniform(-np.pi, np.pi)))
    return paint_figure(rng, draw_person(rng), camera, place)


def _person_in_front(
    rng: np.random.Generator, camera: Camera, target: np.ndarray, share: float
) -> Figure | None:
    """A second pedestrian nearer to the camera, moved sideways until it hides about the wanted share."""
    tall = HEIGHT * rng.uniform(0.85, 1.15)
    ground = HEIGHT * rng.uniform(1.0, 1.25)
    side = int(rng.choice((-1, 1)))
    place = Placement(WIDTH / 2, ground, tall, float(rng.uniform(-np.pi, np.pi)))
    figure = paint_figure(rng, draw_person(rng), camera, place)
    steps = range(0, WIDTH, 6)
    shares = [_hides(target, figure, side * step) for step in steps]
    usable = [
        (abs(value - share), step)
        for value, step in zip(shares, steps, strict=True)
        if LEAST <= value <= MOST
    ]
    return _moved(figure, side * min(usable)[1]) if usable else None


def _shifted(values: np.ndarray, step: int) -> np.ndarray:
    moved = np.zeros_like(values)
    if step >= 0:
        moved[:, step:] = values[:, : values.shape[1] - step]
    else:
        moved[:, :step] = values[:, -step:]
    return moved


def _hides(target: np.ndarray, figure: Figure, step: int) -> float:
    return occluders.hidden_share(target, _shifted(figure.map > 0, step))


def _moved(figure: Figure, step: int) -> Figure:
    keypoints = figure.keypoints + np.array([step, 0, 0], np.float32)
    layers = (_shifted(values, step) for values in (figure.colour, figure.cover, figure.map))
    return Figure(*layers, keypoints, figure.turned)


@dataclass(frozen=True)
class Front:
    """What stands before the target."""

    kind: int  # 0 nothing, 1 object, 2 person
    colour: np.ndarray
    cover: np.ndarray
    mask: np.ndarray
    figure: Figure | None = None


def _front(
    rng: np.random.Generator, camera: Camera, labels: UInt8[np.ndarray, "H W"], occluded: bool
) -> Front:
    """A person or an object before the target whose parts are given, or nothing."""
    empty, target = np.zeros((HEIGHT, WIDTH), np.float32), labels > 0
    if not occluded:
        return Front(0, empty[..., None].repeat(3, 2), empty, empty > 0)
    share = rng.uniform(LEAST + 0.06, MOST - 0.04)
    if rng.random() < 0.3:
        figure = _person_in_front(rng, camera, target, share)
        if figure is not None:
            return Front(2, figure.colour, figure.cover, figure.map > 0, figure)
    aim = AIMS[rng.choice(len(AIMS), p=[chance for *_, chance in AIMS])]
    return Front(1, *(_aimed(rng, labels, *aim[:2]) or _shared(rng, target, share)))


def _shared(rng: np.random.Generator, target: Bool[np.ndarray, "H W"], share: float) -> Layer:
    """An object that hides a share of the target between `LEAST` and `MOST`."""
    for kind in (None, None, None, None, "low wall"):
        layer = occluders.draw_object(rng, target, share, kind)
        if LEAST <= occluders.hidden_share(target, layer[2]) <= MOST:
            break
    return layer


def _aimed(
    rng: np.random.Generator, labels: UInt8[np.ndarray, "H W"], aim: tuple[int, ...], kinds: tuple[str, ...]
) -> Layer | None:
    """An object of one of the kinds that hides all of the parts aimed at, if one of three tries does."""
    target, wanted = labels > 0, np.isin(labels, aim)
    if not wanted.any():
        return None
    rows = np.flatnonzero(wanted.any(1))
    within = target[: rows[-1] + 1] if aim == (1,) else target[rows[0] :]
    share = float(within.sum() / target.sum())
    for extra in (0.02, 0.05, 0.08):
        layer = occluders.draw_object(rng, target, min(share + extra, 0.97), str(rng.choice(kinds)))
        if (wanted & ~layer[2]).sum() <= FEW:
            return layer
    return None


def _count(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=9)[1:9].astype(np.int32)


def compose(rng: np.random.Generator, person: Person, camera: Camera, occluded: bool) -> Picture:
    """A picture of the person as the camera sees it; everything not named is drawn."""
    scene, _ = draw_scene(rng, camera, HEIGHT, WIDTH)
    image = scene.astype(np.float32)
    behind = []
    for _ in range(int(rng.choice((0, 1, 2), p=(0.66, 0.27, 0.07)))):
        figure = _passer_by(rng, camera)
        behind.append(figure)
        image = _over(image, figure.colour, figure.cover)
    place = _place(rng, camera)
    target = paint_figure(rng, person, camera, place)
    image = _over(_shadow(image, place, camera), target.colour, target.cover)
    body = (target.map > 0) & (target.map != BELONGING)
    whole = np.where(body, target.map, 0).astype(np.uint8)
    front = _front(rng, camera, whole, occluded)
    image = np.clip(_over(image, front.colour, front.cover), 0, 255).astype(np.uint8)
    shown = np.where(front.mask, 0, whole).astype(np.uint8)
    covering = (target.map > 0) | front.mask
    others = [(front.figure.map > 0, _see(front.figure, np.zeros_like(body)))] if front.figure else []
    for figure in reversed(behind):
        others.append((_body(figure) & ~covering, _see(figure, covering)))
        covering = covering | (figure.map > 0)
    return Picture(
        jpeg=_encode(camera.develop(image, rng), camera.quality),
        map=shown,
        person=(shown > 0).astype(np.uint8),
        keypoints=_see(target, front.mask),
        visible=_count(shown),
        whole=_count(whole),
        occluder=front.kind,
        identity=person,
        others=others,
    )


def _body(figure: Figure) -> Bool[np.ndarray, "H W"]:
    return (figure.map > 0) & (figure.map != BELONGING)


def _encode(image: np.ndarray, quality: int) -> bytes:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert done
    return data.tobytes()


def training_picture(seed: int, i: int, identity: int | None = None) -> Picture:
    """Picture `i` of an endless stream of people who are in no dataset; the same for the same arguments.

    Person number `identity` of the stream is shown, by default a new one in every picture; cameras vary more
    widely than a dataset's, and about half of the targets are occluded.
    """
    who = np.random.default_rng([seed, TRAINING, 0, i if identity is None else identity])
    rng = np.random.default_rng([seed, TRAINING, 1, i])
    return compose(rng, draw_person(who), draw_camera(rng), bool(rng.random() < 0.5))
