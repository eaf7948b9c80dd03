"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: occlusion-aware ViT shared by both views (3.1), erasing agent and purifying decoder for
the holistic view, which teaches (3.2), two transformer layers for the occluded view, which learns (3.3), the
losses (3.4), and what is compared at the end (Eq. 24, 25).  h and o name the views, hp and op the two
branches' final features; index i runs over {g, 1 ... K}: the global feature, then the parts.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pipeline.core import distributed
from pipeline.methods.ogfr.params import Params
from pipeline.model import losses

# ------------------------------------------------------------------ 3.4 losses of this method alone


def mask_loss(
    state: Float[Tensor, "B N K1"],
    parsing: UInt8[Tensor, "B H W"],
    labels: Float[Tensor, "B N K1"],
    grid: tuple[int, int],
    params: Params,
) -> Float[Tensor, ""]:
    """L_mask: cross-entropy of the semantic correlation I against the parsing map M, Eq. 21.

    The similarities become probabilities by a softmax over parts; on the grid of the image they are
    interpolated first (the paper's I with a tilde).
    Departs: labels are pooled to the patches (`mask_grid`) and averaged (`mask`), printed are pixels of the
    image, summed; the softmax has a `temperature`; images whose map shows no part are left out, as their
    person was not found; the mean over images is taken.
    """
    logits = state / params.temperature
    if params.mask_grid == "patch":
        entropy = -(labels * logits.log_softmax(-1)).sum(-1)  # B N
    else:
        plane = logits.mT.unflatten(2, grid)
        plane = F.interpolate(plane, tuple(parsing.shape[1:]), mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(plane, parsing.long(), reduction="none").flatten(1)  # B HW
    found = parsing.flatten(1).any(1).to(entropy.dtype)
    each = entropy.mean(1) if params.mask == "mean" else entropy.sum(1)
    shown = distributed.all_reduce_mean(found.sum()).clamp(min=1 / distributed.world_size())
    return (each * found).sum() / shown


def mse_loss(
    teacher: Float[Tensor, "B L D"], student: Float[Tensor, "B L D"], reduction: str
) -> Float[Tensor, ""]:
    """L_mse: squared distance of all tokens of the two branches, F_hp and F_op, Eq. 17.

    Departs: a mean over tokens and channels, unless `reduction` is "sum" as printed; the mean over images;
    the teacher is detached, or it would learn from its pupil.
    """
    gap = (teacher.detach().float() - student.float()).square()
    return gap.mean() if reduction == "mean" else gap.sum((1, 2)).mean()


def part_triplet(
    features: Float[Tensor, "B P D"], pid: Int[Tensor, "B"], average: bool = False
) -> Float[Tensor, ""]:
    """L_tr: triplet loss of the global feature plus the mean of the parts', Eq. 22."""
    each = losses.triplet(features.transpose(0, 1), pid, average=average)
    return each[0] + each[1:].mean()
