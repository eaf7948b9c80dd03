"""The teacher's probability of the true identity under several masks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks import ROOT
from pipeline.batches.views import Batch, eval_batches, training_set
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.methods.base import load_trained
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import HOLISTIC, K
from pipeline.model.vit import patch_labels

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
    return measure(model, eval_batches(image_set, BATCH))


@torch.inference_mode()
def measure(model: OGFR, batches: Iterator[Batch]) -> dict[str, dict[str, float]]:
    """Under each mask: the true identity's mean probability, and the share of patches that is kept."""
    torch.manual_seed(1)  # of the random mask
    values: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in batches:
        view = batch.holistic
        h = model.encode(view, batch.camid)
        state = correlation(h.patch, h.part)
        for name, mask in masks(model, batch, state).items():
            p = model.heads.score(model.purify(h, mask)[:, 0], HOLISTIC, batch.pid)
            values.setdefault(name, []).append((p, mask.float().mean(1)))
    return {name: _means(pairs) for name, pairs in values.items()}


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


def _means(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    p, kept = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return {"probability": round(float(p.mean()), 4), "kept": round(float(kept.mean()), 4)}
