"""OGFR: occlusion-guided feature purification learning via reinforced knowledge distillation.

In the paper's order: occlusion-aware ViT shared by both views (3.1), erasing agent and purifying decoder for
the holistic view, which teaches (3.2), two transformer layers for the occluded view, which learns (3.3), the
losses (3.4), and what is compared at the end (Eq. 24, 25).  h and o name the views, hp and op the two
branches' final features; index i runs over {g, 1 ... K}: the global feature, then the parts.

Unusual here: `PRESETS` lists every value that the paper leaves open or that cannot work as printed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline import losses, parts, processes
from pipeline.arithmetic import attend
from pipeline.batches import Batch, View
from pipeline.method import Embedding, Method, Objective, Player, Preset, Presets, World
from pipeline.params import STRICT, BadInput
from pipeline.vit import Layer, Layers, OcclusionAwareViT, Tokens, patch_labels

K = len(parts.FINE)
HOLISTIC, OCCLUDED = 0, 1  # the branches, as the necks count them
FEP = {"teacher": {HOLISTIC}, "student": {OCCLUDED}, "both": {HOLISTIC, OCCLUDED}, "none": set()}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """OGFR's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # local file for a timm name; "" downloads it
    stride: int | None = Field(ge=1)  # S of Eq. 4
    gamma_pattern: float  # gamma_1
    gamma_camera: float  # gamma_2
    student_layers: int = Field(ge=0)
    distil: bool  # two branches, Eq. 17-19; False: the occluded one alone, as Table 4's upper rows
    fep: Literal["teacher", "student", "both", "none"]  # branches that erase and purify (Table 4)
    decoder: Literal["fixed", "plain"]  # first decoder layer: MHSA_fix, or an ordinary one (Table 6)
    residual: bool | None  # skip connections in the decoder
    # part tokens and the layers after the encoder begin as what it knows, or as nothing
    start: Literal["encoder", "random"] | None
    erase: Literal["agent", "none", "random", "labels"]  # who chooses the patches to erase (Table 5)
    erase_rate: float = Field(ge=0, le=1)  # share erased by `random`
    erased: Literal["shared", "place"] | None  # one learned token plus its position, or one for each place
    episodes: int = Field(ge=1)  # masks that the agent tries on each image
    agent_bias: bool | None
    agent_keep: float = Field(gt=0, lt=1)  # probability of keeping a patch at the start, given a bias
    agent_optimiser: Literal["sgd", "adamw"] | None
    agent_lr: float | None = Field(gt=0)
    baseline: Literal["paper", "image", "self_critical"] | None  # what p^m is compared with
    baseline_epochs: int = Field(ge=1)  # refresh of the baseline `paper`
    reward_floor: float | None = Field(gt=0)  # least 1 - p^b in Eq. 10
    reward_clip: float | None = Field(gt=0)  # the reward lies in [-clip, 1]
    alpha: float
    beta: float
    mu_1: float
    mu_2: float
    mse: Literal["mean", "sum"] | None
    mse_weight: float = Field(ge=0)  # of L_mse in Eq. 23, printed without one; 0 leaves it out (Table 8)
    mask: Literal["mean", "sum"] | None
    mask_grid: Literal["patch", "image"] | None
    temperature: float | None = Field(gt=0)  # of the softmax over parts in Eq. 21
    teacher_identity: float | None = Field(ge=0)  # weight of an identity loss on the teacher's output
    student_triplet: float | None = Field(ge=0)  # weight of Eq. 22 on the student's output
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster classifiers move under Adam
    visible: Literal["argmax", "positive"] | None  # Eq. 24
    triplet: Literal["necked", "plain"] | None  # what Eq. 22 compares
    feature: Literal["before", "after"] | None  # what Eq. 25 compares: before or after the neck's batch norm


