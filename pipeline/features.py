"""What the test images look like to three systems: the trained model, its encoder before training, and a
colour histogram, the two that it must beat.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int, UInt8
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from timm.models import VisionTransformer
from torch import Tensor

from pipeline import vit
from pipeline.arithmetic import Precision, Products
from pipeline.batches import Batch
from pipeline.datasets import Images
from pipeline.method import Embedding, Method
from pipeline.params import STRICT
from pipeline.store import progress

SIZE = (128, 64)  # height, width that histograms are counted on
STRIPES = 16
BINS = (8, 4, 4)  # hue, a circle of 180 levels; saturation and value
SPREAD = 0.15  # of the width: standard deviation of a pixel's weight around the middle column


@dataclass(frozen=True, config=STRICT)
class Embed:
    """How the test images are embedded."""

    batch: PositiveInt  # images at a time
    precision: Precision
    products: Products


def test_rows(index: pd.DataFrame) -> Int[np.ndarray, "n"]:
    """Rows of the queries, then of the gallery."""
    return np.flatnonzero(index["split"] != "train")


def before_training(folder: str | Path, embedded: str) -> tuple[VisionTransformer, tuple[int, int]]:
    """The encoder that a trained model started from, and the images' height and width it expects."""
    made = json.loads((Path(folder) / "record.json").read_text())
    height, width = made["world"]["size"]
    return vit.start(made["params"]["vit"], made["params"]["weights"], embedded), (height, width)


@torch.inference_mode()
def learned(
    model: Method,
    encoder: VisionTransformer,
    batches: Iterable[Batch],
    count: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> dict[str, np.ndarray]:
    """Parts and visibility of `count` images as the trained model sees them, and as its encoder did before.

    The encoder's only part is its final class token.
    """
    model, encoder = model.to(device).eval(), encoder.to(device).eval()
    found: dict[str, list[np.ndarray]] = {}
    with progress(total=count, desc="embed") as bar:
        for batch in batches:
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, precision == torch.bfloat16):
                token = vit.class_tokens(encoder, batch.holistic.image)[:, None]
                seen = model.embed(batch)
            plain = Embedding(token, torch.ones(token.shape[:2], device=device))
            for name, array in {**_arrays("model", seen), **_arrays("encoder", plain)}.items():
                found.setdefault(name, []).append(array)
            bar.update(len(batch.pid))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def _arrays(system: str, embedding: Embedding) -> dict[str, np.ndarray]:
    named = {"part": embedding.parts, "visibility": embedding.visibility, "gate": embedding.gate}
    return {f"{system}/{name}": _plain(tensor) for name, tensor in named.items() if tensor is not None}


def _plain(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# ------------------------------------------------------------------ the colour histogram


def histograms(images: Images, rows: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
    """One always visible part of each image: its colour histogram."""
    parts = [histogram(images[int(row)]) for row in progress(iterable=rows, desc="histogram")]
    return {
        "histogram/part": np.stack(parts)[:, None],
        "histogram/visibility": np.ones((len(parts), 1), np.float32),
    }


def histogram(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "D"]:
    """Square roots of the colour shares in horizontal stripes; their Euclidean distance is Hellinger's.

    Colours are balanced first (the mean of an image is taken to be gray), since cameras differ; a pixel
    counts for the bins around it in proportion, and less towards the sides, where the background is.
    """
    small = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(_balanced(small), cv2.COLOR_RGB2HSV).reshape(STRIPES, -1, 3)
    hue, saturation, value = (table[hsv[..., i]] for i, table in enumerate(TABLES))
    weighted = (hue * ACROSS[..., None]).swapaxes(1, 2)
    counts = weighted @ (saturation[..., :, None] * value[..., None, :]).reshape(*hsv.shape[:2], -1)
    return np.sqrt(counts / counts.sum((1, 2), keepdims=True) / STRIPES).ravel()


def _balanced(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    means = image.mean((0, 1))
    return (image * (means.mean() / np.maximum(means, 1))).clip(0, 255).astype(np.uint8)


def _table(top: int, bins: int, circle: bool) -> Float32[np.ndarray, "256 bins"]:
    """How a level counts for each bin: wholly at the bin's middle, less and less towards its neighbours'."""
    place = np.arange(256)[:, None] * (bins if circle else bins - 1) / top
    apart = np.abs(place - np.arange(bins))
    apart = np.minimum(apart, bins - apart) if circle else apart
    return (1 - apart).clip(0).astype(np.float32)


def _across() -> Float32[np.ndarray, "stripes pixels"]:
    offset = (np.arange(SIZE[1]) - (SIZE[1] - 1) / 2) / SIZE[1]
    weight = np.exp(-((offset / SPREAD) ** 2) / 2).astype(np.float32)
    return np.broadcast_to(weight, SIZE).reshape(STRIPES, -1)


ACROSS = _across()
TABLES = (_table(180, BINS[0], True), _table(255, BINS[1], False), _table(255, BINS[2], False))
