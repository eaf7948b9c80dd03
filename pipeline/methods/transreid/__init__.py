"""TransReID (ICCV 2021): a ViT with side information embeddings (SIE) and a jigsaw patch module (JPM).

The tokens z_0 ... z_N after the last but one block enter two copies of the last block and norm.  One gives
the global feature g, the other local features l_1 ... l_4, each from the class token z_0 and a quarter of the
shuffled patches.  SIE adds the camera's embedding to all tokens, `gamma_camera` times.  Sections are those of
the paper; what it leaves open is as in damo-cv/TransReID.

Unusual here:
- The encoder's own last block gives g, so that there is no third copy that nothing runs.
- Without JPM and SIE it is `vit_baseline`, bit for bit.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core.params import STRICT, BadInput
from pipeline.methods.base import DataSpec, Embedding, Method, Objective, encoder_without_parts
from pipeline.methods.presets import ENCODER_AND_HEADS, RECIPE, Preset, Presets
from pipeline.model import losses
from pipeline.model.backbones import Colours
from pipeline.model.heads import Heads
from pipeline.model.taps import watch


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Params:
    """TransReID's parameters; null means the preset's value (see `PRESETS`)."""

    preset: Preset
    vit: str  # `embedded`, or a name of timm with its tag
    weights: str  # a timm ViT's file; "" downloads it
    colours: Colours  # that the weights expect; auto: those of the name in `vit`
    stride: int | None = Field(ge=1)  # pixels between patches
    gamma_camera: float  # lambda of SIE, the weight of the camera embedding; 0 leaves it out
    jpm: bool  # whether there are local features
    shift: int = Field(ge=1)  # token at which the shuffled sequence starts; the class token is 0
    groups: int = Field(ge=1)  # rows of patches that are interleaved
    divide: int = Field(ge=1)  # local features
    head_gain: float | None = Field(gt=0)  # factor on logits: how much faster classifiers move under Adam
    triplet: Literal["necked", "plain"] | None  # what the triplet losses compare, as OGFR's
    feature: Literal["before", "after"] | None  # what is compared at the end: before or after the necks


PRESETS: Presets = {**{f"transreid.{name}": row for name, row in ENCODER_AND_HEADS.items()}, **RECIPE}


def _has_no_jpm(params: Params, train: Any) -> bool:
    return not params.jpm


WITHOUT_EFFECT: dict[str, Callable[[Params, Any], bool]] = dict.fromkeys(
    ("shift", "groups", "divide"), _has_no_jpm
)


def build(params: Params, spec: DataSpec, vit: VisionTransformer) -> "TransReID":
    """TransReID with resolved parameters around an encoder.

    Raises `BadInput` for a shift, groups or local features beyond the number of patches.
    """
    return TransReID(params, spec, vit)


def shuffle(patch: Float[Tensor, "B N D"], shift: int, groups: int) -> Float[Tensor, "B N2 D"]:
    """The shift and the patch shuffle of Section 3.2 on patch tokens z_1 ... z_N.

    The sequence z_shift ... z_N, z_1 ... z_(shift-1) is cut into `groups` rows, which are read by columns.
    Assumed: the paper does not say what becomes of an N that `groups` does not divide.  As in TransReID's
    code, the last but one token of the shifted sequence is repeated at its end.
    """
    shifted = patch.roll(1 - shift, 1)
    repeated = shifted[:, -2:-1].expand(-1, -patch.shape[1] % groups, -1)
    return torch.cat([shifted, repeated], 1).unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class TransReID(Method):
    """A ViT, a copy of its last layer for groups of patches, and a neck and a classifier for each feature."""

    TRAINING_SET = ("encoder.camera", "head.weight")

    def __init__(self, params: Params, spec: DataSpec, vit: VisionTransformer):
        super().__init__()
        self.params = params
        self.encoder = encoder_without_parts(vit, spec, params.stride, params.gamma_camera)
        patches = self.encoder.grid[0] * self.encoder.grid[1]
        if params.jpm:
            for name in ("shift", "groups", "divide"):
                if (value := getattr(params, name)) > patches:
                    raise BadInput(
                        f"params.yaml: transreid.{name} = {value}: more than the {patches} patches. Lower it."
                    )
            self.local = copy.deepcopy(nn.Sequential(self.encoder.blocks[-1], self.encoder.norm))
        features = 1 + params.divide if params.jpm else 1
        self.head = Heads(features, self.encoder.width, spec.identities, params.head_gain)

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Identity and triplet losses of the occluded view: half of g's and half of the mean of the l_k's."""
        features = self.features(batch.occluded, batch.camid)
        necked = self.head.neck(features)
        plain = self.params.triplet == "plain"
        compared = features if plain else necked
        identity = losses.identity(self.head(necked), batch.pid)
        terms = {
            "identity": identity[0],
            "triplet": losses.triplet(compared[:, 0], batch.pid, average=not plain),
        }
        if self.params.jpm:
            local = losses.triplet(compared[:, 1:].transpose(0, 1), batch.pid, average=not plain)
            terms |= {"local_identity": identity[1:].mean(), "local_triplet": local.mean()}
        yield Objective("reid", terms, dict.fromkeys(terms, 0.5 if self.params.jpm else 1.0))

    def features(self, view: View, camid: Int[Tensor, "B"]) -> Float[Tensor, "B P D"]:
        """g and, with JPM, l_1 ... l_divide."""
        last = len(self.encoder.blocks) - 1
        watched = watch(self.encoder, view.image, view.hidden, camid, (last,) if self.params.jpm else ())
        feature = watched.tokens.cls[:, None]
        if self.params.jpm:
            cls, _, patch = self.encoder.split(watched.taps[last])
            feature = torch.cat([feature, self.locals(cls, patch)], 1)
        return feature.float()

    def locals(self, cls: Float[Tensor, "B D"], patch: Float[Tensor, "B N D"]) -> Float[Tensor, "B K D"]:
        """l_k of the tokens after the last but one block: the class token beside a group of shuffled patches.

        A group has a `divide`-th of the patches, rounded down; patches that are left over enter none.
        """
        divide = self.params.divide
        size = patch.shape[1] // divide
        shuffled = shuffle(patch, self.params.shift, self.params.groups)[:, : divide * size]
        # group after group, not image after image: drop-path draws for one view of all images after another
        group = shuffled.unflatten(1, (divide, size)).transpose(0, 1)
        first = cls[:, None].expand(divide, -1, -1, -1)
        output = self.local(torch.cat([first, group], 2).flatten(0, 1))[:, 0]
        return output.unflatten(0, (divide, -1)).transpose(0, 1)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Embedding:
        """One feature [g, l_1/4 ... l_4/4] per image (4 is `divide`), L2-normalised as a whole."""
        features = self.features(batch.holistic, batch.camid)
        if self.params.feature == "after":
            features = self.head.neck(features)
        shares = torch.cat([features[:, :1], features[:, 1:] / self.params.divide], 1)
        feature = F.normalize(shares.flatten(1)[:, None], dim=-1)
        return Embedding(feature, torch.ones_like(feature[..., 0]))
