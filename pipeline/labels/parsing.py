"""Parsing maps: person instances and pose confidences, fused for the target person of each image.

The paper's M is the arg-max over K = 8 parts of the mask of Mask R-CNN times the confidences of PifPaf.  A
part's confidence is the maximum over its keypoints and limbs, of 17 and 19.

Unusual here:
- All resampling is bilinear and separable.  A box, a stride or a pad is a pair of small matrices (rows,
  columns) onto the grid of the map, whatever the size of the crop.
- Each image is fused alone: its map depends on no other image of its batch.
"""

from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.label_file import LabelFile
from pipeline.core.params import STRICT, BadInput
from pipeline.data import parts

OK, NO_PERSON, AMBIGUOUS = range(3)  # status of an image
CHANNELS = 36  # 17 keypoints, then 19 limbs, in PifPaf's COCO order

_BODY = (
    (5, 7, 9, 25, 27),  # left arm: shoulder, elbow, wrist and between
    (6, 8, 10, 26, 28),  # right arm
    (11, 12, 21, 22, 23, 24),  # torso: hips, hip to hip, shoulder to hip, shoulder to shoulder
    (13, 17, 18),  # left leg: knee, ankle to knee, knee to hip
    (14, 19, 20),  # right leg
    (15,),  # left foot: ankle
    (16,),  # right foot
)
_FACE = (0, 1, 2, 3, 4, 29, 30, 31, 32, 33)
# channels of each part, by `parse.grouping`
PART_CHANNELS = {
    "recommended": (_FACE, *_BODY),
    # as in the labels that BPBReID published: the limbs from ear to shoulder belong to the head, and the limb
    # from hip to hip to the left leg as well, but not to the right leg
    "bpbreid": ((*_FACE, 34, 35), *_BODY[:3], (*_BODY[3], 21), *_BODY[4:]),
}

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Target:
    """Which person of a crop is the target: the one with the greatest weighted sum of cues."""

    min_score: Share  # detections with lower scores are no candidates
    min_area: Share  # nor are smaller masks; share of the crop
    centre: Weight  # weight of the nearness of the box's centre to the crop's
    height: Weight  # weight of the box's height as a share of the crop's
    score: Weight  # weight of the detection's score
    head: Weight  # weight of the head's confidence inside the mask, near the top centre of the crop
    margin: Weight  # with a smaller lead over the second person the target is `ambiguous`


@dataclass(frozen=True, config=STRICT)
class Parse:
    """How instances and fields become one parsing map per image."""

    grid: tuple[int, int]  # height, width of the map in pixels
    grouping: Literal["recommended", "bpbreid"]  # of keypoints and limbs into parts
    target: Target
    present: Share  # least maximum of confidence times mask of a visible part
    threshold: Annotated[float, Field(gt=0, le=1)]  # least confidence times mask of a pixel that shows a part
    fill: bool  # True: mask pixels below the threshold take the nearest visible part
    spread: Weight  # reach of a confidence when filling, in cells of the field
    batch: Count  # images


class ImageInstances(NamedTuple):
    """The P persons of one image, the highest score first."""

    score: Float[np.ndarray, "P"]  # in [0, 1]
    box: Float[np.ndarray, "P 4"]  # x0, y0, x1, y1 in pixels of the image
    mask: UInt8[np.ndarray, "P 28 28"]  # 255 times the probability, inside the box


class Frame(NamedTuple):
    """The grid of a field: cell (r, c) lies at y = r stride - top, x = c stride - left of the input."""

    cells: tuple[int, int]  # rows, columns of the field
    stride: int  # pixels of the network's input
    size: tuple[int, int]  # height, width of the network's input in pixels, without the pad
    pad: tuple[int, int, int, int]  # pixels left, top, right, bottom


# ------------------------------------------------------------------ resampling


def interpolation_weights(positions: Float[np.ndarray, "n"], cells: int) -> Float[np.ndarray, "n cells"]:
    """Weights of linear interpolation at `positions`, in cells; they fall to 0 beyond the ends."""
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(cells))).astype(np.float32)


def paste_mask(
    mask: UInt8[np.ndarray, "h w"],
    box: Float[np.ndarray, "4"],
    size: tuple[int, int],
    grid: tuple[int, int],
) -> Float[np.ndarray, "H W"]:
    """A mask resized to its box and placed on the grid, bilinearly; in [0, 1], 0 outside the box.

    `box` is in pixels of an image of `size` (height, width); the whole image is resized to `grid`.
    """
    axes = []
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale, cells = grid[axis] / size[axis], mask.shape[axis]
        length = max((high - low) * scale, 1e-3)
        positions = (np.arange(grid[axis]) + 0.5 - low * scale) / length * cells - 0.5
        axes.append(interpolation_weights(positions, cells))
    return axes[0] @ (mask / np.float32(255)) @ axes[1].T


