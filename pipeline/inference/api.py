"""A trained model for users: pictures of people in, embeddings out, distances between them.

The stage `embed` and this module prepare pictures alike: the same batch gives the same features to the bit,
another batch size to the last digits.  Without parsing maps z, the parts that a picture hides, is unknown:

    guess=False    nothing is taken for hidden: one pass
    guess=True     z is predicted from a first pass (a coarse part is hidden if none of its fine parts is
                   visible, Eq. 24), and pictures that hide something are embedded again under that z.
                   Methods without parts keep the first pass

The stage `evaluate` scores both (z_unknown, z_guessed).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import SupportsInt

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.batches.views import Batch, View, resize_image, resize_labels
from pipeline.core import params
from pipeline.core.distributed import parse_device
from pipeline.core.params import BadInput, check_count, plural
from pipeline.data.index import DECODE_ERRORS, decode, to_rgb
from pipeline.inference.extract import with_z_guessed
from pipeline.labels import occlusion
from pipeline.methods.base import DataSpec, Embedding, Method, load_trained, trained_data_spec
from pipeline.model import distance
from pipeline.model.compute import Compute, float32_matmul, inference_mode, resolve
from pipeline.model.distance import Metric, check_embeddings

# a file, an image of Pillow, or (height, width, 3) uint8, RGB; of any size
Picture = str | Path | Image.Image | np.ndarray
Map = np.ndarray  # (height, width) uint8, of any size: 0 background, 1..K the parts


@dataclass(frozen=True)
class Trained:
    """A trained model on a device, ready to embed pictures."""

    model: Method
    spec: DataSpec
    device: torch.device
    batch: int  # pictures at a time
    compute: Compute  # nothing in it is `auto`

    def embed(
        self,
        pictures: Iterable[Picture],
        cameras: Iterable[SupportsInt] | None = None,
        maps: Iterable[Map] | None = None,
        threshold: float | None = None,
        guess: bool = False,
        strict: bool = True,
    ) -> Embedding:
        """Embeddings of N pictures, on the CPU.

        `cameras` are numbered as in the index of the training set, from 0; -1 is unknown.  `maps` are parsing
        maps; a part with fewer than `threshold` (lambda) of a map's pixels is hidden, and unless `strict`
        (`label.strict`) one with exactly as many, too.  Without maps, `guess` decides how z is known.  An
        array is taken as its rows.  Raises `BadInput` that lists all pictures, cameras and maps that cannot
        be used.
        """
        pictures = list(pictures)
        cameras = [-1] * len(pictures) if cameras is None else np.asarray(list(cameras)).tolist()
        maps = None if maps is None else list(maps)
        self._check(len(pictures), cameras, maps, threshold)
        embeddings = []
        for start in range(0, len(pictures), self.batch):
            rows = slice(start, start + self.batch)
            image = torch.from_numpy(_read_pictures(pictures[rows], start, self.spec.size))
            batch_maps = None if maps is None else maps[rows]
            parsing, hidden = self._parsing_and_z(batch_maps, threshold, strict, len(image))
            camid = torch.tensor(cameras[rows], dtype=torch.int64)
            view = View(image.permute(0, 3, 1, 2), parsing, hidden)
            batch = Batch(view, camid, torch.zeros_like(camid)).to(self.device)
            embeddings.append(self._embed_batch(batch, guess and maps is None))
        return _concatenate(embeddings)

    def _embed_batch(self, batch: Batch, guess: bool) -> Embedding:
        with inference_mode(self.model, self.device, self.compute):
            embedding = self.model.embed(batch)
            return with_z_guessed(self.model, batch, embedding) if guess else embedding

    def _parsing_and_z(
        self, maps: list[Map] | None, threshold: float | None, strict: bool, count: int
    ) -> tuple[UInt8[Tensor, "N H W"], Bool[Tensor, "N C"]]:
        """Parsing maps at the model's size, and z; all zero without maps."""
        if maps is None:
            parsing = torch.zeros(count, *self.spec.size, dtype=torch.uint8)
            return parsing, torch.zeros(count, self.spec.coarse, dtype=torch.bool)
        tensors = (torch.from_numpy(np.ascontiguousarray(m))[None] for m in maps)
        pixels = torch.cat([occlusion.count_pixels(m, self.spec.coarse) for m in tensors])
        resized = np.stack([resize_labels(m, self.spec.size) for m in maps])
        return torch.from_numpy(resized), occlusion.hidden_parts(pixels, threshold, strict)

    def _check(self, count: int, cameras: list, maps: list[Map] | None, threshold: float | None) -> None:
        if count == 0:
            raise BadInput("pictures: none given. Give files, or arrays of (height, width, 3) bytes.")
        _check_length("cameras", cameras, count)
        trained = self.spec.trained_cameras
        unknown = [str(camera) for camera in dict.fromkeys(cameras) if camera not in (-1, *trained)]
        if unknown:
            raise BadInput(
                f"cameras: {', '.join(unknown)}, but the model was trained with "
                f"{', '.join(map(str, trained)) or 'none'}. Give -1 where the camera is unknown."
            )
        if maps is not None:
            _check_maps(maps, threshold, count)
        elif threshold is not None:
            raise BadInput(
                "threshold: given without maps, whose pixels it counts. Give maps, or leave it out."
            )
        elif self.model.needs_parsing:
            raise BadInput("maps: none given, but this model erases by parsing maps. Give one per picture.")


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    batch: int = 64,
    precision: str = "float32",
    matmul: str = "default",
    attention: str = "auto",
) -> Trained:
    """The model that `stages.train` wrote to a folder, on a device; it embeds `batch` pictures at a time.

    `precision`, `matmul` and `attention` are those of `embed` in params.yaml.  Raises `BadInput` if the
    folder holds no model, and for values that are not among the choices.
    """
    check_count("inference.load: batch", batch, 1)
    target = parse_device(device)
    choices = {"precision": precision, "matmul": matmul, "attention": attention}
    compute = resolve(params.validate(choices, Compute, "inference.load: "), target)
    return Trained(load_trained(folder).to(target), trained_data_spec(folder), target, batch, compute)


