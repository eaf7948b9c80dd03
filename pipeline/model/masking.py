"""DPM's masked metric: an image's own weights of the channels, and similarities under them.

Dynamic Prototype Mask (Tan et al., ACM MM 2022).  Symbols: m mask, W prototypes, D channels, N patches.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.params import BadInput
from pipeline.model.losses import no_autocast

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
