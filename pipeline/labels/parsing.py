"""From person instances and pose confidences to the parsing map of the target person.

The paper's M comes from Mask R-CNN's mask of the target times PifPaf's confidences (17 keypoints, 19
limbs), grouped by maximum into K = 8 parts; each pixel takes its strongest part, or background.

Unusual here:
- All resampling is bilinear and separable, so a box, a stride or a pad is only a pair of small matrices
  (rows, columns) on the one grid; the crop's own size disappears in them.
- Each image is fused alone: nothing that shares its batch can reach its map.
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

# channel of each channel in the mirror
MIRRORED = np.arange(CHANNELS)
for _left, _right in (
    *((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    *((17, 19), (18, 20), (22, 23), (25, 26), (27, 28), (30, 31), (32, 33), (34, 35)),
):
    MIRRORED[[_left, _right]] = _right, _left

_BODY = (
    (5, 7, 9, 25, 27),  # left arm: shoulder, elbow, wrist and between
    (6, 8, 10, 26, 28),
    (11, 12, 21, 22, 23, 24),  # torso: hips, hip to hip, shoulder to hip, shoulder to shoulder
    (13, 17, 18),  # left leg: knee, ankle to knee, knee to hip
    (14, 19, 20),
    (15,),  # left foot: ankle
    (16,),
)
_FACE = (0, 1, 2, 3, 4, 29, 30, 31, 32, 33)
PART_CHANNELS = {
    "recommended": (_FACE, *_BODY),
    # as in the labels that BPBReID published: the limbs from ear to shoulder count for the head, and the limb
    # from hip to hip for the left leg too, though not for the right
    "bpbreid": ((*_FACE, 34, 35), *_BODY[:3], (*_BODY[3], 21), *_BODY[4:]),
}

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Target:
    """Which of the found persons the crop is about: the one with the greatest weighted sum of cues."""

    min_score: Share  # weaker detections are ghosts
    min_area: Share  # smaller masks are ghosts too; share of the crop
    centre: Weight  # weight of: how near the box's centre is to the crop's
    height: Weight  # weight of: share of the crop's height that the box spans
    score: Weight  # weight of: the detection's score
    head: Weight  # weight of: head confidence inside the mask, near the crop's top centre
    margin: Weight  # a lead over the second person smaller than this is `ambiguous`


@dataclass(frozen=True, config=STRICT)
class Parse:
    """How instances and fields become one parsing map an image."""

    grid: tuple[int, int]  # height, width of the map
    grouping: Literal["recommended", "bpbreid"]
    target: Target
    present: Share  # confidence times mask that a part must win with somewhere, or it is hidden
    threshold: Annotated[float, Field(gt=0, le=1)]  # of confidence times mask, where a pixel shows its part
    fill: bool  # True: mask pixels below the threshold take the nearest part that is shown
    spread: Weight  # reach of a confidence when filling, in cells of the field
    batch: Count  # images a step


class ImageInstances(NamedTuple):
    """The persons found in one image, best score first."""

    score: Float[np.ndarray, "P"]
    box: Float[np.ndarray, "P 4"]  # x0, y0, x1, y1 in pixels of the image
    mask: UInt8[np.ndarray, "P 28 28"]  # 255 times the probability, inside the box


class Frame(NamedTuple):
    """Where a field's cells lie: cell (r, c) is at y = r stride - top, x = c stride - left of the input."""

    cells: tuple[int, int]  # rows, columns of the field
    stride: int  # pixels of the network's input
    size: tuple[int, int]  # height, width of the network's input before it was padded
    pad: tuple[int, int, int, int]  # left, top, right, bottom


# ------------------------------------------------------------------ resampling


def interpolation_weights(at: Float[np.ndarray, "n"], cells: int) -> Float[np.ndarray, "n cells"]:
    """Weights of linear interpolation at positions `at`, in cells; beyond the ends it falls to 0."""
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)


def paste_mask(
    mask: UInt8[np.ndarray, "h w"],
    box: Float[np.ndarray, "4"],
    size: tuple[int, int],
    grid: tuple[int, int],
) -> Float[np.ndarray, "H W"]:
    """A mask stretched over its box, on the grid, bilinearly; in [0, 1], 0 outside the box.

    `box` is in pixels of an image of `size` (height, width); the whole image is resized to `grid`.
    """
    axes = []
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale, cells = grid[axis] / size[axis], mask.shape[axis]
        length = max((high - low) * scale, 1e-3)
        axes.append(
            interpolation_weights((np.arange(grid[axis]) + 0.5 - low * scale) / length * cells - 0.5, cells)
        )
    return axes[0] @ (mask / np.float32(255)) @ axes[1].T


