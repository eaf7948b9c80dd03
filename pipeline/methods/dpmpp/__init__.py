"""DPM++: Dynamic Masked Metric Learning for Occluded Person Re-identification (Tan et al., 2026).

DPM's masked metric (`model/masking.py`); prototypes that texts teach, in two stages (`model/text`); and
training images that are seen through one another's people (`model/transfer.py`).

Assumed: only the abstract is public.  It names these parts, a pairing of samples that knows of occlusion, and
a `mask-guided optimisation`, but no equation.  Theirs are those of the works that it builds on: DPM (ACM MM
2022), CLIP-ReID (Li et al., AAAI 2023), SPT (AAAI 2024).  What is in none of them says `Assumed:` again.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.batches.views import Batch, View
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, ParamGroup, encoder_without_parts
from pipeline.methods.dpmpp.params import PRESETS, WITHOUT_EFFECT, Params
from pipeline.model import losses
from pipeline.model.masking import MaskedMetric, budget, tapped_blocks
from pipeline.model.text import Sizes, Towers
from pipeline.model.text.prompts import Prompts
from pipeline.model.text.supervision import Supervision, Text, matching_towers, tower_sizes
from pipeline.model.transfer import Transfer, draw_transfer, saliency

__all__ = ["PRESETS", "WITHOUT_EFFECT", "Params", "build"]

BUDGET = 0.9  # share of the channels. Assumed: no source has such a loss; it is off, as `budget` is 0


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "DPMpp":
    """DPM++ with resolved parameters around an encoder.  Raises `BadInput` for taps that it does not have."""
    return DPMpp(params, spec, vit)


class DPMpp(MaskedMetric, Method):
    """DPM's network and, while it trains, what supervises it by text."""

    TRAINING_SET = ("encoder.camera", "head.weight", "text.table")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        taps = tapped_blocks(params.taps, len(vit.blocks), "dpmpp.taps") if params.mask == "generator" else ()
        encoder = encoder_without_parts(vit, spec, params.stride, params.gamma_camera, params.camera_on)
        super().__init__(encoder, spec.identities, params.head_gain, taps)
        self.params = params
        self.text: Supervision | None = None
        self.towers: Towers | None = None  # from `read_text` to the end of stage 1
        if params.words:
            self.text = Supervision(
                encoder.width, spec.identities, params.embedding, params.own_tower, params.transfer
            )
            self.head.weight.requires_grad_("replace" not in params.transfer)

    @property
    def alternates(self) -> bool:
        """Whether the mask generator has steps of its own.

        Assumed: that is the abstract's `mask-guided optimisation`, and DPM's.
        """
        return self.generator is not None and self.params.steps == "alternate"

    def param_groups(self) -> dict[str, ParamGroup]:
        """`reid` holds all but the mask generator, which has an optimiser, a rate and steps of its own.

        `fresh_lr` is for what no tower brought: the cameras' embeddings, the neck, W, A, and a generator
        without steps of its own.
        Assumed: CLIP-ReID moves all of its second stage at the tower's rate, under which DPM's new layers
        would stay as they are.
        """
        generator = list(self.generator.parameters()) if self.alternates else []
        learning = [p for p in self.parameters() if p.requires_grad and p not in set(generator)]
        tower = {*self.encoder.parameters(), *(self.text.projection.parameters() if self.text else [])}
        fresh = [p for p in learning if p not in tower or p is self.encoder.camera]
        groups = {"reid": ParamGroup(learning, scaled=[(fresh, self.params.fresh_lr)])}
        if generator:
            groups["mask"] = ParamGroup(generator, lr=self.params.mask_lr, schedule=self.params.mask_schedule)
        return groups

    # -------------------------------------------------------------- stage 1: a text for each identity

    def check_text(self, file: str) -> None:
        """Raise `BadInput` if no towers fit the params, as far as is known without a download."""
        if self.text:
            self._check_sizes(tower_sizes(*self._tower(file)))

    def read_text(self, file: str) -> str:
        """Take the towers for stage 1; `file` has our own.  Raises `BadInput` if none fit the encoder."""
        if not self.text:
            return ""
        self.towers, source = matching_towers(*self._tower(file))
        self._check_sizes(self.towers.sizes)
        self.towers.check_pair(self.encoder.cls, "dpmpp")
        self.text.read(self.towers)
        return source

    def _tower(self, file: str) -> tuple[str, str, Text, str, str, str]:
        mine = self.params
        return "dpmpp", mine.vit, mine.text, file, mine.text_tower, mine.text_weights

    def _check_sizes(self, sizes: Sizes) -> None:
        words = 0 if self.params.text == "table" else self.params.prompt_tokens
        sizes.check("dpmpp", self.params.embedding, words)

    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Before the first epoch: learn T from all images, and drop the text tower.

        Raises `ValueError` if there is none (`read_text`).
        """
        if epoch or not self.text:
            return
        if not self.towers:
            raise ValueError("stage 1 of DPM++ needs its text tower: call `read_text` before training")
        mine, (image, pid) = self.params, self._embed_for_text(batches())
        prompts = Prompts(
            tokens=mine.prompt_tokens, epochs=mine.prompt_epochs, lr=mine.prompt_lr, batch=mine.prompt_batch
        )
        seed, free = torch.initial_seed(), mine.text == "table"
        self.text.learn(self.towers, image, pid, self.head.weight[0], prompts, seed, free)
        self.towers = None

    @torch.no_grad()
    def _embed_for_text(self, batches: Iterable[Batch]) -> tuple[Float[Tensor, "N E"], Int[Tensor, "N"]]:
        # v and the identity of all images; cameras are left out, as in CLIP-ReID
        weight, self.encoder.gamma_camera = self.encoder.gamma_camera, 0.0
        rows = []
        for batch in batches:
            features = self.features(batch.holistic, batch.camid)
            rows.append((self.text.projection(features.token, features.patch), batch.pid))
        self.encoder.gamma_camera = weight
        image, pid = zip(*rows, strict=True)
        return torch.cat(image), torch.cat(pid)

    # -------------------------------------------------------------- stage 2

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """The whole loss, which moves all but the mask generator; then the generator, on the new weights.

        The second pass has the terms that the generator reaches and no gradient before its input: the
        generator's gradient is that of the whole loss.
        Assumed: both see the same transfer, so that the generator learns on the images that the rest saw.
        """
        mine, mixed = self.params, self.draw_transfer(batch.occluded)
        weights = {
            "identity": mine.plain, "arc": mine.arc, "orthogonality": mine.orthogonal, "budget": mine.budget,
            "i2t": mine.text_weight, "align": mine.align_weight, "mask": mine.arc, "mask_budget": mine.budget,
        }  # fmt: skip
        yield Objective("reid", self.losses(batch, mixed), weights)
        if self.alternates:
            yield Objective("mask", self.mask_losses(batch, mixed), weights)

    def draw_transfer(self, view: View) -> Transfer | None:
        """Which images are mixed, and with which; None if none ever is."""
        mine, encoder = self.params, self.encoder
        if not mine.spt:
            return None
        salient = saliency(view.parsing, encoder.patch, encoder.stride)
        return draw_transfer(salient, encoder.grid, mine.spt, mine.pairing, mine.roll)

    def losses(self, batch: Batch, mixed: Transfer | None) -> dict[str, Tensor]:
        """The loss of the occluded view after the transfer, term by term.

        Assumed: a donor's identity, which SPT's one cross-entropy ignores, leaves ArcFace's and the texts',
        too, as the picture shows as much of it there.
        """
        mine, pid, plain = self.params, batch.pid, self.params.triplet == "plain"
        edit, classes = mixed.edit if mixed else None, self._ignored_classes(mixed, pid)
        images = mixed.ignored_candidates(pid) if mixed and mine.ignore else None
        features = self.features(batch.occluded, batch.camid, mine.orthogonal > 0, edit)
        necked, mask = self.neck(features.token), self.mask(features)
        compared = features.token if plain else necked
        terms = {
            "identity": self.plain_loss(necked, pid, classes),
            "arc": self.arc_loss(necked, mask, pid, mine.scale, mine.margin, classes),
            "triplet": losses.triplet(compared, pid, average=not plain, ignored=images),
        }
        if features.logits is not None:
            terms["orthogonality"] = losses.orthogonality(features.logits)
        if mine.budget and self.generator:
            terms["budget"] = budget(mask, BUDGET)
        if self.text:
            terms |= self.text.losses(features.token, features.patch, self.head.weight[0], pid, classes)
        return terms

    def mask_losses(self, batch: Batch, mixed: Transfer | None) -> dict[str, Tensor]:
        """The terms that the mask generator reaches."""
        mine = self.params
        with torch.no_grad():
            edit = mixed.edit if mixed else None
            features = self.features(batch.occluded, batch.camid, edit=edit)
            necked = self.neck(features.token)
        mask, classes = self.mask(features), self._ignored_classes(mixed, batch.pid)
        terms = {"mask": self.arc_loss(necked, mask, batch.pid, mine.scale, mine.margin, classes)}
        return terms | ({"mask_budget": budget(mask, BUDGET)} if mine.budget else {})

    def _ignored_classes(self, mixed: Transfer | None, pid: Int[Tensor, "B"]) -> Bool[Tensor, "B I"] | None:
        ignores = mixed is not None and self.params.ignore
        return mixed.ignored_classes(pid, self.head.weight.shape[1]) if ignores else None

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature per image, L2-normalised and always visible, and its mask as the gate of a query."""
        feature, gate = self.compare(batch.holistic, batch.camid, self.params.feature == "after")
        return Embedding(feature, torch.ones_like(feature[..., 0]), gate)
