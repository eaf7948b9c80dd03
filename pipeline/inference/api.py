"""A trained model for users: pictures of people in, features out, distances between them.

The stage `embed` and this module prepare pictures alike: the same batch gives the same features to the bit,
another batch size to the last digits.  Without parsing maps nobody knows what a picture hides (z); then

    guess=False    nothing is known to be hidden: one pass
    guess=True     the model says what is: its parts are asked after a first pass (Eq. 24: a coarse part is
                   hidden if none of its fine ones is visible), and a picture that hides something is seen
                   again, told so.  Methods without parts stay with the first pass

What either costs is among the scores that the stage `evaluate` prints (z_unknown, z_guessed).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from pipeline import ranking
from pipeline.batches.views import Batch, View, resize_image, resize_labels
from pipeline.core import params
from pipeline.core.distributed import parse_device
from pipeline.core.params import BadInput, check_count, plural
from pipeline.data.index import DECODE_ERRORS, decode, to_rgb
from pipeline.inference.extract import with_z_guessed
from pipeline.labels import occlusion
from pipeline.methods.base import DataSpec, Embedding, Method, load_trained, trained_data_spec
from pipeline.model import compute
from pipeline.model.compute import Compute

# `| Any` in a signature: what is given is checked, and refused in words

# a file, an image of Pillow, or (height, width, 3) uint8, RGB; of any size
Picture = str | Path | Image.Image | np.ndarray
Map = np.ndarray  # (height, width) uint8, of any size: 0 background, 1..K the parts
ALONE = {"pictures": 3, "maps": 2, "cameras": 0}  # dimensions of an array that is one of them


@dataclass(frozen=True)
class Trained:
    """A trained model on a device, ready to embed pictures."""

    model: Method
    world: DataSpec
    device: torch.device
    batch: int  # pictures at a time
    how: Compute  # nothing in it is `auto`

    def embed(
        self,
        pictures: Iterable[Picture] | np.ndarray | Any,
        cameras: Iterable[int] | np.ndarray | Any | None = None,
        maps: Iterable[Map] | np.ndarray | Any | None = None,
        threshold: float | Any | None = None,
        guess: bool = False,
        strict: bool = True,
    ) -> Embedding:
        """How the model sees N pictures, on the CPU.

        `cameras` are numbered as in the index of the training set, from 0; -1 is unknown.  `maps` are parsing
        maps, of any size; a part with fewer than `threshold` (lambda) of a map's pixels is hidden, and unless
        `strict` (`label.strict`) one with just as many, too.  `guess` says what to do without maps.  Each may
        be an array.  Raises `BadInput` that lists all pictures, cameras and maps that cannot be used.
        """
        pictures = _listed("pictures", pictures)
        maps = None if maps is None else _listed("maps", maps)
        cameras = [-1] * len(pictures) if cameras is None else _numbered(cameras)
        self._check(len(pictures), cameras, maps, threshold)
        found = []
        for start in range(0, len(pictures), self.batch):
            some = slice(start, start + self.batch)
            image = torch.from_numpy(_read(pictures[some], start, self.world.size))
            given = None if maps is None else maps[some]
            parsing, hidden = self._labels(given, threshold, strict, len(image))
            camid = torch.tensor(cameras[some], dtype=torch.int64)
            view = View(image.permute(0, 3, 1, 2), parsing, hidden)
            batch = Batch(view, camid, torch.zeros_like(camid)).to(self.device)
            found.append(self._see(batch, guess and maps is None))
        return _join(found)

    def _see(self, batch: Batch, guess: bool) -> Embedding:
        with compute.inference_mode(self.model, self.device, self.how):
            seen = self.model.embed(batch)
            return with_z_guessed(self.model, batch, seen) if guess else seen

    def _labels(
        self, maps: Sequence[Map] | np.ndarray | None, threshold: float | None, strict: bool, count: int
    ) -> tuple[UInt8[Tensor, "N H W"], Bool[Tensor, "N C"]]:
        """Parsing maps of some pictures at the model's size, and their z; all zero without maps."""
        if maps is None:
            parsing = torch.zeros(count, *self.world.size, dtype=torch.uint8)
            return parsing, torch.zeros(count, self.world.coarse, dtype=torch.bool)
        each = (torch.from_numpy(np.ascontiguousarray(m))[None] for m in maps)
        pixels = torch.cat([occlusion.count_pixels(m, self.world.coarse) for m in each])
        resized = np.stack([resize_labels(m, self.world.size) for m in maps])
        return torch.from_numpy(resized), occlusion.hidden_parts(pixels, threshold, strict)

    def _check(self, count: int, cameras: list[Any], maps: Any, threshold: Any) -> None:
        if count == 0:
            raise BadInput("pictures: none given. Give files, or arrays of (height, width, 3) bytes.")
        _check_length("cameras", cameras, count)
        known = self.world.trained_cameras
        strange = [str(camera) for camera in dict.fromkeys(cameras) if camera not in (-1, *known)]
        if strange:
            raise BadInput(
                f"cameras: {', '.join(strange)}, but the model was trained with "
                f"{', '.join(map(str, known)) or 'none'}. Give -1 where the camera is unknown."
            )
        if maps is not None:
            _check_maps(maps, threshold, count)
        elif threshold is not None:
            raise BadInput(
                "threshold: given without maps, whose pixels it counts. Give maps, or leave it out."
            )
        elif self.model.needs_parsing:
            raise BadInput("maps: none given, but this model erases by parsing maps. Give one a picture.")


