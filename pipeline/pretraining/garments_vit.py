"""Training of the small ViT that the CPU default starts from, on rendered people of other seeds.

It takes the place of the paper's ImageNet weights, so it learns no identity and sees no occlusion.  Like
ImageNet's, its class token classifies kinds of things: of garments, hair and bags, whatever their colours.
Each patch token classifies the body part that it shows and the attributes of that part
(`synthetic.people.ATTRIBUTES`).  Pictures are rendered once and kept in `.scratch/` under the hash of the
renderer's code.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipeline.batches.augment import random_flip_crop
from pipeline.batches.views import normalise
from pipeline.core.files import atomic_write
from pipeline.core.params import STRICT
from pipeline.core.workers import progress_bar
from pipeline.data import parts
from pipeline.model import compute
from pipeline.model.backbones import save_vit, small_vit
from pipeline.model.vit import patch_labels
from pipeline.pretraining.annotations import renderer_hash
from pipeline.synthetic.cameras import sample_camera
from pipeline.synthetic.people import ATTRIBUTES, attribute_classes, sample_person
from pipeline.synthetic.pictures import TRAINING_STREAM, Picture, compose

BLOCK = 250  # pictures per file
SIZE = (256, 128)  # height, width in pixels
_ARMS, _LEGS = (parts.LEFT_ARM, parts.RIGHT_ARM), (parts.LEFT_LEG, parts.RIGHT_LEG)
KINDS = ("upper_kind", "upper_pattern", "sleeve", "lower_kind", "hair_style", "bag")
PARTS_OF_ATTRIBUTE = {  # attribute -> the parts whose patches show it
    **dict.fromkeys(("upper_kind", "upper_colour", "upper_pattern", "second_colour"), (parts.TORSO, *_ARMS)),
    "sleeve": _ARMS,
    **dict.fromkeys(("lower_kind", "lower_colour"), _LEGS),
    **dict.fromkeys(("hair_style", "hair_colour"), (parts.HEAD,)),
    "skin": (parts.HEAD, *_ARMS),
    "shoes": (parts.LEFT_FOOT, parts.RIGHT_FOOT),
    **dict.fromkeys(("bag", "bag_colour"), (parts.TORSO,)),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Pretrain:
    """Size of the network, and how it is trained."""

    seed: int  # of the people; held-out ones use seed + 1
    width: int  # channels of a token
    depth: int  # layers
    heads: int
    patch: int  # pixels, height and width
    pictures: int = Field(ge=1)
    held_out: int = Field(ge=1)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    decay: float = Field(ge=0)
    warmup: float = Field(ge=0)  # epochs
    pad: int = Field(ge=0)  # pixels, before the random crop
    brightness: float = Field(ge=0, lt=1)  # largest relative change of a channel's brightness
    part_weight: float  # of the loss of each patch's part; that of the class token has weight 1
    patch_weight: float  # of the loss of the attributes that a patch's part shows


class LabelledImages(NamedTuple):
    """Pictures with their labels."""

    image: UInt8[np.ndarray, "N H W 3"]
    map: UInt8[np.ndarray, "N H W"]  # parts, 0 is background
    attribute: Int[np.ndarray, "N A"]  # class of each of `ATTRIBUTES`


def draw_picture(seed: int, i: int) -> Picture:
    """Picture `i` of a stream of people without occluders, the same for the same arguments."""
    rng = np.random.default_rng([seed, TRAINING_STREAM, 2, i])
    return compose(rng, sample_person(rng), sample_camera(rng), occluded=False)


def load_images(seed: int, count: int) -> LabelledImages:
    """The first `count` pictures of a seed's stream, decoded."""
    with progress_bar(total=count, desc=f"draw people of seed {seed}") as bar:
        blocks = []
        for start in range(0, count, BLOCK):
            blocks.append(_block(seed, start))
            bar.update(min(BLOCK, count - start))
    return LabelledImages(*(np.concatenate(part)[:count] for part in zip(*blocks, strict=True)))


