"""DPM: Dynamic Prototype Mask for Occluded Person Re-Identification (Tan et al., ACM MM 2022).

A mask generator reads the patches of several layers and gives each image a weight m for every channel.  The
image is then compared with the prototypes W_c of the identities, and a query with the gallery, in the
channels that its own mask keeps.  Symbols: g class token, f = BN(g), s scale and mu margin of ArcFace.

Unusual here: the mask generator learns in a step of its own, on the weights that the first step left.  The
distance is not symmetric: a query's mask is laid on the gallery's features, whose own masks are not used.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, ParamGroup
from pipeline.methods.dpm.params import PRESETS, WITHOUT_EFFECT, Params
from pipeline.model import losses
from pipeline.model.heads import Heads
from pipeline.model.masking import MaskGenerator, masked_cosine, tapped_blocks
from pipeline.model.taps import watch
from pipeline.model.vit import OcclusionAwareViT

__all__ = ["PRESETS", "WITHOUT_EFFECT", "Params", "build"]


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "DPM":
    """DPM with resolved parameters around an encoder.  Raises `BadInput` for taps that it does not have."""
    return DPM(params, spec, vit)


class Features(NamedTuple):
    """What DPM makes of a view before the mask."""

    token: Float[Tensor, "B D"]  # g
    patches: list[Float[Tensor, "B N D"]]  # after each tapped block
    logits: Float[Tensor, "B heads N"] | None  # of the class token's attention to the patches


class DPM(Method):
    """A ViT, a neck, prototypes, and a mask generator."""

    TRAINING_SET = ("encoder.camera", "head.weight")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params: Any = params
        self.encoder = OcclusionAwareViT(
            vit, spec.size, params.stride, parts=0, coarse=spec.coarse, cameras=spec.cameras,
            gamma_pattern=0.0, gamma_camera=params.gamma_camera, trained=spec.trained_cameras,
        )  # fmt: skip
        width, grid = self.encoder.width, self.encoder.grid
        self.head = Heads(1, width, spec.identities, params.head_gain)  # W serves both identity losses
        with torch.no_grad():
            nn.init.xavier_uniform_(self.head.weight[0]).div_(params.head_gain)
        masked = params.mask == "generator"
        self.taps = tapped_blocks(params.taps, len(vit.blocks), "dpm.taps") if masked else ()
        self.generator = MaskGenerator(width, grid, len(self.taps)) if masked else None

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
            arc = self.arc_loss(necked, self.mask(features), batch.pid)
            yield Objective("mask", {"mask": arc}, {"mask": mine.arc})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both identity losses, the triplet loss, and the head enrichment, of the occluded view."""
        enriches = self.params.orthogonal > 0
        features = self.features(batch.occluded, batch.camid, enriches)
        necked, plain = self.neck(features.token), self.params.triplet == "plain"
        terms = {
            "identity": losses.identity(self.head(necked[:, None])[:, 0], batch.pid),
            "arc": self.arc_loss(necked, self.mask(features), batch.pid),
            "triplet": losses.triplet(features.token if plain else necked, batch.pid, average=not plain),
        }
        if enriches:
            terms["orthogonality"] = losses.orthogonality(features.logits)
        return terms

    def arc_loss(
        self, necked: Float[Tensor, "B D"], mask: Float[Tensor, "B D"], pid: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of ArcFace's logits on cos(f, m * W_c / |W_c|)."""
        cosine = masked_cosine(necked, self.head.weight[0], mask)
        return losses.identity(losses.arc(cosine, pid, self.params.scale, self.params.margin), pid)

    # -------------------------------------------------------------- seeing

    def features(self, view: View, camid: Int[Tensor, "B"], logits: bool = False) -> Features:
        """g, and what the mask generator and the head enrichment read."""
        watched = watch(self.encoder, view.image, view.hidden, camid, self.taps, logits)
        patches = [self.encoder.split(watched.taps[block]).patch for block in self.taps]
        return Features(watched.tokens.cls.float(), patches, watched.logits)

    def neck(self, token: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """f = BN(g)."""
        return self.head.neck(token[:, None])[:, 0]

    def mask(self, features: Features) -> Float[Tensor, "B D"]:
        """m; all ones without a generator."""
        if self.generator is None:
            return torch.ones_like(features.token)
        return self.generator(features.patches)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature per image, L2-normalised and always visible, and its mask as the gate of a query.

        `before` compares g under masks that learnt on f, as published; `after` compares f.
        """
        features = self.features(batch.holistic, batch.camid)
        token = self.neck(features.token) if self.params.feature == "after" else features.token
        gate = None if self.generator is None else self.mask(features)[:, None]
        return Embedding(F.normalize(token, dim=-1)[:, None], torch.ones_like(token[:, :1]), gate)
