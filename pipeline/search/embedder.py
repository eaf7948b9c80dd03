"""Pictures, and what a gallery holds of them: the same for its rows and for what is searched."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.batches.views import resize_image
from pipeline.core.label_file import Arrays
from pipeline.core.params import BadInput, shorten
from pipeline.core.workers import num_cores
from pipeline.data.index import DECODE_ERRORS, Crop
from pipeline.inference.api import Fault, Map, Trained, fault_reason, read_picture
from pipeline.methods.base import Embedding
from pipeline.search.gallery import Gallery
from pipeline.search.maps import MapMaker

PARSED = 16  # pictures at a time with maps, whose full size is in memory
Decoded = tuple[list[str], list[Crop], list[Fault]]  # names and pixels of pictures, and those without pixels


@dataclass(frozen=True)
class Embedder:
    """A trained model, and the parsers if maps are made.

    Without maps, z is guessed (`Trained.embed`).  Raises `BadInput` for a model that cannot do without.
    """

    model: Trained
    maps: MapMaker | None = None

    def __post_init__(self) -> None:
        if self.model.model.needs_parsing and self.maps is None:
            raise BadInput("maps: none, but this model erases by parsing maps. Have them made: --maps.")

    @property
    def attrs(self) -> dict[str, Any]:
        """What the embeddings depend on, but for last digits."""
        z = {"z": "guessed"} if self.maps is None else {"z": "maps", "parsers": self.maps.attrs}
        return {"model": self.model.weights, "precision": self.model.compute.precision, **z}

    def check(self, gallery: Gallery) -> None:
        """Raises `BadInput` that says what differs unless a gallery is embedded as this embeds."""
        if gallery.model != self.model.weights:
            raise BadInput(
                f"{gallery.path}: made by another model ({gallery.model[:8]}, from {gallery.model_folder}), "
                f"not by this one ({self.model.weights[:8]}). Name that model, or index into another file."
            )
        stored = {name: gallery.attrs.get(name) for name in ("z", "precision", "parsers")}
        now = {name: self.attrs.get(name) for name in stored}
        if changes := _changes(_flat(stored), _flat(json.loads(json.dumps(now)))):
            raise BadInput(
                f"{gallery.path}: embedded otherwise: {'; '.join(shorten(changes))}. Embed as it was, or "
                "index into another file."
            )

    def decode(self, names: Sequence[str], root: Path) -> Iterator[Decoded]:
        """The pictures of these names, some at a time, read ahead by threads."""
        size = self.model.batch if self.maps is None else PARSED
        with ThreadPoolExecutor(num_cores()) as pool:
            chunks = (names[start : start + size] for start in range(0, len(names), size))
            ahead: deque[tuple[Sequence[str], list[Future]]] = deque()
            for chunk in [*chunks, []]:
                ahead.append((chunk, [pool.submit(self._read, root / name) for name in chunk]))
                if len(ahead) > 1:
                    yield _sorted_out(*ahead.popleft())

    def _read(self, path: Path) -> Crop:
        image = read_picture(path)  # parsers want it in full
        return image if self.maps else resize_image(image, self.model.spec.size)

    def embed(self, images: list[Crop]) -> tuple[Embedding, list[Map] | None]:
        """The embeddings of images, and their maps."""
        if self.maps is None:
            return self.model.embed(images, guess=True, progress=False), None
        maps, rule = self.maps(images), self.maps.settings
        embedding = self.model.embed(
            images, maps=maps, threshold=rule.threshold, strict=rule.strict, progress=False
        )
        return embedding, maps

    def arrays(self, images: list[Crop]) -> Arrays:
        """The datasets of a gallery file, a row an image."""
        embedding, maps = self.embed(images)
        tensors = {"part": embedding.parts, "visibility": embedding.visibility, "gate": embedding.gate}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
        return arrays if maps is None else arrays | {"map": np.stack(maps)}


def _sorted_out(names: Sequence[str], futures: list[Future]) -> Decoded:
    good, images, faults = [], [], []
    for name, future in zip(names, futures, strict=True):
        try:
            images.append(future.result())
        except DECODE_ERRORS as error:
            faults.append((name, fault_reason(error)))
        else:
            good.append(name)
    return good, images, faults


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their paths, such as `parsers.parse.threshold`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys(), reverse=True)  # z first
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]
