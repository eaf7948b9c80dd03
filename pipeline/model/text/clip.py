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
from pipeline.model.text import AFTER, BEFORE, Towers, frozen_projection
from pipeline.model.text.tower import build_tower

SIZES = {"context_length", "vocab_size", "width", "heads", "layers"}  # of a text tower that is CLIP's own
TEXT = ("token_embedding", "positional_embedding", "transformer.", "ln_final", "text_projection")
VISUAL = ("visual.proj", "visual.class_embedding")
REMEDY = "Give a CLIP of open_clip's or OpenAI's layout, a state dict that holds both towers."


def clip_towers(name: str, source: str) -> Towers:
    """The text tower, and the image projection, of a CLIP.

    name: an architecture of open_clip, `ViT-B-16-quickgelu`
    source: a tag of open_clip, `openai`, whose weights it downloads; or a local file of both towers

    Raises `BadInput` if open_clip is not installed, knows no such CLIP, or if the file does not fit.
    """
    if find_spec("open_clip") is None:
        raise BadInput(
            f"params.yaml: text tower {name!r}: needs open_clip. Run `uv sync --group clip` in the checkout, "
            "or install the package with its extra `clip`."
        )
    open_clip = import_module("open_clip")
    config = _config(open_clip, name)
    tensors = weights.read(source) if Path(source).suffix else _published(open_clip, name, source)
    tensors = {n.removeprefix("module."): tensor.float() for n, tensor in tensors.items()}
    if missing := [n for n in VISUAL if n not in tensors]:
        raise BadInput(f"{source}: {', '.join(missing)} missing. {REMEDY}")
    text = {n: tensor for n, tensor in tensors.items() if n.startswith(TEXT)}
    tower = build_tower(text, config["text_cfg"]["heads"], config.get("quick_gelu", False), source, REMEDY)
    weight, token = (tensors[n] for n in VISUAL)
    tokens = open_clip.tokenizer.SimpleTokenizer()
    before = (tokens.sot_token_id, *tokens.encode(BEFORE))
    after = (*tokens.encode(AFTER), tokens.eot_token_id)
    return Towers(tower, frozen_projection(weight.T, torch.ones(()), token), token, before, after)


def _config(open_clip: Any, name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None or not set(config["text_cfg"]) <= SIZES:
        raise BadInput(
            f"params.yaml: text tower {name!r}: not one of open_clip's CLIPs with CLIP's own text tower. "
            "Try ViT-B-16-quickgelu."
        )
    return config


def _published(open_clip: Any, name: str, tag: str) -> dict[str, Tensor]:
    """The tensors that open_clip downloads under a tag."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise BadInput(
            f"params.yaml: text tower {name!r} has no weights {tag!r}. Choose one of {', '.join(tags)}, or "
            "name a file."
        )
    try:
        return open_clip.create_model(name, pretrained=tag).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"params.yaml: text tower {name!r}: {tag!r} cannot be downloaded ({reason}). Download its file "
            "elsewhere and name that."
        ) from None
