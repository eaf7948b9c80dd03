"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: the occlusion-aware ViT of both views (3.1); the teacher on the holistic view: erasing
agent, purifying decoder (3.2); the student on the occluded view: two transformer layers (3.3); losses (3.4);
testing (Eq. 24, 25).  h and o name the views, hp and op the branches' final features, {g, 1 ... K} the global
feature and the parts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, ParamGroup
from pipeline.methods.ogfr.agent import Agent, Episodes, Mask
from pipeline.methods.ogfr.branches import Branch, Encoded, encode
from pipeline.methods.ogfr.correlation import correlation, visible
from pipeline.methods.ogfr.decoder import DecoderLayer
from pipeline.methods.ogfr.losses import loss_weights, mask_loss, mse_loss, part_triplet
from pipeline.methods.ogfr.params import FEP, HOLISTIC, OCCLUDED, K, Params
from pipeline.model import losses
from pipeline.model.heads import Heads
from pipeline.model.layers import TransformerLayer, TransformerLayers
from pipeline.model.vit import OcclusionAwareViT, patch_labels, patch_share


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "OGFR":
    """OGFR with resolved parameters around an encoder."""
    return OGFR(params, spec, vit)


class OGFR(Method):
    """Teacher and student around one occlusion-aware ViT."""

    TRAINING_SET = (
        "encoder.camera",
        "global_head.weight",
        "heads.weight",
        "agent.baseline",
        "agent.refreshed",
    )

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params, self.coarse = params, spec.coarse
        self.encoder = OcclusionAwareViT(
            vit, spec.size, params.stride, K + 1, spec.coarse, spec.cameras,
            params.gamma_pattern, params.gamma_camera, trained=spec.trained_cameras,
        )  # fmt: skip
        first_layer: Any = vit.blocks[0]
        width, heads = self.encoder.width, first_layer.attn.num_heads
        self.agent = Agent(params)
        places = 1 if params.erased == "shared" else self.encoder.grid[0] * self.encoder.grid[1]
        self.erased = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, places, width), std=0.02))
        fixed = K + 1 if params.decoder == "fixed" else 0
        self.decoder = TransformerLayers(
            DecoderLayer(width, heads, fixed, params.residual), DecoderLayer(width, heads, 0, params.residual)
        )
        self.student = TransformerLayers(
            *(TransformerLayer(width, heads) for _ in range(params.student_layers))
        )
        gain = params.head_gain
        self.global_head = Heads(1, width, spec.identities, gain, branches=2)  # Eq. 20
        self.heads = Heads(K + 1, width, spec.identities, gain, branches=2)  # Eq. 19, i in {g, 1 ... K}
        if params.global_token == "rebuilt" and params.fep != "none":
            self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
            self.reader = TransformerLayers(*(TransformerLayer(width, heads) for _ in self.decoder))
        if params.start == "encoder":
            self.init_from_encoder()
        if params.erase_before >= len(self.encoder.blocks):
            raise BadInput(
                f"params.yaml: ogfr.erase_before = {params.erase_before}, but the encoder has "
                f"{len(self.encoder.blocks)} blocks, and the first ones come before the erasing. Lower it."
            )

    @torch.no_grad()
    def init_from_encoder(self) -> None:
        """Let part tokens P_t start as near copies of the class token, and added layers as the identity.

        A decoder without skip connections keeps its random weights: with zeros it would put out zeros.
        """
        encoder, first = self.encoder, slice(1, K + 2)
        encoder.part.add_(encoder.cls)
        encoder.position[:, first] += encoder.position[:, :1]
        student: Iterator[Any] = iter(self.student)
        decoder: Iterator[Any] = iter(self.decoder)
        last_linears = [linear for layer in student for linear in (layer.attn.proj, layer.mlp.fc2)]
        if self.params.residual:
            last_linears += [m for layer in decoder for m in (layer.attention.output, layer.ffn[2])]
        for linear in last_linears:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def trains_agent(self) -> bool:
        """Whether an agent chooses the patches to erase, and learns to."""
        return self.params.erase == "agent" and self.params.fep != "none"

    def param_groups(self) -> dict[str, ParamGroup]:
        """`reid` holds all parameters but the agent's, which has an optimiser and steps of its own."""
        agent = set(self.agent.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in agent]
        if not self.trains_agent:
            return {"reid": ParamGroup(rest)}
        group = ParamGroup(list(agent), self.params.agent_optimiser, self.params.agent_lr, decay=0.0)
        return {"reid": ParamGroup(rest), "agent": group}

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Eq. 23 for encoder, decoder and student; then Eq. 11 for the agent."""
        branches = self.branches(batch)  # F_hp and F_op; without distillation F_op alone
        terms = self.losses(branches, batch.pid)
        episodes = self.explore(branches, batch.pid)  # before the first step: one set of weights for all p^m
        yield Objective("reid", terms, loss_weights(self.params))
        if episodes:
            covered = patch_share(batch.covered, self.encoder.patch, self.encoder.stride)
            metrics = self.agent.metrics(episodes[0], branches[-1].state, covered)
            yield Objective("agent", {"policy": self.agent.loss(episodes)}, metrics=metrics)

    # -------------------------------------------------------------- 3.1 the encoder and the two branches

    def branches(self, batch: Batch) -> list[Branch]:
        """Teacher and student on their views; without distillation the student alone."""
        if self.params.distil:
            h, o = self.encode_views(batch)
            return [self.branch(HOLISTIC, h, batch.holistic), self.branch(OCCLUDED, o, batch.occluded)]
        return [self.branch(OCCLUDED, self.encode(batch.occluded, batch.camid), batch.occluded)]

    def encode(self, view: View, camid: Int[Tensor, "B"]) -> Encoded:
        """F of one view."""
        return encode(self.encoder, view.image, view.hidden, camid, self.params.erase_before)

    def encode_views(self, batch: Batch) -> tuple[Encoded, Encoded]:
        """F_h and F_o: both views pass the encoder as one batch."""
        size, views = len(batch.pid), (batch.holistic, batch.occluded)
        image = torch.cat([view.image for view in views])
        hidden = torch.cat([view.hidden for view in views])
        tokens = encode(self.encoder, image, hidden, batch.camid.repeat(2), self.params.erase_before)
        return Encoded(*(t[:size] for t in tokens)), Encoded(*(t[size:] for t in tokens))

    def branch(self, number: int, tokens: Encoded, view: View, num_tokens: int | None = None) -> Branch:
        """One view after the encoder: through FEP if its branch has it (`fep`), else through plain layers.

        Only the first `num_tokens` tokens of the output are computed; None: all.
        Assumed: two branches with FEP share it, as they share the encoder; Table 4 does not say.
        """
        state = correlation(tokens.patch, tokens.part)
        labels = patch_labels(view.parsing, K + 1, self.encoder.patch, self.encoder.stride)
        if number in FEP[self.params.fep]:
            mask = self.agent.sample_mask(state, labels)
            output = self.purify(tokens, mask, num_tokens)
        else:
            mask, output = None, self.student_output(tokens, num_tokens)
        return Branch(number, view.parsing, tokens, state, labels, mask, output)

    # -------------------------------------------------------------- 3.2 erasing and purifying (FEP)

    def purify(self, h: Encoded, mask: Mask, num_tokens: int | None = None) -> Float[Tensor, "B Q D"]:
        """F_hp: erased patches replaced by learned tokens (F_h with a tilde), then the decoder of Eq. 12.

        Departs: under `global_token: rebuilt` the global feature is no class token, which has read the erased
        patches in the encoder, but a learned query that reads the patches alone, in layers of its own.
        """
        tokens = self.erase(h, mask)
        if self.params.global_token == "encoder":
            return self.decoder(tokens.sequence, num_tokens)
        query = (self.query + self.encoder.position[:, :1]).expand(len(tokens.patch), -1, -1)
        rebuilt = self.reader(torch.cat([query.to(tokens.patch.dtype), tokens.patch], 1), 1)
        if num_tokens == 1:
            return rebuilt
        return torch.cat([rebuilt, self.decoder(tokens.sequence, num_tokens)[:, 1:]], 1)

    def erase(self, h: Encoded, mask: Mask) -> Encoded:
        """F_h with a tilde.

        Departs: the erased token is one vector plus the position embedding of its place (`erased`).  With
        `erase_before` n the patches are erased before the encoder's last n blocks, which then run again: in
        them no token can read an erased patch.
        """
        erased: Tensor = self.erased
        if self.params.erased == "shared":
            erased = erased + self.encoder.position[:, K + 2 :]
        blocks = self.params.erase_before
        patch = self.encoder.split(h.before).patch if blocks else h.patch
        patch = torch.where(mask[..., None], patch, erased.to(patch.dtype))
        if not blocks:
            return h._replace(patch=patch)
        registers = h.before[:, h.before.shape[1] - self.encoder.registers :]
        tokens = torch.cat([h.before[:, : K + 2], patch, registers], 1)
        tokens = cast(nn.Sequential, self.encoder.blocks)[-blocks:](tokens)
        return Encoded(*self.encoder.split(self.encoder.norm(tokens)), h.before)

    def explore(self, branches: Sequence[Branch], pid: Int[Tensor, "B"]) -> list[Episodes]:
        """The masks of each branch with FEP and their rewards, Eq. 8-10; none if no agent learns."""
        if not self.trains_agent:
            return []
        return [
            self.agent.explore(
                b.state, b.labels, b.mask, self.heads.score(b.output[:, 0], b.number, pid),
                partial(self.identity_probability, b.tokens, pid=pid, branch=b.number),
            )
            for b in branches if b.mask is not None
        ]  # fmt: skip

    @torch.no_grad()
    def identity_probability(
        self, h: Encoded, masks: Sequence[Mask], pid: Int[Tensor, "B"], branch: int
    ) -> list[Float[Tensor, "B"]]:
        """p^m of each mask; all pass the decoder as one batch, which computes f_hp^g alone."""
        if not masks:
            return []
        count = len(masks)
        repeated = Encoded(*(t.repeat(count, *[1] * (t.ndim - 1)) for t in h))
        purified = self.purify(repeated, torch.cat(list(masks)), 1)[:, 0]
        return list(self.heads.score(purified, branch, pid.repeat(count)).chunk(count))

    @torch.no_grad()
    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Refresh the scalar baseline p^b with the mean score of the images without mask, Eq. 9.

        Departs: the images are as they are, without augmentation; if both branches purify, the score is the
        teacher's, so that a purifying student pays for what its view hides.
        """
        if not self.trains_agent or not self.agent.refreshes_baseline(epoch):
            return
        branch, scores = min(FEP[self.params.fep]), []
        for batch in batches():
            h = self.encode(batch.holistic, batch.camid)
            keep_all = torch.ones(h.patch.shape[:2], dtype=torch.bool, device=h.patch.device)
            scores += self.identity_probability(h, [keep_all], batch.pid, branch)
        self.agent.refresh_baseline(torch.cat(scores).mean())

    # -------------------------------------------------------------- 3.3 the student

    def student_output(self, o: Encoded, num_tokens: int | None = None) -> Float[Tensor, "B Q D"]:
        """F_op: two conventional transformer layers over the occluded view's tokens."""
        return self.student(o.sequence, num_tokens)

    # -------------------------------------------------------------- 3.4 the losses

    def losses(self, branches: Sequence[Branch], pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """The terms of Eq. 23, before their weights.

        Departs: L_mask is the mean of both views'; printed is one map M.
        """
        if self.params.distil:
            holistic, occluded = branches
            terms = self.distillation(holistic, occluded, pid)
        else:
            terms = self.supervision(branches[0], pid)
        grid, params = self.encoder.grid, self.params
        masks = [mask_loss(b.state, b.parsing, b.labels, grid, params) for b in branches]
        return {**terms, "mask": torch.stack(masks).mean()}

    def distillation(self, h: Branch, o: Branch, pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """The terms of Eq. 17-20 and 22.

        Departs: the teacher's output has an identity loss (`teacher_identity`) and the student's a triplet
        loss (`student_triplet`): nothing else teaches the teacher's classifiers and the student's distances.
        """
        p, hp, op = self.params, h.output.float(), o.output.float()
        teacher, student = hp[:, : K + 1], op[:, : K + 1]
        teacher_necked = self.heads.neck(teacher, HOLISTIC)
        student_necked = self.heads.neck(student, OCCLUDED)
        teacher_logits, student_logits = self.heads(teacher_necked), self.heads(student_necked)
        terms = {
            "mse": mse_loss(hp, op, p.mse),  # L_mse, Eq. 17
            "cos": losses.cosine(teacher, student),  # Eq. 18
            "identity": losses.identity(student_logits, pid).mean(),  # Eq. 19
            "kl": losses.kl_divergence(teacher_logits, student_logits).mean(),  # Eq. 19
            "encoder": self.encoder_identity(h, pid) + self.encoder_identity(o, pid),  # L_en, Eq. 20
            "triplet": part_triplet(teacher, teacher_necked, pid, p.triplet),  # Eq. 22
        }
        if p.teacher_identity:
            terms["teacher_identity"] = losses.identity(teacher_logits, pid).mean()
        if p.student_triplet:
            terms["student_triplet"] = part_triplet(student, student_necked, pid, p.triplet)
        return terms

    def supervision(self, o: Branch, pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """Identity and triplet losses of one branch without a teacher (Table 4, rows 2 and 3).

        Assumed: these rows supervise the features of Eq. 19, 20 and 22; the paper does not say.
        """
        features = o.output[:, : K + 1].float()
        necked = self.heads.neck(features, o.number)
        return {
            "identity": losses.identity(self.heads(necked), pid).mean(),
            "encoder": self.encoder_identity(o, pid),
            "triplet": part_triplet(features, necked, pid, self.params.triplet),
        }

    def encoder_identity(self, branch: Branch, pid: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Identity loss of the encoder's global feature f^g: one of the two terms of L_en, Eq. 20."""
        necked = self.global_head.neck(branch.tokens.cls[:, None], branch.number)
        return losses.identity(self.global_head(necked), pid).mean()

    # -------------------------------------------------------------- testing, Eq. 24 and 25

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """The student's global and part features, L2-normalised, and which parts are visible."""
        tokens = self.encode(batch.holistic, batch.camid)
        o = self.branch(OCCLUDED, tokens, batch.holistic, num_tokens=K + 1)
        visibility = visible(o.state, self.params.visible)
        features = o.output.float()
        if self.params.feature == "after":
            features = self.heads.neck(features, OCCLUDED)
        always = torch.ones_like(visibility[:, :1])  # the global feature
        return Embedding(F.normalize(features, dim=-1), torch.cat([always, visibility], 1))

    def predict_occlusion(self, embedding: Embedding) -> Bool[Tensor, "N C"]:
        """z: a coarse part is hidden if none of its fine parts is visible (Eq. 24).

        Departs: the paper takes z from a parsing map, in testing too.
        """
        fine = embedding.visibility[:, 1:] > 0
        merged = parts.COARSE[self.coarse].values()
        return torch.stack([~fine[:, [label - 1 for label in labels]].any(1) for labels in merged], 1)

    @property
    def needs_parsing(self) -> bool:
        """Whether the student's patches are erased by the labels of its parsing map (Table 5)."""
        return self.params.erase == "labels" and OCCLUDED in FEP[self.params.fep]
