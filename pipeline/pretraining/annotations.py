"""Rendered pictures with the masks and keypoints of all persons: the training data of both detectors.

Unusual here: rendering a picture takes half as long as learning from it.  So each is rendered once, kept in
`.scratch/` under the hash of the renderer's code, shared by both trainings, and flipped every other time.
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

# COCO's keypoints in the mirror
FLIPPED_KEYPOINTS = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
FACE = (0, 1, 2, 3, 4)  # nose, eyes, ears
LIMB_ENDS = (7, 8, 9, 10, 13, 14, 15, 16)  # elbows, wrists, knees, ankles
REACH = 2  # pixels around a hidden joint that decide whether the person's own body covers it


class Scene(NamedTuple):
    """A picture and its P persons, the target first."""

    image: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "P H W"]  # visible pixels
    keypoints: Float[np.ndarray, "P 17 3"]  # x, y in pixels and v: 0 unlabelled, 1 hidden, 2 visible


def annotated_scene(seed: int, i: int, pool: int) -> Scene:
    """Scene `i` of an endless list that repeats `pool` pictures, flipped in every other round."""
    path = Path(".scratch") / f"pictures-{renderer_hash()}" / f"{seed}-{i % pool}.npz"
    if not path.is_file():
        _save_scene(path, training_picture(seed, i % pool))
    with np.load(path) as arrays:
        image = np.asarray(Image.open(BytesIO(arrays["jpeg"].tobytes())).convert("RGB"))
        masks = np.unpackbits(arrays["masks"]).reshape(-1, *image.shape[:2]).astype(bool)
        scene = Scene(image, masks, arrays["keypoints"])
    return flip_scene(scene) if i // pool % 2 else scene


@lru_cache
def renderer_hash() -> str:
    """First digits of the hash of the renderer's code."""
    files = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _save_scene(path: Path, picture: Picture) -> None:
    persons = [(picture.person, picture.keypoints), *picture.others]
    masks = np.stack([mask > 0 for mask, _ in persons])
    keypoints = np.stack([label_keypoints(mask > 0, points) for mask, points in persons])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, jpeg=np.frombuffer(picture.jpeg, np.uint8), masks=np.packbits(masks), keypoints=keypoints
        )


def flip_scene(scene: Scene) -> Scene:
    """The scene in the mirror: left and right keypoints are swapped."""
    keypoints = scene.keypoints[:, FLIPPED_KEYPOINTS].copy()
    keypoints[..., 0] = scene.image.shape[1] - 1 - keypoints[..., 0]
    return Scene(scene.image[:, ::-1].copy(), scene.masks[..., ::-1].copy(), keypoints)


def label_keypoints(
    mask: Bool[np.ndarray, "H W"], keypoints: Float[np.ndarray, "17 3"]
) -> Float[np.ndarray, "17 3"]:
    """The keypoints that a pose network should learn, from a person's visible pixels and true keypoints.

    A joint behind another person or an object stays (v = 1): the mask says what is visible.  An elbow, wrist,
    knee or ankle behind the person's own body is dropped (v = 0), as its limb would take pixels of the part
    that covers it.  Face keypoints behind an object are dropped, too, as a hidden head must not be detected.
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
