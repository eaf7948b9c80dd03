"""Losses that several methods share: batch-hard triplet, identity, distillation (OGFR's Eq. 18-20, 22).

All are computed in float32, as a distance's square root loses its gradient in half precision.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.core import distributed


def no_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of `like`: operands keep their own precision."""
    return torch.autocast(like.device.type, enabled=False)


def pairwise_distances(a: Float[Tensor, "*P B D"], b: Float[Tensor, "*P G D"]) -> Float[Tensor, "*P B G"]:
    """Euclidean distance of every row of `a` to every row of `b`, at least 1e-6 (D of Eq. 25)."""
    a, b = a.float(), b.float()
    with no_autocast(a):
        square = a.square().sum(-1, keepdim=True) + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return square.clamp(min=1e-12).sqrt()


def triplet(
    features: Float[Tensor, "*P B D"], pid: Int[Tensor, "B"], average: bool = False
) -> Float[Tensor, "*P"]:
    """Batch-hard triplet loss L_tri of Eq. 22: the hardest positive against the hardest negative.

    Leading axes are independent.  Where processes share a batch, `distributed.mining_scope` says among which
    images they are sought.  With `average` a distance is the root of the mean over channels, not of the sum,
    so that the loss weighs the same at any width.
    Departs: the margin is not printed; it is soft, log(1 + exp(d_positive - d_negative)).
    """
    candidates = distributed.gather_candidates(features, -2)
    distance = pairwise_distances(features, candidates) / (features.shape[-1] ** 0.5 if average else 1)
    same: Bool[Tensor, "B G"] = pid[:, None] == distributed.gather_candidates(pid)
    positive = distance.masked_fill(~same, 0).amax(-1)
    negative = distance.masked_fill(same, float("inf")).amin(-1)
    negative = torch.where(negative.isinf(), positive.detach(), negative)  # a batch of one identity
    return F.softplus(positive - negative).mean(-1)


def identity(logits: Float[Tensor, "B *P I"], pid: Int[Tensor, "B"]) -> Float[Tensor, "*P"]:
    """L_id of Eq. 19 and 20: cross-entropy against the true identity, the mean over images, for each part."""
    logits = logits.float().movedim(-1, 1)  # classes second
    target = pid.reshape(-1, *[1] * (logits.ndim - 2)).expand(len(pid), *logits.shape[2:])
    return F.cross_entropy(logits, target, reduction="none").mean(0)


def kl_divergence(teacher: Float[Tensor, "B *P I"], student: Float[Tensor, "B *P I"]) -> Float[Tensor, "*P"]:
    """KL(teacher || student) of Eq. 19: sum over classes, mean over images.

    Departs: the teacher is detached, or it would learn from its student; the paper does not say.
    """
    target, prediction = teacher.detach().float().log_softmax(-1), student.float().log_softmax(-1)
    return (target.exp() * (target - prediction)).sum(-1).mean(0)


def cosine(teacher: Float[Tensor, "B P D"], student: Float[Tensor, "B P D"]) -> Float[Tensor, ""]:
    """L_cos of Eq. 18: one minus the cosine of f_hp^i and f_op^i, the mean over i and images.

    Departs: the teacher is detached, as in `kl_divergence`.
    """
    return (1 - F.cosine_similarity(teacher.detach().float(), student.float(), dim=-1)).mean()
