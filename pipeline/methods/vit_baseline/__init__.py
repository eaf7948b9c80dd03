"""The baseline of OGFR's Table 4: one branch, a plain ViT, identity and triplet losses on occluded pictures.

Without parts, occlusion patterns, teacher or labels; TransReID's neck (batch norm before the classifier).
What is compared at the end is the class token.

Unusual here: the row's text leaves the camera embedding out with the rest of the occlusion-aware ViT; 3.0 for
`gamma_camera` brings TransReID's back.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core.params import STRICT
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, Preset, Presets
from pipeline.model import losses
from pipeline.model.vit import OcclusionAwareViT


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """The baseline's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # local file for a timm name; "" downloads it
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float  # weight of the camera embedding; 0 leaves it out
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster the classifier moves under Adam
    triplet: Literal["necked", "plain"] | None  # what the triplet loss compares, as OGFR's
    feature: Literal["before", "after"] | None  # what is compared at the end: before or after the neck


# name: (recommended, paper, reason).  Beside OGFR's rows of the same names, so that Table 4 compares methods
# and not schedules.
PRESETS: Presets = {
    "vit_baseline.stride": (16, 11, "as OGFR's"),
    "vit_baseline.head_gain": (10.0, 1.0, "as OGFR's"),
    "vit_baseline.triplet": ("necked", "plain", "as OGFR's"),
    "vit_baseline.feature": ("after", "before", "as OGFR's"),
    "train.epochs": (8, 120, "as OGFR's"),
    "train.optimiser": ("adamw", "sgd", "as OGFR's"),
    "train.lr": (7e-4, 0.008, "as OGFR's"),
    "train.decay": (1e-2, 1e-4, "as OGFR's"),
    "train.warmup": (1.0, 5.0, "as OGFR's"),
    "train.clip": (5.0, 0.0, "as OGFR's"),
    "train.obstacles.probability": (
        0.5,
        0.5,
        "not said; of what OGFR's encoder sees, one view of two is occluded, too",
    ),
    "train.obstacles.sources": (["rectangle", "person"], ["rectangle"], "as OGFR's"),
    "train.obstacles.area": ((0.1, 0.4), (0.05, 0.2), "as OGFR's"),
    "train.obstacles.aspect": ((0.3, 3.3), (0.3, 3.3), "as OGFR's"),
}


def build(params: Params, world: DataSpec, vit: VisionTransformer) -> "Baseline":
    """The baseline with resolved parameters around an encoder."""
    return Baseline(params, world, vit)


class Baseline(Method):
    """A ViT, a neck and a classifier."""

    def __init__(self, params: Params, world: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params = params
        self.encoder = OcclusionAwareViT(
            vit, world.size, params.stride, 0, world.coarse, world.cameras,
            0.0, params.gamma_camera, world.trained_cameras,
        )  # fmt: skip
        self.neck = nn.BatchNorm1d(self.encoder.width)
        self.neck.bias.requires_grad_(False)
        start = torch.randn(world.identities, self.encoder.width) * (0.001 / params.head_gain)
        self.classifier = nn.Parameter(start)

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Identity and triplet loss of the occluded view, unweighted."""
        token = self.token(batch.occluded, batch.camid)
        necked = self.neck(token)
        with losses.no_autocast(necked):
            logits = self.params.head_gain * necked @ self.classifier.T
        plain = self.params.triplet == "plain"
        triplet = losses.triplet(token if plain else necked, batch.pid, average=not plain)
        yield Objective("reid", {"identity": losses.identity(logits, batch.pid), "triplet": triplet})

    def token(self, view: View, camid: Tensor) -> Float[Tensor, "B D"]:
        """The class token of each image."""
        return self.encoder(view.image, view.hidden, camid).cls.float()

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature an image, L2-normalised and always visible."""
        feature = self.token(batch.holistic, batch.camid)
        if self.params.feature == "after":
            feature = self.neck(feature)
        feature = F.normalize(feature, dim=-1)[:, None]
        return Embedding(feature, torch.ones_like(feature[..., 0]))