@lru_cache(maxsize=8)
def field_sampling(frame: Frame, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that sample a field on the grid: `rows @ field @ columns.T`; the pad is undone."""
    axes = []
    for axis in (0, 1):
        pixel = (np.arange(grid[axis]) + 0.5) * frame.size[axis] / grid[axis] - 0.5
        cell = (pixel + frame.pad[1 - axis]) / frame.stride
        axes.append(interpolation_weights(np.clip(cell, 0, frame.cells[axis] - 1), frame.cells[axis]))
    return axes[0], axes[1]


def blur_matrix(cells: int, spread: float) -> Float[np.ndarray, "cells cells"]:
    """Matrix of a Gaussian of `spread` cells along one axis; each row sums to 1, 0 is no blur."""
    if spread == 0:
        return np.eye(cells, dtype=np.float32)
    distance = np.subtract.outer(np.arange(cells), np.arange(cells))
    weight = np.exp(-0.5 * (distance / spread) ** 2)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def flip(confidence: UInt8[np.ndarray, "36 h w"], frame: Frame) -> tuple[UInt8[np.ndarray, "36 h w"], Frame]:
    """Fields as they are in the mirrored picture: columns reversed, sides swapped, and so the pad."""
    left, top, right, bottom = frame.pad
    return confidence[MIRRORED][..., ::-1], frame._replace(pad=(right, top, left, bottom))


# ------------------------------------------------------------------ the target person


def select_target(
    found: ImageInstances,
    masks: Float[np.ndarray, "P H W"],
    head: Float[np.ndarray, "H W"],
    size: tuple[int, int],
    target: Target,
) -> tuple[int, float]:
    """The target among the persons and its lead over the second; (-1, 0) if there is nobody.

    `masks` are the persons' masks on the grid, `head` the head's confidence there, `size` the image's
    (height, width).  The lead is in units of the weighted sum of cues, infinite if nobody else is in
    question.  Departs: the paper does not say who is meant; the nearest centre alone, as the field
    does it, takes a large passer-by in front for the target.
    """
    area = (masks > 0.5).mean((1, 2))
    candidates = np.flatnonzero((found.score >= target.min_score) & (area >= target.min_area))
    if len(candidates) == 0:
        return -1, 0.0
    value = target_cues(found, masks, head, size)[candidates] @ np.array(
        [target.centre, target.height, target.score, target.head]
    )
    order = np.argsort(-value, kind="stable")
    lead = value[order[0]] - value[order[1]] if len(order) > 1 else np.inf
    return int(candidates[order[0]]), float(lead)


def target_cues(
    found: ImageInstances,
    masks: Float[np.ndarray, "P H W"],
    head: Float[np.ndarray, "H W"],
    size: tuple[int, int],
) -> Float[np.ndarray, "P 4"]:
    """What speaks for each person as the target, each in [0, 1]: centre, height, score, head."""
    height, width = size
    x0, y0, x1, y1 = found.box.T
    off = np.hypot((x0 + x1) / width - 1, (y0 + y1) / height - 1)
    rows, columns = (np.arange(n) / (n - 1) for n in head.shape)
    place = (1 - rows)[:, None] * (1 - np.abs(2 * columns - 1))  # 1 at the top's centre
    return np.stack(
        [
            1 - np.minimum(off, 1),
            np.clip((y1 - y0) / height, 0, 1),
            found.score,
            (masks * (head * place)).max((1, 2)),
        ],
        1,
    )


# ------------------------------------------------------------------ fusion


def part_confidences(
    confidence: UInt8[np.ndarray, "channels h w"], grouping: str
) -> Float[np.ndarray, "8 h w"]:
    """Confidence of each part, in [0, 1]: the greatest among its keypoints and limbs.

    Departs: `recommended` keeps the limb between the hips out of the left leg, where the published labels
    have it though the right leg does not, and the limbs from ear to shoulder out of the head: they cross the
    shoulders, where a hidden head would still be seen.
    """
    if len(confidence) != CHANNELS:
        raise BadInput(
            f"fields: {len(confidence)} confidences an image, but {CHANNELS} are needed (17 keypoints, "
            "then 19 limbs). Run the stage `pose` again."
        )
    merged = [confidence[list(channels)].max(0) for channels in PART_CHANNELS[grouping]]
    return np.stack(merged) / np.float32(255)


def fuse(
    confidence: Float[np.ndarray, "8 h w"], mask: Float[np.ndarray, "H W"], frame: Frame, rule: Parse
) -> UInt8[np.ndarray, "H W"]:
    """The parsing map: at each pixel its strongest part (1..8) or background (0).

    Confidences are resized bilinearly before the arg-max, so that no pixel is a whole cell.
    Departs: one low threshold lets a hidden part leak into its neighbours; so a part counts only if it wins
    somewhere with `present`, and then wherever it wins with `threshold`.  With `fill`, the rest of the mask
    goes to the nearest of these parts, as PifPaf's fields follow bones and leave holes between them.
    """
    rows, columns = field_sampling(frame, rule.grid)
    sampled = rows @ (confidence @ columns.T)
    shown = argmax_parts(sampled, mask, rule.threshold)
    sure = shown[sampled.max(0) * mask >= rule.present]
    present = np.isin(np.arange(len(confidence) + 1), sure)
    present[0] = False
    shown[~present[shown]] = 0
    if not rule.fill or not present.any():
        return shown
    rows, columns = (
        rows @ blur_matrix(frame.cells[0], rule.spread),
        columns @ blur_matrix(frame.cells[1], rule.spread),
    )
    near = argmax_parts(rows @ (confidence * present[1:, None, None] @ columns.T), mask > 0.5, 0.0)
    return np.where(shown > 0, shown, near)


def argmax_parts(
    confidence: Float[np.ndarray, "8 H W"], mask: np.ndarray, threshold: float
) -> UInt8[np.ndarray, "H W"]:
    """Arg-max over the parts where the greatest confidence times the mask is positive and >= `threshold`."""
    best = confidence.max(0)
    label = np.zeros(best.shape, np.uint8)
    for part in range(len(confidence), 0, -1):  # of equals the first wins
        label[confidence[part - 1] == best] = part
    best = best * mask
    label[(best < threshold) | (best <= 0)] = 0
    return label


# ------------------------------------------------------------------ one image, many images


class ParsingResult(NamedTuple):
    """The outcome for one image."""

    map: UInt8[np.ndarray, "H W"]
    status: int  # OK, NO_PERSON (the map is all background) or AMBIGUOUS
    instance: int  # number of the chosen person; -1 none
    margin: float  # its lead over the second


def parse(
    found: ImageInstances,
    confidence: UInt8[np.ndarray, "channels h w"],
    size: tuple[int, int],
    frame: Frame,
    rule: Parse,
) -> ParsingResult:
    """The parsing map of an image's target person.  `size` is the image's (height, width)."""
    confidence = part_confidences(confidence, rule.grouping)
    rows, columns = field_sampling(frame, rule.grid)
    masks = np.zeros((len(found.score), *rule.grid), np.float32)
    for i in np.flatnonzero(found.score >= rule.target.min_score):  # nobody else is in question
        masks[i] = paste_mask(found.mask[i], found.box[i], size, rule.grid)
    instance, margin = select_target(
        found, masks, rows @ confidence[parts.HEAD - 1] @ columns.T, size, rule.target
    )
    if instance < 0:
        return ParsingResult(np.zeros(rule.grid, np.uint8), NO_PERSON, -1, 0.0)
    status = AMBIGUOUS if margin < rule.target.margin else OK
    return ParsingResult(fuse(confidence, masks[instance], frame, rule), status, instance, margin)


class Parser:
    """Reads both label files of one index and parses any range of its rows; built anew in each worker.

    Raises `BadInput` if a file belongs to another index or has another number of confidences.
    """

    def __init__(self, instances: str, fields: str, sizes: np.ndarray, index: str, rule: Parse):
        self.instances = LabelFile(instances, "instances", index)
        self.fields = LabelFile(fields, "fields", index)
        self.sizes = sizes  # height, width of each image
        shape = self.fields["confidence"].shape
        if shape[1] != CHANNELS:
            raise BadInput(
                f"{fields}: {shape[1]} confidences an image, but {CHANNELS} are needed (17 keypoints, then "
                "19 limbs, in COCO's order). Run the stage `pose` with a network that has both."
            )
        attrs = self.fields.attrs
        frame = Frame(shape[2:], attrs["stride"], tuple(attrs["size"]), tuple(attrs["pad"]))
        self.how = frame, rule

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of parsing.h5 for rows start..stop: map, status, instance, margin."""
        rows = slice(start, stop)
        counts, fields = self.instances["found"][rows], self.fields["confidence"][rows]
        columns = [self.instances[name][rows] for name in ImageInstances._fields]
        done = [
            parse(
                ImageInstances(*(c[i][:count] for c in columns)), fields[i], self.size(start + i), *self.how
            )
            for i, count in enumerate(counts)
        ]
        dtypes = {"map": np.uint8, "status": np.uint8, "instance": np.int8, "margin": np.float32}
        return {name: np.array([getattr(p, name) for p in done], dtype) for name, dtype in dtypes.items()}

    def size(self, row: int) -> tuple[int, int]:
        """Height, width of an image."""
        return int(self.sizes[row][0]), int(self.sizes[row][1])
