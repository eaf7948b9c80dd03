"""What an encoder computes on its way: the tokens after inner blocks, and what its class token looks at.

The blocks run one by one, as they are: compiled or not, by either kernel of attention.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.model.vit import Edit, Image, OcclusionAwareViT, Tokens


class Watched(NamedTuple):
    """An encoder's output, and what was asked for beside it."""

    tokens: Tokens
    taps: dict[int, Float[Tensor, "B L D"]]  # all tokens after a block, before the last norm; from 1
    logits: Float[Tensor, "B heads N"] | None  # of the class token's attention to the patches


def watch(
    encoder: OcclusionAwareViT,
    image: Image,
    hidden: Bool[Tensor, "B C"],
    camid: Int[Tensor, "B"],
    taps: Collection[int] = (),
    logits: bool = False,
    edit: Edit | None = None,
) -> Watched:
    """The encoder's output with the tokens after the blocks `taps`, counted from 1.

    `logits`: also those of the class token's attention in the last block; `edit` changes the projected
    patches (see `OcclusionAwareViT.embed`).  The output is the encoder's own, bit for bit.
    """
    tokens = encoder.norm_pre(encoder.embed(image, hidden, camid, edit))
    after = {}
    for number, block in enumerate(encoder.blocks, 1):
        before, tokens = tokens, block(tokens)
        if number in taps:
            after[number] = tokens
    output = encoder.split(encoder.norm(tokens))
    return Watched(output, after, _class_logits(encoder, before) if logits else None)


def _class_logits(encoder: OcclusionAwareViT, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B heads N"]:
    """q_cls k / sqrt(d) of the last block's heads for each patch, from that block's input.

    Computed again, as the fused kernel keeps no logits; that is two of the block's products, for one query.
    """
    block: Any = encoder.blocks[-1]
    attention, tokens = block.attn, block.norm1(tokens)
    width = attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    first = 1 + encoder.parts
    rows = (tokens[:, :1], tokens[:, first : first + encoder.grid[0] * encoder.grid[1]])
    query, key = (
        F.linear(x, weight[n * width :][:width], None if bias is None else bias[n * width :][:width])
        .unflatten(-1, (attention.num_heads, -1))
        .transpose(1, 2)
        for n, x in enumerate(rows)
    )
    query, key = attention.q_norm(query), attention.k_norm(key)
    return (query * query.shape[-1] ** -0.5 @ key.mT)[:, :, 0]
