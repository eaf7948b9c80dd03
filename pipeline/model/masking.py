"""DPM's masked metric: an image's own weights of the channels, and similarities under them.

`MaskedMetric` is the network that DPM and DPM++ share; the rest are its parts.

Dynamic Prototype Mask (Tan et al., ACM MM 2022).  Symbols: m mask, W prototypes, D channels, N patches.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.batches.views import View
from pipeline.core.params import BadInput
from pipeline.model import losses
from pipeline.model.heads import Heads
from pipeline.model.losses import no_autocast
from pipeline.model.taps import watch
from pipeline.model.vit import Edit, OcclusionAwareViT

Taps = tuple[int, ...] | Literal["proportional"]  # blocks of the encoder, counted from 1
PUBLISHED = (2, 4, 10, 12)  # of 12 blocks


def tapped_blocks(taps: Taps, depth: int, name: str) -> tuple[int, ...]:
    """The blocks whose patches the mask generator reads, of an encoder of `depth` blocks.

    `proportional`: the published shares of the depth, such as 1, 2, 5, 6 of 6; a shallow encoder has fewer.
    Raises `BadInput` that names the param `name` for blocks that do not rise within the encoder.
    """
    if taps == "proportional":
        deepest = PUBLISHED[-1]
        return tuple(sorted({max(1, (2 * n * depth + deepest) // (2 * deepest)) for n in PUBLISHED}))
    if not taps or list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] > depth:
        raise BadInput(
            f"params.yaml: {name} = {list(taps)}: the encoder has {depth} blocks. Name some of 1 to {depth} "
            "in rising order, or `proportional`."
        )
    return tuple(taps)


class MaskGenerator(nn.Module):
    """DPM's hierarchical mask generator: an image's mask m from its patches after several blocks.

    Every mask is 1/2 at the start, so that masked similarities start as plain cosines.

    width: D, channels of a token
    grid: patches down and across
    taps: number of blocks whose patches are read
    Departs: an axis of one patch is not halved; the published network needs 4 patches down and across.
    """

    def __init__(self, width: int, grid: tuple[int, int], taps: int):
        super().__init__()
        self.grid = grid
        half = tuple(min(2, n) for n in grid)
        quarter = tuple(min(2, n // size) for n, size in zip(grid, half, strict=True))
        self.layers = nn.Sequential(
            *_convolution(taps * width, 2 * width),
            nn.MaxPool2d(half),
            *_convolution(2 * width, width),
            nn.MaxPool2d(quarter),
            *_convolution(width, width),
        )
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches: Sequence[Float[Tensor, "B N D"]]) -> Float[Tensor, "B D"]:
        """m in (0, 1), from the patches after each block in turn."""
        planes = torch.cat(list(patches), -1).mT.unflatten(2, self.grid)
        return self.linear(self.layers(planes).amax((2, 3))).float().sigmoid()


def _convolution(channels: int, output: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, output, 3, padding=1), nn.BatchNorm2d(output), nn.ReLU()


def masked_cosine(
    features: Float[Tensor, "B D"], prototypes: Float[Tensor, "C D"], mask: Float[Tensor, "B D"]
) -> Float[Tensor, "B C"]:
    """cos(f, m * W_c / |W_c|) of each image and prototype, in [-1, 1]; a mask's scale does not matter.

    Two products of matrices, as f (m * W) = (f * m) W and |m * W|^2 = m^2 W^2.
    """
    with no_autocast(features):
        unit = F.normalize(prototypes.float(), dim=-1)
        length = (mask.float().square() @ unit.square().T).clamp(min=1e-24).sqrt()
        return (F.normalize(features.float(), dim=-1) * mask.float()) @ unit.T / length


def participation(mask: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """Share of the channels that take part in a masked similarity, (sum m)^2 / (D sum m^2), in (0, 1].

    1 for a flat mask, 1/D for one channel.
    """
    return mask.sum(1).square() / (mask.shape[1] * mask.square().sum(1))


def budget(mask: Float[Tensor, "B D"], least: float) -> Float[Tensor, ""]:
    """How far masks fall short of keeping a share `least` of the channels, the mean over images, in [0, 1].

    ReLU(least - (sum m)^2 / (D sum m^2)).
    Assumed: no source has such a loss.  A mask that keeps enough channels costs nothing, so that the loss
    hinders no more than a collapse to the few that tell the identities of the training set apart.
    """
    return F.relu(least - participation(mask)).mean()


# ------------------------------------------------------------------ encoder, neck, prototypes and generator


class Features(NamedTuple):
    """What the masked metric reads of B images."""

    token: Float[Tensor, "B D"]  # g
    patch: Float[Tensor, "B N D"]  # patch tokens after the last norm
    tapped: list[Float[Tensor, "B N D"]]  # patch tokens after each tapped block
    logits: Float[Tensor, "B heads N"] | None  # of the class token's attention to the patches


class MaskedMetric(nn.Module):
    """What DPM and DPM++ share: a ViT, a neck, prototypes W, and a mask generator.

    identities, gain: of the prototypes, which serve a plain identity loss, too (see `Heads`)
    taps: blocks that the generator reads; () leaves it out, and all masks are flat
    """

    def __init__(self, encoder: OcclusionAwareViT, identities: int, gain: float, taps: tuple[int, ...]):
        super().__init__()
        self.encoder, self.taps = encoder, taps
        self.head = Heads(1, encoder.width, identities, gain)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.head.weight[0]).div_(gain)
        self.generator = MaskGenerator(encoder.width, encoder.grid, len(taps)) if taps else None

    @property
    def gated(self) -> bool:
        """Whether `compare` gives a gate."""
        return self.generator is not None

    def features(
        self, view: View, camid: Int[Tensor, "B"], logits: bool = False, edit: Edit | None = None
    ) -> Features:
        """g, and what the mask generator and the head enrichment read; see `taps.watch`."""
        watched = watch(self.encoder, view.image, view.hidden, camid, self.taps, logits, edit)
        tapped = [self.encoder.split(watched.taps[block]).patch for block in self.taps]
        return Features(watched.tokens.cls.float(), watched.tokens.patch, tapped, watched.logits)

    def neck(self, token: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """f = BN(g)."""
        return self.head.neck(token[:, None])[:, 0]

    def mask(self, features: Features) -> Float[Tensor, "B D"]:
        """m; all ones without a generator."""
        if self.generator is None:
            return torch.ones_like(features.token)
        return self.generator(features.tapped)

    def plain_loss(
        self, necked: Float[Tensor, "B D"], pid: Int[Tensor, "B"], ignored: Bool[Tensor, "B I"] | None = None
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the logits f W."""
        return losses.identity(self.head(necked[:, None])[:, 0], pid, ignored=ignored)

    def arc_loss(
        self,
        necked: Float[Tensor, "B D"],
        mask: Float[Tensor, "B D"],
        pid: Int[Tensor, "B"],
        scale: float,
        margin: float,
        ignored: Bool[Tensor, "B I"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of ArcFace's logits on cos(f, m * W_c / |W_c|)."""
        cosine = masked_cosine(necked, self.head.weight[0], mask)
        return losses.identity(losses.arc(cosine, pid, scale, margin), pid, ignored=ignored)

    @torch.no_grad()
    def compare(
        self, view: View, camid: Int[Tensor, "B"], necked: bool
    ) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B 1 D"] | None]:
        """What is compared at the end, g or f (`necked`), of length 1; and the mask, the gate of a query."""
        features = self.features(view, camid)
        token = self.neck(features.token) if necked else features.token
        gate = None if self.generator is None else self.mask(features)[:, None]
        return F.normalize(token, dim=-1)[:, None], gate
