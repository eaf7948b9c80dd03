"""Training of the embedded text tower, on rendered people of other seeds and captions of their attributes.

It takes the place of CLIP's, which users bring: a closed world of 56 words, those of the renderer
(`synthetic.people.ATTRIBUTES`) and those of the captions.  The embedded ViT is frozen and its tokens are
computed once; the tower and the projection P learn by InfoNCE, in both directions, which caption belongs to
which picture.  No caption of a dataset's identity is ever read.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.batches.views import normalise
from pipeline.core.files import sha256
from pipeline.core.params import STRICT
from pipeline.core.workers import progress_bar
from pipeline.model import losses
from pipeline.model.backbones import load_vit
from pipeline.model.text import AFTER, BEFORE, END, START, Projection, Towers, encode, write_towers
from pipeline.model.text.tower import TextTower
from pipeline.pretraining.garments_vit import load_images
from pipeline.synthetic.people import ATTRIBUTES

# what a caption says: attributes that stand together, and the word behind them
PHRASES = (
    (("hair_colour", "hair_style"), "hair"),
    (("skin",), "skin"),
    (("upper_colour", "upper_pattern", "upper_kind"), "top"),
    (("second_colour",), "details"),
    (("sleeve",), "sleeves"),
    (("lower_colour", "lower_kind"), "bottom"),
    (("shoes",), "shoes"),
    (("bag_colour", "bag"), "bag"),
)
# attributes that a value of another one hides: a plain top has no second colour to see
UNSEEN = {
    ("upper_pattern", "plain"): "second_colour",
    ("bag", "none"): "bag_colour",
    ("hair_style", "bald"): "hair_colour",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Pretrain:
    """Size of the tower, and how it is trained."""

    seed: int  # of the people; held-out ones use seed + 1
    vit: str  # file of the encoder whose tokens the projection reads
    width: int
    depth: int  # layers
    heads: int
    embedding: int  # E, channels of a text's embedding
    length: int  # most tokens of a caption
    pictures: int = Field(ge=1)
    held_out: int = Field(ge=5)
    steps: int = Field(ge=1)
    batch: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    decay: float = Field(ge=0)
    warmup: int = Field(ge=1)  # steps
    dropped: float = Field(ge=0, lt=1)  # share of the attributes that a caption leaves out


class People(NamedTuple):
    """Pictures as the frozen encoder's tokens, and what their people look like."""

    cls: Float[Tensor, "N D"]
    patch: Float[Tensor, "N D"]  # mean of the patch tokens
    attribute: Int[np.ndarray, "N A"]  # class of each of `ATTRIBUTES`


def train(settings: Pretrain, weights: str) -> None:
    """Pre-train, and write `weights` (half-precision safetensors) and their record beside it (.json)."""
    torch.manual_seed(settings.seed)
    cpu_start = time.process_time()
    vit = load_vit(settings.vit).eval()
    pool = encode_people(vit, settings.seed, settings.pictures)
    held_out = encode_people(vit, settings.seed + 1, settings.held_out)
    words = vocabulary()
    text = TextTower(
        len(words), settings.length, settings.width, settings.depth, settings.heads, settings.embedding
    )
    projection = Projection(vit.embed_dim, settings.embedding, pooled=True)
    history = fit(text, projection, pool, held_out, words, settings)
    record = {
        "command": f"python -m stages.pretrain text {weights}",
        "trained_on": "rendered people of other seeds than any dataset's, with captions of their attributes",
        "params": asdict(settings),
        "vit": sha256(settings.vit),
        "cpu_seconds": round(time.process_time() - cpu_start),
        "history": history,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")},
    }
    towers = Towers(text, projection, vit.cls_token.detach().flatten(), (), ())
    write_towers(weights, towers, words, settings.heads, record)


@torch.no_grad()
def encode_people(vit: VisionTransformer, seed: int, count: int) -> People:
    """The first `count` people of a seed's stream (`garments_vit.draw_picture`)."""
    images = load_images(seed, count)
    chunks = torch.from_numpy(images.image).permute(0, 3, 1, 2).split(100)
    tokens = torch.cat([vit.forward_features(normalise(chunk)) for chunk in chunks])
    return People(tokens[:, 0], tokens[:, 1:].mean(1), images.attribute)


