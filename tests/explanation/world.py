"""A test set as the stages leave it: three people, each a query by one camera and two images by another."""

import numpy as np
import pandas as pd

from pipeline.core.label_file import write_label_file, write_packed
from pipeline.data.index import COLUMNS, encode_png, index_hash
from tests import toy

PIDS = (1, 2, 3)
SYSTEMS = ("model", "encoder", "histogram")


def write(folder):
    """index, images, parsing maps, labels, features and the table of queries, which know every query's AP."""
    names = [f"query/{pid}.png" for pid in PIDS]
    names += [f"gallery/{pid}_{n}.png" for pid in PIDS[:2] for n in (0, 1)]  # nobody else shows person 3
    pids = [*PIDS, 1, 1, 2, 2]
    pictures = toy.people(identities=7, each=1)
    index = pd.DataFrame(
        {
            "row": np.arange(7),
            "key": names,
            "pid": pids,
            "camid": [0] * 3 + [1] * 4,
            "split": [name.split("/")[0] for name in names],
            "width": toy.SIZE[1],
            "height": toy.SIZE[0],
            "sha256": [f"{n}" for n in range(7)],
        }
    )[list(COLUMNS)]
    folder.mkdir(parents=True, exist_ok=True)
    index.to_parquet(folder / "index.parquet", index=False)
    key = {"index": index_hash(index)}
    blobs = [encode_png(image) for image in pictures.image]
    write_packed(folder / "images.h5", "images", blobs, np.array([len(blob) for blob in blobs]), key)
    write_label_file(folder / "parsing.h5", "parsing", {"map": pictures.parsing}, key)
    hidden = np.zeros((7, 4), np.uint8)
    hidden[[0, 3], 3] = 1  # the legs of the first query, and of the first image of its person
    labels = {"occluded": hidden, "pixels": np.where(hidden, 0, 99).astype(np.int32)}
    write_label_file(folder / "occlusion.h5", "occlusion", labels, key | {"parts": []})
    write_features(folder / "features.h5", index)
    queries = index.iloc[:3][["row", "key", "pid", "camid"]].assign(
        hidden=["legs", "none", "none"], occluded=[True, False, False], matches=[2, 2, 0],
        model_ap=[0.5, 1.0, np.nan], encoder_ap=[0.25, 0.25, np.nan],
    )  # fmt: skip
    queries.to_parquet(folder / "queries.parquet", index=False)
    return index


def write_features(path, index, swapped=()):
    """Each person is a direction; the encoder and the histogram take everybody for the same person.

    The people `swapped` have each other's direction in the gallery.
    """
    arrays = {"row": index["row"].to_numpy(np.int32)}
    people = index["pid"].to_numpy().copy()
    for pid, other in zip(swapped, reversed(swapped), strict=True):
        people[(index["pid"] == pid) & (index["split"] == "gallery")] = other
    for system in SYSTEMS:
        angle = 0.5 * people if system == "model" else np.zeros(len(index))
        arrays[f"{system}/part"] = np.stack([np.cos(angle), np.sin(angle)], 1)[:, None].astype(np.float32)
        arrays[f"{system}/visibility"] = np.ones((len(index), 1), np.float32)
    attrs = {"index": index_hash(index), "systems": list(SYSTEMS)}
    write_label_file(path, "features", arrays, attrs)
