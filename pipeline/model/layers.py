"""Transformer layers that can leave out all but the first tokens of their output, and drop-path."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pipeline.core import distributed
from pipeline.model.compute import dot_product_attention


class TransformerLayer(Block):
    """A transformer layer of timm that can compute only the first tokens of its output."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, qkv_bias=True)
        attention: Any = self.attn
        attention.fused_attn = False  # `compute.set_attention` changes it

    def forward(  # type: ignore[override]  # timm's other arguments, attention masks, are not used here
        self, tokens: Float[Tensor, "B L D"], num_tokens: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """The first `num_tokens` tokens, which attend to all; the rest is not computed.  None: all tokens."""
        if num_tokens is None:
            return super().forward(tokens)
        kept = tokens[:, :num_tokens] + _attend_prefix(
            cast(Attention, self.attn), self.norm1(tokens), num_tokens
        )
        return kept + self.mlp(self.norm2(kept))


def _attend_prefix(
    attention: Attention, tokens: Float[Tensor, "B L D"], num_tokens: int
) -> Float[Tensor, "B Q D"]:
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    rows = (tokens[:, :num_tokens], tokens, tokens)
    query, key, value = (
        F.linear(x, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip(rows, weights, biases, strict=True)
    )
    return attention.proj(
        dot_product_attention(query, key, value, attention.fused_attn).transpose(1, 2).flatten(2)
    )


class TransformerLayers(nn.Sequential):
    """Layers of which the last one computes only the first `num_tokens` tokens."""

    def forward(
        self, tokens: Float[Tensor, "B L D"], num_tokens: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """All tokens, or the first `num_tokens`."""
        for position, layer in enumerate(self, 1):
            tokens = layer(tokens, num_tokens if position == len(self) else None)
        return tokens[:, :num_tokens]


class DropPath(nn.Module):
    """Leaves out a residual branch for a share of the images in training, and scales the rest up to its mean.

    Stochastic depth (Huang et al., ECCV 2016), for each image by itself.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The branch, as it is in evaluation."""
        return branch * self.sample_scale(branch)[:, None, None] if self.training else branch

    @torch.compiler.disable  # compiled or not, the same images are drawn
    def sample_scale(self, branch: Float[Tensor, "B L D"]) -> Float[Tensor, "B"]:
        """0 for the images whose branch is left out, 1 / (1 - rate) for the others."""
        keep = 1 - self.rate
        share = torch.full((), keep, device=branch.device)
        drawn = distributed.sample_rows(lambda *size: torch.bernoulli(share.expand(*size)), len(branch))
        return (drawn / keep).to(branch.dtype)


def set_drop_path(blocks: nn.Sequential, rate: float) -> None:
    """Let transformer blocks leave out both their branches at a rate that rises from 0 to `rate` at the last.

    As TransReID trains its encoder; a block at 0 stays as it is, and draws nothing.
    """
    block: Any
    for number, block in enumerate(blocks):
        if share := rate * number / max(len(blocks) - 1, 1):
            block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)
