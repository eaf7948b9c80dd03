"""A trained model for users: pictures of people in, embeddings out, distances between them.

Pictures are files, folders, patterns of file names, images of Pillow or arrays.

The stage `embed` and this module prepare pictures alike: the same batch gives the same features to the bit,
another batch size to the last digits.  Without parsing maps z, the parts that a picture hides, is unknown:

    guess=False    nothing is taken for hidden: one pass
    guess=True     z is predicted from a first pass (a coarse part is hidden if none of its fine parts is
                   visible, Eq. 24), and pictures that hide something are embedded again under that z.
                   Methods without parts keep the first pass

The stage `evaluate` scores both (z_unknown, z_guessed).
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import SupportsInt

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from pipeline.batches.views import Batch, View, resize_image, resize_labels
from pipeline.core import params
from pipeline.core.distributed import parse_device
from pipeline.core.files import sha256
from pipeline.core.params import BadInput, check_count, plural, shorten
from pipeline.core.workers import progress_bar
from pipeline.data import pictures as picture_files
from pipeline.data.index import DECODE_ERRORS, NoRange, decode, error_detail, is_deep, to_rgb
from pipeline.inference.extract import with_z_guessed
from pipeline.labels import occlusion
from pipeline.methods.base import DataSpec, Embedding, Method, load_trained, trained_data_spec
from pipeline.model import distance
from pipeline.model.compute import Compute, float32_matmul, inference_mode, resolve
from pipeline.model.distance import Metric, check_embeddings

# a file, folder or pattern, an image of Pillow, or (height, width, 3) uint8, RGB; of any size
Picture = str | Path | Image.Image | np.ndarray
Pictures = str | Path | Image.Image | Iterable[Picture]
Map = np.ndarray  # (height, width) uint8, of any size: 0 background, 1..K the parts
Fault = tuple[str, str]  # a picture's name, and why it cannot be used
SHOWN_AFTER = 2  # seconds until progress is shown
MOST_LISTED = 100  # faults in a message
REMEDY = "Leave these out, or give others."


@dataclass(frozen=True)
class _Request:
    """What is to be embedded, checked."""

    pictures: list[Picture]  # N, no folders
    cameras: list[int]
    maps: list[Map] | None
    threshold: float | None
    strict: bool
    guess: bool


@dataclass(frozen=True)
class Trained:
    """A trained model on a device, ready to embed pictures."""

    model: Method
    spec: DataSpec
    device: torch.device
    batch: int  # pictures at a time
    compute: Compute  # nothing in it is `auto`
    weights: str  # SHA-256 of their file

    def embed(
        self,
        pictures: Pictures,
        cameras: Iterable[SupportsInt] | None = None,
        maps: Iterable[Map] | None = None,
        threshold: float | None = None,
        guess: bool = False,
        strict: bool = True,
        progress: bool = True,
    ) -> Embedding:
        """Embeddings of N pictures, on the CPU.

        A folder or a pattern stands for the pictures that `find_pictures` lists.  `cameras` are numbered as
        in the index of the training set, from 0; -1 is unknown.  `maps` are parsing maps; a part with fewer
        than `threshold` (lambda) of a map's pixels is hidden, and unless `strict` (`label.strict`) one with
        exactly as many, too.  Without maps, `guess` decides how z is known.  An array is taken as its rows.
        Progress is shown from the third second on.  Raises `BadInput` that lists all pictures, cameras and
        maps that cannot be used.
        """
        request = self._request(pictures, cameras, maps, threshold, guess, strict)
        faults: list[Fault] = []
        embeddings: list[Embedding] = []
        for batch in self._decoded_batches(request, faults, progress):
            if not faults:  # else the rest is only looked at
                embeddings.append(self._embed_batch(request, batch))
        refuse(faults)
        return _concatenate(embeddings)

    def _request(
        self,
        pictures: Pictures,
        cameras: Iterable[SupportsInt] | None,
        maps: Iterable[Map] | None,
        threshold: float | None,
        guess: bool,
        strict: bool,
    ) -> _Request:
        images, _ = find_pictures(pictures)
        camids = [-1] * len(images) if cameras is None else np.asarray(list(cameras)).tolist()
        maps = None if maps is None else list(maps)
        self._check(len(images), camids, maps, threshold)
        return _Request(images, camids, maps, threshold, strict, guess and maps is None)

    def _decoded_batches(
        self, request: _Request, faults: list[Fault], progress: bool
    ) -> Iterator[dict[int, UInt8[np.ndarray, "H W 3"]]]:
        """Pictures at the model's size by their number; those that cannot be used become `faults`."""
        with progress_bar(
            total=len(request.pictures), desc="embed", delay=SHOWN_AFTER, disable=not progress
        ) as bar:
            decoded = _decoded(request.pictures, self.spec.size, faults, bar)
            while batch := dict(islice(decoded, self.batch)):
                yield batch

    def _embed_batch(self, request: _Request, images: dict[int, UInt8[np.ndarray, "H W 3"]]) -> Embedding:
        image = torch.from_numpy(np.stack(list(images.values())))
        maps = None if request.maps is None else [request.maps[number] for number in images]
        parsing, hidden = self._parsing_and_z(maps, request.threshold, request.strict, len(image))
        camid = torch.tensor([request.cameras[number] for number in images], dtype=torch.int64)
        view = View(image.permute(0, 3, 1, 2), parsing, hidden)
        batch = Batch(view, camid, torch.zeros_like(camid)).to(self.device)
        with inference_mode(self.model, self.device, self.compute):
            embedding = self.model.embed(batch)
            return with_z_guessed(self.model, batch, embedding) if request.guess else embedding

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
    model, spec = load_trained(folder).to(target), trained_data_spec(folder)
    return Trained(model, spec, target, batch, compute, sha256(Path(folder) / "model.safetensors"))


