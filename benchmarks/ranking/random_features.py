"""Random features with the sizes of real test sets."""

import dataclasses
from pathlib import Path

import numpy as np

PARTS, CHANNELS = 9, 768  # part 0 is global
CAMERA, NOISE = 0.5, 4.5  # weights beside an identity's own feature


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a real test set."""

    queries: int
    gallery: int
    identities: int
    distractors: int  # gallery images that match no query
    cameras: int
    visible: tuple[float, float]  # share of the body parts visible in queries, in gallery images


SIZES = {
    "tiny": Size(60, 400, 20, 50, 3, (0.5, 0.9)),
    "market": Size(3368, 19732, 750, 6617, 6, (0.88, 0.88)),
    "occluded_duke": Size(2210, 17661, 519, 9126, 8, (0.48, 0.85)),
    "msmt17": Size(11659, 82161, 3060, 0, 15, (0.85, 0.86)),
}


def write_features(folder: Path, size: Size) -> None:
    """Write features of length 1, visibilities, identities and cameras of queries and gallery."""
    rng = np.random.default_rng(0)
    identities = rng.standard_normal((size.identities + 1, PARTS, CHANNELS), np.float32)
    cameras = rng.standard_normal((size.cameras, PARTS, CHANNELS), np.float32)
    for side, count in (("query", size.queries), ("gallery", size.gallery)):
        pid = 1 + np.arange(count) % size.identities
        if side == "gallery":
            pid[: size.distractors] = 0
        pid, camid = rng.permutation(pid), rng.integers(0, size.cameras, count)
        visible = rng.random((count, PARTS)) < size.visible[side == "gallery"]
        visible[:, 0] = True
        shape = (count, PARTS, CHANNELS)
        parts = np.lib.format.open_memmap(folder / f"{side}_parts.npy", "w+", np.float32, shape)
        for i in range(count):
            known = pid[i] > 0
            identity = identities[pid[i]] if known else rng.standard_normal((PARTS, CHANNELS), np.float32)
            feature = identity + CAMERA * cameras[camid[i]]
            feature += NOISE * rng.standard_normal((PARTS, CHANNELS), np.float32)
            parts[i] = feature / np.linalg.norm(feature, axis=1, keepdims=True)
        parts.flush()
        for name, values in (("visible", visible), ("pid", pid), ("camid", camid)):
            np.save(folder / f"{side}_{name}.npy", values)
