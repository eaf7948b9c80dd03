"""The small ViT that the CPU default starts from: trained on the looks of rendered people of other seeds.

It stands for the paper's ImageNet weights, so it learns what is general, no identity: its class token names
garments, colours, hair and bags (`synthetic.people.ATTRIBUTES`), its patch tokens name the body part that
they show.  Pictures are drawn once and kept in `.scratch/` under the hash of the renderer's code.
"""

import hashlib
import time
from collections.abc import Iterator
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

from pipeline import batches, parts, store, synthetic, vit
from pipeline.params import STRICT
from pipeline.synthetic.people import ATTRIBUTES, attributes
from pipeline.synthetic.pictures import training_picture

BLOCK = 250  # pictures in a kept file
SIZE = (256, 128)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Pretrain:
    """The network's size and how it learns."""

    seed: int  # of the people; held-out ones come from seed + 1
    width: int
    depth: int
    heads: int
    patch: int
    pictures: int = Field(ge=1)
    held_out: int = Field(ge=1)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    decay: float = Field(ge=0)
    warmup: float = Field(ge=0)  # epochs
    pad: int = Field(ge=0)  # pixels, before the random crop
    brightness: float = Field(ge=0, lt=1)  # most by which a picture's light is changed
    part_weight: float  # of the patches' loss beside the class token's


class Looks(NamedTuple):
    """Pictures and what is true about them."""

    image: UInt8[np.ndarray, "N H W 3"]
    map: UInt8[np.ndarray, "N H W"]
    attribute: Int[np.ndarray, "N A"]


def looks(seed: int, count: int) -> Looks:
    """The first `count` pictures of a seed's stream, decoded."""
    with store.progress(total=count, desc=f"draw people of seed {seed}") as bar:
        blocks = []
        for start in range(0, count, BLOCK):
            blocks.append(_block(seed, start))
            bar.update(min(BLOCK, count - start))
    return Looks(*(np.concatenate(part)[:count] for part in zip(*blocks, strict=True)))


def _block(seed: int, start: int) -> Looks:
    kept = Path(".scratch") / f"looks-{_renderer()}" / f"{seed}-{start}.npz"
    if not kept.is_file():
        drawn = [training_picture(seed, i) for i in range(start, start + BLOCK)]
        jpeg = [np.frombuffer(p.jpeg, np.uint8) for p in drawn]
        with store.replace(kept) as beside, open(beside, "wb") as file:
            np.savez_compressed(
                file,
                jpeg=np.concatenate(jpeg),
                stop=np.cumsum([len(j) for j in jpeg]),
                map=np.stack([p.map for p in drawn]),
                attribute=np.array([list(attributes(p.identity).values()) for p in drawn], np.int64),
            )
    with np.load(kept) as held:
        pieces = np.split(held["jpeg"], held["stop"][:-1])
        image = [np.asarray(Image.open(BytesIO(piece.tobytes())).convert("RGB")) for piece in pieces]
        return Looks(np.stack(image), held["map"], held["attribute"])


def _renderer() -> str:
    files = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Namer(nn.Module):
    """A ViT whose class token names a person's attributes, and whose patch tokens name the part they show."""

    def __init__(self, settings: Pretrain):
        super().__init__()
        self.vit = vit.small(
            img_size=SIZE, patch_size=settings.patch, embed_dim=settings.width, depth=settings.depth,
            num_heads=settings.heads,
        )  # fmt: skip
        for block in self.vit.blocks:
            block.attn.fused_attn = False  # slower than plain attention in bfloat16 on a CPU
        self.sizes = [len(names) for names in ATTRIBUTES.values()]
        self.attribute = nn.Linear(settings.width, sum(self.sizes))
        self.part = nn.Linear(settings.width, len(parts.SWAPPED))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[list[Tensor], Float[Tensor, "B N 9"]]:
        """Logits of each attribute, and of each patch's part."""
        tokens = self.vit.forward_features(image)
        return list(self.attribute(tokens[:, 0]).split(self.sizes, 1)), self.part(tokens[:, 1:])


