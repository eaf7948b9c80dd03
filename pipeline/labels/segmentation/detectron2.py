"""Backend `detectron2`: a Mask R-CNN of its model zoo, by its own config, builder and checkpointer.

Unusual here:
- Names and shapes of tensors are checked first, as detectron2 merely logs what a checkpoint lacks.
- A pickle must be the published file and may hold arrays alone, as detectron2 loads any pickle.
"""

import pickle
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.core import distributed, weights
from pipeline.core.files import DeferredErrorFile, disk_full_as_error
from pipeline.core.params import BadInput
from pipeline.labels.segmentation import Backend, Detections, Segment

PERSON = 0  # class number of a person in COCO, as detectron2 counts
INSTALL = (
    "segment.backend: detectron2 is not installed ({}). Install it beside this project as its authors say "
    "(github.com/facebookresearch/detectron2, INSTALL.md: build from source, with --no-build-isolation, "
    "setuptools<82 and matplotlib<3.9 kept), then use `uv sync --inexact` so that uv leaves it there; or set "
    "segment.backend: torchvision in params.yaml."
)
REMEDY = (
    "Let segment.network and segment.weights in params.yaml name a config of the zoo and its own weights."
)
# constants that only old files hold
OUTDATED_TENSORS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors")


def check_installed() -> None:
    """Raise `BadInput` with the way to install detectron2 if it is missing."""
    try:
        version("detectron2")
    except PackageNotFoundError as error:
        raise BadInput(INSTALL.format(error)) from None


def load(params: Segment, path: str) -> Backend:
    """The zoo's network in eval mode with its weights.

    Raises `BadInput` if detectron2, the config or the weights are missing, or if the weights do not fit.
    """
    try:
        import detectron2
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model
    except ImportError as error:
        raise BadInput(INSTALL.format(error)) from None
    config = get_cfg()
    config.merge_from_file(str(_zoo_config(Path(detectron2.__file__).parent, params.network)))
    config.MODEL.DEVICE = str(distributed.local_device(params.device))
    config.MODEL.RPN.PRE_NMS_TOPK_TEST = 2 * params.proposals
    config.MODEL.RPN.POST_NMS_TOPK_TEST = params.proposals
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = params.score_floor
    network = build_model(config).eval()
    _load_checkpoint(network, DetectionCheckpointer, str(weights_file(params, path)))
    return _Detector(network, config.INPUT.FORMAT)


def weights_file(params: Segment, path: str) -> Path:
    """The file of the network's weights: `path`, or the zoo's own, downloaded on first use.

    Raises `BadInput` if detectron2 is missing or the zoo has no such weights.
    """
    try:
        import detectron2
        from detectron2.model_zoo import get_checkpoint_url
    except ImportError as error:
        raise BadInput(INSTALL.format(error)) from None
    name, _, published = params.network.partition(":")
    config = _zoo_config(Path(detectron2.__file__).parent, params.network)
    if not published:
        return Path(path)
    try:
        return weights.download(get_checkpoint_url(f"{name}.yaml"), "md5")
    except RuntimeError:  # the zoo has the config, but never published its weights
        raise BadInput(
            f"params.yaml: segment.network = '{params.network}': the zoo has no weights for {config.name}. "
            "Name another config, or a file in segment.weights and the config without ':zoo'."
        ) from None


def _zoo_config(package: Path, network: str) -> Path:
    name, _, published = network.partition(":")
    if published not in ("", "zoo"):
        raise BadInput(
            f"params.yaml: segment.network = '{network}': detectron2 publishes no such weights. "
            f"Name {name}:zoo, or a file in segment.weights."
        )
    configs = package / "model_zoo" / "configs"
    path = configs / Path(name).with_suffix(".yaml")
    if not path.is_file():
        known = sorted(
            str(p.relative_to(configs).with_suffix("")) for p in configs.glob("*/mask_rcnn_*.yaml")
        )
        raise BadInput(
            f"params.yaml: segment.network = {name!r} is no config of detectron2's model zoo. "
            f"Name one of {', '.join(known)}."
        )
    return path


def _load_checkpoint(network: torch.nn.Module, checkpointer: type, path: str) -> None:
    tensors = _read_zoo_pickle(Path(path)) if path.endswith(".pkl") else weights.read(path)
    tensors = {n: tensor for n, tensor in tensors.items() if not any(old in n for old in OUTDATED_TENSORS)}
    weights.check_shapes(network.state_dict(), tensors, path, REMEDY)
    with TemporaryDirectory() as folder:  # the checkpointer reads the checked tensors, not `path`
        checked = Path(folder) / "checked.pth"
        with disk_full_as_error(checked), DeferredErrorFile(checked, "w") as file:
            torch.save({"model": tensors}, file)
        checkpointer(network).load(str(checked))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and refuses anything else."""

    # names of numpy 1 and 2; the oldest protocol stores bytes as encoded text
    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_zoo_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file of weights. Download it from detectron2's model zoo (MODEL_ZOO.md)."
        )
    weights.verify(path, "md5")  # the zoo puts the first digits into a file's name
    try:
        with open(path, "rb") as file:
            checkpoint = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise BadInput(f"{path}: no checkpoint of detectron2's zoo ({error}). Download it again.") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise BadInput(f"{path}: holds no model. Download it again from detectron2's model zoo.")
    return {name: torch.as_tensor(np.asarray(values)) for name, values in checkpoint["model"].items()}


class _Detector:
    """Crops of one size -> the persons in each; `order` is the network's order of colours, BGR or RGB."""

    def __init__(self, network: Any, order: str):
        self.network, self.order = network, order

    @torch.inference_mode()
    def __call__(self, crops: UInt8[np.ndarray, "B h w 3"]) -> list[Detections]:
        pixels = torch.from_numpy(crops[..., ::-1].copy() if self.order == "BGR" else crops)
        pixels = pixels.permute(0, 3, 1, 2).float()  # 0 to 255: the network normalises
        batch = [{"image": image} for image in pixels]
        return [_persons(instances) for instances in self.network.inference(batch, do_postprocess=False)]


def _persons(instances: Any) -> Detections:
    persons = instances[instances.pred_classes == PERSON]
    tensors = (persons.scores, persons.pred_boxes.tensor, persons.pred_masks[:, 0])
    return Detections(*(tensor.cpu().numpy() for tensor in tensors))
