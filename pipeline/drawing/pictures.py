"""Pictures of people and of their parsing maps, alike on every sheet and page."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.data.index import Crop

# RGB of background and of the parts in their order
COLOURS = np.array(
    [[0, 0, 0], [230, 75, 60], [120, 220, 110], [25, 130, 60], [245, 205, 60], [90, 165, 245], [30, 70, 190],
     [225, 110, 225], [125, 30, 140]], np.uint8
)  # fmt: skip


def resize_picture(image: Crop, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of `size` (height, width), from the mean of the pixels that fall together."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def overlay(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """An image with its parts tinted and its background darkened; the map is resized to the image."""
    resized = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    tinted = image // 2 + COLOURS[resized] // 2
    return np.where(resized[..., None] > 0, tinted, image // 3).astype(np.uint8)


def panels(
    image: UInt8[np.ndarray, "H W 3"], maps: Sequence[UInt8[np.ndarray, "_ _"]]
) -> UInt8[np.ndarray, "H S 3"]:
    """An image and, beside it, its overlay with each parsing map, all in the image's shape."""
    return np.concatenate([image, *(overlay(image, labels) for labels in maps)], 1)


def encode_image(picture: UInt8[np.ndarray, "h w 3"], ending: str) -> bytes:
    """The bytes of a picture file, `.png` or `.jpg`."""
    success, data = cv2.imencode(ending, np.ascontiguousarray(picture[..., ::-1]))
    assert success
    return data.tobytes()


def shorten_name(name: str, length: int) -> str:
    """An image's key without its split, in at most `length` characters: a longer one loses its start."""
    name = name.split("/", 1)[-1]
    return name if len(name) <= length else f"…{name[1 - length :]}"
