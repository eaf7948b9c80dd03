"""Label maps of human parsers, one image of class numbers each, as maps of the eight parts.

Most classes are clothes without a side: trousers are both legs.  Such a pixel takes the side of the nearest
pixel of the same limbs whose side the parser labels.  If the parser labels only one side or neither, the
pixel takes the side on which it lies, as in a picture from the front.  The coarse parts of C <= 5 merge the
sides.
"""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.data.index import DECODE_ERRORS, error_detail
from pipeline.labels.external.confidences import InvalidLabel, load_array

BACKGROUND, HEAD, TORSO, ARMS, LEGS, FEET = "background", "head", "torso", "arms", "legs", "feet"
LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG = "left arm", "right arm", "left leg", "right leg"
LEFT_FOOT, RIGHT_FOOT = "left foot", "right foot"
_SIDED = (LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT)

# the part of class 0, 1, ... of each source; the comments name the source's classes
CLASSES: dict[str, tuple[str, ...]] = {
    "lip": (
        BACKGROUND, HEAD, HEAD, ARMS, HEAD,  # background, hat, hair, glove, sunglasses
        TORSO, TORSO, TORSO, FEET, LEGS,  # upper clothes, dress, coat, socks, trousers
        TORSO, TORSO, LEGS, HEAD, *_SIDED,  # jumpsuit, scarf, skirt, face; then arms, legs, shoes
    ),
    "cihp": (
        BACKGROUND, HEAD, HEAD, ARMS, HEAD,  # as LIP, but
        TORSO, TORSO, TORSO, FEET, LEGS,
        TORSO, TORSO, LEGS, HEAD, *_SIDED,  # the skin of the torso instead of the jumpsuit
    ),
    "atr": (
        BACKGROUND, HEAD, HEAD, HEAD, TORSO,  # background, hat, hair, sunglasses, upper clothes
        LEGS, LEGS, TORSO, TORSO,  # skirt, trousers, dress, belt
        LEFT_FOOT, RIGHT_FOOT, HEAD, LEFT_LEG, RIGHT_LEG, LEFT_ARM, RIGHT_ARM,  # shoes, face, legs, arms
        BACKGROUND, TORSO,  # bag, scarf
    ),
    # background, head, torso, upper and lower arms, upper and lower legs (feet with them)
    "pascal": (BACKGROUND, HEAD, TORSO, ARMS, ARMS, LEGS, LEGS),
    # its 24 parts count from 1 here, as 0 is background
    "bodypix": (
        BACKGROUND, HEAD, HEAD,  # background, left and right of the face
        LEFT_ARM, LEFT_ARM, RIGHT_ARM, RIGHT_ARM,  # upper arms, front and back
        LEFT_ARM, LEFT_ARM, RIGHT_ARM, RIGHT_ARM, LEFT_ARM, RIGHT_ARM,  # lower arms, front and back; hands
        TORSO, TORSO,  # front and back
        LEFT_LEG, LEFT_LEG, RIGHT_LEG, RIGHT_LEG,  # upper legs, front and back
        LEFT_LEG, LEFT_LEG, RIGHT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT,  # lower legs, front and back; feet
    ),
}  # fmt: skip

CODES = {BACKGROUND: 0, **dict(zip(parts.FINE, range(1, 9), strict=True)), ARMS: 9, LEGS: 10, FEET: 11}
# code of a pair -> its left, right part; the left, right parts that show the side of its pixels
SIDES = {
    CODES[ARMS]: (parts.LEFT_ARM, parts.RIGHT_ARM, (parts.LEFT_ARM,), (parts.RIGHT_ARM,)),
    CODES[LEGS]: (
        parts.LEFT_LEG, parts.RIGHT_LEG,
        (parts.LEFT_LEG, parts.LEFT_FOOT), (parts.RIGHT_LEG, parts.RIGHT_FOOT),
    ),
    CODES[FEET]: (
        parts.LEFT_FOOT, parts.RIGHT_FOOT,
        (parts.LEFT_LEG, parts.LEFT_FOOT), (parts.RIGHT_LEG, parts.RIGHT_FOOT),
    ),
}  # fmt: skip


def class_parts(source: str, classes: list[str] | None) -> list[str]:
    """The part of each class of a source: background, one of the eight parts, or a pair of them.

    `classes` are the user's own, for the source `classes` alone.  Raises `BadInput` for an unknown name.
    """
    if (source == "classes") != (classes is not None):
        raise BadInput(
            "labels_from: `classes` lists the part of every class for `source: classes`, and "
            f"for that alone. {', '.join(CLASSES)} bring their own."
        )
    names = CLASSES[source] if classes is None else classes
    unknown = sorted({name for name in names if name not in CODES})
    if unknown:
        raise BadInput(f"labels_from: classes: {', '.join(unknown)} is no part. Name {', '.join(CODES)}.")
    return list(names)


def class_codes(source: str, classes: list[str] | None) -> UInt8[np.ndarray, "classes"]:
    """The code of each class in `CODES`; see `class_parts`."""
    return np.array([CODES[name] for name in class_parts(source, classes)], np.uint8)


def read_map(blob: bytes, name: str, classes: int) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel, in [0, `classes`).  The colours of a palette are ignored.

    Raises `InvalidLabel` for anything else.
    """
    label = load_array(blob) if name.lower().endswith(".npy") else _read_picture(blob)
    if label.ndim != 2 or 0 in label.shape:
        raise InvalidLabel(
            f"shape {label.shape}, not (h, w): one class per pixel is needed, no colours or scores"
        )
    if label.dtype.kind not in "uib":
        raise InvalidLabel(f"{label.dtype}, not whole numbers")
    if label.min() < 0 or label.max() >= classes:
        number = label.min() if label.min() < 0 else label.max()
        raise InvalidLabel(f"class {int(number)}, but the source has 0 to {classes - 1}")
    return label.astype(np.uint8)


def _read_picture(blob: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(blob)) as picture:
            return np.array(picture)  # of a palette: the class numbers
    except DECODE_ERRORS as error:
        raise InvalidLabel(f"no complete picture{error_detail(error)}") from None


def assign_sides(codes: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Parts 0 to 8 from `codes`, which may hold pairs: every pixel of a pair takes a side."""
    label = codes.copy()
    for code, (left, right, left_parts, right_parts) in SIDES.items():
        pair = codes == code
        if pair.any():
            is_left = _is_left(pair, np.isin(codes, left_parts), np.isin(codes, right_parts))
            label[pair] = np.where(is_left[pair], left, right)
    return label


def _is_left(pair: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.any() and right.any():
        return _distance_to(left) < _distance_to(right)
    columns = np.arange(pair.shape[1])
    middle = (pair.sum(0) * columns).sum() / pair.sum()
    return np.broadcast_to(columns > middle, pair.shape)


def _distance_to(pixels: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def resize_map(label: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """A label map on a grid (height, width) over the same picture, by the nearest pixel."""
    return cv2.resize(label, grid[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
