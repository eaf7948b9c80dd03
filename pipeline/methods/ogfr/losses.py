"""Losses of Section 3.4 that are OGFR's alone (Eq. 17, 21, 22), and the weights of Eq. 23."""

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pipeline.core import distributed
from pipeline.methods.ogfr.params import Params
from pipeline.model import losses


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
    parsed = parsing.flatten(1).any(1).to(entropy.dtype)  # 1 where the map shows a part
    per_image = entropy.mean(1) if params.mask == "mean" else entropy.sum(1)
    count = distributed.all_reduce_mean(parsed.sum()).clamp(min=1 / distributed.world_size())
    return (per_image * parsed).sum() / count


def mse_loss(
    teacher: Float[Tensor, "B L D"], student: Float[Tensor, "B L D"], reduction: str
) -> Float[Tensor, ""]:
    """L_mse: squared distance of all tokens of the two branches, F_hp and F_op, Eq. 17.

    Departs: a mean over tokens and channels, unless `reduction` is "sum" as printed; the mean over images;
    the teacher is detached, or it would learn from its student.
    """
    gap = (teacher.detach().float() - student.float()).square()
    return gap.mean() if reduction == "mean" else gap.sum((1, 2)).mean()


def part_triplet(
    tokens: Float[Tensor, "B P D"], necked: Float[Tensor, "B P D"], pid: Int[Tensor, "B"], kind: str
) -> Float[Tensor, ""]:
    """L_tr of one branch: the triplet loss of the global feature plus the mean of the parts', Eq. 22.

    Departs: `necked` compares features after the batch norm, by root mean squares over channels; `plain`
    compares tokens by their Euclidean distances, as printed.
    """
    features = tokens if kind == "plain" else necked
    per_part = losses.triplet(features.transpose(0, 1), pid, average=kind == "necked")
    return per_part[0] + per_part[1:].mean()


def loss_weights(params: Params) -> dict[str, float]:
    """Weights of the terms, Eq. 19 and 23; those without distillation are 1."""
    if not params.distil:
        return {}
    return {
        "mse": params.mse_weight,
        "cos": params.mu_1,
        "identity": params.alpha,  # alpha and beta of Eq. 19
        "kl": params.beta,
        "triplet": params.mu_2,
        "teacher_identity": params.teacher_identity,
        "student_triplet": params.student_triplet,
    }
