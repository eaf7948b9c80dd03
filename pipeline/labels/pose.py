"""PifPaf's confidences for person crops, from openpifpaf's networks.

The stage `pose` runs it once over all images: 17 keypoint and 19 limb confidences on the network's own grid.

Unusual here:
- Only the network is used, no decoder: the parsing maps need confidences, not skeletons.
- The grid's stride is read from the network's heads, and the pad is written beside the fields.
- openpifpaf is AGPL-3.0-or-later; this adapter and its trainer are all that imports it.
"""

import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline.core import distributed, weights
from pipeline.core.params import STRICT, BadInput
from pipeline.data.index import Crop, Images, resize_crop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of deprecations in torch that openpifpaf 0.13 still uses
    import openpifpaf
    from openpifpaf.network import basenetworks, model_migration

COCO = "shufflenetv2k16:cocokp"  # what `parsers: coco` means
SMALL = "small"  # our own: the first three stages of openpifpaf's resnet18, fields at stride 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of openpifpaf's networks, RGB in [0, 1]
KEYPOINTS, LIMBS = 17, 19
PACKAGES = ("openpifpaf.", "torch.nn.modules.", "torchvision.models.", "torchvision.ops.")
LIBRARIES = ("torch", "torchvision", "openpifpaf")


@dataclass(frozen=True, config=STRICT)
class Pose:
    """Which network, and how crops reach it."""

    # `small` (ours), or one of openpifpaf's base networks, with its published weights as in
    # shufflenetv2k16:cocokp
    network: str
    weights: str  # the file that dvc.yaml hands to the stage; not read if the network names published weights
    device: Literal["cpu", "cuda"]
    size: tuple[int, int]  # height, width in pixels to which every crop is resized
    batch: int = Field(ge=1)
    processes: int = Field(ge=1)  # that share the images, one a GPU; no result depends on it


class Grid(NamedTuple):
    """Where fields lie: cell (r, c) is at y = r * stride - top, x = c * stride - left of the resized crop."""

    stride: int
    size: tuple[int, int]  # height, width of the resized crop
    pad: tuple[int, int, int, int]  # pixels left, top, right, bottom


def on(params: Pose, parsers: str) -> Pose:
    """The same with COCO's network if the param `parsers` is `coco`."""
    return replace(params, network=weights.choose_network(params.network, parsers, COCO))


def file(params: Pose, path: str) -> Path:
    """The file of the network's weights: `path`, or the published one, downloaded on first use."""
    name, _, published = params.network.partition(":")
    return weights.download(_url(name, published)) if published else Path(path)


def load(params: Pose, path: str) -> "Fields":
    """The network, ready for batches of RGB crops of any sizes; a crop's fields depend on that crop alone.

    Raises `BadInput` if the weights do not fit the network, or are a pickle that is not openpifpaf's own.
    """
    if file(params, path).suffix == ".pkl":
        network = _official(file(params, path))
    else:
        network = build(params.network)
        remedy = "Let pose.network and pose.weights in params.yaml name a network and its own weights."
        weights.load_strict(network, weights.read(path), path, remedy)
    return Fields(network.eval().to(distributed.local_device(params.device)), params.size)


class Fields:
    """Crops of any sizes -> round(255 confidence), (B, 36, h, w): 17 keypoints, then 19 limbs, on `grid`."""

    def __init__(self, network: nn.Module, size: tuple[int, int]):
        self.network, self.grid = network, grid(network, size)

    @torch.inference_mode()
    def __call__(self, crops: Sequence[Crop]) -> UInt8[np.ndarray, "B 36 h w"]:
        pixels = normalised(resize_crop(crops, self.grid.size), self.grid.pad)
        found = confidences(self.network, pixels.to(next(self.network.parameters()).device))
        return (found * 255).round().byte().cpu().numpy()


def build(name: str) -> nn.Module:
    """openpifpaf's network with its COCO heads (17 keypoints, 19 limbs) and random weights, in eval mode.

    `small` is resnet18 without its last stage, its heads doubled in resolution (stride 8), by openpifpaf's
    own options.  Raises `BadInput` for an unknown name.
    """
    small = name == SMALL
    if not small and name not in openpifpaf.network.factory.BASE_FACTORIES:
        known = ", ".join([SMALL, *openpifpaf.network.factory.BASE_FACTORIES])
        raise BadInput(
            f"params.yaml: pose.network = {name!r} is no network of openpifpaf. Name one of {known}."
        )
    metas = openpifpaf.plugins.coco.CocoKp().head_metas
    for meta in metas:
        meta.upsample_stride = 2 if small else 1
    with _options(small):
        factory = openpifpaf.network.Factory(base_name="resnet18" if small else name)
        network = factory.factory(head_metas=metas)[0]
    if small:
        network.base_net.block5 = nn.Identity()  # openpifpaf leaves a hole there, and fails on it
    return network


