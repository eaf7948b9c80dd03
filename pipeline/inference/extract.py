"""Embeddings of the test images by every system that `evaluate` compares.

    model        the trained model
    z_unknown    the trained model without parsing maps: nothing is taken for hidden
    z_guessed    the trained model without parsing maps: z is predicted from the embedding under z_unknown
    encoder      the model's encoder before training, a baseline

The other baseline is the colour histogram (`histogram`).
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.batches.views import Batch, View
from pipeline.core.params import STRICT, BadInput
from pipeline.core.workers import progress_bar
from pipeline.methods.base import Embedding, Method, read_record
from pipeline.model.backbones import architecture, pretrained_encoder
from pipeline.model.compute import Attention, Matmul, Precision
from pipeline.model.vit import OcclusionAwareViT, class_tokens, plain_vit


@dataclass(frozen=True, config=STRICT)
class Embed:
    """How the test images are embedded."""

    batch: PositiveInt  # images at a time
    cameras: Literal["auto", "same", "unknown"]  # which cameras the model is given; see `model_cameras`
    without_maps: bool  # embed a second and third time: z unknown, z guessed
    precision: Precision
    matmul: Matmul
    attention: Attention


def rows_to_embed(index: pd.DataFrame) -> Int[np.ndarray, "n"]:
    """Rows of the queries, then of the gallery.  Raises `BadInput` if there are none of either."""
    missing = {"query", "gallery"} - set(index["split"])
    if missing:
        raise BadInput(
            f"index: no {' and no '.join(sorted(missing))} images. Let `test_on` name datasets with both."
        )
    return np.flatnonzero(index["split"] != "train")


# ------------------------------------------------------------------ cameras


@dataclasses.dataclass(frozen=True)
class CameraIds:
    """The cameras that the model is given; the ranking uses those of the index."""

    camid: Int[np.ndarray, "N"]  # of every image of the index, as the model numbers cameras; -1 unknown
    reason: str


def model_cameras(index: pd.DataFrame, record: dict[str, Any], index_sha256: str, cameras: str) -> CameraIds:
    """The cameras of the index by `embed.cameras`, for a model with that record.

    A camera's number means something to a model only if it was trained with that camera: every other camera
    is unknown, also one that only held-out identities passed.  `auto`: the cameras of the training if this is
    the dataset that the model was trained on, else none; `same`: this dataset's cameras are those of the
    training set, number by number (sets cut from one another, as the Duke family); `unknown`: none.
    Raises `BadInput` if `same` cannot be true.
    """
    camid, trained = index["camid"].to_numpy(np.int64), record["data_spec"]["trained_cameras"]
    none = np.full(len(camid), -1)
    known = np.where(np.isin(camid, trained), camid, -1)
    if cameras == "unknown":
        return CameraIds(none, "unknown: embed.cameras")
    if cameras == "same":
        if camid.max(initial=-1) > max(trained, default=-1):
            raise BadInput(
                f"params.yaml: embed.cameras = same, but the test set has a camera {camid.max()} and the "
                f"model was trained with {', '.join(map(str, trained)) or 'none'}. Choose auto or unknown."
            )
        return CameraIds(known, "the test set's: embed.cameras")
    if index_sha256 not in record["data"].values():
        return CameraIds(none, "unknown: trained on another dataset")
    return CameraIds(known, "those of the training images")


# ------------------------------------------------------------------ embeddings


def untrained_encoder(folder: str | Path, embedded: str) -> OcclusionAwareViT:
    """The encoder that the trained model in a folder started from, for images of that model's size.

    `embedded` is the file of the embedded ViT's weights.  Raises `BadInput` if the weights are not those of
    which the record has the hash.
    """
    record = read_record(folder)
    height, width = record["data_spec"]["size"]
    vit, weights, colours = (record["params"][name] for name in ("vit", "weights", "colours"))
    encoder = pretrained_encoder(vit, weights, embedded, (height, width), colours)
    start, actual = record["vit"], architecture(encoder)
    if start.get("weights", actual["weights"]) != actual["weights"]:
        raise BadInput(
            f"{folder}/record.json: training started from {start['name']} with weights of the hash "
            f"{start['weights'][:8]}, not {actual['weights'][:8]} as here. Restore the file, or train again."
        )
    return plain_vit(encoder, (height, width))


@torch.inference_mode()
def extract_features(
    model: Method,
    encoder: OcclusionAwareViT,
    batches: Iterable[Batch],
    count: int,
    queries: int,
    device: torch.device,
    without_maps: bool,
) -> dict[str, np.ndarray]:
    """Parts (n, P, D) and visibility (n, P) of `count` images by system, as float32, and gates.

    The first `queries` images have a gate, if the method gives one: a gallery's is never read.
    The encoder's only part is its final class token.  `without_maps` adds the systems without parsing maps.
    """
    model, encoder = model.to(device).eval(), encoder.to(device).eval()
    arrays: dict[str, list[np.ndarray]] = {}
    with progress_bar(total=count, desc="embed") as bar:
        for batch in batches:
            batch = batch.to(device)
            token = class_tokens(encoder, batch.holistic.image)[:, None]
            embeddings = {
                "model": model.embed(batch),
                "encoder": Embedding(token, torch.ones(token.shape[:2], device=device)),
            }
            if without_maps:
                embeddings["z_unknown"] = with_z_unknown(model, batch, embeddings["model"])
                embeddings["z_guessed"] = with_z_guessed(model, batch, embeddings["z_unknown"])
            for system, embedding in embeddings.items():
                for name, array in _arrays(system, embedding, queries).items():
                    arrays.setdefault(name, []).append(array)
            queries = max(queries - len(batch.pid), 0)
            bar.update(len(batch.pid))
    return {name: np.concatenate(parts) for name, parts in arrays.items()}


def with_z_unknown(model: Method, batch: Batch, embedding: Embedding) -> Embedding:
    """The batch embedded with nothing taken for hidden; `embedding` is that of the batch as it is."""
    return _embed_with_z(model, batch, torch.zeros_like(batch.holistic.hidden), embedding)


def with_z_guessed(model: Method, batch: Batch, embedding: Embedding) -> Embedding:
    """The batch under the z predicted from `embedding`, that of the batch with nothing taken for hidden.

    A method that predicts none keeps `embedding`.
    """
    guess = model.predict_occlusion(embedding)
    if guess is None:
        return embedding
    nothing = replace(batch.holistic, hidden=torch.zeros_like(batch.holistic.hidden))
    return _embed_with_z(model, replace(batch, holistic=nothing), guess, embedding)


def _embed_with_z(
    model: Method, batch: Batch, hidden: Bool[Tensor, "B C"], embedding: Embedding
) -> Embedding:
    """The batch under another z; images whose z stays keep their rows of `embedding`."""
    view = batch.holistic
    rows = (hidden != view.hidden).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return embedding
    changed = View(view.image[rows], view.parsing[rows], hidden[rows])
    again = model.embed(Batch(changed, batch.camid[rows], batch.pid[rows]))
    pairs = {f.name: (getattr(embedding, f.name), getattr(again, f.name)) for f in fields(Embedding)}
    return Embedding(
        **{name: old if old is None else old.index_copy(0, rows, new) for name, (old, new) in pairs.items()}
    )


def _arrays(system: str, embedding: Embedding, queries: int) -> dict[str, np.ndarray]:
    # the first `queries` images are queries
    gate = None if embedding.gate is None else embedding.gate[:queries]
    tensors = {"part": embedding.parts, "visibility": embedding.visibility, "gate": gate}
    return {f"{system}/{n}": t.float().cpu().numpy() for n, t in tensors.items() if t is not None}