def distances(
    query: Embedding, gallery: Embedding, metric: Metric | str = "euclidean"
) -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery picture, by which `evaluate` ranks (Eq. 25); 0 is equal.

    Raises `BadInput` for another metric, other parts or channels, and features that are not finite.
    """
    for name, embedding in (("query", query), ("gallery", gallery)):
        check_embeddings(name, embedding.parts, embedding.visibility)
    with float32_matmul("default"):
        return distance.distances(
            query.parts, gallery.parts, query.visibility, gallery.visibility, metric, query.gate
        )


# ------------------------------------------------------------------ pictures and maps


def _check_length(name: str, values: list, count: int) -> None:
    if len(values) != count:
        raise BadInput(f"{name}: {len(values)} for {plural(count, 'picture')}. Give one for each.")


def _check_maps(maps: list[Map], threshold: float | None, count: int) -> None:
    _check_length("maps", maps, count)
    faulty = [n for n, m in enumerate(maps) if m.dtype != np.uint8 or m.ndim != 2 or m.size == 0]
    if faulty:
        raise BadInput(f"maps: number {faulty} not (height, width) of bytes. Give label maps as cached.")
    if threshold is None:
        raise BadInput("threshold: none given. With maps, say lambda: params.yaml has it (5).")
    if not 0 <= threshold < np.inf:
        raise BadInput(f"threshold: {threshold}. Give a number of pixels, 0 or more, such as 5.")


def _read_pictures(
    pictures: list[Picture], first: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decoded pictures at the model's size; raises `BadInput` that lists all that cannot be used.

    `first` is the number of the first picture.
    """
    images, faults = [], []
    for number, picture in enumerate(pictures, first):
        try:
            images.append(resize_image(_decode(picture), size))
        except DECODE_ERRORS as error:
            name = picture if isinstance(picture, str | Path) else f"picture {number}"
            faults.append(
                f"{name}: cannot be used ({error}). Give a file, an image of Pillow or (h, w, 3) bytes."
            )
    if faults:
        raise BadInput("\n".join(faults))
    return np.stack(images)


def _decode(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(picture, str | Path):
        return decode(Path(picture).read_bytes())
    if isinstance(picture, Image.Image):
        picture = to_rgb(ImageOps.exif_transpose(picture))  # of a copy, the user's stays as it is
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.size == 0:
        raise ValueError(f"an array of {picture.dtype} {picture.shape}")
    return picture


def _concatenate(embeddings: list[Embedding]) -> Embedding:
    columns = {f.name: [getattr(embedding, f.name) for embedding in embeddings] for f in fields(Embedding)}
    return Embedding(
        **{
            name: None if tensors[0] is None else torch.cat([tensor.float().cpu() for tensor in tensors])
            for name, tensors in columns.items()
        }
    )
