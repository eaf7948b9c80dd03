"""PifPaf's confidences for person crops, from openpifpaf's networks.

The stage `pose` runs the network once over all images.  It gives the confidences of 17 keypoints and 19
limbs on the network's own grid.

Unusual here:
- Only the network is used, no decoder: the parsing maps need confidences, not skeletons.
- The grid's stride is read from the network's heads, and the pad is stored beside the fields.
- openpifpaf is AGPL-3.0-or-later; this adapter and its trainer alone import it.
"""

import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from pipeline.core import distributed, weights
from pipeline.core.params import BadInput
from pipeline.data.index import Crop, resize_crops
from pipeline.labels.pose_params import Pose

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # openpifpaf 0.13 uses deprecated parts of torch
    import openpifpaf
    from openpifpaf.network import basenetworks, model_migration

KIND = "fields"  # of the label file
SMALL = "small"  # our own: the first three stages of openpifpaf's resnet18, fields at stride 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of openpifpaf's networks, RGB in [0, 1]
KEYPOINTS, LIMBS = 17, 19
# whose classes a published checkpoint may name
ALLOWED_PACKAGES = ("openpifpaf.", "torch.nn.modules.", "torchvision.models.", "torchvision.ops.")
Shell = Any  # a network of openpifpaf: an nn.Module with `base_net` and `head_metas`


class Grid(NamedTuple):
    """Cell (r, c) of a field lies at y = r stride - top, x = c stride - left of the resized crop."""

    stride: int  # pixels
    size: tuple[int, int]  # height, width of the resized crop in pixels
    pad: tuple[int, int, int, int]  # pixels left, top, right, bottom


def weights_file(params: Pose, path: str) -> Path:
    """The file of the network's weights: `path`, or the published file, downloaded on first use."""
    name, _, published = params.network.partition(":")
    return weights.download(_weights_url(name, published)) if published else Path(path)


def load(params: Pose, path: str) -> "FieldNetwork":
    """The network with its weights, ready for batches of RGB crops of any sizes.

    Raises `BadInput` if the weights do not fit the network, or are a pickle that is not openpifpaf's own.
    """
    file = weights_file(params, path)
    if file.suffix == ".pkl":
        network = _load_published(file)
    else:
        network = build(params.network)
        remedy = "Let pose.network and pose.weights in params.yaml name a network and its own weights."
        weights.load_strict(network, weights.read(path), path, remedy)
    return FieldNetwork(network.eval().to(distributed.local_device(params.device)), params.size)


def libraries(params: Pose) -> tuple[str, ...]:
    """The packages that shape the result."""
    return ("torch", "torchvision", "openpifpaf")


