"""Losses that several methods share: batch-hard triplet, identity, distillation (OGFR's Eq. 18-20, 22).

Beside OGFR's: label smoothing, margins, ArcFace, orthogonal attention heads, and pictures against texts.

All are computed in float32, as a distance's square root loses its gradient in half precision.
"""

import math

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
    features: Float[Tensor, "*P B D"],
    pid: Int[Tensor, "B"],
    average: bool = False,
    margin: float | None = None,
    ignored: Bool[Tensor, "B G"] | None = None,
) -> Float[Tensor, "*P"]:
    """Batch-hard triplet loss L_tri of Eq. 22: the hardest positive against the hardest negative.

    Leading axes are independent.  Where processes share a batch, `distributed.mining_scope` says among which
    images they are sought.  With `average` a distance is the root of the mean over channels, not of the sum,
    so that the loss weighs the same at any width.  A `margin` makes it max(0, d_positive - d_negative +
    margin).  Where `ignored`, one of the G images that are compared is no negative; an image without any
    has the distance of its positive.
    Departs: OGFR prints no margin; by default it is soft, log(1 + exp(d_positive - d_negative)).
    """
    candidates = distributed.gather_candidates(features, -2)
    distance = pairwise_distances(features, candidates) / (features.shape[-1] ** 0.5 if average else 1)
    same: Bool[Tensor, "B G"] = pid[:, None] == distributed.gather_candidates(pid)
    positive = distance.masked_fill(~same, 0).amax(-1)
    negative = distance.masked_fill(same if ignored is None else same | ignored, float("inf")).amin(-1)
    negative = torch.where(negative.isinf(), positive.detach(), negative)  # a batch of one identity
    gap = positive - negative
    return (F.softplus(gap) if margin is None else F.relu(gap + margin)).mean(-1)


def identity(
    logits: Float[Tensor, "B *P I"],
    pid: Int[Tensor, "B"],
    smoothing: float = 0.0,
    ignored: Bool[Tensor, "B I"] | None = None,
) -> Float[Tensor, "*P"]:
    """L_id of Eq. 19 and 20: cross-entropy against the true identity, the mean over images, for each part.

    With `smoothing` e the truth is 1 - e of the true identity and e shared by all.  Identities that are
    `ignored` leave an image's softmax, and take no share; the true one must not be among them.
    """
    logits = logits.float().movedim(-1, 1)  # classes second
    target = pid.reshape(-1, *[1] * (logits.ndim - 2)).expand(len(pid), *logits.shape[2:])
    if ignored is None:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing).mean(0)
    ignored = ignored.reshape(*ignored.shape, *[1] * (logits.ndim - 2))
    surprise = -logits.masked_fill(ignored, -math.inf).log_softmax(1)
    true = surprise.gather(1, target[:, None])[:, 0]
    each = surprise.masked_fill(ignored, 0).sum(1) / (~ignored).sum(1)
    return ((1 - smoothing) * true + smoothing * each).mean(0)


def arc(
    cosine: Float[Tensor, "B I"], pid: Int[Tensor, "B"], scale: float, margin: float
) -> Float[Tensor, "B I"]:
    """Logits whose true identity must be nearer by an angle: s cos(theta + margin), the others s cos(theta).

    ArcFace (Deng et al., CVPR 2019, Eq. 3), by default in DPM.  Beyond theta = pi - margin, where that would
    rise again, it goes on as s (cos(theta) - margin sin(margin)).  `scale` is s; `margin` in radians.
    Departs: sin(theta) is at least 1e-3, as its gradient is infinite where a cosine is 1 or -1.
    """
    cosine = cosine.float()
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=1e-6).sqrt()
    nearer = cosine * math.cos(margin) - sine * math.sin(margin)
    far = cosine - margin * math.sin(margin)
    true = F.one_hot(pid, cosine.shape[1]).bool()
    return scale * torch.where(true, torch.where(cosine > -math.cos(margin), nearer, far), cosine)


def orthogonality(logits: Float[Tensor, "B H N"]) -> Float[Tensor, ""]:
    """How alike the H attention heads of each image are: the mean of (O O^T - I)^2, summed over images.

    L_orth of DPM (Tan et al., ACM MM 2022); the rows of O are the logits over patches, scaled to length 1.
    The sum is over the whole batch, also where processes share it, whose losses are averaged.
    """
    rows = F.normalize(logits.float(), dim=-1, eps=1e-6)
    with no_autocast(rows):
        alike = rows @ rows.mT
    apart = torch.eye(rows.shape[1], device=rows.device)
    return (alike - apart).square().mean((1, 2)).sum() * distributed.world_size()


def contrast(
    image: Float[Tensor, "B E"], text: Float[Tensor, "B E"], pid: Int[Tensor, "B"]
) -> Float[Tensor, ""]:
    """How badly pictures find the texts of their identity, and texts the pictures, among those of the batch.

    -log softmax of each match's product v t, the mean over an item's matches and over items; the sum of both
    directions.  Row i of `text` is of identity pid[i].  L_i2t + L_t2i of CLIP-ReID's first stage (Li et al.,
    AAAI 2023); nothing is scaled here.
    """
    image, text = image.float(), text.float()
    with no_autocast(image):
        products = image @ text.mT
    match = (pid[:, None] == pid).float()
    match = match / match.sum(1, keepdim=True)
    sides = torch.stack([products, products.mT])
    return -(match * sides.log_softmax(-1)).sum(-1).mean(1).sum()


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
