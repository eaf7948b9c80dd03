"""Rendered pictures with everyone in them, as a detector should learn them.

Unusual here: drawing a picture takes half as long as learning from it, so each is drawn once, kept in
`.scratch/` under the hash of the renderer's code, shared by the trainers, and seen mirrored the next time.
"""

import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from pipeline import synthetic
from pipeline.core.files import atomic_write
from pipeline.synthetic.pictures import Picture, training_picture

FLIPPED_KEYPOINTS = (
    0,
    2,
    1,
    4,
    3,
    6,
    5,
    8,
    7,
    10,
    9,
    12,
    11,
    14,
    13,
    16,
    15,
)  # COCO's keypoints in the mirror
FACE = (0, 1, 2, 3, 4)  # nose, eyes, ears
LIMB_ENDS = (7, 8, 9, 10, 13, 14, 15, 16)  # elbows, wrists, knees, ankles
REACH = 2  # pixels around a hidden joint in which the person's own pixels count as covering it


class Scene(NamedTuple):
    """A picture and its people, the target first."""

    image: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "P H W"]  # visible pixels
    keypoints: Float[np.ndarray, "P 17 3"]  # x, y in pixels and v: 0 unlabelled, 1 hidden, 2 visible


def annotated_scene(seed: int, i: int, pool: int) -> Scene:
    """Scene `i` of an endless list in which `pool` pictures come round again, mirrored every other time."""
    kept = Path(".scratch") / f"pictures-{_renderer_hash()}" / f"{seed}-{i % pool}.npz"
    if not kept.is_file():
        _save_scene(kept, training_picture(seed, i % pool))
    with np.load(kept) as held:
        image = np.asarray(Image.open(BytesIO(held["jpeg"].tobytes())).convert("RGB"))
        masks = np.unpackbits(held["masks"]).reshape(-1, *image.shape[:2]).astype(bool)
        drawn = Scene(image, masks, held["keypoints"])
    return flip_scene(drawn) if i // pool % 2 else drawn


@lru_cache
def _renderer_hash() -> str:
    files = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _save_scene(path: Path, picture: Picture) -> None:
    people = [(picture.person, picture.keypoints), *picture.others]
    masks = np.stack([mask > 0 for mask, _ in people])
    keypoints = np.stack([label_keypoints(mask > 0, points) for mask, points in people])
    with atomic_write(path) as beside, open(beside, "wb") as file:
        np.savez(
            file, jpeg=np.frombuffer(picture.jpeg, np.uint8), masks=np.packbits(masks), keypoints=keypoints
        )


def flip_scene(drawn: Scene) -> Scene:
    """The scene seen in a mirror: left and right change names."""
    keypoints = drawn.keypoints[:, FLIPPED_KEYPOINTS].copy()
    keypoints[..., 0] = drawn.image.shape[1] - 1 - keypoints[..., 0]
    return Scene(drawn.image[:, ::-1].copy(), drawn.masks[..., ::-1].copy(), keypoints)


def label_keypoints(
    mask: Bool[np.ndarray, "H W"], keypoints: Float[np.ndarray, "17 3"]
) -> Float[np.ndarray, "17 3"]:
    """The keypoints that a pose network should find.

    A joint behind somebody else or an object stays (v = 1): the body goes on there, and the mask says what
    is visible.  An elbow, wrist, knee or ankle behind the person's own body is dropped (v = 0), as its limb
    would otherwise claim pixels of the part that covers it.  So is a face behind an object: nothing of a
    head goes on around it, and a hidden head must not be found.
    """
    points = keypoints.copy()
    for number in FACE:
        x, y, v = points[number]
        if v == 1 and not _covered(mask, round(float(x)), round(float(y))):
            points[number, 2] = 0
    for number in LIMB_ENDS:
        x, y, v = points[number]
        if v == 1 and _covered(mask, round(float(x)), round(float(y))):
            points[number, 2] = 0
    return points


def _covered(mask: Bool[np.ndarray, "H W"], x: int, y: int) -> bool:
    inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0]
    near = mask[max(y - REACH, 0) : y + REACH + 1, max(x - REACH, 0) : x + REACH + 1]
    return bool(inside and near.mean() > 0.5)
