"""The baseline of OGFR's Table 4: one branch, a plain ViT, identity and triplet losses on occluded images.

Without parts, occlusion patterns, teacher or labels; TransReID's neck (batch norm before the classifier).
What is compared at the end is the class token.

Unusual here: that row leaves out the camera embedding with the rest of the occlusion-aware ViT;
`gamma_camera` 3.0 is TransReID's.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.batches.views import Batch, View
from pipeline.core.params import STRICT
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, encoder_without_parts
from pipeline.methods.presets import ENCODER_AND_HEADS, SCHEDULE, Preset, Presets
from pipeline.model import losses
from pipeline.model.backbones import Colours
from pipeline.model.heads import Heads


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """The baseline's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float  # weight of the camera embedding; 0 leaves it out
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster the classifier moves under Adam
    triplet: Literal["necked", "plain"] | None  # what the triplet loss compares, as OGFR's
    feature: Literal["before", "after"] | None  # what is compared at the end: before or after the neck


# OGFR's rows of the same names, so that Table 4 compares methods and not schedules
PRESETS: Presets = {
    **{f"vit_baseline.{name}": row for name, row in ENCODER_AND_HEADS.items()},
    **SCHEDULE,
    "train.obstacles.probability": (
        0.5,
        0.5,
        "not said; of what OGFR's encoder sees, one view of two is occluded, too",
    ),
}


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "Baseline":
    """The baseline with resolved parameters around an encoder."""
    return Baseline(params, spec, vit)


class Baseline(Method):
    """A ViT, a neck and a classifier."""

    TRAINING_SET = ("encoder.camera", "head.weight")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params = params
        self.encoder = encoder_without_parts(vit, spec, params.stride, params.gamma_camera)
        self.head = Heads(1, self.encoder.width, spec.identities, params.head_gain)

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Identity and triplet loss of the occluded view, unweighted."""
        token = self.token(batch.occluded, batch.camid)
        necked = self.head.neck(token)
        plain = self.params.triplet == "plain"
        terms = {
            "identity": losses.identity(self.head(necked), batch.pid).mean(),
            "triplet": losses.triplet((token if plain else necked)[:, 0], batch.pid, average=not plain),
        }
        yield Objective("reid", terms)

    def token(self, view: View, camid: Tensor) -> Float[Tensor, "B 1 D"]:
        """The class token of each image."""
        return self.encoder(view.image, view.hidden, camid).cls.float()[:, None]

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature per image, L2-normalised and always visible."""
        feature = self.token(batch.holistic, batch.camid)
        if self.params.feature == "after":
            feature = self.head.neck(feature)
        feature = F.normalize(feature, dim=-1)
        return Embedding(feature, torch.ones_like(feature[..., 0]))
