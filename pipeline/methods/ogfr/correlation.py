"""The semantic correlation of patches and parts (Eq. 6), and which parts it calls visible (Eq. 24)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.model import losses


def correlation(patch: Float[Tensor, "B N D"], part: Float[Tensor, "B K1 D"]) -> Float[Tensor, "B N K1"]:
    """Semantic correlation I of the patches f^p and the parts f^0 ... f^K: cosines in [-1, 1], Eq. 6."""
    with losses.no_autocast(patch):
        return F.normalize(patch.float(), dim=-1) @ F.normalize(part.float(), dim=-1).mT


def visible(state: Float[Tensor, "B N K1"], rule: str) -> Float[Tensor, "B K"]:
    """v_i of Eq. 24, 0 or 1, for the K parts.

    Departs: a part is visible if some patch resembles it more than any other part and the background
    (`argmax`); printed is a positive similarity anywhere (`positive`), which nearly every part has.  It is
    decided on patches, not on the map interpolated to the image, which shows a little less.
    """
    if rule == "positive":
        return (state.amax(1) > 0)[:, 1:].float()
    parts = torch.arange(state.shape[-1], device=state.device)
    nearest = state.argmax(-1, keepdim=True)  # a kept axis: onnxruntime drops none of an empty batch
    return (nearest == parts).any(1)[:, 1:].float()
