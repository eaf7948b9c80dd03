"""The text branch: a tower that embeds words, a projection that brings images to them, prompts between both.

    tower      `TextTower`, the causal transformer of CLIP (Radford et al. 2021), by CLIP's names of tensors
    __init__   `Projection` P of an image's tokens into the space of words, and both together, `Towers`
    prompts    `prompt_table`, stage 1 of CLIP-ReID (Li et al. 2023): one text embedding for each identity
    clip       CLIP's own towers, through open_clip

Unusual here: `Towers` is no module.  A method that holds one takes over neither its tensors nor their
gradients; what it needs in training and afterwards, P and the table T, it owns itself.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core import weights
from pipeline.core.params import BadInput
from pipeline.model.losses import no_autocast
from pipeline.model.text.tower import TextTower, build_tower

START, END = "<start>", "<end>"
BEFORE, AFTER = "a photo of a", "person ."  # CLIP-ReID's prompt, around the learned words
SAME = 0.99  # cosine of two class tokens that are one, but for the rounding of half precision


class Projection(nn.Module):
    """P: image tokens as an embedding v of E channels, comparable with words.

    CLIP projects the class token.  With `pooled`, as in our embedded tower, P reads [class token; mean patch
    token], as the class token of our small ViT names kinds but no colours, and embeddings have length 1.

    width: D, channels of a token
    embedding: E
    """

    def __init__(self, width: int, embedding: int, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.weight = nn.Parameter(torch.empty(embedding, 2 * width if pooled else width))
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        self.register_buffer("scale", torch.ones(()))  # factor on v t, learned with the towers

    scale: Tensor

    def forward(self, cls: Float[Tensor, "B D"], patch: Float[Tensor, "B N D"]) -> Float[Tensor, "B E"]:
        """v of each image, computed in float32."""
        cls, patch = cls.float(), patch.float()
        with no_autocast(cls):
            tokens = torch.cat([cls, patch.mean(1)], -1) if self.pooled else cls
            return self.measure(F.linear(tokens, self.weight))

    def measure(self, embedding: Float[Tensor, "*N E"]) -> Float[Tensor, "*N E"]:
        """Embeddings of images or texts as they are compared, in float32: of length 1 if `pooled`."""
        return F.normalize(embedding.float(), dim=-1) if self.pooled else embedding.float()

    def logits(self, image: Float[Tensor, "B E"], table: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
        """scale v t: how well each text of a table T fits each image; CLIP-ReID's `i2t` logits."""
        return self.scale * image.float() @ table.float().mT


class Sizes(NamedTuple):
    """What a text tower has room for."""

    embedding: int  # E, channels of a text embedding
    words: int  # most learned words of a prompt

    def check(self, section: str, embedding: int, tokens: int) -> None:
        """Raise `BadInput` unless E is `embedding` and a prompt can have `tokens` learned words.

        They are the params `embedding` and `prompt_tokens` of `section`.
        """
        if embedding != self.embedding:
            raise BadInput(
                f"params.yaml: {section}.embedding = {embedding}: the text tower's embeddings have "
                f"{self.embedding} channels. Set it to {self.embedding}."
            )
        if tokens > self.words:
            raise BadInput(
                f"params.yaml: {section}.prompt_tokens = {tokens}: the text tower has room for {self.words} "
                f"beside the prompt's own words. Set it to {self.words} or less."
            )


class Towers(NamedTuple):
    """A text tower, frozen, and the projection that was trained with it for one encoder."""

    text: TextTower
    projection: Projection
    class_token: Float[Tensor, "D"]  # of the encoder that P was trained with, before its first layer
    before: tuple[int, ...]  # tokens of the prompt up to the learned words, the start token first
    after: tuple[int, ...]  # behind them, up to the end token EOT

    @property
    def sizes(self) -> Sizes:
        """E, and the learned words that fit."""
        length = len(self.text.positional_embedding)
        return Sizes(self.projection.weight.shape[0], length - len(self.before) - len(self.after))

    def check_pair(self, class_token: Float[Tensor, "*N d"], section: str) -> None:
        """Raise `BadInput` unless the encoder is the one that P was trained with.

        `class_token` is the encoder's before any training, the parameter and not a picture's; `section` has
        the params `text` and `vit`.  Towers of two releases would compare at random.
        """
        token = class_token.detach().flatten().float().cpu()
        same = token.shape == self.class_token.shape
        if not same or F.cosine_similarity(token, self.class_token.float(), dim=0) < SAME:
            raise BadInput(
                f"params.yaml: {section}.text: the text tower and the encoder {section}.vit are not of one "
                "training. Take the text tower of the same release as the encoder's weights, or set "
                f"{section}.text to none."
            )


# ------------------------------------------------------------------ the embedded towers


def write_towers(
    path: str | Path, towers: Towers, words: list[str], heads: int, record: dict[str, Any]
) -> None:
    """Write towers of ours in half precision with their vocabulary; `record` goes beside them (.json)."""
    projection = {f"projection.{name}": tensor for name, tensor in towers.projection.state_dict().items()}
    lines = torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8)
    own = {"class_token": towers.class_token, "words": lines, "heads": torch.tensor(heads)}
    weights.write(path, {**towers.text.state_dict(), **projection, **own}, record)


def read_towers(path: str | Path) -> Towers:
    """The towers of a file that `write_towers` wrote.  Raises `BadInput` if there are none."""
    tensors, remedy = weights.read(path), f"Restore it: `git checkout {path}`."
    if missing := {"projection.weight", "projection.scale", "class_token", "words", "heads"} - set(tensors):
        raise BadInput(f"{path}: not a text tower of ours: {len(missing)} tensors missing. {remedy}")
    token, lines, heads = (tensors.pop(name) for name in ("class_token", "words", "heads"))
    weight, scale = (tensors.pop(f"projection.{name}") for name in ("weight", "scale"))
    text = build_tower(tensors, int(heads), False, path, remedy)
    place = {word: n for n, word in enumerate(bytes(lines.tolist()).decode().split("\n"))}
    before, after = encode(place, BEFORE), encode(place, AFTER)
    return Towers(text, frozen_projection(weight, scale, token), token.float(), before[:-1], after[1:])


def encode(place: dict[str, int], text: str) -> tuple[int, ...]:
    """The tokens of a text of whole words, by their place in the vocabulary, between start and end."""
    return tuple(place[word] for word in (START, *text.split(), END))


def frozen_projection(
    weight: Float[Tensor, "E d"], scale: Float[Tensor, ""], class_token: Float[Tensor, "D"]
) -> Projection:
    """The projection of which these are the tensors; it pools if it reads more than a class token."""
    with torch.random.fork_rng(devices=[]):
        projection = Projection(len(class_token), len(weight), pooled=weight.shape[1] > len(class_token))
    projection.load_state_dict({"weight": weight, "scale": scale})
    return projection.eval().requires_grad_(False)
