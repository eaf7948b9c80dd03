"""The erasing agent of Section 3.2.1: it samples which patches to keep and learns from rewards (Eq. 7-11)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.core import distributed
from pipeline.methods.ogfr.params import K, Params
from pipeline.model import losses

Mask = Bool[Tensor, "B N"]  # patches that are kept: the action a of Eq. 8
Score = Callable[[Sequence[Mask]], list[Float[Tensor, "B"]]]  # p^m of each mask


class Episodes(NamedTuple):
    """The E masks that were tried on B images, and their rewards."""

    state: Float[Tensor, "B N K1"]  # I
    labels: Float[Tensor, "B N K1"]  # share of each label in each patch
    masks: list[Mask]
    rewards: Float[Tensor, "E B"]  # r of Eq. 10
    baseline: Float[Tensor, "*B"]  # p^b


def reward(
    masked: Float[Tensor, "*E B"], baseline: Float[Tensor, "*B"], floor: float, clip: float
) -> Float[Tensor, "*E B"]:
    """r = (p^m - p^b) / (1 - p^b), Eq. 10.

    Departs: 1 - p^b is at least `floor` and r at least -`clip`, as a learnt identity drives p^b to 1.
    """
    return ((masked - baseline) / (1 - baseline).clamp(min=floor)).clamp(min=-clip)


def policy_loss(logits: Float[Tensor, "B N"], mask: Mask, reward: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Minus the objective J(theta) of Eq. 11: the reward R_b times the log-probability of the action a_b.

    Departs: an image is an episode of one step t, whose action is a choice for each patch: summed over
    patches, averaged over images.
    """
    surprise = F.binary_cross_entropy_with_logits(logits, mask.to(logits.dtype), reduction="none")
    return (reward.detach() * surprise.sum(1)).mean()