def _block(seed: int, start: int) -> LabelledImages:
    path = Path(".scratch") / f"looks-{renderer_hash()}" / f"{seed}-{start}.npz"
    if not path.is_file():
        pictures = [draw_picture(seed, i) for i in range(start, start + BLOCK)]
        jpeg = [np.frombuffer(p.jpeg, np.uint8) for p in pictures]
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                jpeg=np.concatenate(jpeg),
                stop=np.cumsum([len(j) for j in jpeg]),
                map=np.stack([p.map for p in pictures]),
                attribute=np.array(
                    [list(attribute_classes(p.identity).values()) for p in pictures], np.int64
                ),
            )
    with np.load(path) as arrays:
        blobs = np.split(arrays["jpeg"], arrays["stop"][:-1])
        image = [np.asarray(Image.open(BytesIO(blob.tobytes())).convert("RGB")) for blob in blobs]
        return LabelledImages(np.stack(image), arrays["map"], arrays["attribute"])


class TokenLogits(NamedTuple):
    """Logits of a batch."""

    kind: Float[Tensor, "B A"]  # by the class token: the classes of all `KINDS` side by side
    attribute: Float[Tensor, "B N A"]  # by each patch: the classes of all attributes side by side
    part: Float[Tensor, "B N 9"]  # by each patch: the part that it shows


class GarmentClassifier(nn.Module):
    """A ViT that classifies `KINDS` by its class token, parts and attributes by its patch tokens."""

    def __init__(self, settings: Pretrain):
        super().__init__()
        self.vit = small_vit(
            img_size=SIZE,
            patch_size=settings.patch,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
        )
        compute.set_attention(self.vit, "math")
        self.sizes = {name: len(classes) for name, classes in ATTRIBUTES.items()}
        self.kind = nn.Linear(settings.width, sum(self.sizes[name] for name in KINDS))
        self.attribute = nn.Linear(settings.width, sum(self.sizes.values()))
        self.part = nn.Linear(settings.width, len(parts.SWAPPED))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> TokenLogits:
        """The logits of all tokens."""
        tokens = self.vit.forward_features(image)
        return TokenLogits(self.kind(tokens[:, 0]), self.attribute(tokens[:, 1:]), self.part(tokens[:, 1:]))

    def split(self, logits: Float[Tensor, "*N A"], names: Iterable[str]) -> dict[str, Float[Tensor, "*N a"]]:
        """Logits of each attribute by its name, from logits side by side."""
        names = list(names)
        pieces = logits.float().split([self.sizes[name] for name in names], -1)
        return dict(zip(names, pieces, strict=True))


def train(settings: Pretrain, weights: str) -> None:
    """Pre-train, and write `weights` (half-precision safetensors) and their record beside it (.json)."""
    torch.manual_seed(settings.seed)
    cpu_start = time.process_time()
    model = GarmentClassifier(settings)
    pool = load_images(settings.seed, settings.pictures)
    held_out = load_images(settings.seed + 1, settings.held_out)
    history = fit(model, pool, held_out, settings)
    record = {
        "command": f"python -m stages.pretrain vit {weights}",
        "trained_on": "rendered people of other seeds than any dataset's (pipeline/synthetic); no identities",
        "params": asdict(settings),
        "cpu_seconds": round(time.process_time() - cpu_start),
        "history": history,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")},
    }
    save_vit(weights, model.vit, record)


