"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: occlusion-aware ViT shared by both views (3.1), erasing agent and purifying decoder for
the holistic view, which teaches (3.2), two transformer layers for the occluded view, which learns (3.3), the
losses (3.4), and what is compared at the end (Eq. 24, 25).  h and o name the views, hp and op the two
branches' final features; index i runs over {g, 1 ... K}: the global feature, then the parts.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.methods.ogfr.params import K
from pipeline.model import losses

# ------------------------------------------------------------------ 3.2.1 erasing mask generation


def correlation(patch: Float[Tensor, "B N D"], part: Float[Tensor, "B K1 D"]) -> Float[Tensor, "B N K1"]:
    """Semantic correlation I of the patches f^p and the parts f^0 ... f^K: cosines in [-1, 1], Eq. 6."""
    with losses.no_autocast(patch):
        return F.normalize(patch.float(), dim=-1) @ F.normalize(part.float(), dim=-1).mT


class Agent(nn.Module):
    """Chooses the patches to keep, from their correlation with the parts.

    G of Eq. 7.  Departs: a bias, without which half of all patches are erased from the first step.
    """

    def __init__(self, bias: bool, keep: float):
        super().__init__()
        self.linear = nn.Linear(K + 1, 1, bias=bias)  # G
        nn.init.normal_(self.linear.weight, std=0.02)
        if bias:
            nn.init.constant_(self.linear.bias, torch.logit(torch.tensor(keep)).item())

    def forward(self, state: Float[Tensor, "B N K1"]) -> Float[Tensor, "B N"]:
        """Logits of m, the probability that a patch is kept (Eq. 7); the state is taken as given."""
        with losses.no_autocast(state):
            return self.linear(state.detach()).squeeze(-1)


def policy_loss(
    logits: Float[Tensor, "B N"], action: Bool[Tensor, "B N"], reward: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """Minus the objective J(theta) of Eq. 11: the reward R_b times the log-probability of the action a_b.

    Departs: an image is an episode of one step t, whose action is a choice for each patch: summed over
    patches, averaged over images.
    """
    surprise = F.binary_cross_entropy_with_logits(logits, action.to(logits.dtype), reduction="none")
    return (reward.detach() * surprise.sum(1)).mean()


def reward(
    masked: Float[Tensor, "*E B"], baseline: Float[Tensor, "*B"], floor: float, clip: float
) -> Float[Tensor, "*E B"]:
    """r = (p^m - p^b) / (1 - p^b), Eq. 10.

    Departs: 1 - p^b is at least `floor` and r at least -`clip`, as a learnt identity drives p^b to 1.
    """
    return ((masked - baseline) / (1 - baseline).clamp(min=floor)).clamp(min=-clip)
