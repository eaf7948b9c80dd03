"""What a trained model attends to in a picture, and which part each patch of it resembles.

Every method has the class token of its encoder.  OGFR also has part tokens, and layers after the encoder that
they pass: the student's, and the decoder's of a branch that erases and purifies (FEP).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.batches.views import Batch
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.methods.base import Method
from pipeline.methods.ogfr.correlation import correlation, visible
from pipeline.methods.ogfr.decoder import DecoderLayer
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import FEP, HOLISTIC, OCCLUDED, K

Layer = Literal["last", "encoder", "decoder"]
GLOBAL = "global"  # the class token, or the learned query that stands for it (`ogfr.global_token: rebuilt`)


class Attention(NamedTuple):
    """What T tokens of B pictures attend to in one layer."""

    layer: str  # in words
    tokens: tuple[str, ...]  # T names: `global`, then the K parts if there are any
    # softmax(q k / sqrt(d)) over all tokens of the layer, the mean of its heads: for each token a share of 1,
    # of which other tokens than patches take what is missing
    weights: Float[Tensor, "B T N"]


class PartFeatures(NamedTuple):
    """How OGFR sees the parts of B pictures."""

    nearest: Int[Tensor, "B N"]  # label of the part that a patch resembles most, by I of Eq. 6; 0 background
    visibility: Float[Tensor, "B K"]  # v of Eq. 24, 0 or 1


class _Place(NamedTuple):
    """Where tokens stand in the sequence of a layer."""

    layer: nn.Module
    rows: list[int]  # of the tokens that attend
    patches: int  # place of the first patch


@torch.no_grad()
def attention(model: Method, batch: Batch, layer: Layer = "last") -> Attention:
    """The attention to the patches of `batch.holistic`, of a model in evaluation mode.

    last: in the layer that gives the features which are compared
    encoder: in the encoder's last block
    decoder: in the decoder's last layer, on the patches that the agent keeps

    Raises `BadInput` if the model has no decoder.
    """
    encoder: Any = model.encoder
    words, places = _places(model, layer)
    with ExitStack() as stack:
        inputs = [stack.enter_context(_inputs(place.layer)) for place in places]
        if layer == "decoder":
            _run_decoder(model, batch)
        else:
            model.embed(batch)
    count = encoder.grid[0] * encoder.grid[1]
    weights = [
        _weights(place.layer, tokens[-1], place.rows)[:, :, place.patches :][:, :, :count]
        for place, tokens in zip(places, inputs, strict=True)
    ]
    joined = torch.cat(weights, 1)
    return Attention(words, (GLOBAL, *parts.FINE)[: joined.shape[1]], joined)


@torch.no_grad()
def part_features(model: Method, batch: Batch) -> PartFeatures | None:
    """How the model sees the parts of `batch.holistic`; None if it has no features of parts."""
    if not isinstance(model, OGFR):
        return None
    tokens = model.encode(batch.holistic, batch.camid)
    state = correlation(tokens.patch, tokens.part)
    return PartFeatures(state.argmax(-1), visible(state, model.params.visible))


def _places(model: Method, layer: Layer) -> tuple[str, list[_Place]]:
    """The layer in words, and where its class and part tokens stand."""
    encoder: Any = model.encoder
    with_parts, after = list(range(K + 1)), K + 1  # without the background's token
    if isinstance(model, OGFR) and layer != "encoder":
        branches = FEP[model.params.fep]
        if layer == "decoder" or OCCLUDED in branches:
            if not branches:
                raise BadInput(
                    "no decoder, as it was trained with ogfr.fep = none. Draw --layer last or encoder."
                )
            words = "the decoder's last layer"
            decoder = _Place(model.decoder[-1], with_parts, after)
            if model.params.global_token == "encoder":
                return words, [decoder]
            return words, [_Place(model.reader[-1], [0], 1), decoder._replace(rows=with_parts[1:])]
        if len(model.student):
            return "the student's last layer", [_Place(model.student[-1], with_parts, after)]
    if layer == "decoder":
        raise BadInput("no decoder: OGFR alone has one. Draw --layer last or encoder.")
    first = 1 + encoder.parts  # with the background's token, which is left out
    return "the encoder's last block", [_Place(encoder.blocks[-1], [0, *range(2, first)], first)]


def _run_decoder(model: Method, batch: Batch) -> None:
    assert isinstance(model, OGFR)  # `_places` refuses the others
    branch = HOLISTIC if HOLISTIC in FEP[model.params.fep] else OCCLUDED
    model.branch(branch, model.encode(batch.holistic, batch.camid), batch.holistic)


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The tokens that enter a layer, call by call."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def _weights(layer: Any, tokens: Float[Tensor, "B L D"], rows: list[int]) -> Float[Tensor, "B T L"]:
    """softmax(q k / sqrt(d)) of the tokens `rows`, the mean of the heads.

    Computed again, as the fused kernels keep none.
    """
    if isinstance(layer, DecoderLayer):
        module, heads = layer.attention, layer.attention.heads
    else:
        module, heads, tokens = layer.attn, layer.attn.num_heads, layer.norm1(tokens)
    query, key, _ = module.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = (
        getattr(module, name, nn.Identity())(x).float() for name, x in (("q_norm", query), ("k_norm", key))
    )
    logits = query[:, :, rows] @ key.mT * query.shape[-1] ** -0.5
    return logits.softmax(-1).mean(1)