def fit(
    model: GarmentClassifier, pool: LabelledImages, held_out: LabelledImages, settings: Pretrain
) -> list[dict[str, int | float]]:
    """Train in place; the figures of every epoch, scored on held-out people."""
    rng = np.random.default_rng(settings.seed)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.decay)
    steps = len(pool.image) // settings.batch * settings.epochs
    warm = max(1, round(settings.warmup * steps / settings.epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / warm) * (0.505 + 0.495 * np.cos(np.pi * s / steps))
    )
    history = []
    with progress_bar(total=steps * settings.batch, desc="vit") as bar:
        for epoch in range(settings.epochs):
            model.train()
            losses = []
            for rows in _epoch(len(pool.image), settings.batch, rng):
                value = loss(model, *_batch(pool, rows, settings, rng), settings)
                optimiser.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                losses.append(float(value.detach()))
                bar.update(settings.batch)
            figures = {"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 4)}
            history.append(figures | score(model, held_out))
            bar.write(str(history[-1]))
    return history


def _epoch(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(count)
    for start in range(0, count - batch + 1, batch):
        yield order[start : start + batch]


def _batch(
    pool: LabelledImages, rows: np.ndarray, settings: Pretrain, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    crops = random_flip_crop(pool.image, pool.map, rows, 0.5, settings.pad, rng)
    image, maps = map(torch.from_numpy, crops)
    brightness = 1 + settings.brightness * torch.from_numpy(rng.uniform(-1, 1, (len(rows), 3, 1, 1))).float()
    return normalise(image.permute(0, 3, 1, 2)) * brightness, maps, torch.from_numpy(pool.attribute[rows])


def loss(
    model: GarmentClassifier,
    image: Float[Tensor, "B 3 H W"],
    maps: UInt8[Tensor, "B H W"],
    attribute: Int[Tensor, "B A"],
    settings: Pretrain,
) -> Float[Tensor, ""]:
    """Cross-entropies of the kinds (class token), of the parts and of the attributes (patches).

    All attributes have the same weight.  The weight of a patch is the share of it that the attribute's parts
    cover.
    """
    with torch.autocast("cpu", torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        logits = model(image)
    share = patch_labels(maps, logits.part.shape[-1], settings.patch, settings.patch)
    parts_loss = -(share * logits.part.float().log_softmax(-1)).sum(-1).mean()
    truth = dict(zip(ATTRIBUTES, attribute.T, strict=True))
    kinds = [F.cross_entropy(kind, truth[name]) for name, kind in model.split(logits.kind, KINDS).items()]
    patches = []
    for name, attribute_logits in model.split(logits.attribute, ATTRIBUTES).items():
        weight = share[..., list(PARTS_OF_ATTRIBUTE[name])].sum(-1)
        target = truth[name][:, None].expand_as(weight)
        entropy = F.cross_entropy(attribute_logits.transpose(1, 2), target, reduction="none")
        patches.append((entropy * weight).sum() / weight.sum().clamp(min=1))
    kinds_loss, patch_loss = torch.stack(kinds).mean(), torch.stack(patches).mean()
    return kinds_loss + settings.part_weight * parts_loss + settings.patch_weight * patch_loss


@torch.no_grad()
def score(model: GarmentClassifier, held_out: LabelledImages) -> dict[str, float]:
    """Accuracy on held-out people, in [0, 1].

    `kinds`: the mean over kinds, by the class token.  `parts`: of each patch's part.  Then of each attribute,
    by the mean of the patches, weighted by the share of each that the attribute's parts cover.
    """
    model.eval()
    patch = model.vit.patch_embed.patch_size[0]
    correct: dict[str, list[Tensor]] = {name: [] for name in ("kinds", "parts", *ATTRIBUTES)}
    for start in range(0, len(held_out.image), 100):
        rows = np.s_[start : start + 100]
        image = torch.from_numpy(held_out.image[rows])
        logits = model(normalise(image.permute(0, 3, 1, 2)))
        truth = dict(zip(ATTRIBUTES, torch.from_numpy(held_out.attribute[rows]).T, strict=True))
        share = patch_labels(torch.from_numpy(held_out.map[rows]), logits.part.shape[-1], patch, patch)
        correct["parts"].append((logits.part.argmax(-1) == share.argmax(-1)).float().mean(1))
        for name, kind in model.split(logits.kind, KINDS).items():
            correct["kinds"].append((kind.argmax(-1) == truth[name]).float())
        for name, attribute in model.split(logits.attribute, ATTRIBUTES).items():
            votes = (
                attribute.softmax(-1) * share[..., list(PARTS_OF_ATTRIBUTE[name])].sum(-1, keepdim=True)
            ).sum(1)
            correct[name].append((votes.argmax(-1) == truth[name]).float())
    return {name: round(float(torch.cat(flags).mean()), 4) for name, flags in correct.items()}
