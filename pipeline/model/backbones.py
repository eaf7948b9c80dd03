"""Where encoders come from: timm, or the small ViT that this project pre-trained."""

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from pipeline.core.params import BadInput
from pipeline.core.weights import load_strict, read, write

ARCHITECTURE = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")  # timm's words


def small_vit(**architecture: Any) -> VisionTransformer:
    """A ViT of the given sizes, named by `ARCHITECTURE`, with random weights."""
    sizes = {**architecture, "img_size": tuple(architecture["img_size"])}
    model = VisionTransformer(num_classes=0, **sizes)
    _set_architecture(model, {"name": "embedded", **architecture})
    return model


def architecture(model: VisionTransformer) -> dict[str, Any]:
    """The name and sizes from which `untrained_vit` builds this ViT."""
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
    return model


def timm_vit(name: str, file: str = "") -> VisionTransformer:
    """A ViT of timm with its pre-trained weights: from `file`, or downloaded under its tag.

    Its tag says how its training images were normalised; its first layer is changed to take ours
    (`views.normalise`).
    Raises `BadInput` if timm knows no such ViT, or the weights are out of reach or of another shape.
    """
    untrained_vit({"name": name})  # before any download: is it one that we can use?
    try:
        overlay = {"file": file} if file else None
        model: Any = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        place = file or f"models/pretrained/{name}.safetensors"
        raise BadInput(
            f"{place}: no weights of {name} there, or none that fit ({reason}). Put the model.safetensors of "
            f"https://huggingface.co/timm/{name} at {place} and set the method's weights to it."
        ) from None
    _set_architecture(model, {"name": name, "weights": _weights_hash(model)})
    _adapt_normalisation(model)
    return model


@torch.no_grad()
def _adapt_normalisation(model: VisionTransformer) -> None:
    # (colour - mean) / deviation = (ours / 2 + 1 / 2 - mean) / deviation, in the layer that comes first
    config: Any = model.pretrained_cfg
    mean, deviation = (torch.tensor(config[n])[:, None, None] for n in ("mean", "std"))
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


def pretrained_encoder(name: str, file: str, embedded: str) -> VisionTransformer:
    """The encoder to start from: `embedded` names our own file, anything else a ViT of timm."""
    return load_vit(embedded) if name == "embedded" else timm_vit(name, file)


def untrained_vit(architecture: dict[str, Any]) -> VisionTransformer:
    """A ViT of the given architecture, with random weights."""
    name = architecture["name"]
    if name == "embedded":
        return small_vit(**{key: architecture[key] for key in ARCHITECTURE})
    if not timm.is_model(name.split(".")[0]):
        raise BadInput(f"params.yaml: vit = {name}: timm has no such model. Try vit_small_patch16_224.")
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadInput(f"params.yaml: vit = {name}: {error} Leave the tag out, or correct it.") from None
    if not isinstance(model, VisionTransformer) or not _is_plain(model):
        raise BadInput(
            f"params.yaml: vit = {name}: not a plain ViT with one class token. Choose another one."
        )
    _with_bias(model.patch_embed.proj)
    _set_architecture(model, dict(architecture))
    return model


def _is_plain(model: VisionTransformer) -> bool:
    # patches straight from the image, a class token with a place, layers one after the other
    placed = model.pos_embed is not None and not model.no_embed_class
    token = model.cls_token is not None and model.num_prefix_tokens == 1
    patches = type(model.patch_embed) is PatchEmbed and model.patch_embed.proj.in_channels == 3
    layers = all(type(layer) is Block and isinstance(layer.attn, Attention) for layer in model.blocks)
    return placed and token and patches and layers
