"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: occlusion-aware ViT shared by both views (3.1), erasing agent and purifying decoder for
the holistic view, which teaches (3.2), two transformer layers for the occluded view, which learns (3.3), the
losses (3.4), and what is compared at the end (Eq. 24, 25).  h and o name the views, hp and op the two
branches' final features; index i runs over {g, 1 ... K}: the global feature, then the parts.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, ParamGroup
from pipeline.methods.ogfr.agent import Agent, correlation, policy_loss, reward
from pipeline.methods.ogfr.attention import DecoderLayer
from pipeline.methods.ogfr.heads import Heads
from pipeline.methods.ogfr.losses import mask_loss, mse_loss, part_triplet
from pipeline.methods.ogfr.params import FEP, HOLISTIC, OCCLUDED, K, Params
from pipeline.model import losses
from pipeline.model.layers import TransformerLayer, TransformerLayers
from pipeline.model.vit import OcclusionAwareViT, Tokens, patch_labels


def build(params: Params, world: DataSpec, vit: VisionTransformer) -> "OGFR":
    """OGFR with resolved parameters around an encoder.

    Raises `BadInput` if a teacher is to purify where there is none.
    """
    if not params.distil and params.fep in ("teacher", "both"):
        raise BadInput(
            f"params.yaml: ogfr.fep = {params.fep}, but ogfr.distil = false leaves no teacher. "
            "Set ogfr.fep to student or none."
        )
    return OGFR(params, world, vit)


# ------------------------------------------------------------------ the method


class Branch(NamedTuple):
    """What one view became on its way through a branch."""

    number: int  # HOLISTIC or OCCLUDED
    view: View
    tokens: Tokens  # F
    state: Float[Tensor, "B N K1"]  # I
    labels: Float[Tensor, "B N K1"]  # what the parsing map shows in each patch
    action: Bool[Tensor, "B N"] | None  # patches kept; None without FEP
    output: Float[Tensor, "B L D"]  # F_hp or F_op


