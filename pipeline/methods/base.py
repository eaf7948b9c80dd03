"""The interface of a method: how it learns (a generator of objectives) and how it embeds images.

The loop, the data and the ranking know methods by this interface alone.  A method is a folder of
`pipeline/methods/`, found by its name, whose `__init__.py` has

    Params    frozen dataclass, its section of params.yaml (of the same name); `preset` and `vit` among them
    PRESETS   the one table of what its presets set: name -> (recommended, paper, reason)
    build(params, spec, vit) -> Method
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, cast

import numpy as np
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, ImageSet
from pipeline.core import params, weights
from pipeline.core.params import BadInput
from pipeline.model.backbones import untrained_vit
from pipeline.model.vit import CameraOn, OcclusionAwareViT


@dataclass(frozen=True)
class DataSpec:
    """Sizes that the training set dictates: what a method is built for."""

    size: tuple[int, int]  # height, width of images in pixels
    identities: int
    cameras: int  # numbered from 0
    coarse: int  # C, coarse parts of the occlusion type z
    trained_cameras: tuple[int, ...]  # those with training images; the others' embeddings are untrained


def encoder_without_parts(
    vit: VisionTransformer, spec: DataSpec, stride: int, gamma_camera: float, camera_on: CameraOn = "all"
) -> OcclusionAwareViT:
    """An encoder for a training set, without part tokens and occlusion patterns."""
    return OcclusionAwareViT(
        vit, spec.size, stride, parts=0, coarse=spec.coarse, cameras=spec.cameras, gamma_pattern=0.0,
        gamma_camera=gamma_camera, trained=spec.trained_cameras, camera_on=camera_on,
    )  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """One optimiser step: a weighted sum of named loss terms, and the param group that it moves."""

    group: str
    terms: dict[str, Tensor]  # raw, before their weights
    weights: dict[str, float] = field(default_factory=dict)  # 1 where not named
    metrics: dict[str, Tensor] = field(default_factory=dict)  # for the log

    @property
    def loss(self) -> Tensor:
        """The weighted sum of the terms, which is minimised."""
        return cast(Tensor, sum(self.weights.get(name, 1.0) * term for name, term in self.terms.items()))


@dataclass(frozen=True)
class Embedding:
    """N images as P features of D channels each, and how visible each part is.

    The distance of two images is the mean distance of their parts, weighted by the product of visibilities
    (Eq. 25 of OGFR); a gate, where there is one, multiplies the gallery's features.
    """

    parts: Float[Tensor, "N P D"]
    visibility: Float[Tensor, "N P"]  # in [0, 1]; a global feature is always 1
    gate: Float[Tensor, "N P D"] | None = None


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that one objective optimises.  `None`: use the value in `train`."""

    parameters: list[nn.Parameter]
    optimiser: Literal["sgd", "adam", "adamw"] | None = None
    lr: float | None = None
    decay: float | None = None
    schedule: Literal["cosine", "constant"] | None = None  # of the rate over time; None: cosine
    # some of `parameters` whose rate is a multiple of `lr`, and the multiples
    scaled: list[tuple[list[nn.Parameter], float]] = field(default_factory=list)


