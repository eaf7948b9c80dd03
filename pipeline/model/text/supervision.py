"""Texts that teach prototypes: identities' texts T, learned once from images, and their part in the losses.

Stage 1 learns T (`prompts`), stage 2 leaves it as it is.  Symbols: P from image tokens to v, W prototypes, A
from texts to prototypes.
"""

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.core.params import BadInput
from pipeline.model import losses
from pipeline.model.text import Projection, Sizes, Towers, read_towers
from pipeline.model.text.clip import clip_sizes, clip_towers, is_file
from pipeline.model.text.prompts import Prompts, prompt_table

Link = Literal["i2t", "align", "start", "replace"]
Text = Literal["embedded", "clip", "table", "none"]  # whose texts; table: free vectors, no words
SMOOTHING = 0.1  # of the image-to-text cross-entropy, CLIP-ReID's
CLIP_VIT = "a ViT of CLIP, such as vit_base_patch16_clip_quickgelu_224.openai"


def fitting_texts(vit: str) -> tuple[Text, ...]:
    """What `text` can be beside an encoder of this name: a tower that was trained with it, and the controls.

    `table` reads no words, but the projection P of the encoder's tower.
    """
    if vit == "embedded":
        return "embedded", "table", "none"
    return ("clip", "table", "none") if "_clip_" in vit.partition(".")[0] else ("none",)


def check_texts(section: str, vit: str, text: Text) -> None:
    """Raise `BadInput` unless the params `text` and `vit` of `section` fit, by their names."""
    if text not in (fitting := fitting_texts(vit)):
        encoder = {"embedded": "embedded", "clip": CLIP_VIT}.get(text, f"embedded, or to {CLIP_VIT}")
        raise BadInput(
            f"params.yaml: {section}.text = {text}: its tower was not trained with {section}.vit = {vit}. "
            f"Set {section}.text to {' or '.join(fitting)}, or {section}.vit to {encoder}."
        )


def matching_towers(
    section: str, vit: str, text: Text, file: str, tower: str, source: str
) -> tuple[Towers, str]:
    """The text tower and projection of an encoder, and the file that has them; "" if they were downloaded.

    section: of params.yaml, with the params `vit`, `text`, `text_tower` and `text_weights`
    file: our own towers, for our own encoder
    tower, source: the CLIP of any other (`clip.clip_towers`)

    Raises `BadInput` if they cannot be of one training with the encoder called `vit`.
    """
    check_texts(section, vit, text)
    if vit == "embedded":
        return read_towers(file), file
    return clip_towers(section, tower, source), source if is_file(source) else ""


def tower_sizes(section: str, vit: str, text: Text, file: str, tower: str, source: str) -> Sizes:
    """The sizes of the towers that `matching_towers` gives, and its errors, without a download."""
    if vit == "embedded" or is_file(source):
        return matching_towers(section, vit, text, file, tower, source)[0].sizes
    check_texts(section, vit, text)
    return clip_sizes(section, tower, source)


class Supervision(nn.Module):
    """T, P, and A if texts and prototypes are aligned.

    width: D, channels of a token and of a prototype
    embedding: E, channels of a text; pooled: what P reads (see `Projection`)
    links: how texts reach the prototypes.  `i2t` compares images with texts, and P learns with the rest, as
        CLIP-ReID's does; `align` draws prototypes and texts together; `start` lets prototypes start as the
        texts' pre-images; `replace` leaves them there, for whoever freezes W

    Assumed: all but `i2t`.  DPM++'s abstract says that what texts teach is transferred into the space of the
    prototypes, and not how; CLIP-ReID's texts never meet its classifier.  A starts as P+, so that a prototype
    is first drawn to the shortest token that P brings to its text.
    """

    table: Float[Tensor, "C E"]

    def __init__(self, width: int, identities: int, embedding: int, pooled: bool, links: Collection[Link]):
        super().__init__()
        self.links = links
        self.projection = Projection(width, embedding, pooled)
        self.projection.weight.requires_grad_("i2t" in links)
        self.register_buffer("table", torch.zeros(identities, embedding))
        self.back = nn.Parameter(torch.zeros(width, embedding)) if "align" in links else None  # A

    def preimage(self, width: int) -> Float[Tensor, "D E"]:
        """P+: for each text channel the class token of the shortest tokens that P brings there."""
        return torch.linalg.pinv(self.projection.weight.detach())[:width]

    @torch.no_grad()
    def read(self, towers: Towers) -> None:
        """Take over the towers' P; A starts as its pre-image."""
        self.projection.load_state_dict(towers.projection.state_dict())
        if self.back is not None:
            self.back.copy_(self.preimage(len(self.back)))

    @torch.no_grad()
    def learn(
        self,
        towers: Towers,
        image: Float[Tensor, "N E"],
        pid: Int[Tensor, "N"],
        prototypes: Float[Tensor, "C D"],
        prompts: Prompts,
        seed: int,
        free: bool,
    ) -> None:
        """Stage 1: T from the images' embeddings v; see `prompts.prompt_table`.

        For `start` and `replace` W <- P+ T in place, each row as long as it was.
        """
        self.table.copy_(prompt_table(towers, image, pid, len(self.table), prompts, seed, free))
        if {"start", "replace"} & set(self.links):
            with losses.no_autocast(prototypes):
                rows = F.normalize(self.table @ self.preimage(prototypes.shape[1]).T, dim=-1)
            prototypes.copy_(rows * prototypes.norm(dim=1, keepdim=True))

    def losses(
        self,
        cls: Float[Tensor, "B D"],
        patch: Float[Tensor, "B N D"],
        prototypes: Float[Tensor, "C D"],
        pid: Int[Tensor, "B"],
        ignored: Bool[Tensor, "B C"] | None = None,
    ) -> dict[str, Tensor]:
        """`i2t`: cross-entropy of v T, smoothed; `align`: 1 - cos(W_y, A t_y), the mean over identities.

        The identities of a batch have equally many images, so that it is the mean over images, too.
        """
        terms = {}
        with losses.no_autocast(cls):
            if "i2t" in self.links:
                logits = self.projection.logits(self.projection(cls, patch), self.table)
                terms["i2t"] = losses.identity(logits, pid, SMOOTHING, ignored)
            if self.back is not None:
                texts = self.table[pid] @ self.back.T
                terms["align"] = (1 - F.cosine_similarity(prototypes[pid], texts, dim=-1)).mean()
        return terms
