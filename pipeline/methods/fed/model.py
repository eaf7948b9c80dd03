"""FED: Feature Erasing and Diffusion Network for Occluded Person Re-Identification (Wang et al., CVPR 2022).

An image's feature b is that of its horizontal stripes, each weighted by its score o of visibility.  Training
diffuses b with the nearest other people of a memory to d, as if they stood in the picture.  Only b embeds.

Assumed: the sources are the paper's abstract, the published code (ZacharyWang-007/FED-Occluded-ReID) and the
figure of its README; sizes and losses are the code's.  What has no effect there (four necks, four
classifiers, one loss) is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core.params import BadInput
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, encoder_without_parts
from pipeline.methods.fed.erasing import OcclusionErasing, pool_stripes, stripe_changes, visible_stripes
from pipeline.methods.fed.params import Params
from pipeline.model import losses
from pipeline.model.diffusion import FeatureDiffusion
from pipeline.model.heads import Heads
from pipeline.model.memory import Centres, check_neighbours


class Features(NamedTuple):
    """B images as FED knows them."""

    token: Float[Tensor, "B D"]  # global
    score: Float[Tensor, "B S"]  # o; 1 without OEM
    erased: Float[Tensor, "B SD"]  # b


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "FED":
    """FED with resolved parameters around an encoder.

    Raises `BadInput` if the encoder's grid has fewer rows than stripes, or the memory too few people.
    """
    return FED(params, spec, vit)


class FED(Method):
    """An encoder, the scores of its stripes, their neck, and what trains them: classifiers, memory, FDM."""

    TRAINING_SET = (
        "encoder.camera", "head.weight", "global_head.weight", "diffused_head.weight", "memories.0.centres",
        "memories.1.centres",
    )  # fmt: skip
    LEAVES_OUT = ("head.weight", "global_head.", "diffused_head.", "diffusion.", "memories.")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params = params
        self.encoder = encoder_without_parts(vit, spec, params.stride, params.gamma_camera)
        if params.stripes > self.encoder.grid[0]:
            raise BadInput(
                f"params.yaml: fed.stripes = {params.stripes}, but the grid of patches has "
                f"{self.encoder.grid[0]} rows. Lower it, or raise train.size."
            )
        identities, width, gain = spec.identities, self.encoder.width, params.head_gain
        whole = params.stripes * width
        self.head = Heads(1, whole, identities, gain)  # the neck is that of all stripes
        self.global_head = Heads(1, width, identities, gain, branches=0)
        banks = 2 if params.fdm and params.banks == "two" else 1
        self.memories = nn.ModuleList(Centres(identities, whole) for _ in range(banks))  # b's first, d's last
        if params.oem:
            self.erasing = OcclusionErasing(params.stripes, width)
        if params.fdm:
            check_neighbours("fed.neighbours", params.neighbours, identities)
            self.diffusion = FeatureDiffusion(params.stripes, width)
            self.diffused_head = Heads(1, whole, identities, gain, branches=0)

    # -------------------------------------------------------------- features

    def features(self, view: View, camid: Int[Tensor, "B"]) -> Features:
        """Global token, scores and erased feature of each image."""
        token, stripes = self.encode(view, camid)
        score = self.erasing(stripes) if self.params.oem else stripes.new_ones(stripes.shape[:2])
        return Features(token, score, self.neck(score[..., None] * stripes))

    def encode(self, view: View, camid: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """The global token, B x D, and f, the mean patch token of each stripe, B x S x D.

        Departs: stripes are rows of the grid; the published code cuts the flat sequence, alike at stride 16.
        """
        tokens = self.encoder(view.image, view.hidden, camid)
        token = tokens.cls if self.params.global_token == "class" else tokens.patch[:, 0]
        plane = tokens.patch.float().unflatten(1, self.encoder.grid)
        return token.float(), pool_stripes(plane, self.params.stripes)

    def neck(self, stripes: Float[Tensor, "B S D"]) -> Float[Tensor, "B SD"]:
        """Stripes after their batch norms, which erased and diffused features share."""
        return self.head.neck(stripes.flatten(1)[:, None])[:, 0]

    def bank(self, number: int) -> Centres:
        """The memory of erased features (0) or of diffused ones (-1); they may be the same."""
        return cast(Centres, self.memories[number])

    def diffuse(self, features: Features, pid: Int[Tensor, "B"]) -> Float[Tensor, "B SD"]:
        """d: the erased feature, mixed with its nearest neighbours of the memory.

        Assumed: the abstract diffuses it with `other memorized features` and does not say which.  As in the
        published code they are the centres of other identities that are most alike in cosine, in the memory
        of erased features for both views, and d passes the batch norms of the erased features.
        """
        _, score, erased = features
        centres = self.bank(0).nearest(erased, pid, self.params.neighbours)
        return self.neck(self.diffusion(erased, score, centres))

    # -------------------------------------------------------------- learning

    @torch.no_grad()
    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Before the first epoch the memory becomes the identities' mean features with nothing erased."""
        if epoch > 0:
            return
        self.bank(0).start((self.neck(self.encode(b.holistic, b.camid)[1]), b.pid) for b in batches())
        self.bank(-1).load_state_dict(self.bank(0).state_dict())

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """One step on both views; then the memory moves by what the holistic view was before it."""
        views = [self.features(view, batch.camid) for view in (batch.holistic, batch.occluded)]
        diffused = [self.diffuse(view, batch.pid) for view in views] if self.params.fdm else []
        terms = self.terms(views, batch.pid)
        if self.params.oem:
            terms["oem"] = self.score_loss([view.score for view in views], batch)
        if self.params.fdm:
            terms |= self.diffused_terms(diffused, batch.pid)
        weights = {"oem": self.params.oem_weight}
        weights |= {name: getattr(self.params, name) for name in ("contrast_occluded", "contrast_diffused")}
        yield Objective("reid", terms, weights)
        # in the order of the published code, where one memory serves both
        if self.params.fdm:
            self.bank(-1).move(diffused[0], batch.pid, self.params.momentum)
        self.bank(0).move(views[0].erased, batch.pid, self.params.momentum)

    def terms(self, views: list[Features], pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """Losses of global tokens and erased features."""
        contrasts = self.contrasts(0, [view.erased for view in views], pid)
        return {
            "identity": self.identity(self.head, [view.erased for view in views], pid),
            "global_identity": self.identity(self.global_head, [view.token for view in views], pid),
            **dict(zip(("contrast", "contrast_occluded"), contrasts, strict=True)),
        }

    def diffused_terms(self, diffused: list[Tensor], pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """Losses of diffused features; the contrasts of both views are added."""
        return {
            "diffused_identity": self.identity(self.diffused_head, diffused, pid),
            "contrast_diffused": torch.stack(self.contrasts(-1, diffused, pid)).sum(),
        }

    def identity(self, head: Heads, views: list[Tensor], pid: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Cross-entropy of a classifier, the mean over views and images."""
        return torch.stack([losses.identity(head(view[:, None]), pid).mean() for view in views]).mean()

    def contrasts(self, memory: int, views: list[Tensor], pid: Int[Tensor, "B"]) -> list[Tensor]:
        """K of each view."""
        return [self.bank(memory).contrast(view, pid, self.params.temperature) for view in views]

    def score_loss(self, scores: list[Tensor], batch: Batch) -> Float[Tensor, ""]:
        """Mean squared errors of both views' scores; nothing is occluded in the holistic view."""
        holistic, occluded = scores
        label = visible_stripes(stripe_changes(batch, self.params.label, self.params.stripes))
        return F.mse_loss(holistic, torch.ones_like(holistic)) + F.mse_loss(occluded, label)

    # -------------------------------------------------------------- testing

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """b, L2-normalised as one feature.  Its scores are in it, so that it counts as visible."""
        feature = F.normalize(self.features(batch.holistic, batch.camid).erased, dim=1)[:, None]
        return Embedding(feature, torch.ones_like(feature[..., 0]))