class OGFR(Method):
    """Teacher and student around one occlusion-aware ViT."""

    def __init__(self, params: Params, world: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params, self.coarse = params, world.coarse
        self.encoder = OcclusionAwareViT(
            vit, world.size, params.stride, K + 1, world.coarse, world.cameras,
            params.gamma_pattern, params.gamma_camera, world.trained_cameras,
        )  # fmt: skip
        width, heads = self.encoder.width, vit.blocks[0].attn.num_heads
        self.agent = Agent(params.agent_bias, params.agent_keep)
        places = 1 if params.erased == "shared" else self.encoder.grid[0] * self.encoder.grid[1]
        self.erased = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, places, width), std=0.02))
        fixed = K + 1 if params.decoder == "fixed" else 0
        self.decoder = TransformerLayers(
            DecoderLayer(width, heads, fixed, params.residual), DecoderLayer(width, heads, 0, params.residual)
        )
        self.student = TransformerLayers(
            *(TransformerLayer(width, heads) for _ in range(params.student_layers))
        )
        self.global_head = Heads(1, width, world.identities, params.head_gain)  # Eq. 20
        self.heads = Heads(K + 1, width, world.identities, params.head_gain)  # Eq. 19, i in {g, 1 ... K}
        if params.start == "encoder":
            self.start_from_encoder()
        self.register_buffer("baseline", torch.zeros(()))  # p^b of Eq. 9
        self.register_buffer("refreshed", torch.zeros(()))  # n of Eq. 9

    @torch.no_grad()
    def start_from_encoder(self) -> None:
        """Part tokens P_t become near copies of the class token; the layers after the encoder change nothing.

        A decoder without skip connections stays as it was drawn: it would put out zeros.
        """
        encoder, first = self.encoder, slice(1, K + 2)
        encoder.part += encoder.cls
        encoder.position[:, first] += encoder.position[:, :1]
        ends = [m for block in self.student for m in (block.attn.proj, block.mlp.fc2)]
        if self.params.residual:
            ends += [m for layer in self.decoder for m in (layer.attention.output, layer.ffn[2])]
        for end in ends:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)

    @property
    def explores(self) -> bool:
        """Whether an agent chooses the patches to erase, and learns to."""
        return self.params.erase == "agent" and self.params.fep != "none"

    def param_groups(self) -> dict[str, ParamGroup]:
        """`reid` moves all but the agent, which has steps of its own."""
        agent = set(self.agent.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in agent]
        if not self.explores:
            return {"reid": ParamGroup(rest)}
        own = ParamGroup(list(agent), self.params.agent_optimiser, self.params.agent_lr, 0.0)
        return {"reid": ParamGroup(rest), "agent": own}

    # -------------------------------------------------------------- how it learns

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Eq. 23 for all but the agent, then Eq. 11 for the agent.

        Departs: L_mask is the mean of both views'; printed is one map M.
        """
        branches = self.branches(batch)
        if self.params.distil:
            h, o = branches
            terms = self.terms(batch, h.tokens, o.tokens, h.output.float(), o.output.float())
        else:
            terms = self.alone(branches[0], batch.pid)
        masks = [
            mask_loss(b.state, b.view.parsing, b.labels, self.encoder.grid, self.params) for b in branches
        ]
        terms["mask"] = sum(masks) / len(masks)
        if not self.explores:
            yield Objective("reid", terms, self.weights())
            return
        # before the first step: mask and baseline must meet the same weights
        tried = [b for b in branches if b.action is not None]
        further = [[self.act(b.state, b.labels) for _ in range(1, self.params.episodes)] for b in tried]
        found = [
            self.compare(b.tokens, b.state, b.output, batch.pid, b.number, masks)
            for b, masks in zip(tried, further, strict=True)
        ]
        first, state_o = tried[0], branches[-1].state
        noted = self.notes(batch, first.labels, first.action, state_o, *found[0])
        yield Objective("reid", terms, self.weights())
        policy = [
            policy_loss(self.agent(b.state), action, gain)
            for b, masks, (gains, _) in zip(tried, further, found, strict=True)
            for action, gain in zip([b.action, *masks], gains, strict=True)
        ]
        yield Objective("agent", {"policy": sum(policy) / len(policy)}, metrics=noted)

    def weights(self) -> dict[str, float]:
        """Weights of the terms, Eq. 19 and 23."""
        p = self.params
        if not p.distil:
            return {}
        return {
            "mse": p.mse_weight,
            "cos": p.mu_1,
            "identity": p.alpha,  # alpha and beta of Eq. 19
            "kl": p.beta,
            "triplet": p.mu_2,
            "teacher_identity": p.teacher_identity,
            "student_triplet": p.student_triplet,
        }

    def terms(
        self, batch: Batch, h: Tokens, o: Tokens, hp: Float[Tensor, "B L D"], op: Float[Tensor, "B L D"]
    ) -> dict[str, Tensor]:
        """The terms of Eq. 17-20 and 22, before their weights.

        Departs: the teacher's output has an identity loss (`teacher_identity`) and the student's a triplet
        loss (`student_triplet`): nothing else teaches the one's classifiers, the other's distances.
        """
        pid, first = batch.pid, K + 1
        teacher, student = hp[:, :first], op[:, :first]
        neck_h, neck_o = self.heads.neck(teacher, HOLISTIC), self.heads.neck(student, OCCLUDED)
        logits_h, logits_o = self.heads(neck_h), self.heads(neck_o)
        found = {
            "mse": mse_loss(hp, op, self.params.mse),  # L_mse, Eq. 17
            "cos": losses.cosine(teacher, student),  # Eq. 18
            "identity": losses.identity(logits_o, pid).mean(),  # Eq. 19
            "kl": losses.kl_divergence(logits_h, logits_o).mean(),  # Eq. 19
            "encoder": self.encoder_identity(h, HOLISTIC, pid) + self.encoder_identity(o, OCCLUDED, pid),
            "triplet": self.triplet(teacher, neck_h, pid),  # Eq. 22
        }
        if self.params.teacher_identity:
            found["teacher_identity"] = losses.identity(logits_h, pid).mean()
        if self.params.student_triplet:
            found["student_triplet"] = self.triplet(student, neck_o, pid)
        return found

    def triplet(
        self, plain: Float[Tensor, "B P D"], necked: Float[Tensor, "B P D"], pid: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Triplet loss of one branch's features, Eq. 22.

        Departs: after the batch norm, distances being root mean squares over channels (`triplet`); printed
        are Euclidean distances of the tokens.
        """
        if self.params.triplet == "plain":
            return part_triplet(plain, pid)
        return part_triplet(necked, pid, average=True)

    def alone(self, o: Branch, pid: Int[Tensor, "B"]) -> dict[str, Tensor]:
        """Identity and triplet losses of one branch without a teacher, unweighted (Table 4, rows 2 and 3).

        Which features these rows supervise is not printed: those of Eq. 19, 20 and 22.
        """
        features = o.output[:, : K + 1].float()
        necked = self.heads.neck(features, o.number)
        return {
            "identity": losses.identity(self.heads(necked), pid).mean(),
            "encoder": self.encoder_identity(o.tokens, o.number, pid),
            "triplet": self.triplet(features, necked, pid),
        }

    def encoder_identity(self, tokens: Tokens, branch: int, pid: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Identity loss of the encoder's global feature f^g, one of the two that L_en of Eq. 20 adds."""
        necked = self.global_head.neck(tokens.cls[:, None], branch)
        return losses.identity(self.global_head(necked), pid).mean()

    # -------------------------------------------------------------- the branches

    def branches(self, batch: Batch) -> list[Branch]:
        """Teacher and student on their views; without distillation the student alone."""
        if self.params.distil:
            h, o = self.see_both(batch)
            return [self.branch(HOLISTIC, h, batch.holistic), self.branch(OCCLUDED, o, batch.occluded)]
        tokens = self.encoder(*_inputs(batch.occluded), batch.camid)
        return [self.branch(OCCLUDED, tokens, batch.occluded)]

    def branch(self, number: int, tokens: Tokens, view: View, num_tokens: int | None = None) -> Branch:
        """A view's way from the encoder on: through FEP where its branch has it, else through plain layers.

        `num_tokens` counts the tokens of the output that are wanted; None is all.
        Table 4 does not say whether two branches with FEP share it: here they do, as they share the encoder.
        """
        state = correlation(tokens.patch, tokens.part)
        labels = patch_labels(view.parsing, K + 1, self.encoder.patch, self.encoder.stride)
        action = self.act(state, labels) if number in FEP[self.params.fep] else None
        output = self.learn(tokens, num_tokens) if action is None else self.purify(tokens, action, num_tokens)
        return Branch(number, view, tokens, state, labels, action, output)

    def see_both(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Both views through the encoder in one pass: F_h and F_o."""
        size = len(batch.pid)
        view = [
            torch.cat(pair) for pair in zip(_inputs(batch.holistic), _inputs(batch.occluded), strict=True)
        ]
        tokens = self.encoder(*view, batch.camid.repeat(2))
        return Tokens(*(t[:size] for t in tokens)), Tokens(*(t[size:] for t in tokens))

    @torch.no_grad()
    def act(self, state: Float[Tensor, "B N K1"], labels: Float[Tensor, "B N K1"]) -> Bool[Tensor, "B N"]:
        """Which patches of a view are kept: a of Eq. 8, or one of Table 5's other masks.

        Once trained (a student with FEP) nothing is left to chance: the likelier choice, or all patches.
        """
        if self.params.erase == "agent":
            logits = self.agent(state)
            if not self.training:
                return logits > 0
            return distributed.sample_global(torch.bernoulli, logits.sigmoid()).bool()
        if self.params.erase == "random" and self.training:
            return distributed.sample_global(torch.rand_like, state[..., 0]) >= self.params.erase_rate
        if self.params.erase == "labels":
            return labels[..., 0] < 0.5
        return torch.ones_like(state[..., 0], dtype=torch.bool)

    def purify(
        self, h: Tokens, action: Bool[Tensor, "B N"], num_tokens: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """F_hp: erased patches replaced by learned tokens (F_h with a tilde), then the decoder of Eq. 12.

        Departs: the erased token is one vector plus the position embedding of its place (`erased`).
        """
        erased = self.erased
        if self.params.erased == "shared":
            erased = erased + self.encoder.position[:, K + 2 :]
        patch = torch.where(action[..., None], h.patch, erased.to(h.patch.dtype))
        return self.decoder(_sequence(h._replace(patch=patch)), num_tokens)

    def learn(self, o: Tokens, num_tokens: int | None = None) -> Float[Tensor, "B Q D"]:
        """F_op: two conventional transformer layers over the occluded view's tokens."""
        return self.student(_sequence(o), num_tokens)

    @torch.no_grad()
    def compare(
        self,
        h: Tokens,
        state: Float[Tensor, "B N K1"],
        hp: Float[Tensor, "B L D"],
        pid: Int[Tensor, "B"],
        branch: int = HOLISTIC,
        further: Sequence[Bool[Tensor, "B N"]] = (),
    ) -> tuple[Float[Tensor, "E B"], Float[Tensor, "*B"]]:
        """The rewards of E episodes (Eq. 10), and their baseline p^b.

        The first is that of the action that led to `hp`, the others those of the `further` actions.
        The baseline `paper` is Eq. 9's scalar; `image` is the same image without mask.  Departs:
        `self_critical` is the same image under the agent's likelier choice for every patch.
        """
        actions = list(further)
        if self.params.baseline != "paper":
            likelier = self.agent(state) > 0
            actions.append(likelier if self.params.baseline == "self_critical" else torch.ones_like(likelier))
        scores = [self.heads.score(hp[:, 0], branch, pid), *self.scores(h, actions, pid, branch)]
        base = self.baseline if self.params.baseline == "paper" else scores.pop()
        return reward(torch.stack(scores), base, self.params.reward_floor, self.params.reward_clip), base

    @torch.no_grad()
    def scores(
        self, h: Tokens, actions: Sequence[Bool[Tensor, "B N"]], pid: Int[Tensor, "B"], branch: int
    ) -> list[Float[Tensor, "B"]]:
        """p^m of each action; all pass the decoder as one batch, which computes f_hp^g alone."""
        if not actions:
            return []
        count = len(actions)
        repeated = Tokens(*(t.repeat(count, *[1] * (t.ndim - 1)) for t in h))
        purified = self.purify(repeated, torch.cat(list(actions)), 1)[:, 0]
        return list(self.heads.score(purified, branch, pid.repeat(count)).chunk(count))

    @torch.no_grad()
    def notes(
        self,
        batch: Batch,
        labels: Float[Tensor, "B N K1"],
        action: Bool[Tensor, "B N"],
        state_o: Float[Tensor, "B N K1"],
        gain: Float[Tensor, "E B"],
        base: Float[Tensor, "*B"],
    ) -> dict[str, Tensor]:
        """How the agent fares: the share of body and background patches that it kept, reward, baseline.

        `keep_obstacle` is the probability with which it would keep the occluded view's obstacle.
        """
        body = labels[..., 0] < 0.5
        covered = F.avg_pool2d(batch.covered.float()[:, None], self.encoder.patch, self.encoder.stride)
        keep = self.agent(state_o).sigmoid()
        return {
            "reward": gain.mean(),
            "baseline": base.mean(),
            "keep_body": _masked_mean(action.float(), body),
            "keep_background": _masked_mean(action.float(), ~body),
            "keep_obstacle": _masked_mean(keep, covered.flatten(1) > 0.5),
        }

    @torch.no_grad()
    def begin_epoch(self, epoch: int, batches: Callable[[], Iterable[Batch]]) -> None:
        """Refresh the scalar baseline p^b every `baseline_epochs` epochs, Eq. 9.

        The mean score without mask, p^b_new, enters a cumulative mean of the n refreshments so far.
        Departs: it is of the images as they are, and the teacher's if both branches purify.  A student that
        does is held against it too, and pays for what its view hides; the other baselines see its own view.
        """
        used = self.explores and self.params.baseline == "paper"
        if not used or epoch % self.params.baseline_epochs:
            return
        branch = min(FEP[self.params.fep])
        scores = []
        for batch in batches():
            h = self.encoder(*_inputs(batch.holistic), batch.camid)
            keep = torch.ones(h.patch.shape[:2], dtype=torch.bool, device=h.patch.device)
            scores += self.scores(h, [keep], batch.pid, branch)
        fresh = torch.cat(scores).mean()
        self.baseline.copy_((self.baseline * self.refreshed + fresh) / (self.refreshed + 1))
        self.refreshed += 1

    # -------------------------------------------------------------- how it sees

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """The student's global and part features, L2-normalised, and which parts are visible (Eq. 24, 25).

        Its last layer computes no other tokens.
        """
        tokens = self.encoder(*_inputs(batch.holistic), batch.camid)
        o = self.branch(OCCLUDED, tokens, batch.holistic, num_tokens=K + 1)
        seen = visible(o.state, self.params.visible)
        features = o.output.float()
        if self.params.feature == "after":
            features = self.heads.neck(features, OCCLUDED)
        always = torch.ones_like(seen[:, :1])
        return Embedding(F.normalize(features, dim=-1), torch.cat([always, seen], 1))

    def predict_occlusion(self, seen: Embedding) -> Bool[Tensor, "N C"]:
        """z: a coarse part is hidden if none of its fine parts is visible (Eq. 24).

        Departs: the paper takes z from a parsing map, in testing too.
        """
        found = seen.visibility[:, 1:] > 0
        merged = parts.COARSE[self.coarse].values()
        return torch.stack([~found[:, [label - 1 for label in fine]].any(1) for fine in merged], 1)

    @property
    def needs_parsing(self) -> bool:
        """Whether patches of the student's view are erased by what the map shows in them (Table 5)."""
        return self.params.erase == "labels" and OCCLUDED in FEP[self.params.fep]


def visible(state: Float[Tensor, "B N K1"], rule: str) -> Float[Tensor, "B K"]:
    """v_i of Eq. 24, 0 or 1, for the K parts.

    Departs: a part is visible if some patch resembles it more than any other part and the background
    (`argmax`); printed is a positive similarity anywhere (`positive`), which nearly every part has.  Patches
    are num_tokens, not the map interpolated to the image, which shows a little less.
    """
    if rule == "positive":
        return (state.amax(1) > 0)[:, 1:].float()
    return F.one_hot(state.argmax(-1), state.shape[-1]).amax(1)[:, 1:].float()


def _inputs(view: View) -> tuple[Tensor, Tensor]:
    return view.image, view.hidden


def _sequence(tokens: Tokens) -> Float[Tensor, "B L D"]:
    return torch.cat([tokens.cls[:, None], tokens.part[:, 1:], tokens.patch], 1)  # f^0 stays behind


def _masked_mean(values: Float[Tensor, "B N"], where: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    # of all processes' images, as one process has it
    total, count = distributed.all_reduce_mean(torch.stack([(values * where).sum(), where.sum()]))
    return total / count.clamp(min=1e-6)
