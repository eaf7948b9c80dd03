"""What a method is: how it learns (a generator of objectives) and how it sees (an embedding).

Loop, data and ranking know methods by this interface alone.  A method is a module under
`pipeline/methods/`, found by its name, with

    Params    frozen dataclass, its section of params.yaml (of the same name); `preset` and `vit` among them
    PRESETS   the one table of what its presets set: name -> (recommended, paper, reason)
    build(params, world, vit) -> Method
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.batches.views import Batch, ImageSet
from pipeline.core import params, weights
from pipeline.core.params import BadInput
from pipeline.model.backbones import untrained_vit

ParamsT = TypeVar("Settings")
Preset = Literal["recommended", "paper"]
Presets = dict[str, tuple[Any, Any, str]]


@dataclass(frozen=True)
class DataSpec:
    """What a method is built for: the sizes that its data dictate."""

    size: tuple[int, int]  # height, width of images in pixels
    identities: int
    cameras: int  # numbered from 0
    coarse: int  # C, parts of the occlusion type
    trained_cameras: tuple[int, ...]  # those that a training image is from: nothing was learnt of the others


@dataclass(frozen=True)
class Objective:
    """One optimiser step: a weighted sum of named loss terms, and who takes it."""

    group: str
    terms: dict[str, Tensor]  # raw, before their weights
    weights: dict[str, float] = field(default_factory=dict)  # 1 where not named
    metrics: dict[str, Tensor] = field(default_factory=dict)  # figures for the log

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        return sum(self.weights.get(name, 1.0) * term for name, term in self.terms.items())


@dataclass(frozen=True)
class Embedding:
    """How a method sees N images: P features each of D channels, and how far each may be trusted.

    The distance of two images is the mean distance of their parts, weighted by the product of visibilities
    (Eq. 25 of OGFR); a gate, where there is one, multiplies the gallery's features.
    """

    parts: Float[Tensor, "N P D"]
    visibility: Float[Tensor, "N P"]  # in [0, 1]
    gate: Float[Tensor, "N P D"] | None = None


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that an objective moves; what is none is the schedule's."""

    parameters: list[nn.Parameter]
    optimiser: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    decay: float | None = None


class Method(nn.Module):
    """A way to learn and to see.  Its weights file is the whole of it: memories and baselines are buffers."""

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Yield objectives; the loop steps after each, so the next one sees the weights it left."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Embedding:
        """Features of the images as they are (`batch.holistic`)."""
        raise NotImplementedError

    def predict_occlusion(self, seen: Embedding) -> Bool[Tensor, "N C"] | None:
        """z of images without a parsing map, from how they are seen when nothing is known to be hidden.

        None, as here, if the method has no parts to tell it by: nothing is known then.
        """
        return None

    @property
    def needs_parsing(self) -> bool:
        """Whether `embed` looks at the parsing maps themselves, beside z: it then cannot do without."""
        return False

    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Called before each epoch; `batches()` gives the training images as they are."""

    def param_groups(self) -> dict[str, ParamGroup]:
        """Parameters by the objective that optimises them; by default one group, `reid`, holds all."""
        return {"reid": ParamGroup([p for p in self.parameters() if p.requires_grad])}


# ------------------------------------------------------------------ found by name


def load_method(name: str) -> ModuleType:
    """The module of a method.  Raises `BadInput` that lists the methods there are."""
    folder = Path(__file__).parent
    known = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    if name not in known:
        raise BadInput(f"params.yaml: method = {name}: no such method. Choose one of {', '.join(known)}.")
    return importlib.import_module(f"pipeline.methods.{name}")


def resolve(given: ParamsT, presets: Presets, preset: Preset, section: str) -> ParamsT:
    """`given` with every null replaced by the preset's value; nested parameters have dotted names."""
    column = ("recommended", "paper").index(preset)
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(given)):
        value, row = getattr(given, name), f"{section}.{name}"
        if is_dataclass(value):
            values[name] = resolve(value, presets, preset, row)
        elif value is None:
            values[name] = presets[row][column]
    return replace(given, **values)


def load_trained(folder: str | Path) -> Method:
    """The method that `stages.train` left in a folder, in evaluation mode.

    Raises `BadInput` if the folder holds no model, or weights of another architecture.
    """
    made, file = read_record(folder), Path(folder) / "model.safetensors"
    module = load_method(made["method"])
    settings = params.validate(made["params"], module.Params, f"{folder}/record.json: ", made["method"])
    model = module.build(settings, trained_data_spec(folder), untrained_vit(made["vit"]))
    weights.load_strict(model, weights.read(file), file, "Run `dvc checkout`, or train again.")
    return model.eval()


def trained_data_spec(folder: str | Path) -> DataSpec:
    """What the model in a folder was built for.

    Raises `BadInput` if there is none, or if its record does not say.
    """
    sizes = {n: tuple(v) if isinstance(v, list) else v for n, v in read_record(folder)["world"].items()}
    missing = [f.name for f in fields(DataSpec) if f.name not in sizes]
    if missing:
        raise BadInput(f"{folder}/record.json: its world has no {', '.join(missing)}. Train again.")
    return DataSpec(**sizes)


def read_record(folder: str | Path) -> dict[str, Any]:
    """How the trained model in a folder came about.  Raises `BadInput` if there is none, or it is damaged."""
    made, file = Path(folder) / "record.json", Path(folder) / "model.safetensors"
    if not (made.is_file() and file.is_file()):
        raise BadInput(f"{folder}: no trained model. Run `dvc repro train`, or `dvc pull` to fetch it.")
    try:
        return json.loads(made.read_text())
    except ValueError as error:
        raise BadInput(f"{made}: damaged ({error}). Run `dvc checkout`, or train again.") from None


def data_spec(pictures: ImageSet) -> DataSpec:
    """The sizes of a training set."""
    return DataSpec(
        size=pictures.image.shape[1:3],
        identities=int(pictures.pid.max()) + 1,
        cameras=max(int(pictures.camid.max()) + 1, 1),
        coarse=pictures.hidden.shape[1],
        trained_cameras=tuple(np.unique(pictures.camid[pictures.camid >= 0]).tolist()),
    )


def describe(name: str, settings: Any, world: DataSpec, architecture: dict[str, Any]) -> dict[str, Any]:
    """What `load_trained` needs beside the weights, as plain values."""
    return {"method": name, "params": asdict(settings), "world": asdict(world), "vit": architecture}