# ------------------------------------------------------------------ captions


def vocabulary() -> list[str]:
    """Every word of a prompt or caption, the start and the end first."""
    values = [word for names in ATTRIBUTES.values() for name in names for word in name.split()]
    fixed = [*BEFORE.split(), *AFTER.split(), "with", ",", *(noun for _, noun in PHRASES)]
    return [START, END, *sorted({*values, *fixed})]


def caption(attribute: Int[np.ndarray, "A"], dropped: float, rng: np.random.Generator) -> str:
    """What a person looks like, in random order, before or behind the word `person`.

    Each attribute is left out with the probability `dropped`, so that no phrase has a fixed place.
    """
    look = {name: ATTRIBUTES[name][n] for name, n in zip(ATTRIBUTES, attribute, strict=True)}
    hidden = {UNSEEN.get(item) for item in look.items()}
    visible = {name: v for name, v in look.items() if name not in hidden and rng.random() >= dropped}
    phrases = []
    for names, noun in PHRASES:
        if values := [visible[name] for name in names if name in visible]:
            phrases.append(" ".join([*values, noun]))
    order = [phrases[n] for n in rng.permutation(len(phrases))]
    if order and rng.random() < 0.5:
        return f"{BEFORE} {' , '.join(order)} {AFTER}"
    person, stop = AFTER.split()
    return f"{BEFORE} {person} with {' , '.join(order)} {stop}"


def tokenise(captions: Sequence[str], place: dict[str, int]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B"]]:
    """Tokens of captions, padded behind their end, and where each ends."""
    rows = [torch.tensor(encode(place, text)) for text in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) - 1 for row in rows])


# ------------------------------------------------------------------ training


def fit(
    text: TextTower,
    projection: Projection,
    pool: People,
    held_out: People,
    words: list[str],
    settings: Pretrain,
) -> list[dict[str, int | float]]:
    """Train both in place; the figures after every tenth of the steps, scored on held-out people."""
    rng, place = np.random.default_rng(settings.seed), {word: n for n, word in enumerate(words)}
    log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP's first temperature
    learned = [*text.parameters(), *projection.parameters(), log_scale]
    optimiser = torch.optim.AdamW(learned, settings.learning_rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / settings.warmup) * (0.505 + 0.495 * np.cos(np.pi * s / settings.steps)),
    )
    history = []
    bar = progress_bar(iterable=range(1, settings.steps + 1), desc="text", unit="step")
    for step in bar:
        rows = rng.choice(len(pool.cls), settings.batch, replace=False)
        image = projection(pool.cls[rows], pool.patch[rows, None])
        captions = [caption(row, settings.dropped, rng) for row in pool.attribute[rows]]
        texts = embed_captions(text, projection, captions, place)
        loss = losses.contrast(log_scale.exp() * image, texts, torch.arange(len(rows)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % max(1, settings.steps // 10) == 0:
            figures = {"step": step, "loss": float(loss.detach())}
            history.append(figures | score(text, projection, held_out, place))
    projection.scale.copy_(log_scale.detach().exp())
    return history


def embed_captions(
    text: TextTower, projection: Projection, captions: Sequence[str], place: dict[str, int]
) -> Float[Tensor, "B E"]:
    """Embeddings of captions, as `projection` compares them."""
    tokens, end = tokenise(captions, place)
    return projection.measure(text(text.token_embedding(tokens), end))


@torch.no_grad()
def score(
    text: TextTower, projection: Projection, held_out: People, place: dict[str, int]
) -> dict[str, float]:
    """Share of held-out people whose whole caption is among the 1 or 5 nearest of all their captions."""
    rng = np.random.default_rng(0)
    captions = [caption(row, 0.0, rng) for row in held_out.attribute]
    image = projection(held_out.cls, held_out.patch[:, None])
    similarity = image @ embed_captions(text, projection, captions, place).mT
    better = (similarity > similarity.diag()[:, None]).sum(1)
    return {f"top{n}": round(float((better < n).float().mean()), 4) for n in (1, 5)}