# name: (recommended, paper, reason)
PRESETS: Presets = {
    "ogfr.stride": (16, 11, "11 gives the paper's cost (Table 9); 16 is half as dear and fits a CPU"),
    "ogfr.residual": (True, False, "Eq. 12 prints no skip connection; without one the input is lost"),
    "ogfr.start": (
        "encoder",
        "random",
        "part tokens start as the class token, added layers as no change: few steps need no detour",
    ),
    "ogfr.erased": ("shared", "place", "'learnable embedding tokens'; one for all places learns sooner"),
    "ogfr.agent_bias": (True, False, "Eq. 7 has none, so that half of all patches go from the first step"),
    "ogfr.agent_optimiser": (
        "adamw",
        "sgd",
        "a dozen parameters under a noisy gradient want their own steps",
    ),
    "ogfr.agent_lr": (0.05, 0.008, "the paper names one rate for all; some hundred steps want a larger one"),
    "ogfr.baseline": ("self_critical", "paper", "Eq. 9's cumulative mean lags behind and rewards anything"),
    "ogfr.reward_floor": (0.05, 1e-6, "Eq. 10 divides by 1 - p^b, which training drives to 0"),
    "ogfr.reward_clip": (1.0, 1e6, "the same"),
    "ogfr.mse": ("mean", "sum", "Eq. 17 prints a sum: 10^5 terms, which drown all other losses"),
    "ogfr.mask": ("mean", "sum", "Eq. 21 prints a sum over 32,768 pixels, unweighted in Eq. 23"),
    "ogfr.mask_grid": ("patch", "image", "patch labels are exact for overlapping patches, and cheaper"),
    "ogfr.temperature": (0.1, 1.0, "a softmax of 9 cosines cannot exceed 0.48"),
    "ogfr.teacher_identity": (1.0, 0.0, "no loss of the paper teaches the teacher's classifier"),
    "ogfr.student_triplet": (
        1.0,
        0.0,
        "Eq. 22 is the teacher's alone, but the student's features are compared",
    ),
    "ogfr.head_gain": (
        10.0,
        1.0,
        "classifiers start from nothing beside a trained encoder, and Adam's steps are small",
    ),
    "ogfr.triplet": (
        "necked",
        "plain",
        "tokens collapse under it; after the batch norm, as a mean over channels, it gained 6 points of mAP",
    ),
    "ogfr.visible": ("argmax", "positive", "the best cosine is nearly always above 0: all parts visible"),
    "ogfr.feature": (
        "after",
        "before",
        "not said; TransReID compares before the batch norm, but 3 points of mAP lie in it here",
    ),
    "train.epochs": (8, 120, "not said; TransReID's, and what a CPU does in minutes"),
    "train.optimiser": ("adamw", "sgd", "a small ViT learns from few steps"),
    "train.lr": (7e-4, 0.008, "the same"),
    "train.decay": (1e-2, 1e-4, "the same"),
    "train.warmup": (1.0, 5.0, "not said; TransReID's, and an eighth of our epochs"),
    "train.clip": (5.0, 0.0, "not said; keeps a rare bad batch from undoing the rest; 0 is off"),
    "train.obstacles.probability": (1.0, 1.0, "not said; the student is the occluded branch"),
    "train.obstacles.sources": (
        ["rectangle", "person"],
        ["rectangle"],
        "the works it follows cut rectangles",
    ),
    "train.obstacles.area": ((0.1, 0.4), (0.05, 0.2), "not said; OPR-DAAO's, and what real queries hide"),
    "train.obstacles.aspect": ((0.3, 3.3), (0.3, 3.3), "not said; OPR-DAAO's"),
}


def build(params: Params, world: World, vit: VisionTransformer) -> "OGFR":
    """OGFR with resolved parameters around an encoder.

    Raises `BadInput` if a teacher is to purify where there is none.
    """
    if not params.distil and params.fep in ("teacher", "both"):
        raise BadInput(
            f"params.yaml: ogfr.fep = {params.fep}, but ogfr.distil = false leaves no teacher. "
            "Set ogfr.fep to student or none."
        )
    return OGFR(params, world, vit)


# ------------------------------------------------------------------ 3.2.1 erasing mask generation


def correlation(patch: Float[Tensor, "B N D"], part: Float[Tensor, "B K1 D"]) -> Float[Tensor, "B N K1"]:
    """Semantic correlation I of the patches f^p and the parts f^0 ... f^K: cosines in [-1, 1], Eq. 6."""
    with losses.exact(patch):
        return F.normalize(patch.float(), dim=-1) @ F.normalize(part.float(), dim=-1).mT


