"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: occlusion-aware ViT shared by both views (3.1), erasing agent and purifying decoder for
the holistic view, which teaches (3.2), two transformer layers for the occluded view, which learns (3.3), the
losses (3.4), and what is compared at the end (Eq. 24, 25).  h and o name the views, hp and op the two
branches' final features; index i runs over {g, 1 ... K}: the global feature, then the parts.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.methods.ogfr.params import HOLISTIC, OCCLUDED
from pipeline.model import losses

# ------------------------------------------------------------------ heads


class Heads(nn.Module):
    """For each of P features a batch-norm neck and a classifier over identities, no biases (Eq. 19, 20).

    Both branches share the classifiers, as KL compares their classes; each has its own batch statistics,
    as occluded and holistic features differ.
    Departs: heads are not described; this is the neck that re-identification commonly has, and `gain` a
    factor on the logits (`head_gain`).
    """

    def __init__(self, features: int, width: int, identities: int, gain: float):
        super().__init__()
        self.gain = gain
        self.necks = nn.ModuleList(nn.BatchNorm1d(features * width) for _ in (HOLISTIC, OCCLUDED))
        for neck in self.necks:
            neck.bias.requires_grad_(False)
        self.weight = nn.Parameter(torch.randn(features, identities, width) * (0.001 / gain))

    def neck(self, features: Float[Tensor, "B P D"], branch: int) -> Float[Tensor, "B P D"]:
        """Features after the branch's batch norm."""
        return self.necks[branch](features.float().flatten(1)).view_as(features)

    def forward(self, necked: Float[Tensor, "B P D"]) -> Float[Tensor, "B P I"]:
        """Logits of each feature, from what its neck made of it."""
        with losses.no_autocast(necked):
            return self.gain * torch.einsum("bpd,pid->bpi", necked, self.weight)

    @torch.no_grad()
    def score(self, feature: Float[Tensor, "B D"], branch: int, pid: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Probability that the first head gives the true identity: p^m and p^b of Eq. 9 and 10.

        Departs: by running statistics, so that an image's score does not depend on what is erased in its
        neighbours.
        """
        neck, width = self.necks[branch], self.weight.shape[-1]
        scale = neck.weight[:width] * (neck.running_var[:width] + neck.eps).rsqrt()
        with losses.no_autocast(feature):
            logits = (feature.float() - neck.running_mean[:width]) * scale @ self.weight[0].T * self.gain
        return logits.softmax(-1).gather(1, pid[:, None])[:, 0]
