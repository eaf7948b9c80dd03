"""The teacher's probability of the true identity under several masks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks import ROOT
from pipeline.batches.views import Batch, eval_batches, resize_labels, training_rows, training_set
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.methods.base import load_trained
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import HOLISTIC, K
from pipeline.model.vit import patch_labels, patch_share

BATCH = 32


def measure_folder(model_folder: Path, data: Path) -> dict[str, dict[str, float]]:
    """Everything that is printed: the model of a folder on the training images of `train_on`."""
    model = load_trained(model_folder)
    folder = data / params.read(ROOT / "params.yaml", "train_on", str)
    index = read_index(folder / "index.parquet")
    key = index_hash(index)
    parsing, occlusion = (LabelFile(folder / f"{name}.h5", name, key) for name in ("parsing", "occlusion"))
    images = Images(folder / "images.h5", key)
    image_set = training_set(index, images, parsing, occlusion, model.encoder.size)
    truth = LabelFile(folder / "truth.h5", "truth", key)
    maps = truth["contaminating"][:][training_rows(index)] if "contaminating" in truth else None
    return measure(model, eval_batches(image_set, BATCH), maps)


@torch.inference_mode()
def measure(
    model: OGFR, batches: Iterator[Batch], contaminating: Bool[np.ndarray, "N H W"] | None = None
) -> dict[str, dict[str, float]]:
    """Under each mask: the true identity's mean probability, and the share of patches that is kept.

    `contaminating` maps, in the order of the batches, the pixels of other people and of what hides the
    target; with it there are the shares of the patches that these fill by more than half, and of those of the
    target.
    """
    torch.manual_seed(1)  # of the random mask
    maps = None if contaminating is None else iter(contaminating)
    values: dict[str, list[dict[str, Tensor]]] = {}
    for batch in batches:
        h = model.encode(batch.holistic, batch.camid)
        state = correlation(h.patch, h.part)
        kinds = {} if maps is None else _kinds(model, batch, np.stack([next(maps) for _ in batch.pid]))
        for name, mask in masks(model, batch, state).items():
            p = model.heads.score(model.purify(h, mask)[:, 0], HOLISTIC, batch.pid)
            kept = {f"kept_{kind}": mask[where].float() for kind, where in kinds.items()}
            values.setdefault(name, []).append({"probability": p, "kept": mask.float().mean(1), **kept})
    return {name: _means(rows) for name, rows in values.items()}


def _kinds(
    model: OGFR, batch: Batch, contaminating: Bool[np.ndarray, "B H W"]
) -> dict[str, Bool[Tensor, "B N"]]:
    """The patches that show what contaminates, and those that show the target, by more than half."""
    size, patch, stride = batch.holistic.parsing.shape[1:], model.encoder.patch, model.encoder.stride
    maps = np.stack([resize_labels(image.astype(np.uint8), size) for image in contaminating]) > 0
    pixels = {"contaminating": torch.from_numpy(maps), "target": batch.holistic.parsing > 0}
    return {kind: patch_share(where, patch, stride) > 0.5 for kind, where in pixels.items()}


def masks(model: OGFR, batch: Batch, state: Float[Tensor, "B N K1"]) -> dict[str, Bool[Tensor, "B N"]]:
    """The patches that each mask keeps."""
    labels = patch_labels(batch.holistic.parsing, K + 1, model.encoder.patch, model.encoder.stride)
    keep_all = torch.ones(state.shape[:2], dtype=torch.bool)
    return {
        "none": keep_all,
        "random": torch.rand(keep_all.shape) >= model.params.erase_rate,
        "labels": labels[..., 0] < 0.5,
        "agent": model.agent(state) > 0,
        "everything": ~keep_all,
    }


def _means(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: round(float(column.mean()), 4) for name, column in columns.items()}
