"""DPM: Dynamic Prototype Mask for Occluded Person Re-Identification (Tan et al., ACM MM 2022).

A mask generator reads the patches of several layers and gives each image a weight m for every channel.  The
image is then compared with the prototypes W_c of the identities, and a query with the gallery, in the
channels that its own mask keeps.  Symbols: g class token, f = BN(g), s scale and mu margin of ArcFace.

Unusual here: the mask generator learns in a step of its own, on the weights that the first step left.  The
distance is not symmetric: a query's mask is laid on the gallery's features, whose own masks are not used.
"""

from collections.abc import Iterator
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.batches.views import Batch
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, ParamGroup, encoder_without_parts
from pipeline.methods.dpm.params import PRESETS, WITHOUT_EFFECT, Params
from pipeline.model import losses
from pipeline.model.masking import MaskedMetric, tapped_blocks

__all__ = ["PRESETS", "WITHOUT_EFFECT", "Params", "build"]


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "DPM":
    """DPM with resolved parameters around an encoder.  Raises `BadInput` for taps that it does not have."""
    return DPM(params, spec, vit)


class DPM(MaskedMetric, Method):
    """A ViT, a neck, prototypes, and a mask generator."""

    TRAINING_SET = ("encoder.camera", "head.weight")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        taps = tapped_blocks(params.taps, len(vit.blocks), "dpm.taps") if params.mask == "generator" else ()
        encoder = encoder_without_parts(vit, spec, params.stride, params.gamma_camera)
        super().__init__(encoder, spec.identities, params.head_gain, taps)
        self.params: Any = params

    @property
    def alternates(self) -> bool:
        """Whether the mask generator has steps of its own."""
        return self.generator is not None and self.params.steps == "alternate"

    def param_groups(self) -> dict[str, ParamGroup]:
        """`reid` holds all but the mask generator, which has an optimiser, a rate and steps of its own."""
        if self.generator is None or not self.alternates:
            return super().param_groups()
        generator = list(self.generator.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in set(generator)]
        mask = ParamGroup(generator, lr=self.params.mask_lr, schedule=self.params.mask_schedule)
        return {"reid": ParamGroup(rest), "mask": mask}

    # -------------------------------------------------------------- learning

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """The whole loss, which moves all but the mask generator; then the generator, on the new weights.

        The published code computes the whole loss twice.  The second pass here has the one term that the
        generator reaches and no gradient before its input: the generator's gradient is the same.
        """
        mine = self.params
        weights = {"identity": mine.plain, "arc": mine.arc, "orthogonality": mine.orthogonal}
        yield Objective("reid", self.losses(batch), weights)
        if self.alternates:
            with torch.no_grad():
                features = self.features(batch.occluded, batch.camid)
                necked = self.neck(features.token)
            arc = self.arc_loss(necked, self.mask(features), batch.pid, mine.scale, mine.margin)
            yield Objective("mask", {"mask": arc}, {"mask": mine.arc})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both identity losses, the triplet loss, and the head enrichment, of the occluded view."""
        mine, pid, plain = self.params, batch.pid, self.params.triplet == "plain"
        features = self.features(batch.occluded, batch.camid, mine.orthogonal > 0)
        necked = self.neck(features.token)
        terms = {
            "identity": self.plain_loss(necked, pid),
            "arc": self.arc_loss(necked, self.mask(features), pid, mine.scale, mine.margin),
            "triplet": losses.triplet(features.token if plain else necked, pid, average=not plain),
        }
        if features.logits is not None:
            terms["orthogonality"] = losses.orthogonality(features.logits)
        return terms

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature per image, L2-normalised and always visible, and its mask as the gate of a query.

        `before` compares g under masks that learnt on f, as published; `after` compares f.
        """
        feature, gate = self.compare(batch.holistic, batch.camid, self.params.feature == "after")
        return Embedding(feature, torch.ones_like(feature[..., 0]), gate)