def load(
    folder: str | Path,
    device: str | torch.device | Any = "cpu",
    batch: int | Any = 64,
    precision: str = "float32",
    matmul: str = "default",
    attention: str = "auto",
) -> Trained:
    """The model that `stages.train` left in a folder, on a device, `batch` pictures at a time.

    It computes as `precision`, `matmul` and `attention` say, which are those of `embed` in params.yaml.
    Raises `BadInput` if the folder holds no model, or if they cannot be.
    """
    given = {"precision": precision, "matmul": matmul, "attention": attention}
    check_count("inference.load: batch", batch, 1)
    where, how = parse_device(device), params.validate(given, Compute, "inference.load: ")
    how, model = compute.resolve(how, where), load_trained(folder)
    return Trained(model.to(where), trained_data_spec(folder), where, batch, how)


def distances(
    query: Embedding, gallery: Embedding, metric: ranking.Metric | Any = "euclidean"
) -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery picture (Eq. 25), as the gallery is ranked by: 0 is alike."""
    return ranking.distances(_embedded(query), _embedded(gallery), metric)


def _embedded(seen: Embedding) -> ranking.Embedded:
    nobody = np.zeros(len(seen.parts), np.int64)
    return ranking.Embedded(seen.parts, seen.visibility, nobody, nobody, seen.gate)


def _listed(name: str, given: Any) -> list[Any] | np.ndarray:
    """What can be counted and sliced; raises `BadInput` for one picture, camera or map that comes alone."""
    many = isinstance(given, Iterable) and not isinstance(given, str | bytes | Path)
    if not many or (isinstance(given, np.ndarray) and given.ndim in (0, ALONE[name])):
        raise BadInput(f"{name}: one alone ({_kind(given)}). Give a list, of one if need be.")
    return given if isinstance(given, np.ndarray) else list(given)


def _numbered(given: Any) -> list[Any]:
    """Cameras as plain numbers, whatever these are; raises `BadInput` that lists those that are none."""
    cameras = [c.item() if np.ndim(c) == 0 and hasattr(c, "item") else c for c in _listed("cameras", given)]
    strange = [f"number {n} is a {_kind(c)}" for n, c in enumerate(cameras) if not isinstance(c, Real)]
    if strange:
        raise BadInput(f"cameras: {', '.join(strange)}. Give whole numbers, -1 where the camera is unknown.")
    return cameras


def _check_length(name: str, given: list[Any] | np.ndarray, count: int) -> None:
    if len(given) != count:
        raise BadInput(f"{name}: {len(given)} for {plural(count, 'picture')}. Give one for each.")


def _check_maps(maps: list[Any] | np.ndarray, threshold: Any, count: int) -> None:
    _check_length("maps", maps, count)
    faulty = [n for n, m in enumerate(maps) if not _is_map(m)]
    if faulty:
        raise BadInput(f"maps: number {faulty} not (height, width) of bytes. Give label maps as cached.")
    _check_threshold(threshold)


def _check_threshold(given: Any) -> None:
    if given is None:
        raise BadInput("threshold: none given. With maps, say lambda: params.yaml has it (5).")
    if not isinstance(given, Real) or not 0 <= given < np.inf:
        told = given if isinstance(given, Real) else f"a {_kind(given)}"
        raise BadInput(f"threshold: {told}. Give a number of pixels, 0 or more, such as 5.")


def _is_map(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 2 and given.size > 0


def _read(
    pictures: Sequence[Any] | np.ndarray, first: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decoded pictures at the model's size; raises `BadInput` that lists all that are none."""
    images, faults = [], []
    for number, picture in enumerate(pictures, first):
        try:
            images.append(resize_image(_decoded(picture), size))
        except DECODE_ERRORS as error:
            name = picture if isinstance(picture, str | Path) else f"picture {number}"
            faults.append(
                f"{name}: cannot be used ({error}). Give a file, an image of Pillow or (h, w, 3) bytes."
            )
    if faults:
        raise BadInput("\n".join(faults))
    return np.stack(images)


def _decoded(picture: Any) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(picture, str | Path):
        return decode(Path(picture).read_bytes())
    if isinstance(picture, Image.Image):
        picture = to_rgb(ImageOps.exif_transpose(picture))  # of a copy, the user's stays as it is
    if not isinstance(picture, np.ndarray):
        raise TypeError(_kind(picture))
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.size == 0:
        raise ValueError(f"an array of {picture.dtype} {picture.shape}")
    return picture


def _kind(given: Any) -> str:
    kind = type(given)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _join(found: list[Embedding]) -> Embedding:
    columns = {f.name: [getattr(seen, f.name) for seen in found] for f in fields(Embedding)}
    return Embedding(
        **{n: None if c[0] is None else torch.cat([t.float().cpu() for t in c]) for n, c in columns.items()}
    )
