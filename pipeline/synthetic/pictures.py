"""One picture of a person with its exact truth, composed of scene, people, occluder and camera."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pipeline.synthetic import occluders
from pipeline.synthetic.cameras import Camera, sample_camera
from pipeline.synthetic.contamination import Contamination
from pipeline.synthetic.figures import (
    HEIGHT,
    WIDTH,
    Figure,
    Placement,
    body_pixels,
    keypoint_visibility,
    paint_figure,
)
from pipeline.synthetic.overlay import Layer
from pipeline.synthetic.people import Person, sample_person
from pipeline.synthetic.scenes import draw_scene

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
    contaminating: Bool[np.ndarray, "256 128"]  # pixels of other people, and of whatever is before the target
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


def compose(
    rng: np.random.Generator,
    person: Person,
    camera: Camera,
    occluded: bool,
    contamination: Contamination | None = None,
) -> Picture:
    """A picture of the person by the camera; everything else is random.

    A contamination has a generator of its own: without it the picture would be the same but for this.
    """
    image = draw_scene(rng, camera, HEIGHT, WIDTH).astype(np.float32)
    behind = [_passer_by(rng, camera) for _ in range(int(rng.choice((0, 1, 2), p=(0.66, 0.27, 0.07))))]
    if contamination and contamination.is_bystander:
        behind.append(contamination.bystander(camera))
    for figure in behind:
        image = _composite(image, figure.colour, figure.cover)
    place = _sample_placement(rng, camera)
    target = paint_figure(rng, person, camera, place)
    image = _composite(_shadow(image, place, camera), target.colour, target.cover)
    body = body_pixels(target)
    whole = np.where(body, target.map, 0).astype(np.uint8)
    front = _foreground(rng, camera, whole, occluded)
    if contamination and not contamination.is_bystander:
        front = Foreground(0, *contamination.parcel(body))
    image = np.clip(_composite(image, front.colour, front.cover), 0, 255).astype(np.uint8)
    visible = np.where(front.mask, 0, whole).astype(np.uint8)
    covering = (target.map > 0) | front.mask
    others = (
        [(front.figure.map > 0, keypoint_visibility(front.figure, np.zeros_like(body)))]
        if front.figure
        else []
    )
    contaminating = front.mask.copy()
    for figure in reversed(behind):
        others.append((body_pixels(figure) & ~covering, keypoint_visibility(figure, covering)))
        contaminating |= (figure.map > 0) & ~covering
        covering = covering | (figure.map > 0)
    return Picture(
        jpeg=_encode(camera.develop(image, rng), camera.quality),
        map=visible,
        person=(visible > 0).astype(np.uint8),
        keypoints=keypoint_visibility(target, front.mask),
        visible=_part_pixels(visible),
        whole=_part_pixels(whole),
        occluder=front.kind,
        contaminating=contaminating,
        identity=person,
        others=others,
    )


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