def find_pictures(pictures: Pictures) -> tuple[list[Picture], list[str]]:
    """Pictures with all folders and patterns expanded, and what is no picture in these.

    A folder stands for all pictures below it, a pattern (`*`, `?`, `[...]`, `**` for any folders) for all
    that match it, in the order of their names; a picture found again is taken once.  A picture is what Pillow
    reads; other files, hidden files and folders, and links to folders are left out.  Raises `BadInput` if
    there is none in a folder or for a pattern.
    """
    if isinstance(pictures, str | Path | Image.Image):
        pictures = [pictures]
    images: list[Picture] = []
    others: list[str] = []
    named: set[str] = set()
    found: set[str] = set()
    for entry in pictures:
        if not isinstance(entry, str | Path):
            images.append(entry)
            continue
        place = picture_files.expand(str(entry))
        if place is None:
            if (path := os.path.abspath(entry)) not in found:  # a file named twice is two rows
                images.append(entry)
                named.add(path)
            continue
        files, left_out = place
        known = {os.path.abspath(file): file for file in files if picture_files.is_picture(file)}
        if not known:
            raise BadInput(f"{entry}: {_no_picture(entry, [*files, *left_out])}. Name another place.")
        images += [file for path, file in known.items() if path not in named | found]
        others += sorted({*files, *left_out}.difference(known.values()))
        found.update(known)
    return images, list(dict.fromkeys(others))


def _no_picture(place: str | Path, others: list[str]) -> str:
    if others:
        return f"no picture among {plural(len(others), 'file')}"
    return "an empty folder" if Path(place).is_dir() else "no file matches"


def distances(
    query: Embedding, gallery: Embedding, metric: Metric | str = "euclidean"
) -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery picture, by which `evaluate` ranks (Eq. 25); 0 is equal.

    Raises `BadInput` for another metric, other parts or channels, visibilities outside [0, 1], and visible
    features that are not finite or shorter than 1e-12.
    """
    for name, embedding in (("query", query), ("gallery", gallery)):
        check_embeddings(name, embedding.parts, embedding.visibility, embedding.gate)
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


def _decoded(
    pictures: list[Picture], size: tuple[int, int], faults: list[Fault], bar: tqdm
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """The number of each picture and its pixels at a size; what cannot be used becomes a fault instead."""
    for number, picture in enumerate(pictures):
        bar.update()
        try:
            image = resize_image(read_picture(picture), size)
        except DECODE_ERRORS as error:
            name = str(picture) if isinstance(picture, str | Path) else f"picture {number}"
            faults.append((name, fault_reason(error)))
        else:
            yield number, image


def refuse(faults: list[Fault]) -> None:
    """Raise `BadInput` that lists these pictures, if there are any."""
    if faults:
        lines = shorten([f"{name}: cannot be used ({reason})." for name, reason in faults], MOST_LISTED)
        raise BadInput("\n".join([*lines, REMEDY]))


def fault_reason(error: Exception) -> str:
    """Why a picture cannot be used, by one of `DECODE_ERRORS`, without the number and name of a file."""
    system = getattr(error, "strerror", None)
    return system or error_detail(error).removeprefix(" (").removesuffix(")") or "no picture"


def read_picture(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """A picture's pixels, upright.  Raises one of `DECODE_ERRORS` if it cannot be used."""
    try:
        if isinstance(picture, str | Path):
            return decode(Path(picture).read_bytes())
        if isinstance(picture, Image.Image):
            upright = picture if is_deep(picture) else ImageOps.exif_transpose(picture)
            picture = to_rgb(upright)  # of a copy, the user's stays as it is
    except NoRange as error:
        remedy = (
            "save it with 8 bits, or in Python give pipeline.data.index.decode(bytes, (black, white)), by "
            "`index.range` of its training"
        )
        raise ValueError(f"{error}; {remedy}") from None
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.size == 0:
        raise ValueError(f"an array of {picture.dtype} {picture.shape}, not of (h, w, 3) bytes")
    return picture


def _concatenate(embeddings: list[Embedding]) -> Embedding:
    columns = {f.name: [getattr(embedding, f.name) for embedding in embeddings] for f in fields(Embedding)}
    return Embedding(
        **{
            name: None if tensors[0] is None else torch.cat([tensor.float().cpu() for tensor in tensors])
            for name, tensors in columns.items()
        }
    )
