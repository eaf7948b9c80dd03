"""The decoder of Section 3.2.2: in its first layer the tokens of the parts see no patch (Eq. 12-16)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.model.compute import dot_product_attention


class FixedAttention(nn.Module):
    """Multi-head self-attention; the first `fixed` tokens attend to nothing: MHSA_fix, Eq. 13-16.

    A fixed token passes on its own value, so that no patch can reach it; patches attend to all tokens,
    weighed by softmax(q k / sqrt(k)) with k channels a head.
    Departs: W_q, W_k and W_v have biases, as the encoder's have; none is printed.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.fused_attn = heads, False  # `compute.set_attention` changes it
        self.qkv = nn.Linear(width, 3 * width)  # W_q, W_k, W_v
        self.output = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "B L D"], fixed: int = 0, num_tokens: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Attended tokens, the first `num_tokens` or all; `fixed` = 0 is ordinary attention."""
        split = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        attended = dot_product_attention(query[:, :, fixed:num_tokens], key, value, self.fused_attn)  # Eq. 14
        joined = torch.cat([value[:, :, :fixed], attended], 2)[:, :, :num_tokens]  # F'_ha, Eq. 15, 16
        return self.output(joined.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """F'_h = FFN(LN(MHSA(F_h))), Eq. 12, the first `fixed` tokens kept from seeing the patches.

    Departs: skip connections around attention and FFN (`residual`), without which the input is lost.
    """

    def __init__(self, width: int, heads: int, fixed: int, residual: bool):
        super().__init__()
        self.fixed, self.residual = fixed, residual
        self.attention, self.norm = FixedAttention(width, heads), nn.LayerNorm(width, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, tokens: Float[Tensor, "B L D"], num_tokens: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Refined tokens: the first `num_tokens`, which attend to all, or all."""
        attended = self.attention(tokens, self.fixed, num_tokens)
        if not self.residual:
            return self.ffn(self.norm(attended))
        tokens = tokens[:, :num_tokens] + attended
        return tokens + self.ffn(self.norm(tokens))
