"""Rendered images with their truth: a sample of the embedded dataset, or people whom no network has seen."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.core.label_file import write_label_file
from pipeline.synthetic.pictures import training_picture

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TRUTH = ("map", "person", "keypoints", "visible", "whole", "occluder")
HELD_OUT = 770_077  # a seed that no dataset and no pre-training uses

Sample = tuple[str, bytes, dict[str, np.ndarray]]  # key, file, truth


def read_samples(archive: Path, count: int) -> list[Sample]:
    """`count` images of an archive of the embedded dataset, evenly spaced over it."""
    with zipfile.ZipFile(archive) as files, h5py.File(io.BytesIO(files.read("truth.h5"))) as truth:
        keys = [key.decode() for key in truth["key"][...]]
        arrays = {name: truth[name] for name in TRUTH}
        return [
            (key, files.read(market_path(key)), {name: arrays[name][i] for name in TRUTH})
            for i, key in evenly_spaced(list(enumerate(keys)), count)
        ]


def evenly_spaced(items: list[Any], count: int) -> list[Any]:
    """`count` evenly spaced items, or all if they are fewer; so every split keeps its share."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def held_out_samples(count: int) -> list[Sample]:
    """`count` images of people whom no network has seen; the occluded ones are queries.

    Identities play no role here: all test images bear one, so that stage `index` finds matches.
    """
    samples = []
    for i in range(count):
        picture = training_picture(HELD_OUT, i)
        split = "train" if i == 0 else "query" if picture.occluder else "gallery"
        name = {"train": "0002_c1", "query": "0001_c1", "gallery": "0001_c2"}[split]
        truth = {name: np.asarray(getattr(picture, name)) for name in TRUTH[:-1]}
        truth["occluder"] = np.uint8(picture.occluder)
        samples.append((f"{split}/{name}s1_{i:06d}_01.jpg", picture.jpeg, truth))
    return samples


def pack_samples(path: Path, samples: list[Sample]) -> None:
    """Write the archive that stage `index` reads."""
    arrays = {name: np.stack([truth[name] for _, _, truth in samples]) for name in TRUTH}
    arrays["key"] = np.array([key.encode() for key, _, _ in samples])
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w") as files:
        for key, data, _ in samples:
            files.writestr(market_path(key), data)
        write_label_file(Path(folder) / "truth.h5", "truth", arrays, {"index": ""})
        files.write(Path(folder) / "truth.h5", "truth.h5")


def unpack_samples(folder: Path, samples: list[Sample]) -> None:
    """Write the images as loose files."""
    for key, data, _ in samples:
        path = folder / market_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def market_path(key: str) -> str:
    """The path of an image in Market-1501's layout."""
    split, name = key.split("/", 1)
    return f"{FOLDERS[split]}/{name}"
