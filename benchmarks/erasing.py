"""What a mask can change in a trained OGFR: `uv run python -m benchmarks.erasing` prints one JSON object.

The teacher's probability of the true identity (p^m of Eq. 10), a mean over the training images as they are,
under the agent's mask, the labels', a random one, and the bounds: nothing erased, everything erased.  Their
distance is all that an agent can earn: the class token has read the patches before the first is erased.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.worlds import ROOT
from pipeline.batches.views import Batch, eval_batches, training_set
from pipeline.core import params
from pipeline.core.label_file import LabelFile
from pipeline.data.index import Images, index_hash, read_index
from pipeline.methods.base import load_trained
from pipeline.methods.ogfr import agent
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import HOLISTIC, K
from pipeline.model.vit import patch_labels

IMAGES = 32  # at a time


def main() -> None:
    """Measure the model of the workspace, or the one in the folder given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "trained")
    folder = parser.parse_args().model
    model = load_trained(folder)
    data = ROOT / "data" / params.read(ROOT / "params.yaml", "train_on", str)
    index = read_index(data / "index.parquet")
    key = index_hash(index)
    maps, flags = (LabelFile(data / f"{name}.h5", name, key) for name in ("parsing", "occlusion"))
    images = Images(data / "images.h5", key)
    pictures = training_set(index, images, maps, flags, model.encoder.size)
    print(json.dumps(measure(model, eval_batches(pictures, IMAGES)), indent=1))


@torch.inference_mode()
def measure(model: OGFR, seen: Iterator[Batch]) -> dict[str, dict[str, float]]:
    """Under each mask: the true identity's mean probability, and the share of patches that is kept."""
    torch.manual_seed(1)  # of the random mask
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in seen:
        view = batch.holistic
        h = model.encoder(view.image, view.hidden, batch.camid)
        state = agent.correlation(h.patch, h.part)
        for name, kept in masks(model, batch, state).items():
            p = model.heads.score(model.purify(h, kept)[:, 0], HOLISTIC, batch.pid)
            found.setdefault(name, []).append((p, kept.float().mean(1)))
    return {name: _means(pairs) for name, pairs in found.items()}


def masks(model: OGFR, batch: Batch, state: Float[Tensor, "B N K1"]) -> dict[str, Bool[Tensor, "B N"]]:
    """The patches that each mask keeps."""
    labels = patch_labels(batch.holistic.parsing, K + 1, model.encoder.patch, model.encoder.stride)
    everything = torch.ones(state.shape[:2], dtype=torch.bool)
    return {
        "none": everything,
        "random": torch.rand(everything.shape) >= model.params.erase_rate,
        "labels": labels[..., 0] < 0.5,
        "agent": model.agent(state) > 0,
        "everything": ~everything,
    }


def _means(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    p, kept = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return {"probability": round(float(p.mean()), 4), "kept": round(float(kept.mean()), 4)}


if __name__ == "__main__":
    main()
