"""The body's parts: K = 8 fine parts in the paper's order, and the C coarse parts that merge them.

Label 0 is background in every map.  Left is the person's left, which is on the right of a frontal image.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.core.params import BadInput

FINE = ("head", "left arm", "right arm", "torso", "left leg", "right leg", "left foot", "right foot")
HEAD, LEFT_ARM, RIGHT_ARM, TORSO, LEFT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT = range(1, 9)
SWAPPED = (0, 1, 3, 2, 4, 6, 5, 8, 7)  # the label that each label becomes when the image is flipped
_FLIPPED = np.array([*SWAPPED, *range(len(SWAPPED), 256)], np.uint8)

_ARMS, _LEGS, _FEET = (LEFT_ARM, RIGHT_ARM), (LEFT_LEG, RIGHT_LEG), (LEFT_FOOT, RIGHT_FOOT)
_UPPER, _LOWER = (HEAD, *_ARMS, TORSO), (*_LEGS, *_FEET)
_SIDED = {"head": (HEAD,), "left arm": (LEFT_ARM,), "right arm": (RIGHT_ARM,), "torso": (TORSO,)}

# C -> coarse part -> its fine parts.  Fig. 4 studies C = 1..8; the paper names the parts of C = 4 only, where
# the feet can only belong to the legs.
COARSE: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"body": (*_UPPER, *_LOWER)},
    2: {"upper body": _UPPER, "lower body": _LOWER},
    3: {"head": (HEAD,), "torso and arms": (*_ARMS, TORSO), "legs": _LOWER},
    4: {"head": (HEAD,), "arms": _ARMS, "torso": (TORSO,), "legs": _LOWER},
    5: {"head": (HEAD,), "arms": _ARMS, "torso": (TORSO,), "legs": _LEGS, "feet": _FEET},
    6: {**_SIDED, "legs": _LEGS, "feet": _FEET},
    7: {**_SIDED, "left leg": (LEFT_LEG,), "right leg": (RIGHT_LEG,), "feet": _FEET},
    8: {name: (label,) for label, name in enumerate(FINE, 1)},
}


def flip(maps: UInt8[np.ndarray, "... H W"]) -> UInt8[np.ndarray, "... H W"]:
    """Parsing maps of flipped images: columns reversed, labels of left and right parts swapped.

    Raises `BadInput` for a label above K.
    """
    check(maps)
    rows = cv2.flip(maps.reshape(-1, maps.shape[-1]), 1)
    return cv2.LUT(rows, _FLIPPED).reshape(maps.shape)


def check(maps: Any) -> None:
    """Raise `BadInput` if parsing maps, an array or a tensor, hold a label above K."""
    largest = int(maps.max()) if 0 not in maps.shape else 0
    if largest >= len(SWAPPED):
        raise BadInput(
            f"parsing map: label {largest}, but the parts end at {len(FINE)} (0 is background). "
            "Convert the labels to the parts of pipeline/data/parts.py."
        )