class Agent(nn.Module):
    """Keeps or erases each patch, by its correlation with the parts.

    G of Eq. 7.  Departs: a bias (`agent_bias`), without which half of all patches are erased from the first
    step.
    """

    baseline: Tensor
    refreshed: Tensor

    def __init__(self, params: Params):
        super().__init__()
        self.params = params
        self.linear = nn.Linear(K + 1, 1, bias=params.agent_bias)  # G
        nn.init.normal_(self.linear.weight, std=0.02)
        if params.agent_bias:
            keep = torch.tensor(params.agent_keep, device="cpu")  # a number is read of it, also on `meta`
            nn.init.constant_(self.linear.bias, torch.logit(keep).item())
        self.register_buffer("baseline", torch.zeros(()))  # p^b of Eq. 9
        self.register_buffer("refreshed", torch.zeros(()))  # n of Eq. 9

    def forward(self, state: Float[Tensor, "B N K1"]) -> Float[Tensor, "B N"]:
        """Logits of m, the probability that a patch is kept (Eq. 7); no gradient reaches the state."""
        with losses.no_autocast(state):
            return self.linear(state.detach()).squeeze(-1)

    # -------------------------------------------------------------- masks

    @torch.no_grad()
    def sample_mask(self, state: Float[Tensor, "B N K1"], labels: Float[Tensor, "B N K1"]) -> Mask:
        """Which patches are kept: a of Eq. 8, or one of Table 5's other masks (`erase`).

        In evaluation mode (a student with FEP) nothing is random: the likelier choice, or all patches.
        """
        return {
            "agent": self._by_agent,
            "random": self._at_random,
            "labels": lambda state, labels: labels[..., 0] < 0.5,
            "none": lambda state, labels: torch.ones_like(state[..., 0], dtype=torch.bool),
        }[self.params.erase](state, labels)

    def _by_agent(self, state: Tensor, labels: Tensor) -> Mask:
        if not self.training:
            return self(state) > 0
        return distributed.sample_global(torch.bernoulli, self(state).sigmoid()).bool()

    def _at_random(self, state: Tensor, labels: Tensor) -> Mask:
        if not self.training:
            return torch.ones_like(state[..., 0], dtype=torch.bool)
        return distributed.sample_global(torch.rand_like, state[..., 0]) >= self.params.erase_rate

    # -------------------------------------------------------------- rewards

    @torch.no_grad()
    def explore(
        self,
        state: Float[Tensor, "B N K1"],
        labels: Float[Tensor, "B N K1"],
        mask: Mask,
        first: Float[Tensor, "B"],
        score: Score,
    ) -> Episodes:
        """`mask`, whose p^m is `first`, and the further masks of `episodes`, with their rewards."""
        further = [self.sample_mask(state, labels) for _ in range(1, self.params.episodes)]
        rewards, baseline = self.rewards(state, first, further, score)
        return Episodes(state, labels, [mask, *further], rewards, baseline)

    @torch.no_grad()
    def rewards(
        self,
        state: Float[Tensor, "B N K1"],
        first: Float[Tensor, "B"],
        further: Sequence[Mask],
        score: Score,
    ) -> tuple[Float[Tensor, "E B"], Float[Tensor, "*B"]]:
        """The rewards of E masks (Eq. 10), and their baseline p^b.

        `first` is p^m of the mask that the branch used; `score` gives that of the `further` masks.
        The baseline `paper` is Eq. 9's scalar; `image` is the same image without mask.  Departs:
        `self_critical` is the same image under the agent's likelier choice for every patch.
        """
        masks, kind = list(further), self.params.baseline
        if kind != "paper":
            likelier = self(state) > 0
            masks.append(likelier if kind == "self_critical" else torch.ones_like(likelier))
        scores = [first, *score(masks)]
        baseline = self.baseline if kind == "paper" else scores.pop()
        floor, clip = self.params.reward_floor, self.params.reward_clip
        return reward(torch.stack(scores), baseline, floor, clip), baseline

    def loss(self, episodes: Sequence[Episodes]) -> Float[Tensor, ""]:
        """The mean policy loss of all masks that were tried, Eq. 11."""
        terms = [
            policy_loss(self(branch.state), mask, rewards)
            for branch in episodes
            for mask, rewards in zip(branch.masks, branch.rewards, strict=True)
        ]
        return torch.stack(terms).mean()

    # -------------------------------------------------------------- the printed baseline

    def refreshes_baseline(self, epoch: int) -> bool:
        """Whether Eq. 9's scalar baseline is refreshed before `epoch`."""
        return self.params.baseline == "paper" and epoch % self.params.baseline_epochs == 0

    def refresh_baseline(self, score: Float[Tensor, ""]) -> None:
        """Let p^b_new, the mean score without mask, enter the cumulative mean p^b, Eq. 9.

        Assumed: the "average accuracy" of the text is the mean probability of the true identity, as p^m is.
        """
        self.baseline.copy_((self.baseline * self.refreshed + score) / (self.refreshed + 1))
        self.refreshed += 1

    # -------------------------------------------------------------- for the log

    @torch.no_grad()
    def metrics(
        self, episodes: Episodes, occluded: Float[Tensor, "B N K1"], covered: Float[Tensor, "B N"]
    ) -> dict[str, Tensor]:
        """Mean reward and baseline, and the shares of body and background patches that were kept.

        `keep_obstacle` is the probability with which the agent would keep the obstacle's patches, those of
        the occluded view that it `covered` by more than half.
        """
        body, kept = episodes.labels[..., 0] < 0.5, episodes.masks[0].float()
        return {
            "reward": episodes.rewards.mean(),
            "baseline": episodes.baseline.mean(),
            "keep_body": _masked_mean(kept, body),
            "keep_background": _masked_mean(kept, ~body),
            "keep_obstacle": _masked_mean(self(occluded).sigmoid(), covered > 0.5),
        }


def _masked_mean(values: Float[Tensor, "B N"], mask: Mask) -> Float[Tensor, ""]:
    # over the images of all ranks
    total, count = distributed.all_reduce_mean(torch.stack([(values * mask).sum(), mask.sum()]))
    return total / count.clamp(min=1e-6)