class Agent(nn.Module):
    """Chooses the patches to keep, from their correlation with the parts.

    G of Eq. 7.  Departs: a bias, without which half of all patches are erased from the first step.
    """

    def __init__(self, bias: bool, keep: float):
        super().__init__()
        self.linear = nn.Linear(K + 1, 1, bias=bias)  # G
        nn.init.normal_(self.linear.weight, std=0.02)
        if bias:
            nn.init.constant_(self.linear.bias, torch.logit(torch.tensor(keep)).item())

    def forward(self, state: Float[Tensor, "B N K1"]) -> Float[Tensor, "B N"]:
        """Logits of m, the probability that a patch is kept (Eq. 7); the state is taken as given."""
        with losses.exact(state):
            return self.linear(state.detach()).squeeze(-1)


def policy_loss(
    logits: Float[Tensor, "B N"], action: Bool[Tensor, "B N"], reward: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """Minus the objective J(theta) of Eq. 11: the reward R_b times the log-probability of the action a_b.

    Departs: an image is an episode of one step t, whose action is a choice for each patch: summed over
    patches, averaged over images.
    """
    surprise = F.binary_cross_entropy_with_logits(logits, action.to(logits.dtype), reduction="none")
    return (reward.detach() * surprise.sum(1)).mean()


def reward(
    masked: Float[Tensor, "*E B"], baseline: Float[Tensor, "*B"], floor: float, clip: float
) -> Float[Tensor, "*E B"]:
    """r = (p^m - p^b) / (1 - p^b), Eq. 10.

    Departs: 1 - p^b is at least `floor` and r at least -`clip`, as a learnt identity drives p^b to 1.
    """
    return ((masked - baseline) / (1 - baseline).clamp(min=floor)).clamp(min=-clip)


# ------------------------------------------------------------------ 3.2.2 feature purification


class Attention(nn.Module):
    """Multi-head self-attention; the first `fixed` tokens attend to nothing: MHSA_fix, Eq. 13-16.

    A fixed token passes on its own value, so that no patch can reach it; patches attend to all tokens,
    weighed by softmax(q k / sqrt(k)) with k channels a head.
    Departs: W_q, W_k and W_v have biases, as the encoder's have; none is printed.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.fused_attn = heads, False  # until `arithmetic.attend_by` says else
        self.qkv = nn.Linear(width, 3 * width)  # W_q, W_k, W_v
        self.output = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "B L D"], fixed: int = 0, asked: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Attended tokens, the first `asked` or all; `fixed` = 0 is ordinary attention."""
        split = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        moved = attend(query[:, :, fixed:asked], key, value, self.fused_attn)  # Eq. 14
        joined = torch.cat([value[:, :, :fixed], moved], 2)[:, :, :asked]  # F'_ha, Eq. 15, 16
        return self.output(joined.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """F'_h = FFN(LN(MHSA(F_h))), Eq. 12, the first `fixed` tokens kept from seeing the patches.

    Departs: skip connections around attention and FFN (`residual`), without which the input is lost.
    """

    def __init__(self, width: int, heads: int, fixed: int, residual: bool):
        super().__init__()
        self.fixed, self.residual = fixed, residual
        self.attention, self.norm = Attention(width, heads), nn.LayerNorm(width, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "B L D"], asked: int | None = None) -> Float[Tensor, "B Q D"]:
        """Refined tokens: the first `asked`, which attend to all, or all."""
        moved = self.attention(tokens, self.fixed, asked)
        if not self.residual:
            return self.ffn(self.norm(moved))
        tokens = tokens[:, :asked] + moved
        return tokens + self.ffn(self.norm(tokens))


# ------------------------------------------------------------------ heads


class Heads(nn.Module):
    """For each of P features a batch-norm neck and a classifier over identities, no biases (Eq. 19, 20).

    Both branches share the classifiers, as KL compares their classes; each has its own batch statistics,
    as occluded and holistic features differ.
    Departs: heads are not described; this is the neck that re-identification commonly has, and `gain` a
    factor on the logits (`head_gain`).
    """

    def __init__(self, features: int, width: int, identities: int, gain: float):
        super().__init__()
        self.gain = gain
        self.necks = nn.ModuleList(nn.BatchNorm1d(features * width) for _ in (HOLISTIC, OCCLUDED))
        for neck in self.necks:
            neck.bias.requires_grad_(False)
        self.weight = nn.Parameter(torch.randn(features, identities, width) * (0.001 / gain))

    def neck(self, features: Float[Tensor, "B P D"], branch: int) -> Float[Tensor, "B P D"]:
        """Features after the branch's batch norm."""
        return self.necks[branch](features.float().flatten(1)).view_as(features)

    def forward(self, necked: Float[Tensor, "B P D"]) -> Float[Tensor, "B P I"]:
        """Logits of each feature, from what its neck made of it."""
        with losses.exact(necked):
            return self.gain * torch.einsum("bpd,pid->bpi", necked, self.weight)

    @torch.no_grad()
    def score(self, feature: Float[Tensor, "B D"], branch: int, pid: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Probability that the first head gives the true identity: p^m and p^b of Eq. 9 and 10.

        Departs: by running statistics, so that an image's score does not depend on what is erased in its
        neighbours.
        """
        neck, width = self.necks[branch], self.weight.shape[-1]
        scale = neck.weight[:width] * (neck.running_var[:width] + neck.eps).rsqrt()
        with losses.exact(feature):
            logits = (feature.float() - neck.running_mean[:width]) * scale @ self.weight[0].T * self.gain
        return logits.softmax(-1).gather(1, pid[:, None])[:, 0]


# ------------------------------------------------------------------ 3.4 losses of this method alone


def mask_loss(
    state: Float[Tensor, "B N K1"],
    parsing: UInt8[Tensor, "B H W"],
    labels: Float[Tensor, "B N K1"],
    grid: tuple[int, int],
    params: Params,
) -> Float[Tensor, ""]:
    """L_mask: cross-entropy of the semantic correlation I against the parsing map M, Eq. 21.

    The similarities become probabilities by a softmax over parts; on the grid of the image they are
    interpolated first (the paper's I with a tilde).
    Departs: labels are pooled to the patches (`mask_grid`) and averaged (`mask`), printed are pixels of the
    image, summed; the softmax has a `temperature`; images whose map shows no part are left out, as their
    person was not found; the mean over images is taken.
    """
    logits = state / params.temperature
    if params.mask_grid == "patch":
        entropy = -(labels * logits.log_softmax(-1)).sum(-1)  # B N
    else:
        plane = logits.mT.unflatten(2, grid)
        plane = F.interpolate(plane, tuple(parsing.shape[1:]), mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(plane, parsing.long(), reduction="none").flatten(1)  # B HW
    found = parsing.flatten(1).any(1).to(entropy.dtype)
    each = entropy.mean(1) if params.mask == "mean" else entropy.sum(1)
    shown = processes.mean(found.sum()).clamp(min=1 / processes.count())
    return (each * found).sum() / shown


def mse_loss(
    teacher: Float[Tensor, "B L D"], student: Float[Tensor, "B L D"], reduction: str
) -> Float[Tensor, ""]:
    """L_mse: squared distance of all tokens of the two branches, F_hp and F_op, Eq. 17.

    Departs: a mean over tokens and channels, unless `reduction` is "sum" as printed; the mean over images;
    the teacher is detached, or it would learn from its pupil.
    """
    gap = (teacher.detach().float() - student.float()).square()
    return gap.mean() if reduction == "mean" else gap.sum((1, 2)).mean()


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

    def __init__(self, params: Params, world: World, vit: VisionTransformer):
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
        self.decoder = Layers(
            DecoderLayer(width, heads, fixed, params.residual), DecoderLayer(width, heads, 0, params.residual)
        )
        self.student = Layers(*(Layer(width, heads) for _ in range(params.student_layers)))
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

    def players(self) -> dict[str, Player]:
        """`reid` moves all but the agent, which has steps of its own."""
        agent = set(self.agent.parameters())
        rest = [p for p in self.parameters() if p.requires_grad and p not in agent]
        if not self.explores:
            return {"reid": Player(rest)}
        own = Player(list(agent), self.params.agent_optimiser, self.params.agent_lr, 0.0)
        return {"reid": Player(rest), "agent": own}

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
        yield Objective("agent", {"policy": sum(policy) / len(policy)}, noted=noted)

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
            "kl": losses.divergence(logits_h, logits_o).mean(),  # Eq. 19
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

    def branch(self, number: int, tokens: Tokens, view: View, asked: int | None = None) -> Branch:
        """A view's way from the encoder on: through FEP where its branch has it, else through plain layers.

        `asked` counts the tokens of the output that are wanted; None is all.
        Table 4 does not say whether two branches with FEP share it: here they do, as they share the encoder.
        """
        state = correlation(tokens.patch, tokens.part)
        labels = patch_labels(view.parsing, K + 1, self.encoder.patch, self.encoder.stride)
        action = self.act(state, labels) if number in FEP[self.params.fep] else None
        output = self.learn(tokens, asked) if action is None else self.purify(tokens, action, asked)
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
            return processes.drawn(torch.bernoulli, logits.sigmoid()).bool()
        if self.params.erase == "random" and self.training:
            return processes.drawn(torch.rand_like, state[..., 0]) >= self.params.erase_rate
        if self.params.erase == "labels":
            return labels[..., 0] < 0.5
        return torch.ones_like(state[..., 0], dtype=torch.bool)

    def purify(
        self, h: Tokens, action: Bool[Tensor, "B N"], asked: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """F_hp: erased patches replaced by learned tokens (F_h with a tilde), then the decoder of Eq. 12.

        Departs: the erased token is one vector plus the position embedding of its place (`erased`).
        """
        erased = self.erased
        if self.params.erased == "shared":
            erased = erased + self.encoder.position[:, K + 2 :]
        patch = torch.where(action[..., None], h.patch, erased.to(h.patch.dtype))
        return self.decoder(_sequence(h._replace(patch=patch)), asked)

    def learn(self, o: Tokens, asked: int | None = None) -> Float[Tensor, "B Q D"]:
        """F_op: two conventional transformer layers over the occluded view's tokens."""
        return self.student(_sequence(o), asked)

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
        """p^m of each action; all of them pass the decoder as one batch, which is asked for f_hp^g alone."""
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
            "keep_body": _share(action.float(), body),
            "keep_background": _share(action.float(), ~body),
            "keep_obstacle": _share(keep, covered.flatten(1) > 0.5),
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
        o = self.branch(OCCLUDED, tokens, batch.holistic, asked=K + 1)
        seen = visible(o.state, self.params.visible)
        features = o.output.float()
        if self.params.feature == "after":
            features = self.heads.neck(features, OCCLUDED)
        always = torch.ones_like(seen[:, :1])
        return Embedding(F.normalize(features, dim=-1), torch.cat([always, seen], 1))

    def guess_hidden(self, seen: Embedding) -> Bool[Tensor, "N C"]:
        """z: a coarse part is hidden if none of its fine parts is visible (Eq. 24).

        Departs: the paper takes z from a parsing map, in testing too.
        """
        found = seen.visibility[:, 1:] > 0
        merged = parts.COARSE[self.coarse].values()
        return torch.stack([~found[:, [label - 1 for label in fine]].any(1) for fine in merged], 1)

    @property
    def reads_maps(self) -> bool:
        """Whether patches of the student's view are erased by what the map shows in them (Table 5)."""
        return self.params.erase == "labels" and OCCLUDED in FEP[self.params.fep]


def visible(state: Float[Tensor, "B N K1"], rule: str) -> Float[Tensor, "B K"]:
    """v_i of Eq. 24, 0 or 1, for the K parts.

    Departs: a part is visible if some patch resembles it more than any other part and the background
    (`argmax`); printed is a positive similarity anywhere (`positive`), which nearly every part has.  Patches
    are asked, not the map interpolated to the image, which shows a little less.
    """
    if rule == "positive":
        return (state.amax(1) > 0)[:, 1:].float()
    return F.one_hot(state.argmax(-1), state.shape[-1]).amax(1)[:, 1:].float()


def part_triplet(
    features: Float[Tensor, "B P D"], pid: Int[Tensor, "B"], average: bool = False
) -> Float[Tensor, ""]:
    """L_tr: triplet loss of the global feature plus the mean of the parts', Eq. 22."""
    each = losses.triplet(features.transpose(0, 1), pid, average=average)
    return each[0] + each[1:].mean()


def _inputs(view: View) -> tuple[Tensor, Tensor]:
    return view.image, view.hidden


def _sequence(tokens: Tokens) -> Float[Tensor, "B L D"]:
    return torch.cat([tokens.cls[:, None], tokens.part[:, 1:], tokens.patch], 1)  # f^0 stays behind


def _share(values: Float[Tensor, "B N"], where: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
    # of all processes' images, as one process has it
    total, count = processes.mean(torch.stack([(values * where).sum(), where.sum()]))
    return total / count.clamp(min=1e-6)