class FieldNetwork:
    """RGB crops of any sizes -> round(255 confidence) on `grid`: 17 keypoints, then 19 limbs.

    The fields of a crop depend on that crop alone.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]):
        self.network, self.grid = network, field_grid(network, size)
        self.attrs = self.grid._asdict()  # what readers of the fields must know

    @torch.inference_mode()
    def __call__(self, crops: Sequence[Crop]) -> UInt8[np.ndarray, "B 36 h w"]:
        pixels = normalise_crops(resize_crops(crops, self.grid.size), self.grid.pad)
        fields = confidences(self.network, pixels.to(next(self.network.parameters()).device))
        return (fields * 255).round().byte().cpu().numpy()

    def arrays(self, crops: Sequence[Crop]) -> dict[str, np.ndarray]:
        """The arrays of fields.h5, one row per crop."""
        return {"confidence": self(crops)}


def check_network(network: str) -> None:
    """Raise `BadInput` for an unknown network, or published weights that it does not have."""
    name, _, published = network.partition(":")
    known = [SMALL, *openpifpaf.network.factory.BASE_FACTORIES]
    if published:
        _weights_url(name, published)
    elif name not in known:
        raise BadInput(
            f"params.yaml: pose.network = {name!r} is no network of openpifpaf. "
            f"Name one of {', '.join(known)}."
        )


def build(name: str) -> nn.Module:
    """openpifpaf's network with its COCO heads (17 keypoints, 19 limbs) and random weights, in eval mode.

    `small` is resnet18 without its last stage, its heads doubled in resolution (stride 8), by openpifpaf's
    own options.  Raises `BadInput` for an unknown name.
    """
    check_network(name)
    small = name == SMALL
    metas = openpifpaf.plugins.coco.CocoKp().head_metas
    for meta in metas:
        meta.upsample_stride = 2 if small else 1
    with _network_options(small):
        factory = openpifpaf.network.Factory(base_name="resnet18" if small else name)
        network = factory.factory(head_metas=metas)[0]
    if small:
        network.base_net.block5 = nn.Identity()  # openpifpaf leaves None there, and fails on it
    return network


@contextmanager
def _network_options(small: bool) -> Iterator[None]:
    # openpifpaf's options are class attributes; by default its base networks download ImageNet weights
    changes: list[tuple[Any, str, Any]] = [
        (c, "pretrained", False) for c in vars(basenetworks).values() if hasattr(c, "pretrained")
    ]
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
            warnings.simplefilter("ignore")  # torchvision warns of openpifpaf's positional arguments
            yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


def field_grid(network: Shell, size: tuple[int, int]) -> Grid:
    """The grid of the network's fields on crops of `size` (height, width).

    openpifpaf centres its cells on pixels 0, stride, 2 stride, ...: so a side is padded to a multiple of the
    base network's stride plus one.  The grid's own stride is that of the heads.
    """
    stride = network.base_net.stride
    pad_y, pad_x = (-(side - 1) % stride for side in size)
    top, left = pad_y // 2, pad_x // 2
    return Grid(network.head_metas[0].stride, size, (left, top, pad_x - left, pad_y - top))


def normalise_crops(crops: UInt8[np.ndarray, "B h w 3"], pad: tuple[int, int, int, int]) -> Tensor:
    """Crops of one size as the network's input, (B, 3, h + pad, w + pad); the pad is the mean colour."""
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)  # in place from here
    pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    left, top, right, bottom = pad
    return nn.functional.pad(pixels, (left, right, top, bottom))


def confidences(network: Shell, pixels: Tensor) -> Tensor:
    """Keypoint, then limb confidences in [0, 1], (B, 36, h, w)."""
    heads = zip(reversed(network.head_metas), reversed(network(pixels)), strict=True)  # of a kind the first
    fields = {type(meta): field for meta, field in heads}
    kinds = (openpifpaf.headmeta.Cif, openpifpaf.headmeta.Caf)
    return torch.cat([fields[kind][:, :, 1] for kind in kinds], 1)


# ------------------------------------------------------------------ openpifpaf's published checkpoints


def _weights_url(name: str, published: str) -> str:
    urls = openpifpaf.CHECKPOINT_URLS
    known = [n for n, url in urls.items() if isinstance(url, str) and "-cocokp-" in url]
    if published != "cocokp" or name not in known:
        raise BadInput(
            f"params.yaml: pose.network = '{name}:{published}': openpifpaf publishes no such weights. "
            f"Name one of {', '.join(f'{n}:cocokp' for n in known)}."
        )
    return urls[name]


def _load_published(path: Path) -> nn.Module:
    """The network in a checkpoint of openpifpaf, a pickled object: its hash must be the published one."""
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
        with torch.serialization.safe_globals(_allowed_classes(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.load(path, map_location="cpu", weights_only=True)["model"]
            model_migration.model_migration(network)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        text = " ".join(str(error).split())[:160]
        raise BadInput(f"{path}: no checkpoint of openpifpaf's ({text}). Download it again.") from None
    return network


def _allowed_classes(path: Path) -> list:
    """The classes that a published checkpoint may hold: networks, heads and arrays."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    classes = [_network_class(name) for name in names if name.startswith(ALLOWED_PACKAGES)]
    arrays = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    return [*classes, *arrays, (rebuild, "numpy.core.multiarray._reconstruct"), rebuild]


def _network_class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    value = getattr(import_module(module), attribute, None)
    if not (isinstance(value, type) and issubclass(value, nn.Module | openpifpaf.headmeta.Base)):
        raise BadInput(f"{name}: no network or head of this openpifpaf, yet a checkpoint holds one.")
    return value