@contextmanager
def _options(small: bool):
    # openpifpaf's options are class attributes; its base networks fetch ImageNet weights unless told not to
    changes = [(c, "pretrained", False) for c in vars(basenetworks).values() if hasattr(c, "pretrained")]
    if small:
        changes += [
            (basenetworks.Resnet, "remove_last_block", True),
            (basenetworks.Resnet, "pool0_stride", 2),
        ]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in changes]
    try:
        for owner, key, value in changes:
            setattr(owner, key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision on openpifpaf's positional arguments
            yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


def grid(network: nn.Module, size: tuple[int, int]) -> Grid:
    """Where the network's fields lie on crops of `size`: stride from its heads, pad to a multiple plus one.

    openpifpaf centres its cells on pixels 0, stride, 2 stride, ..., so a side should be a multiple plus one.
    """
    over = [-(-(side - 1) // network.base_net.stride) * network.base_net.stride + 1 - side for side in size]
    top, left = over[0] // 2, over[1] // 2
    return Grid(network.head_metas[0].stride, size, (left, top, over[1] - left, over[0] - top))


def normalised(crops: UInt8[np.ndarray, "B h w 3"], pad: tuple[int, int, int, int]) -> Tensor:
    """Crops of one size as the network wants them, (B, 3, h + pad, w + pad); the pad is the mean colour."""
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)  # in place from here
    pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    left, top, right, bottom = pad
    return nn.functional.pad(pixels, (left, right, top, bottom))


def confidences(network: nn.Module, pixels: Tensor) -> Tensor:
    """Keypoint, then limb confidences in [0, 1], (B, 36, h, w)."""
    fields = network(pixels)
    found = {type(meta): f for meta, f in zip(reversed(network.head_metas), reversed(fields), strict=True)}
    return torch.cat([found[openpifpaf.headmeta.Cif][:, :, 1], found[openpifpaf.headmeta.Caf][:, :, 1]], 1)


# ------------------------------------------------------------------ openpifpaf's published checkpoints


def _url(name: str, published: str) -> str:
    urls = openpifpaf.CHECKPOINT_URLS
    known = [n for n, url in urls.items() if isinstance(url, str) and "-cocokp-" in url]
    if published != "cocokp" or name not in known:
        raise BadInput(
            f"params.yaml: pose.network = '{name}:{published}': openpifpaf publishes no such weights. "
            f"Name one of {', '.join(f'{n}:cocokp' for n in known)}."
        )
    return urls[name]


def _official(path: Path) -> nn.Module:
    """The network in a checkpoint file of openpifpaf's, which is a pickled object: only as published."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights. Name another in pose.weights of params.yaml.")
    names = {Path(url).name for url in openpifpaf.CHECKPOINT_URLS.values() if isinstance(url, str)}
    if path.name not in names:
        raise BadInput(
            f"{path}: a pickle that openpifpaf did not publish; loading one runs its code. Save its "
            "`state_dict()` with safetensors or torch.save and name that, or use a published file."
        )
    weights.verify(path)
    try:
        with torch.serialization.safe_globals(_allowed(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.load(path, map_location="cpu", weights_only=True)["model"]
            model_migration.model_migration(network)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        text = " ".join(str(error).split())[:160]
        raise BadInput(f"{path}: no checkpoint of openpifpaf's ({text}). Download it again.") from None
    return network


def _allowed(path: Path) -> list:
    """The classes that a published checkpoint is made of: networks and arrays, nothing that acts."""
    wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    classes = [_class(name) for name in wanted if name.startswith(PACKAGES)]
    arrays = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
    rebuild = np._core.multiarray._reconstruct
    return [*classes, *arrays, (rebuild, "numpy.core.multiarray._reconstruct"), rebuild]


def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module | openpifpaf.headmeta.Base)):
        raise BadInput(f"{name}: no network or head of this openpifpaf, yet a checkpoint holds one.")
    return found


class Over:
    """The work of the stage, handed to worker processes: (start, stop) -> the arrays of these images."""

    def __init__(self, params: Pose, path: str, images: Images | Sequence[Crop]):
        self.params, self.path, self.images = params, path, images

    def grid(self) -> Grid:
        """Where the fields lie, for those who read them."""
        return load(self.params, self.path).grid

    def __call__(self) -> Callable[[int, int], dict[str, np.ndarray]]:
        fields = load(self.params, self.path)
        return lambda a, b: {"confidence": fields([self.images[i] for i in range(a, b)])}
