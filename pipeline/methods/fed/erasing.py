"""The occlusion erasing module (OEM): how visible each horizontal stripe is, and what it should say."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.batches.views import Batch

OVERWHELMING = 3.0  # times the second greatest change, above which the greatest alone marks an occlusion


def pool_stripes(plane: Float[Tensor, "B H W *D"], stripes: int) -> Float[Tensor, "B S *D"]:
    """The mean of each of S horizontal stripes; two that meet within a row share it."""
    height = plane.shape[1]
    starts = [height * n // stripes for n in range(stripes)]
    stops = [-(-height * n // stripes) for n in range(1, stripes + 1)]  # rounded up
    return torch.stack([plane[:, a:b].mean((1, 2)) for a, b in zip(starts, stops, strict=True)], 1)


class OcclusionErasing(nn.Module):
    """o of each stripe, in (0, 1), by a small network of its own: 1 is visible.

    Linear D to D / 4, LayerNorm, linear to 1, sigmoid; nothing between the linear layers, as published.
    """

    def __init__(self, stripes: int, width: int):
        super().__init__()
        inner = width // 4
        self.detectors = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.LayerNorm(inner), nn.Linear(inner, 1))
            for _ in range(stripes)
        )

    def forward(self, stripes: Float[Tensor, "B S D"]) -> Float[Tensor, "B S"]:
        """The scores of B images."""
        logits = [each(stripe) for each, stripe in zip(self.detectors, stripes.unbind(1), strict=True)]
        return torch.cat(logits, 1).float().sigmoid()


def stripe_changes(batch: Batch, label: str, stripes: int) -> Float[Tensor, "B S"]:
    """How much of each stripe the obstacle covers, or (`difference`) how its colours differ between views."""
    if label == "coverage":
        return pool_stripes(batch.covered.float(), stripes)
    first, second = batch.holistic.image.float(), batch.occluded.image.float()
    return pool_stripes((first - second).abs().sum(1), stripes)


def visible_stripes(change: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """1 for a visible stripe, 0 for an occluded one, from how much each has changed; at least two stripes.

    A stripe that has changed is occluded.  But where all have changed, as under a vertical patch, all are
    visible, and where the greatest change is more than three times the second, it alone is occluded.
    """
    changed, (greatest, position) = change > 0, change.topk(2, 1)
    alone = F.one_hot(position[:, 0], change.shape[1]).bool()
    occluded = torch.where(greatest[:, :1] > OVERWHELMING * greatest[:, 1:], alone, changed)
    return (~occluded | changed.all(1, keepdim=True)).float()