class Method(nn.Module):
    """A trainable model.  Its state dict holds all of its state: memories and baselines are buffers."""

    # names of the tensors that belong to one training set's people and cameras: new where another model's
    # weights are taken over (`train.start_from`)
    TRAINING_SET: ClassVar[tuple[str, ...]] = ()
    # beginnings of the names of tensors that only training needs: the file of a trained model lacks them
    LEAVES_OUT: ClassVar[tuple[str, ...]] = ()

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Yield objectives; the loop takes a step after each, so the next one sees the new weights."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Embedding:
        """Features of the images as they are (`batch.holistic`)."""
        raise NotImplementedError

    def predict_occlusion(self, embedding: Embedding) -> Bool[Tensor, "N C"] | None:
        """z of images without a parsing map, from their embedding with nothing marked as hidden.

        None, as here, if the method has no part features to predict it from.
        """
        return None

    @property
    def needs_parsing(self) -> bool:
        """Whether `embed` reads the parsing maps themselves, beside z, and so cannot do without them."""
        return False

    @property
    def gated(self) -> bool:
        """Whether `embed` gives a gate, so that nearest neighbours are not mutual and cannot be re-ranked."""
        return False

    def check_text(self, file: str) -> None:
        """Raise `BadInput` for what `read_text` would refuse, as far as the params and local files say.

        Called before any stage, on a method without weights (device `meta`).
        """

    def read_text(self, file: str) -> str:
        """Called once before training, on the method as `build` left it; `file` has our embedded text tower.

        A method that learns from texts reads it, or one of its own params' choice, and returns the path of
        the file that it read, for the record; "", as here, if none.
        """
        return ""

    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Called before each epoch; `batches()` yields the training images without augmentation."""

    def left_out(self) -> dict[str, Tensor]:
        """The tensors that only training needs, by name."""
        return {name: t for name, t in self.state_dict().items() if name.startswith(self.LEAVES_OUT)}

    def param_groups(self) -> dict[str, ParamGroup]:
        """Parameters by the objective that optimises them; by default one group, `reid`, holds all."""
        return {"reid": ParamGroup([p for p in self.parameters() if p.requires_grad])}


# ------------------------------------------------------------------ methods by name, and trained models

DESCRIPTION = {"method": str, "params": dict, "data_spec": dict, "vit": dict}  # of `describe`, in record.json


def load_method(name: str) -> ModuleType:
    """The module of a method.  Raises `BadInput` that lists the methods there are."""
    folder = Path(__file__).parent
    known = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    if name not in known:
        raise BadInput(f"params.yaml: method = {name}: no such method. Choose one of {', '.join(known)}.")
    return importlib.import_module(f"pipeline.methods.{name}")


def load_trained(folder: str | Path) -> Method:
    """The method that `stages.train` wrote to a folder, in evaluation mode.

    What only training needs (`Method.LEAVES_OUT`) is as new, unless the file has it.
    Raises `BadInput` if the folder holds no model, or weights of another architecture.
    """
    record, file = read_record(folder), Path(folder) / "model.safetensors"
    module = load_method(record["method"])
    try:
        settings = params.validate(
            record["params"], module.Params, f"{folder}/record.json: ", record["method"]
        )
    except BadInput as error:
        raise BadInput(
            f"{error}\nAnother version of this project trained the model. Train again, or mend `params` in "
            "record.json: add what is missing, take out what is unknown, change what is refused."
        ) from None
    model = module.build(settings, trained_data_spec(folder), untrained_vit(record["vit"]))
    tensors = model.left_out() | read_weights(folder)
    weights.load_strict(model, tensors, file, "Run `dvc checkout`, or train again.")
    return model.eval()


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of the trained model in a folder.  Raises `BadInput` if its record is of others."""
    file, expected = Path(folder) / "model.safetensors", read_record(folder).get("sha256")
    if expected and (actual := weights.fingerprint(file)) != expected:
        raise BadInput(
            f"{file}: not the model of record.json beside it (its sha256 begins {actual[:8]}, the record "
            f"says {expected[:8]}). Run `dvc checkout`, or train again."
        )
    return weights.read(file)


def trained_data_spec(folder: str | Path) -> DataSpec:
    """The sizes that the model in a folder was built for.

    Raises `BadInput` if there is no model, or if its record lacks them.
    """
    values = read_record(folder)["data_spec"]
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    missing = [field.name for field in fields(DataSpec) if field.name not in sizes]
    if missing:
        raise BadInput(f"{folder}/record.json: its data_spec has no {', '.join(missing)}. Train again.")
    return DataSpec(**sizes)


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of the trained model in a folder.

    Raises `BadInput` if there is none, or if it is damaged or lacks what `describe` gives.
    """
    path, model = Path(folder) / "record.json", Path(folder) / "model.safetensors"
    if not (path.is_file() and model.is_file()):
        raise BadInput(
            f"{folder}: no trained model. Run `dvc repro train`, or `dvc pull` to fetch it, or name another "
            "folder with model.safetensors and record.json."
        )
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: damaged ({error}). Run `dvc checkout`, or train again.") from None
    values = record if isinstance(record, dict) else {}
    if faults := [name for name, kind in DESCRIPTION.items() if not isinstance(values.get(name), kind)]:
        raise BadInput(f"{path}: has no {', '.join(faults)}. Name a folder that `train` wrote.")
    return values


def data_spec(images: ImageSet) -> DataSpec:
    """The sizes of a training set."""
    return DataSpec(
        size=images.image.shape[1:3],
        identities=int(images.pid.max()) + 1,
        cameras=max(int(images.camid.max()) + 1, 1),
        coarse=images.hidden.shape[1],
        trained_cameras=tuple(np.unique(images.camid[images.camid >= 0]).tolist()),
    )


def describe(name: str, settings: Any, spec: DataSpec, architecture: dict[str, Any]) -> dict[str, Any]:
    """What `load_trained` needs beside the weights, as plain values."""
    return {"method": name, "params": asdict(settings), "data_spec": asdict(spec), "vit": architecture}
