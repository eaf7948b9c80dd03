"""Batch-norm necks and classifiers over identities."""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.model import losses


class Heads(nn.Module):
    """For each of P features a batch-norm neck and a classifier, without biases (OGFR's Eq. 19, 20).

    All branches share the classifiers; each branch has a neck of its own, with its own batch statistics, as
    occluded and holistic features differ.  `gain` is a factor on the logits.
    Assumed: OGFR does not describe its heads.  This is the neck that re-identification commonly has (BNNeck);
    classifiers are shared because Eq. 19 compares the branches' class probabilities.
    """

    def __init__(self, features: int, width: int, identities: int, gain: float, branches: int = 1):
        super().__init__()
        self.gain = gain
        self.necks = nn.ModuleList(nn.BatchNorm1d(features * width) for _ in range(branches))
        for neck in self.necks:
            neck.bias.requires_grad_(False)
        self.weight = nn.Parameter(torch.randn(features, identities, width) * (0.001 / gain))

    def neck(self, features: Float[Tensor, "B P D"], branch: int = 0) -> Float[Tensor, "B P D"]:
        """Features after the branch's batch norm."""
        return self.necks[branch](features.float().flatten(1)).view_as(features)

    def forward(self, necked: Float[Tensor, "B P D"]) -> Float[Tensor, "B P I"]:
        """Logits of each feature, from the neck's output."""
        with losses.no_autocast(necked):
            return self.gain * torch.einsum("bpd,pid->bpi", necked, self.weight)

    @torch.no_grad()
    def score(self, feature: Float[Tensor, "B D"], branch: int, pid: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Probability that the first head gives the true identity: p^m and p^b of OGFR's Eq. 9 and 10.

        Departs: by running statistics, so that an image's score does not depend on what is erased in the
        other images of its batch.
        """
        neck, width = cast(nn.BatchNorm1d, self.necks[branch]), self.weight.shape[-1]
        scale = neck.weight[:width] * (neck.running_var[:width] + neck.eps).rsqrt()
        with losses.no_autocast(feature):
            logits = (feature.float() - neck.running_mean[:width]) * scale @ self.weight[0].T * self.gain
        return logits.softmax(-1).gather(1, pid[:, None])[:, 0]
