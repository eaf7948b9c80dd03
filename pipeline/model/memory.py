"""A memory of identities: one centre for each, which training moves and never differentiates.

FED (Wang et al., CVPR 2022) diffuses a feature with its nearest centres of other people, and contrasts it
with all.  Its equations are those of the published code (ZacharyWang-007/FED-Occluded-ReID).

With several processes all centres are equal everywhere: what moves them is gathered in the batch's order.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.model import losses

EPSILON = 1e-6  # beside a probability in its logarithm: a hopeless image loses 13.8 at most


class Centres(nn.Module):
    """M: the mean feature of each of C training identities, as it was lately.  Zero until `start`."""

    centres: Float[Tensor, "C D"]

    def __init__(self, identities: int, width: int):
        super().__init__()
        self.register_buffer("centres", torch.zeros(identities, width))

    @torch.no_grad()
    def start(self, features: Iterable[tuple[Float[Tensor, "B D"], Int[Tensor, "B"]]]) -> None:
        """Set each centre to the mean of its identity's features; `features` come with their pid."""
        sums, counts = torch.zeros_like(self.centres), self.centres.new_zeros(len(self.centres))
        for rows, pid in features:
            with losses.no_autocast(sums):
                member = self._members(pid)
                sums += member @ rows.float()
            counts += member.sum(1)
        self.centres.copy_(sums / counts.clamp(min=1)[:, None])

    @torch.no_grad()
    def nearest(
        self, features: Float[Tensor, "B D"], pid: Int[Tensor, "B"], count: int
    ) -> Float[Tensor, "B count D"]:
        """The `count` centres of other identities that are most alike in cosine, each scaled to length 1.

        The published code takes one more and drops the image's own, or the last if that is not among them,
        which gives the same.
        """
        centres = F.normalize(self.centres, dim=1)
        with losses.no_autocast(features):
            cosine = F.normalize(features.float(), dim=1) @ centres.T
        others = cosine.masked_fill(self._members(pid).T.bool(), -torch.inf)
        return centres[others.topk(count, 1).indices]

    def contrast(
        self, features: Float[Tensor, "B D"], pid: Int[Tensor, "B"], temperature: float
    ) -> Float[Tensor, ""]:
        """K(u, y) = -log softmax_y(cos(u, M) / temperature), the mean over images u of identity y.

        As in the published code the probability has 1e-6 added.  Departs: the sum that it is divided by has
        not, which is less than rounding.
        """
        centres = F.normalize(self.centres, dim=1)
        with losses.no_autocast(features):
            cosine = F.normalize(features.float(), dim=1) @ centres.T
        probability = (cosine / temperature).softmax(1).gather(1, pid[:, None])
        return -(probability + EPSILON).log().mean()

    @torch.no_grad()
    def move(self, features: Float[Tensor, "B D"], pid: Int[Tensor, "B"], momentum: float) -> None:
        """M_y = momentum M_y + (1 - momentum) u for each image u of identity y, one after the other.

        The batch is that of all processes, in its order: the last image of an identity counts most.
        """
        rows, pid = distributed.all_gather(features.detach().float()), distributed.all_gather(pid)
        member = self._members(pid)
        later = member.sum(1, keepdim=True) - member.cumsum(1)  # images of this identity that follow
        share = member * (1 - momentum) * momentum**later
        with losses.no_autocast(rows):
            self.centres.mul_(momentum ** member.sum(1, keepdim=True)).add_(share @ rows)

    def _members(self, pid: Int[Tensor, "B"]) -> Float[Tensor, "C B"]:
        # 1 where an image is of an identity; a product with it sums in one order on every device
        return F.one_hot(pid, len(self.centres)).T.to(self.centres.dtype)


def check_neighbours(name: str, count: int, identities: int) -> None:
    """Raise `BadInput` that names the param if a memory has fewer than `count` other identities."""
    if count >= identities:
        raise BadInput(
            f"params.yaml: {name} = {count}: a memory of {identities} identities has {identities - 1} others "
            "for each. Lower it, or train on more people."
        )
