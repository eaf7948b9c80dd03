"""CLIP's text tower: a causal transformer, whose last token's state, projected, is the text's embedding.

Its tensors have CLIP's names, so that CLIP's own fit by name and shape.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core.weights import load_strict


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), OpenAI's approximation of GELU, which its CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Of every number."""
        return x * torch.sigmoid(1.702 * x)


class CausalLayer(nn.Module):
    """A pre-norm transformer layer in which no token reads a later one."""

    def __init__(self, width: int, heads: int, quick_gelu: bool):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, tokens: Float[Tensor, "B L W"]) -> Float[Tensor, "B L W"]:
        """The next state of every token."""
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.ln_1(tokens)
        tokens = tokens + self.attn(x, x, x, attn_mask=later, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class TextTower(nn.Module):
    """Word vectors in, one embedding of E channels out.

    vocabulary: words, by number; length: most tokens of a text; width, depth, heads: of the transformer
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, heads: int, embedding: int,
        quick_gelu: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        layers = [CausalLayer(width, heads, quick_gelu) for _ in range(depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*layers)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(
        self, words: Float[Tensor, "B L W"], end: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Embeddings of texts as vectors of `token_embedding`; `end` is the place of EOT, None the last.

        No token reads a later one, so what stands behind EOT changes nothing, and need not be there: a prompt
        of 12 tokens costs a sixth of CLIP's 77.
        """
        tokens = words + self.positional_embedding[: words.shape[1]]
        tokens = self.transformer["resblocks"](tokens)
        last = tokens[:, -1] if end is None else tokens[torch.arange(len(end)), end]
        return self.ln_final(last) @ self.text_projection


def build_tower(
    tensors: Mapping[str, Tensor], heads: int, quick_gelu: bool, path: str | Path, remedy: str
) -> TextTower:
    """The frozen tower of which these are the tensors, by CLIP's names; its sizes are theirs.

    Raises `BadInput` that names `path`, what does not fit, and `remedy`.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    vocabulary, width = shape.get("token_embedding.weight", (1, heads))
    length, _ = shape.get("positional_embedding", (1, width))
    _, embedding = shape.get("text_projection", (width, 1))
    depth = len({m[1] for name in tensors if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name))})
    with torch.random.fork_rng(devices=[]):  # its first weights, which the file's replace, cost no draw
        tower = TextTower(vocabulary, length, width, depth, heads, embedding, quick_gelu)
    load_strict(tower, tensors, path, remedy)
    return tower.eval().requires_grad_(False)