def train(settings: Pretrain, weights: str) -> None:
    """Pre-train and write `weights` (half-precision safetensors) and its record (the same name, .json)."""
    torch.manual_seed(settings.seed)
    began = time.process_time()
    model = Namer(settings)
    pool, held_out = looks(settings.seed, settings.pictures), looks(settings.seed + 1, settings.held_out)
    history = fit(model, pool, held_out, settings)
    record = {
        "command": f"python -m stages.pretrain vit {weights}",
        "trained_on": "rendered people of other seeds than any dataset's (pipeline/synthetic); no identities",
        "params": asdict(settings),
        "cpu_seconds": round(time.process_time() - began),
        "history": history,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")},
    }
    vit.save(weights, model.vit, record)


def fit(model: Namer, pool: Looks, held_out: Looks, settings: Pretrain) -> list[dict[str, float]]:
    """Train in place; a line of figures for every epoch, scored on people never seen."""
    rng = np.random.default_rng(settings.seed)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.decay)
    steps = len(pool.image) // settings.batch * settings.epochs
    warm = max(1, round(settings.warmup * steps / settings.epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / warm) * (0.505 + 0.495 * np.cos(np.pi * s / steps))
    )
    history = []
    with store.progress(total=steps * settings.batch, desc="vit") as bar:
        for epoch in range(settings.epochs):
            model.train()
            recent = []
            for rows in _epoch(len(pool.image), settings.batch, rng):
                value = loss(model, *_batch(pool, rows, settings, rng), settings.part_weight)
                optimiser.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                recent.append(float(value.detach()))
                bar.update(settings.batch)
            figures = {"epoch": epoch + 1, "loss": round(float(np.mean(recent)), 4)}
            history.append(figures | score(model, held_out))
            bar.write(str(history[-1]))
    return history


def _epoch(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(count)
    for start in range(0, count - batch + 1, batch):
        yield order[start : start + batch]


def _batch(
    pool: Looks, rows: np.ndarray, settings: Pretrain, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    drawn = [batches.augment(pool.image[i], pool.map[i], 0.5, settings.pad, rng) for i in rows]
    image, maps = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    light = 1 + settings.brightness * torch.from_numpy(rng.uniform(-1, 1, (len(rows), 3, 1, 1))).float()
    return batches.normalise(image) * light, maps, torch.from_numpy(pool.attribute[rows])


def loss(
    model: Namer,
    image: Float[Tensor, "B 3 H W"],
    maps: UInt8[Tensor, "B H W"],
    attribute: Int[Tensor, "B A"],
    part_weight: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of the attributes (their mean), plus that of the patches' parts."""
    with torch.autocast("cpu", torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        named, part = model(image)
    patch = model.vit.patch_embed.patch_size[0]
    target = vit.patch_labels(maps, part.shape[-1], patch, patch)
    looks_loss = sum(F.cross_entropy(n.float(), attribute[:, a]) for a, n in enumerate(named)) / len(named)
    parts_loss = -(target * part.float().log_softmax(-1)).sum(-1).mean()
    return looks_loss + part_weight * parts_loss


@torch.no_grad()
def score(model: Namer, held_out: Looks) -> dict[str, float]:
    """Accuracy on people never seen: of attributes (mean over kinds) and of patches' parts, in [0, 1]."""
    model.eval()
    right, part_right = [], []
    for start in range(0, len(held_out.image), 100):
        rows = np.s_[start : start + 100]
        named, part = model(batches.normalise(torch.from_numpy(held_out.image[rows])))
        truth = torch.from_numpy(held_out.attribute[rows])
        right.append(torch.stack([n.argmax(1) == truth[:, a] for a, n in enumerate(named)], 1).float())
        patch = model.vit.patch_embed.patch_size[0]
        target = vit.patch_labels(torch.from_numpy(held_out.map[rows]), part.shape[-1], patch, patch)
        part_right.append((part.argmax(-1) == target.argmax(-1)).float().mean(1))
    each = torch.cat(right).mean(0)
    figures = {name: round(float(value), 4) for name, value in zip(ATTRIBUTES, each, strict=True)}
    mean, shown = float(each.mean()), float(torch.cat(part_right).mean())
    return {"attributes": round(mean, 4), "parts": round(shown, 4), **figures}
