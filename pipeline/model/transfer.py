"""Saliency-guided patch transfer: an anchor seen through another image's person, in that image's scene.

SPT (Tan et al., AAAI 2024; public code stone96123/SPT), on which DPM++ builds.  A_n says whether patch n
shows the person.  Where a donor j shows its person, anchor i keeps its own patches; elsewhere it takes the
donor's, with whatever covers the donor:

    x_i <- A_j x_i + (1 - A_j) x_j      on projected patches, before positions are added

The anchor's identity stays.  Where it takes from another identity, that one is ignored: as a class of its
cross-entropy, and as a negative of its triplets.

Unusual here:
- A comes from the parsing maps.  Departs: SPT trains a selector for it; the maps are exact and there already.
- Donors are sought in the whole batch, however many processes share it.
- An image in which nobody was found neither gives nor takes: nothing says where its person would be.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.core import distributed
from pipeline.model.losses import no_autocast
from pipeline.model.vit import patch_share

Pairing = Literal["oiou", "random"]
LEAST_SHARE = 0.5  # of a salient patch that shows the person
LEAST_OVERLAP = 0.7  # OIoU, without a roll, of a donor that is not the best


def saliency(parsing: UInt8[Tensor, "B H W"], patch: int, stride: int) -> Bool[Tensor, "B N"]:
    """A: whether at least half of a patch shows the person, whichever part of it."""
    return patch_share(parsing > 0, patch, stride) >= LEAST_SHARE


def oiou(
    anchor: Bool[Tensor, "B N"], donor: Bool[Tensor, "G N"], grid: tuple[int, int], shifts: int
) -> Float[Tensor, "B shifts G"]:
    """OIoU(i, j, k) = |roll(A_i, k columns) with A_j| / |A_j|, in [0, 1], for k = 0 ... `shifts` - 1.

    The share of the donor's person that the anchor's person fills.
    Assumed: 0 where the donor shows nobody, of which SPT divides by 0.
    """
    plane = anchor.float().unflatten(1, grid)
    rolled = torch.stack([plane.roll(k, 2).flatten(1) for k in range(shifts)], 1)
    with no_autocast(rolled):
        overlap = rolled @ donor.float().T
    return overlap / donor.sum(1).clamp(min=1)


def draw_donors(
    salient: Bool[Tensor, "B N"], grid: tuple[int, int], probability: float, pairing: Pairing, roll: bool
) -> Int[Tensor, "B 3"]:
    """For each image of a batch the donor's row, the columns to roll by, and whether it is mixed at all.

    Each image is mixed with `probability`.  `oiou` ranks all other images under all rolls (without `roll`,
    under none) by OIoU(i, j, k), and draws one of the ranks 1 ... floor(B / 10) - 1 whose OIoU(i, j, 0) is
    above .7, or takes rank 0 if there is none.  `random` draws any other image.
    Departs: SPT draws up to 100 ranks until one is good, which is an even draw among the good ones but for
    one time in 10^9.  It also ranks the image itself, mostly first, so that its fallback mixes nothing; and
    its code computes the roll, but does not apply it.
    """
    batch = len(salient)
    coin = torch.rand(batch, device=salient.device) < probability
    score = oiou(salient, salient, grid, grid[1] if roll else 1)
    if pairing == "random":
        step = torch.randint(1, batch, (batch,), device=salient.device)
        choice = (torch.arange(batch, device=salient.device) + step) % batch  # at k = 0
    else:
        choice = _draw_ranked(score)
    overlap = score.flatten(1).gather(1, choice[:, None])[:, 0]
    return torch.stack([choice % batch, choice // batch, coin & (overlap > 0)], 1)


def _draw_ranked(score: Float[Tensor, "B shifts B"]) -> Int[Tensor, "B"]:
    # k B + j of each image's donor
    batch = len(score)
    itself = torch.eye(batch, dtype=torch.bool, device=score.device)
    others = score.masked_fill(itself[:, None], -1).flatten(1)
    ranks = others.argsort(dim=1, descending=True, stable=True)[:, : max(batch // 10, 1)]
    good = score[:, 0].gather(1, ranks % batch) > LEAST_OVERLAP
    good[:, 0] = ~good[:, 1:].any(1)
    return ranks.gather(1, torch.multinomial(good.float(), 1))[:, 0]


def mix(
    anchor: Float[Tensor, "B N D"],
    donor: Float[Tensor, "B N D"],
    kept: Bool[Tensor, "B N"],
    shift: Int[Tensor, "B"],
    grid: tuple[int, int],
) -> Float[Tensor, "B N D"]:
    """The anchor's patches, rolled by `shift` columns, where `kept`, A_j; the donor's elsewhere."""
    columns = (torch.arange(grid[1], device=shift.device) - shift[:, None]) % grid[1]
    plane = anchor.unflatten(1, grid)
    rolled = plane.gather(2, columns[:, None, :, None].expand_as(plane)).flatten(1, 2)
    return torch.where(kept[..., None], rolled, donor)


@dataclass(frozen=True)
class Transfer:
    """What each image of this process's slice takes, and from which image of the whole batch."""

    row: Int[Tensor, "B"]  # the donor's, in the whole batch
    shift: Int[Tensor, "B"]  # columns by which the anchor is rolled
    kept: Bool[Tensor, "B N"]  # A_j; all of an anchor that is not mixed
    mixed: Bool[Tensor, "B"]
    grid: tuple[int, int]

    def edit(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Projected patches after the transfer; gradients reach the donors', too, in whatever process."""
        return mix(patches, distributed.all_gather(patches)[self.row], self.kept, self.shift, self.grid)

    def ignored_classes(self, pid: Int[Tensor, "B"], identities: int) -> Bool[Tensor, "B I"]:
        """The donor's identity, where it is another one than the anchor's."""
        donor = distributed.all_gather(pid)[self.row]
        return F.one_hot(donor, identities).bool() & self._of_another(pid, donor)

    def ignored_candidates(self, pid: Int[Tensor, "B"]) -> Bool[Tensor, "B G"]:
        """The images of that identity, among those that a triplet loss compares (`gather_candidates`)."""
        donor = distributed.all_gather(pid)[self.row]
        return (distributed.gather_candidates(pid) == donor[:, None]) & self._of_another(pid, donor)

    def _of_another(self, pid: Int[Tensor, "B"], donor: Int[Tensor, "B"]) -> Bool[Tensor, "B 1"]:
        return (self.mixed & (donor != pid))[:, None]


@torch.no_grad()
def draw_transfer(
    salient: Bool[Tensor, "B N"], grid: tuple[int, int], probability: float, pairing: Pairing, roll: bool
) -> Transfer:
    """A transfer between the images of the whole batch, of which `salient` is this process's slice."""
    draw = partial(draw_donors, grid=grid, probability=probability, pairing=pairing, roll=roll)
    everyone = distributed.all_gather(salient)
    row, shift, mixed = draw(everyone)[distributed.local_slice(len(everyone))].unbind(1)
    mixed = mixed.bool()
    return Transfer(row, shift * mixed, everyone[row] | ~mixed[:, None], mixed, grid)
