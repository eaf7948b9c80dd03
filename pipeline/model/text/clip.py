"""CLIP's towers (Radford et al. 2021), in the releases that open_clip knows.

open_clip gives the sizes of an architecture, the tokens of the prompt and, if asked for a tag, the weights;
the tower is built here, so that it and ours are one code.  P is CLIP's own: timm keeps it as the `head` of
its ViT, which an encoder without classes leaves out.

The model card of OpenAI's CLIP calls uses for surveillance out of scope, always.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core import weights
from pipeline.core.params import BadInput
from pipeline.model.text import AFTER, BEFORE, Sizes, Towers, frozen_projection
from pipeline.model.text.tower import build_tower

SIZES = {"context_length", "vocab_size", "width", "heads", "layers"}  # of a text tower that is CLIP's own
TEXT = ("token_embedding", "positional_embedding", "transformer.", "ln_final", "text_projection")
VISUAL = ("visual.proj", "visual.class_embedding")
REMEDY = "Give a CLIP of open_clip's or OpenAI's layout, a state dict that holds both towers."


def is_file(source: str) -> bool:
    """Whether weights are a local file's, and not those of a tag."""
    return bool(Path(source).suffix)


def clip_towers(section: str, name: str, source: str) -> Towers:
    """The text tower, and the image projection, of a CLIP.

    section: of params.yaml, whose params `text_tower` and `text_weights` say which one
    name: an architecture of open_clip, `ViT-B-16-quickgelu`
    source: a tag of open_clip, `openai`, whose weights it downloads; or a local file of both towers

    Raises `BadInput` if open_clip is not installed, knows no such CLIP, or if the file does not fit.
    """
    open_clip = _open_clip(section)
    config, place = _config(open_clip, section, name), f"params.yaml: {section}.text_weights = {source}"
    tensors = _local(place, source) if is_file(source) else _published(open_clip, section, name, source)
    tensors = {n.removeprefix("module."): tensor.float() for n, tensor in tensors.items()}
    if missing := [n for n in VISUAL if n not in tensors]:
        raise BadInput(f"{place}: {', '.join(missing)} missing. {REMEDY}")
    text = {n: tensor for n, tensor in tensors.items() if n.startswith(TEXT)}
    tower = build_tower(text, config["text_cfg"]["heads"], config.get("quick_gelu", False), place, REMEDY)
    weight, token = (tensors[n] for n in VISUAL)
    return Towers(tower, frozen_projection(weight.T, torch.ones(()), token), token, *_prompt(open_clip))


def clip_sizes(section: str, name: str, tag: str) -> Sizes:
    """The sizes of a published CLIP, by the names of `clip_towers` and with its errors; downloads nothing."""
    open_clip = _open_clip(section)
    config = _config(open_clip, section, name)
    _check_tag(open_clip, section, name, tag)
    words = config["text_cfg"]["context_length"] - sum(map(len, _prompt(open_clip)))
    return Sizes(config["embed_dim"], words)


def _open_clip(section: str) -> Any:
    if find_spec("open_clip") is None:
        raise BadInput(
            f"params.yaml: {section}.text: CLIP's tower needs open_clip. Run `uv sync --group clip` in the "
            f"checkout, install the package with its extra `clip`, or set {section}.text to none."
        )
    return import_module("open_clip")


def _config(open_clip: Any, section: str, name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None or not set(config["text_cfg"]) <= SIZES:
        raise BadInput(
            f"params.yaml: {section}.text_tower = {name!r}: not one of open_clip's CLIPs with CLIP's own "
            f"text tower. Try ViT-B-16-quickgelu, or set {section}.text to none."
        )
    return config


def _prompt(open_clip: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the prompt before and behind the learned words."""
    tokens = open_clip.tokenizer.SimpleTokenizer()
    return (tokens.sot_token_id, *tokens.encode(BEFORE)), (*tokens.encode(AFTER), tokens.eot_token_id)


def _local(place: str, source: str) -> dict[str, Tensor]:
    try:
        return weights.read(source)
    except BadInput as error:
        raise BadInput(f"{place}{str(error).removeprefix(source)}") from None


def _check_tag(open_clip: Any, section: str, name: str, tag: str) -> None:
    if tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise BadInput(
            f"params.yaml: {section}.text_weights = {tag!r}: {section}.text_tower = {name} has none of that "
            f"tag. Choose one of {', '.join(tags)}, or name a file."
        )


def _published(open_clip: Any, section: str, name: str, tag: str) -> dict[str, Tensor]:
    """The tensors that open_clip downloads under a tag."""
    _check_tag(open_clip, section, name, tag)
    try:
        return open_clip.create_model(name, pretrained=tag).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"params.yaml: {section}.text_weights = {tag!r}: cannot be downloaded ({reason}). Download the "
            f"file of {section}.text_tower = {name} elsewhere and name that, or set {section}.text to none."
        ) from None
