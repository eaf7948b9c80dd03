"""The body's parts: K = 8 fine ones in the paper's order, and how C coarse ones merge them.

0 is background in every map.  Left is the person's left, on the right of a picture from the front.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.core.params import BadInput

FINE = ("head", "left arm", "right arm", "torso", "left leg", "right leg", "left foot", "right foot")
HEAD, LEFT_ARM, RIGHT_ARM, TORSO, LEFT_LEG, RIGHT_LEG, LEFT_FOOT, RIGHT_FOOT = range(1, 9)
SWAPPED = (0, 1, 3, 2, 4, 6, 5, 8, 7)  # the label of each label in the mirror
_MIRROR = np.array([*SWAPPED, *range(len(SWAPPED), 256)], np.uint8)

_ARMS, _LEGS, _FEET = (LEFT_ARM, RIGHT_ARM), (LEFT_LEG, RIGHT_LEG), (LEFT_FOOT, RIGHT_FOOT)
_UPPER, _LOWER = (HEAD, *_ARMS, TORSO), (*_LEGS, *_FEET)
_SIDED = {"head": (HEAD,), "left arm": (LEFT_ARM,), "right arm": (RIGHT_ARM,), "torso": (TORSO,)}

# C -> coarse part -> the fine parts in it.  Fig. 4 studies C = 1..8; the paper names the parts of C = 4
# alone, where feet can only belong to the legs.
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
    """Label maps as they are in the mirrored pictures: columns reversed, left and right swapped.

    Raises `BadInput` for a label above K.
    """
    check(maps)
    rows = cv2.flip(maps.reshape(-1, maps.shape[-1]), 1)
    return cv2.LUT(rows, _MIRROR).reshape(maps.shape)


def check(maps: Any) -> None:
    """Raise `BadInput` if label maps, an array or a tensor, name parts that do not exist."""
    top = int(maps.max()) if 0 not in maps.shape else 0
    if top >= len(SWAPPED):
        raise BadInput(
            f"parsing map: label {top}, but the parts end at {len(FINE)} (0 is background). "
            "Convert the labels to the parts of pipeline/parts.py."
        )
