"""The feature diffusion module (FDM) of FED: a pedestrian's feature, mixed with other people's.

Equations are those of the published code (ZacharyWang-007/FED-Occluded-ReID).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HEADS = 8  # of the cross-attention


class CrossAttention(nn.Module):
    """A feature attends to its nearest centres, S D channels each, in 8 heads.

    Unusual: logits are divided by the root of D / 8, not of a head's S D / 8 channels, and the output's
    projection alone has a bias.
    Departs: the published code reads the outputs of a batch, sorted by head, in the order of images, so that
    an image gets what others have taken.  Here it gets its own.
    """

    def __init__(self, stripes: int, width: int):
        super().__init__()
        self.scale, whole = (width / HEADS) ** -0.5, stripes * width
        self.query, self.proj = nn.Linear(whole, whole, bias=False), nn.Linear(whole, whole)
        self.key_value = nn.Linear(whole, 2 * whole, bias=False)

    def forward(self, features: Float[Tensor, "B SD"], centres: Float[Tensor, "B N SD"]) -> Tensor:
        """What each feature takes from its centres, B x S D."""
        rows = (self.query(features)[:, None], *self.key_value(centres).chunk(2, -1))
        query, key, value = (row.unflatten(-1, (HEADS, -1)).transpose(1, 2) for row in rows)
        weights = (query @ key.mT * self.scale).softmax(-1)
        return self.proj((weights @ value)[:, :, 0].flatten(1))


class GatedFeedForward(nn.Module):
    """LayerNorm, linear to 2 x 4D, GEGLU (one half times the GELU of the other), linear to D; no residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, 8 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, features: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Each stripe on its own."""
        value, gate = self.inner(self.norm(features)).chunk(2, -1)
        return self.proj(value * F.gelu(gate))


class FeatureDiffusion(nn.Module):
    """d before its neck: other people's features are added to b, mainly where a stripe is visible."""

    def __init__(self, stripes: int, width: int):
        super().__init__()
        self.attention = CrossAttention(stripes, width)
        self.before, self.after = GatedFeedForward(width), GatedFeedForward(width)

    def forward(
        self, features: Float[Tensor, "B SD"], score: Float[Tensor, "B S"], centres: Float[Tensor, "B N SD"]
    ) -> Float[Tensor, "B S D"]:
        """The diffused feature of each stripe."""
        shape = (score.shape[1], -1)
        mixed = self.before(self.attention(features, centres).unflatten(1, shape))
        return self.after(score[..., None] * mixed + features.unflatten(1, shape))
