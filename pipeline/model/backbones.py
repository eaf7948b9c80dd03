"""Where encoders come from: timm, or the small ViT that this project pre-trained."""

import hashlib
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from timm.data import constants
from timm.layers import Attention, PatchEmbed
from timm.models import load_pretrained
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from pipeline.core.params import BadInput
from pipeline.core.weights import check_shapes, load_strict, prefixes, read, report, write
from pipeline.model.vit import grid

ARCHITECTURE = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")  # timm's words
# beside an encoder's tensors: classifiers, projection heads, the decoder of a masked autoencoder, the token
# of masked patches (iBOT's is `masked_embed`), and TransReID's embedding of its training's cameras
LEFT_OUT = re.compile(
    r"(head|head_dist|heads|fc|classifier|pre_logits)\.|decoder_|(mask_token|masked_embed|sie_embed)$"
)
# of a position embedding, as timm, and OpenAI's CLIP call it
POSITIONS = ("pos_embed", "visual.positional_embedding", "module.visual.positional_embedding")
Colours = Literal["auto", "half", "imagenet", "clip"]
# mean and deviation by which an encoder's training normalised red, green and blue in [0, 1]
COLOURS = {
    "half": (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD),
    "imagenet": (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
    "clip": (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD),
}


def small_vit(**architecture: Any) -> VisionTransformer:
    """A ViT of the given sizes, named by `ARCHITECTURE`, with random weights."""
    sizes = {**architecture, "img_size": tuple(architecture["img_size"])}
    model = VisionTransformer(num_classes=0, **sizes)
    _set_architecture(model, {"name": "embedded", **architecture})
    return model


def architecture(model: VisionTransformer) -> dict[str, Any]:
    """The name and sizes from which `untrained_vit` builds this ViT, and its weights' hash if it has any."""
    return cast(Any, model).architecture


def _set_architecture(model: VisionTransformer, architecture: dict[str, Any]) -> None:
    cast(Any, model).architecture = architecture


def save_vit(path: str | Path, model: VisionTransformer, record: dict[str, Any]) -> None:
    """Write a `small_vit` in half precision, with its architecture; `record` goes beside it."""
    size = [n for key in ARCHITECTURE for n in np.atleast_1d(architecture(model)[key]).tolist()]
    write(path, {**model.state_dict(), "architecture": torch.tensor(size)}, record)


def load_vit(path: str | Path) -> VisionTransformer:
    """The small ViT of a file that `save_vit` wrote.  Raises `BadInput` if there is none."""
    tensors = read(path)
    if "architecture" not in tensors:
        raise BadInput(
            f"{path}: not a ViT of ours. For weights of timm, let the method's vit be their name "
            "and its weights this file."
        )
    height, width, *rest = tensors.pop("architecture").tolist()
    model = small_vit(**dict(zip(ARCHITECTURE, [(height, width), *rest], strict=True)))
    load_strict(model, tensors, path, f"Restore it: `git checkout {path}`.")
    _set_architecture(model, {**architecture(model), "weights": _weights_hash(model)})
    return model


def timm_vit(
    name: str, file: str = "", size: tuple[int, int] = (0, 0), colours: Colours = "auto"
) -> VisionTransformer:
    """A ViT of timm with its pre-trained weights: from `file`, or downloaded under its tag.

    Every tensor is accounted for.  What surrounds an encoder is left out: whatever lies outside the prefix
    that its names share in the file, and heads (`LEFT_OUT`); one line says so.  A position embedding of
    another, square size is resampled as timm does.  One of images of `size` (height, width), under any
    stride, is kept, and so is its grid (TransReID's own trainings).
    `colours` says how its training images were normalised, or its tag does (`auto`); its first layer is
    changed to take ours (`views.normalise`).
    Raises `BadInput` if timm knows no such ViT, or if the weights are out of reach or do not fit.
    """
    model = _create(name)  # before any download: is it one that we can use?
    place = file or f"models/pretrained/{name}.safetensors"
    remedy = (
        f"Put the model.safetensors of https://huggingface.co/timm/{name} at {place} and set the method's "
        "weights to it, or the method's vit to the ViT that the file is of."
    )
    if file and not Path(file).is_file():
        raise BadInput(f"{place}: no weights of {name} there. {remedy}")
    tensors = read(file) if file else _published(model, f"{place}: no weights of {name} there", remedy)
    tensors = {n: t.clone() for n, t in tensors.items()}  # `_fit` tells them by memory: views may share it
    fit = _best_fit(tensors, model)
    if file_grid := _grid_of(fit, model, size):
        model = _create(name, img_size=tuple(n * model.patch_embed.patch_size[0] for n in file_grid))
        fit = _best_fit(tensors, model)
        fit.words.append(f"pos_embed of {file_grid[0]} x {file_grid[1]} patches kept")
    check_shapes(model.state_dict(), fit.tensors, place, remedy)
    model.load_state_dict(fit.tensors)
    report(place, fit.prefix, fit.left_out, *fit.words)
    _set_architecture(model, {"name": name, "weights": _weights_hash(model)})
    _adapt_normalisation(model, colours)
    return model


class Fit(NamedTuple):
    """A file's tensors by timm's names, as far as they lie behind a prefix."""

    prefix: str
    tensors: dict[str, Tensor]
    left_out: list[str]  # by their names in the file
    words: list[str]  # about the position embedding


def _best_fit(tensors: Mapping[str, Tensor], model: VisionTransformer) -> Fit:
    fits = [_fit(tensors, model, prefix) for prefix in ["", *prefixes(tensors, "cls_token")]]
    return max(fits, key=lambda fit: len(fit.tensors.keys() & model.state_dict().keys()))


def _fit(tensors: Mapping[str, Tensor], model: VisionTransformer, prefix: str) -> Fit:
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    kept = {n: t for n, t in _rename(inside, model).items() if not LEFT_OUT.match(n)}
    storages = {t.untyped_storage().data_ptr() for t in kept.values()}
    rest = [n for n, t in tensors.items() if t.untyped_storage().data_ptr() not in storages]
    resampled = [n for n in rest if n in {f"{prefix}{position}" for position in POSITIONS}]
    words = [
        f"{n} resampled from {tuple(tensors[n].shape)} to {tuple(kept['pos_embed'].shape)}" for n in resampled
    ]
    changed = {*resampled, *(f"{prefix}{n}" for n in kept)}  # such as a class token with its position added
    return Fit(prefix, kept, [n for n in rest if n not in changed], words)


def _rename(tensors: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Tensors by timm's names, a square position embedding resampled, if timm knows how; else as they are.

    timm would also resample kernels, and cut what is no square into one.
    """
    patch, places = model.patch_embed.proj.weight.shape[2:], model.patch_embed.num_patches
    kernels = [t for t in tensors.values() if t.ndim == 4]
    counts = [tensors[name].shape[-2] - _class_rows(tensors, model) for name in POSITIONS if name in tensors]
    if any(t.shape[2:] != patch for t in kernels):
        return tensors
    if any(count != places and not _is_square(count) for count in counts):
        return tensors
    try:
        return checkpoint_filter_fn(dict(tensors), model, adapt_layer_scale=True)
    except (RuntimeError, KeyError, AttributeError):  # tensors of another kind of network
        return tensors


def _class_rows(tensors: Mapping[str, Tensor], model: VisionTransformer) -> int:
    """Rows of a file's position embedding that are a class token's: 1, or 0 where it has no place.

    `register_tokens` is a name of DINOv2's own files, whose class token has a place, unlike in timm's.
    """
    return int(not model.no_embed_class or "register_tokens" in tensors)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _grid_of(fit: Fit, model: VisionTransformer, size: tuple[int, int]) -> tuple[int, int] | None:
    """Patches down and across of a file's position embedding, if it is no square, but that of `size`."""
    if "pos_embed" not in fit.tensors:
        return None
    count = fit.tensors["pos_embed"].shape[-2] - _class_rows(fit.tensors, model)
    patch = model.patch_embed.patch_size[0]
    grids = {grid(size, patch, stride) for stride in range(1, patch + 1)}
    fitting = [g for g in grids if g[0] * g[1] == count and not _is_square(count)]
    return fitting[0] if len(fitting) == 1 else None


def _published(model: VisionTransformer, fault: str, remedy: str) -> dict[str, Tensor]:
    """The tensors that timm downloads for a model and loads into it, without its classifier."""
    tensors: dict[str, Tensor] = {}
    hook = model.register_load_state_dict_pre_hook(lambda _, loaded, *rest: tensors.update(loaded))
    try:
        load_pretrained(model, num_classes=0, filter_fn=partial(checkpoint_filter_fn, adapt_layer_scale=True))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{fault}, or none that fit ({reason}). {remedy}") from None
    finally:
        hook.remove()
    return tensors


@torch.no_grad()
def _adapt_normalisation(model: VisionTransformer, colours: Colours) -> None:
    # (colour - mean) / deviation = (ours / 2 + 1 / 2 - mean) / deviation, in the layer that comes first
    config: Any = model.pretrained_cfg
    numbers = (config["mean"], config["std"]) if colours == "auto" else COLOURS[colours]
    mean, deviation = (torch.tensor(n)[:, None, None] for n in numbers)
    first = _with_bias(model.patch_embed.proj)
    first.bias += (first.weight * ((0.5 - mean) / deviation)).sum((1, 2, 3))
    first.weight *= 0.5 / deviation


def _with_bias(layer: nn.Conv2d) -> nn.Conv2d:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return layer


def _weights_hash(model: VisionTransformer) -> str:
    # of all weights, so that a record tells one published file from another
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def pretrained_encoder(
    name: str, file: str, embedded: str, size: tuple[int, int], colours: Colours = "auto"
) -> VisionTransformer:
    """The encoder to start from: `embedded` names our own file, anything else a ViT of timm.

    `size` is the images' height and width; `colours` are those that the weights expect.  Beside `embedded`,
    `file` and `colours` are not read (see `check_vit`).
    """
    return load_vit(embedded) if name == "embedded" else timm_vit(name, file, size, colours)


def untrained_vit(architecture: dict[str, Any]) -> VisionTransformer:
    """A ViT of the given architecture, with random weights."""
    name = architecture["name"]
    if name == "embedded":
        return small_vit(**{key: architecture[key] for key in ARCHITECTURE})
    model = _create(name)
    _with_bias(model.patch_embed.proj)
    _set_architecture(model, dict(architecture))
    return model


def check_vit(name: str, file: str = "", colours: Colours = "auto") -> None:
    """Raise `BadInput` unless this is `embedded`, or a plain ViT of timm whose tag timm knows.

    `file` and `colours` are the params `weights` and `colours`, which `embedded` does not read.  Takes tenths
    of a second: no weights are made, and nothing is downloaded.
    """
    if name == "embedded" and file:
        raise BadInput(
            f"params.yaml: weights = {file!r}: the vit `embedded` has its own, and does not read these. Name "
            'a ViT of timm in vit, or set this to "". To go on from a trained model, name its folder in '
            "train.start_from."
        )
    if name == "embedded" and colours != "auto":
        raise BadInput(
            f"params.yaml: colours = {colours}: the vit `embedded` has its own, and does not read these. "
            "Name a ViT of timm in vit, or set this to auto."
        )
    if name != "embedded":
        with torch.device("meta"):
            _create(name)


def _create(name: str, **options: Any) -> VisionTransformer:
    """A ViT of timm with random weights.  Raises `BadInput` if timm has none of that name that we can use."""
    if not timm.is_model(name.split(".")[0]):
        raise BadInput(f"params.yaml: vit = {name!r}: timm has no such model. Try vit_small_patch16_224.")
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise BadInput(f"params.yaml: vit = {name!r}: {error} Leave the tag out, or correct it.") from None
    if not isinstance(model, VisionTransformer) or not _is_plain(model):
        raise BadInput(
            f"params.yaml: vit = {name!r}: not a plain ViT with one class token. Choose another one."
        )
    return model


def _is_plain(model: VisionTransformer) -> bool:
    # patches straight from the image, a class token, registers without a place, layers one after the other
    placed = model.pos_embed is not None and (model.no_embed_class or not model.num_reg_tokens)
    token = model.cls_token is not None and model.num_prefix_tokens == 1 + model.num_reg_tokens
    patches = type(model.patch_embed) is PatchEmbed and model.patch_embed.proj.in_channels == 3
    layers = all(type(layer) is Block and isinstance(layer.attn, Attention) for layer in model.blocks)
    return placed and token and patches and layers