@lru_cache(maxsize=8)
def field_sampling(frame: Frame, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that sample a field on the grid, `rows @ field @ columns.T`, without the pad."""
    axes = []
    for axis in (0, 1):
        pixels = (np.arange(grid[axis]) + 0.5) * frame.size[axis] / grid[axis] - 0.5
        positions = (pixels + frame.pad[1 - axis]) / frame.stride
        axes.append(interpolation_weights(np.clip(positions, 0, frame.cells[axis] - 1), frame.cells[axis]))
    return axes[0], axes[1]


def blur_matrix(cells: int, spread: float) -> Float[np.ndarray, "cells cells"]:
    """Matrix of a Gaussian blur along one axis; `spread` is its standard deviation in cells, 0 for none.

    Each row sums to 1.
    """
    if spread == 0:
        return np.eye(cells, dtype=np.float32)
    distance = np.subtract.outer(np.arange(cells), np.arange(cells))
    weights = np.exp(-0.5 * (distance / spread) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


# ------------------------------------------------------------------ the target person


def select_target(
    persons: ImageInstances,
    masks: Float[np.ndarray, "P H W"],
    head: Float[np.ndarray, "H W"],
    size: tuple[int, int],
    target: Target,
) -> tuple[int, float]:
    """The row of the target person and its lead over the second candidate; (-1, 0) without candidates.

    `masks` are the persons' masks on the grid, `head` is the head's confidence on the grid, `size` is the
    image's (height, width).  The lead is a difference of weighted sums of cues, infinite for one candidate.
    Departs: the paper does not say which person is the target.  The person nearest to the centre, as usual in
    re-ID, may be a large passer-by in front of the target.
    """
    area = (masks > 0.5).mean((1, 2))
    candidates = np.flatnonzero((persons.score >= target.min_score) & (area >= target.min_area))
    if len(candidates) == 0:
        return -1, 0.0
    weights = np.array([target.centre, target.height, target.score, target.head])
    values = target_cues(persons, masks, head, size)[candidates] @ weights
    order = np.argsort(-values, kind="stable")
    lead = values[order[0]] - values[order[1]] if len(order) > 1 else np.inf
    return int(candidates[order[0]]), float(lead)


def target_cues(
    persons: ImageInstances,
    masks: Float[np.ndarray, "P H W"],
    head: Float[np.ndarray, "H W"],
    size: tuple[int, int],
) -> Float[np.ndarray, "P 4"]:
    """The cues of each person: centre, height, score and head (see `Target`), each in [0, 1]."""
    height, width = size
    x0, y0, x1, y1 = persons.box.T
    distance = np.hypot((x0 + x1) / width - 1, (y0 + y1) / height - 1)  # of the centres
    centre, span = 1 - np.minimum(distance, 1), np.clip((y1 - y0) / height, 0, 1)
    rows, columns = (np.arange(n) / (n - 1) for n in head.shape)
    prior = (1 - rows)[:, None] * (1 - np.abs(2 * columns - 1))  # 1 at the top centre
    return np.stack([centre, span, persons.score, (masks * (head * prior)).max((1, 2))], 1)


# ------------------------------------------------------------------ fusion


def part_confidences(
    confidence: UInt8[np.ndarray, "channels h w"], grouping: str
) -> Float[np.ndarray, "8 h w"]:
    """Confidence of each part, in [0, 1]: the maximum over its keypoints and limbs.

    Raises `BadInput` unless there are 36 channels.  Departs: the published labels count the limb between the
    hips to the left leg, but not to the right one, and the limbs from ear to shoulder to the head.  With
    `recommended`, the former belongs to no leg, and the latter to no part: they cross the shoulders, where
    they would show a hidden head.
    """
    if len(confidence) != CHANNELS:
        raise BadInput(
            f"fields: {len(confidence)} confidences per image, but {CHANNELS} are needed (17 keypoints, "
            "then 19 limbs). Run the stage `pose` again."
        )
    merged = [confidence[list(channels)].max(0) for channels in PART_CHANNELS[grouping]]
    return np.stack(merged) / np.float32(255)


def fuse(
    confidence: Float[np.ndarray, "8 h w"], mask: Float[np.ndarray, "H W"], frame: Frame, rule: Parse
) -> UInt8[np.ndarray, "H W"]:
    """The parsing map: the part of the greatest confidence at each pixel (1..8), or background (0).

    Confidences are resized bilinearly before the arg-max, so that pixels differ within a cell.
    Departs: with one low threshold a hidden part leaks into its neighbours.  So a part is visible only if it
    reaches `present` at one of its pixels; then it takes all its pixels that reach `threshold`.  With `fill`,
    the rest of the mask takes the nearest visible part, as PifPaf's fields follow bones and leave holes.
    """
    rows, columns = field_sampling(frame, rule.grid)
    sampled = rows @ (confidence @ columns.T)
    labels = argmax_parts(sampled, mask, rule.threshold)
    visible = np.isin(np.arange(len(confidence) + 1), labels[sampled.max(0) * mask >= rule.present])
    visible[0] = False
    labels[~visible[labels]] = 0
    if not rule.fill or not visible.any():
        return labels
    rows = rows @ blur_matrix(frame.cells[0], rule.spread)
    columns = columns @ blur_matrix(frame.cells[1], rule.spread)
    nearest = argmax_parts(rows @ (confidence * visible[1:, None, None] @ columns.T), mask > 0.5, 0.0)
    return np.where(labels > 0, labels, nearest)


def argmax_parts(
    confidence: Float[np.ndarray, "8 H W"], mask: np.ndarray, threshold: float
) -> UInt8[np.ndarray, "H W"]:
    """Arg-max over the parts where the greatest confidence times the mask is positive and >= `threshold`.

    Elsewhere 0.
    """
    greatest = confidence.max(0)
    labels = np.zeros(greatest.shape, np.uint8)
    for part in range(len(confidence), 0, -1):  # of equal parts the first wins
        labels[confidence[part - 1] == greatest] = part
    product = greatest * mask
    labels[(product < threshold) | (product <= 0)] = 0
    return labels


# ------------------------------------------------------------------ one image, many images


class ParsingResult(NamedTuple):
    """The parsing map of one image, and how its target was selected."""

    map: UInt8[np.ndarray, "H W"]
    status: int  # OK, NO_PERSON (the map is all background) or AMBIGUOUS
    instance: int  # row of the target among the image's instances; -1 for none
    margin: float  # lead of the target over the second candidate


def parse(
    persons: ImageInstances,
    confidence: UInt8[np.ndarray, "channels h w"],
    size: tuple[int, int],
    frame: Frame,
    rule: Parse,
) -> ParsingResult:
    """The parsing map of an image's target person.  `size` is the image's (height, width)."""
    confidence = part_confidences(confidence, rule.grouping)
    rows, columns = field_sampling(frame, rule.grid)
    masks = np.zeros((len(persons.score), *rule.grid), np.float32)
    for i in np.flatnonzero(persons.score >= rule.target.min_score):  # no others can be candidates
        masks[i] = paste_mask(persons.mask[i], persons.box[i], size, rule.grid)
    head = rows @ confidence[parts.HEAD - 1] @ columns.T
    instance, margin = select_target(persons, masks, head, size, rule.target)
    if instance < 0:
        return ParsingResult(np.zeros(rule.grid, np.uint8), NO_PERSON, -1, 0.0)
    status = AMBIGUOUS if margin < rule.target.margin else OK
    return ParsingResult(fuse(confidence, masks[instance], frame, rule), status, instance, margin)


class Parser:
    """Parses any range of rows from the two label files of one index; each worker has its own.

    `sizes` are height and width of each image.  Raises `BadInput` if a file belongs to another index or has
    another number of confidences.
    """

    def __init__(self, instances: str, fields: str, sizes: np.ndarray, index: str, rule: Parse):
        self.instances = LabelFile(instances, "instances", index)
        self.fields = LabelFile(fields, "fields", index)
        self.sizes, self.rule = sizes, rule
        shape = self.fields["confidence"].shape
        if shape[1] != CHANNELS:
            raise BadInput(
                f"{fields}: {shape[1]} confidences per image, but {CHANNELS} are needed (17 keypoints, then "
                "19 limbs, in COCO's order). Run the stage `pose` with a network that has both."
            )
        attrs = self.fields.attrs
        self.frame = Frame((shape[2], shape[3]), attrs["stride"], tuple(attrs["size"]), tuple(attrs["pad"]))

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of parsing.h5 for rows start..stop: map, status, instance, margin."""
        rows = slice(start, stop)
        counts, fields = self.instances["found"][rows], self.fields["confidence"][rows]
        columns = [self.instances[name][rows] for name in ImageInstances._fields]
        results = []
        for i, (height, width) in enumerate(self.sizes[rows].tolist()):
            persons = ImageInstances(*(column[i][: counts[i]] for column in columns))
            results.append(parse(persons, fields[i], (height, width), self.frame, self.rule))
        dtypes = {"map": np.uint8, "status": np.uint8, "instance": np.int8, "margin": np.float32}
        return {name: np.array([getattr(r, name) for r in results], dtype) for name, dtype in dtypes.items()}
