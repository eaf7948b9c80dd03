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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipeline import arithmetic, batches, datasets, features, method, occlusion, params, ranking
from pipeline.arithmetic import Computing
from pipeline.batches import Batch, View
from pipeline.method import Embedding, Method, World
from pipeline.params import BadInput

Picture = str | Path | np.ndarray  # a file, or (height, width, 3) uint8, RGB, of any size
Map = np.ndarray  # (height, width) uint8, of any size: 0 background, 1..K the parts
ALONE = {"pictures": 3, "maps": 2}  # dimensions of an array that is one of them


@dataclass(frozen=True)
class Trained:
    """A trained model on a device, ready to embed pictures."""

    model: Method
    world: World
    device: torch.device
    batch: int  # pictures at a time
    how: Computing  # nothing in it is `auto`

    def embed(
        self,
        pictures: Iterable[Picture] | np.ndarray,
        cameras: Iterable[int] | np.ndarray | None = None,
        maps: Iterable[Map] | np.ndarray | None = None,
        threshold: float | None = None,
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
        cameras = [-1] * len(pictures) if cameras is None else list(cameras)
        self._check(pictures, cameras, maps, threshold)
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
        with arithmetic.computing(self.model, self.device, self.how):
            seen = self.model.embed(batch)
            return features.guessed(self.model, batch, seen) if guess else seen

    def _labels(
        self, maps: Sequence[Map] | np.ndarray | None, threshold: float | None, strict: bool, count: int
    ) -> tuple[UInt8[Tensor, "N H W"], Bool[Tensor, "N C"]]:
        """Parsing maps of some pictures at the model's size, and their z; all zero without maps."""
        if maps is None:
            parsing = torch.zeros(count, *self.world.size, dtype=torch.uint8)
            return parsing, torch.zeros(count, self.world.coarse, dtype=torch.bool)
        each = (torch.from_numpy(np.ascontiguousarray(m))[None] for m in maps)
        pixels = torch.cat([occlusion.pixels(m, self.world.coarse) for m in each])
        resized = np.stack([batches.resize_labels(m, self.world.size) for m in maps])
        return torch.from_numpy(resized), occlusion.hidden(pixels, threshold, strict)

    def _check(self, pictures, cameras, maps, threshold) -> None:
        if len(pictures) == 0:
            raise BadInput("pictures: none given. Give files, or arrays of (height, width, 3) bytes.")
        for name, given in (("cameras", cameras), ("maps", maps)):
            if given is not None and len(given) != len(pictures):
                raise BadInput(f"{name}: {len(given)} for {len(pictures)} pictures. Give one for each.")
        known = self.world.trained_cameras
        strange = [str(camera) for camera in dict.fromkeys(cameras) if camera not in (-1, *known)]
        if strange:
            raise BadInput(
                f"cameras: {', '.join(strange)}, but the model was trained with "
                f"{', '.join(map(str, known)) or 'none'}. Give -1 where the camera is unknown."
            )
        labels = () if maps is None else maps
        faulty = [n for n, m in enumerate(labels) if not _is_map(m)]
        if faulty:
            raise BadInput(f"maps: number {faulty} not (height, width) of bytes. Give label maps as cached.")
        if maps is not None and threshold is None:
            raise BadInput("threshold: none given. With maps, say lambda: params.yaml has it (5).")
        if maps is None and self.model.reads_maps:
            raise BadInput("maps: none given, but this model erases by parsing maps. Give one a picture.")


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    batch: int = 64,
    precision: str = "float32",
    products: str = "auto",
    attention: str = "auto",
) -> Trained:
    """The model that `stages.train` left in a folder, on a device, `batch` pictures at a time.

    It computes as `precision`, `products` and `attention` say, which are those of `embed` in params.yaml.
    Raises `BadInput` if the folder holds no model, or if they cannot be.
    """
    given = {"precision": precision, "products": products, "attention": attention}
    device, how = torch.device(device), params.validate(given, Computing, "inference.load: ")
    how, model = arithmetic.settled(how, device), method.load_trained(folder)
    return Trained(model.to(device), method.trained_world(folder), device, batch, how)


def distances(
    query: Embedding, gallery: Embedding, metric: ranking.Metric = "euclidean"
) -> Float[Tensor, "Q G"]:
    """Distance of every query to every gallery picture (Eq. 25), as the gallery is ranked by: 0 is alike."""
    return ranking.distances(_embedded(query), _embedded(gallery), metric)


def _embedded(seen: Embedding) -> ranking.Embedded:
    nobody = np.zeros(len(seen.parts), np.int64)
    return ranking.Embedded(seen.parts, seen.visibility, nobody, nobody, seen.gate)


def _listed(name: str, given: Iterable[Any] | np.ndarray) -> list[Any] | np.ndarray:
    """What can be counted and sliced; raises `BadInput` for a picture or a map that comes alone."""
    if isinstance(given, str | Path) or (isinstance(given, np.ndarray) and given.ndim == ALONE[name]):
        raise BadInput(f"{name}: one alone. Give a list, of one if need be.")
    return given if isinstance(given, np.ndarray) else list(given)


def _is_map(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 2 and given.size > 0


def _read(
    pictures: Sequence[Picture] | np.ndarray, first: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "N H W 3"]:
    """Decoded pictures at the model's size; raises `BadInput` that lists all that are none."""
    images, faults = [], []
    for number, picture in enumerate(pictures, first):
        try:
            images.append(batches.resize_colours(_decoded(picture), size))
        except datasets.UNDECODABLE as error:
            name = f"picture {number}" if isinstance(picture, np.ndarray) else picture
            faults.append(f"{name}: cannot be used ({error}). Give a picture file or (h, w, 3) bytes.")
    if faults:
        raise BadInput("\n".join(faults))
    return np.stack(images)


def _decoded(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(picture, np.ndarray):
        return datasets.decode(Path(picture).read_bytes())
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.size == 0:
        raise ValueError(f"an array of {picture.dtype} {picture.shape}")
    return picture


def _join(found: list[Embedding]) -> Embedding:
    columns = {f.name: [getattr(seen, f.name) for seen in found] for f in fields(Embedding)}
    return Embedding(
        **{n: None if c[0] is None else torch.cat([t.float().cpu() for t in c]) for n, c in columns.items()}
    )
