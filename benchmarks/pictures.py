"""Pictures with their truth, packed as the embedded dataset is: some of it, or people of another seed."""

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

Picture = tuple[str, bytes, dict[str, np.ndarray]]  # key, file, truth


def some(archive: Path, count: int) -> list[Picture]:
    """`count` pictures of an archive of the embedded dataset, evenly spread over it."""
    with zipfile.ZipFile(archive) as files, h5py.File(io.BytesIO(files.read("truth.h5"))) as truth:
        keys = [key.decode() for key in truth["key"][...]]
        arrays = {name: truth[name] for name in TRUTH}
        return [
            (key, files.read(_name(key)), {name: arrays[name][i] for name in TRUTH})
            for i, key in spread(list(enumerate(keys)), count)
        ]


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` of the items, or all if they are fewer, evenly spread; so every split keeps its share."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def held_out(count: int) -> list[Picture]:
    """`count` pictures of people whom no network has seen; those behind something are queries."""
    pictures = []
    for i in range(count):
        made = training_picture(HELD_OUT, i)
        split = "train" if i == 0 else "query" if made.occluder else "gallery"
        truth = {name: np.asarray(getattr(made, name)) for name in TRUTH[:-1]}
        truth["occluder"] = np.uint8(made.occluder)
        pictures.append((f"{split}/{i + 1:04d}_c{i % 4 + 1}s1_{i:06d}_01.jpg", made.jpeg, truth))
    return pictures


def pack(path: Path, pictures: list[Picture]) -> None:
    """Write the archive that stage `index` reads."""
    arrays = {name: np.stack([truth[name] for _, _, truth in pictures]) for name in TRUTH}
    arrays["key"] = np.array([key.encode() for key, _, _ in pictures])
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w") as files:
        for key, data, _ in pictures:
            files.writestr(_name(key), data)
        write_label_file(Path(folder) / "truth.h5", "truth", arrays, {"index": ""})
        files.write(Path(folder) / "truth.h5", "truth.h5")


def unpack(folder: Path, pictures: list[Picture]) -> None:
    """Write the pictures as loose files."""
    for key, data, _ in pictures:
        path = folder / _name(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _name(key: str) -> str:
    split, name = key.split("/", 1)
    return f"{FOLDERS[split]}/{name}"
