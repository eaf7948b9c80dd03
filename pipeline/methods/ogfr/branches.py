"""What OGFR's branches pass on: a view's tokens after the encoder, and all of a branch."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.methods.ogfr.agent import Mask
from pipeline.model.taps import watch
from pipeline.model.vit import Image, OcclusionAwareViT, Tokens


class Encoded(NamedTuple):
    """The encoder's output F of one view: global, part (background first) and patch tokens."""

    cls: Float[Tensor, "B D"]  # f^g
    part: Float[Tensor, "B K1 D"]  # f^0 (background), f^1 ... f^K
    patch: Float[Tensor, "B N D"]  # f^p
    before: Float[Tensor, "B L D"]  # all tokens before the blocks that follow the erasing; L = 0 if none does

    @property
    def sequence(self) -> Float[Tensor, "B L D"]:
        """The tokens of a branch: without f^0, the background's token."""
        return torch.cat([self.cls[:, None], self.part[:, 1:], self.patch], 1)


def encode(
    encoder: OcclusionAwareViT,
    image: Image,
    hidden: Bool[Tensor, "B C"],
    camid: Int[Tensor, "B"],
    blocks: int,
) -> Encoded:
    """F, and the tokens before the last `blocks` blocks of the encoder, if any is to follow the erasing."""
    if not blocks:
        tokens: Tokens = encoder(image, hidden, camid)
        return Encoded(*tokens, tokens.patch[:, :0])
    tap = len(encoder.blocks) - blocks
    watched = watch(encoder, image, hidden, camid, taps=[tap])
    return Encoded(*watched.tokens, watched.taps[tap])


class Branch(NamedTuple):
    """One view after the encoder and the layers of its branch."""

    number: int  # HOLISTIC or OCCLUDED
    parsing: UInt8[Tensor, "B H W"]  # M
    tokens: Encoded  # F
    state: Float[Tensor, "B N K1"]  # I
    labels: Float[Tensor, "B N K1"]  # share of each label of M in each patch
    mask: Mask | None  # patches that are kept; None without FEP
    output: Float[Tensor, "B L D"]  # F_hp or F_op
