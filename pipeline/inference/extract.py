"""What the test images look like to the trained model, to its encoder before training, and to a colour
histogram, the two that it must beat; and to the model as it is where nobody has parsing maps:

    z_unknown    it is told that nothing is hidden
    z_guessed    it is told the z that it guesses itself from how it sees the same images under z_unknown
"""

from collections.abc import Iterable
from dataclasses import dataclass as plain_dataclass
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
from pipeline.model.backbones import pretrained_encoder
from pipeline.model.compute import Attention, Matmul, Precision
from pipeline.model.vit import OcclusionAwareViT, class_tokens, plain_vit


@dataclass(frozen=True, config=STRICT)
class Embed:
    """How the test images are embedded."""

    batch: PositiveInt  # images at a time
    cameras: Literal["auto", "same", "unknown"]  # what the model is told of them; see `told`
    without_maps: bool  # embed a second and third time: z unknown, z guessed
    precision: Precision
    matmul: Matmul
    attention: Attention


def rows_to_embed(index: pd.DataFrame) -> Int[np.ndarray, "n"]:
    """Rows of the queries, then of the gallery.  Raises `BadInput` if there are none of either."""
    lacking = {"query", "gallery"} - set(index["split"])
    if lacking:
        raise BadInput(
            f"index: no {' and no '.join(sorted(lacking))} images. Let `test_on` name datasets with both."
        )
    return np.flatnonzero(index["split"] != "train")


@plain_dataclass(frozen=True)
class CameraIds:
    """What the model is told of the cameras, which the ranking need not follow."""

    camid: Int[np.ndarray, "N"]  # of every image of the index, as the model counts cameras; -1 unknown
    why: str


def model_cameras(index: pd.DataFrame, made: dict[str, Any], index_sha256: str, cameras: str) -> CameraIds:
    """The cameras that a model with the record `made` is told, by `embed.cameras`.

    A camera's number means something to a model only if it was trained with that camera: every other one is
    unknown to it, as one that only people held out of the training passed.  `auto`: the cameras it was
    trained with, if this is the dataset it was trained on; `same`: this dataset's cameras are those of the
    training set, number by number (sets cut from one another, as the Duke family); `unknown`: none.  Raises
    `BadInput` if `same` cannot be true.
    """
    own, known = index["camid"].to_numpy(np.int64), made["data_spec"]["trained_cameras"]
    nothing = np.full(len(own), -1)
    trained = np.where(np.isin(own, known), own, -1)
    if cameras == "unknown":
        return CameraIds(nothing, "unknown: embed.cameras")
    if cameras == "same":
        if own.max(initial=-1) > max(known, default=-1):
            raise BadInput(
                f"params.yaml: embed.cameras = same, but the test set has a camera {own.max()} and the model "
                f"was trained with {', '.join(map(str, known)) or 'none'}. Choose auto or unknown."
            )
        return CameraIds(trained, "the test set's: embed.cameras")
    if index_sha256 not in made["data"].values():
        return CameraIds(nothing, "unknown: trained on another dataset")
    return CameraIds(trained, "those of the training images")


def encoder_features(folder: str | Path, embedded: str) -> OcclusionAwareViT:
    """The encoder that a trained model started from, for images of that model's size."""
    made = read_record(folder)
    height, width = made["data_spec"]["size"]
    start = pretrained_encoder(made["params"]["vit"], made["params"]["weights"], embedded)
    return plain_vit(start, (height, width))


@torch.inference_mode()
def extract_features(
    model: Method,
    encoder: OcclusionAwareViT,
    batches: Iterable[Batch],
    count: int,
    device: torch.device,
    without_maps: bool,
) -> dict[str, np.ndarray]:
    """Parts and visibility of `count` images as the trained model sees them, and as its encoder did before.

    The encoder's only part is its final class token.  `without_maps` adds the model's systems that have no
    parsing map.
    """
    model, encoder = model.to(device).eval(), encoder.to(device).eval()
    found: dict[str, list[np.ndarray]] = {}
    with progress_bar(total=count, desc="embed") as bar:
        for batch in batches:
            batch = batch.to(device)
            token = class_tokens(encoder, batch.holistic.image)[:, None]
            seen = {
                "model": model.embed(batch),
                "encoder": Embedding(token, torch.ones(token.shape[:2], device=device)),
            }
            if without_maps:
                seen["z_unknown"] = with_z_unknown(model, batch, seen["model"])
                seen["z_guessed"] = with_z_guessed(model, batch, seen["z_unknown"])
            for system, embedding in seen.items():
                for name, array in _arrays(system, embedding).items():
                    found.setdefault(name, []).append(array)
            bar.update(len(batch.pid))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def with_z_unknown(model: Method, batch: Batch, seen: Embedding) -> Embedding:
    """The batch as the model sees it with nothing known to be hidden; `seen` is how it sees it as it is."""
    return _told(model, batch, torch.zeros_like(batch.holistic.hidden), seen)


def with_z_guessed(model: Method, batch: Batch, seen: Embedding) -> Embedding:
    """The batch under the z that the model guesses from `seen`, the batch with nothing known to be hidden.

    A method without parts guesses none: `seen` it stays.
    """
    nothing = torch.zeros_like(batch.holistic.hidden)
    guess = model.predict_occlusion(seen)
    if guess is None:
        return seen
    return _told(model, replace(batch, holistic=replace(batch.holistic, hidden=nothing)), guess, seen)


def _told(model: Method, batch: Batch, hidden: Bool[Tensor, "B C"], seen: Embedding) -> Embedding:
    """The batch under another z; images whose z stays are as they were `seen`, not computed again."""
    view = batch.holistic
    rows = (hidden != view.hidden).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return seen
    moved = View(view.image[rows], view.parsing[rows], hidden[rows])
    again = model.embed(Batch(moved, batch.camid[rows], batch.pid[rows]))
    pairs = {f.name: (getattr(seen, f.name), getattr(again, f.name)) for f in fields(Embedding)}
    return Embedding(
        **{name: old if old is None else old.index_copy(0, rows, new) for name, (old, new) in pairs.items()}
    )


def _arrays(system: str, embedding: Embedding) -> dict[str, np.ndarray]:
    named = {"part": embedding.parts, "visibility": embedding.visibility, "gate": embedding.gate}
    return {f"{system}/{name}": _plain(tensor) for name, tensor in named.items() if tensor is not None}


def _plain(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
