"""Stage 1 of CLIP-ReID (Li et al. 2023): a text embedding for each identity, learned from its images.

    A photo of a [X]_1 ... [X]_M person.

The M vectors X of each identity are all that learns; both towers are frozen, and the images' embeddings are
computed once, without augmentation.  No word of any caption is read: what a prompt says of a person, it
learned from the person's images.

Unusual here:
- What is drawn comes from a generator of its own, so that the training draws the same with and without it.
- `text: table` learns the embeddings themselves, by the same loss and schedule: what the tower's words add
  is the difference between the two.
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from pipeline.core import distributed
from pipeline.core.params import STRICT
from pipeline.model import losses
from pipeline.model.text import Towers

# CLIP-ReID's, whatever the number of epochs
DECAY = 1e-4  # of Adam
WARMUP, FIRST_LR, LAST_LR = 5, 1e-5, 1e-6  # epochs before the cosine, the rates before and after it
SPREAD = 0.02  # standard deviation of what is learned, before it is; that of CLIP's word vectors
CHUNK = 256  # texts that are embedded at once


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Prompts:
    """How the embeddings of identities are learned from images."""

    tokens: int = Field(ge=1)  # M, learned vectors of a prompt
    epochs: int = Field(ge=2)  # the last one's rate is next to 0
    lr: float = Field(gt=0)
    batch: int = Field(ge=2)  # images


class LearnedPrompts(nn.Module):
    """Prompts of C identities: a prompt's fixed words, and M vectors X in the place of the others."""

    def __init__(self, towers: Towers, identities: int, tokens: int, generator: torch.Generator):
        super().__init__()
        self.towers = towers
        words = towers.text.token_embedding.weight.detach()
        self.before, self.after = words[list(towers.before)], words[list(towers.after)]
        self.learned = _learned(identities, tokens, words.shape[1], generator=generator)

    def forward(self, rows: Int[Tensor, "n"]) -> Float[Tensor, "n E"]:
        """t of some identities."""
        fixed = (part.expand(len(rows), -1, -1) for part in (self.before, self.after))
        before, after = (part.to(rows.device) for part in fixed)
        words = torch.cat([before, self.learned[rows], after], 1)
        return self.towers.projection.measure(self.towers.text(words))


class FreeTable(nn.Module):
    """Embeddings of C identities that no tower made, the control `text: table`."""

    def __init__(self, towers: Towers, identities: int, generator: torch.Generator):
        super().__init__()
        self.towers = towers
        self.learned = _learned(identities, towers.sizes.embedding, generator=generator)

    def forward(self, rows: Int[Tensor, "n"]) -> Float[Tensor, "n E"]:
        """t of some identities."""
        return self.towers.projection.measure(self.learned[rows])


def _learned(*shape: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(SPREAD * torch.randn(*shape, generator=generator))


def prompt_table(
    towers: Towers,
    image: Float[Tensor, "N E"],
    pid: Int[Tensor, "N"],
    identities: int,
    settings: Prompts,
    seed: int,
    free: bool = False,
) -> Float[Tensor, "C E"]:
    """T: the text embedding t of every identity, after stage 1, on the device of `image`.

    towers: frozen, and left as they are
    image: v of all training images, `towers.projection`'s; pid: their identities, numbered from 0
    identities: C
    free: the control `text: table`

    Minimises L1, `losses.contrast` in both directions over random batches, by Adam.  The same arguments give
    the same T on a CPU.  Every process computes it from all images and takes rank 0's, so that GPUs that add
    up in different orders still agree to the bit.
    """
    generator = torch.Generator().manual_seed(seed)
    with losses.no_autocast(image), torch.enable_grad():
        if free:
            texts: nn.Module = FreeTable(towers, identities, generator)
        else:
            texts = LearnedPrompts(towers, identities, settings.tokens, generator)
        texts.to(image.device)
        towers.text.to(image.device)
        _fit(
            texts, towers.projection.scale.to(image.device) * image.detach().float(), pid, settings, generator
        )
    with losses.no_autocast(image), torch.no_grad():
        rows = torch.arange(identities, device=image.device)
        table = torch.cat([texts(chunk) for chunk in rows.split(CHUNK)])
    return distributed.broadcast_object(table.cpu()).to(image.device)


def prompt_schedule(optimiser: torch.optim.Optimizer, epochs: int) -> CosineLRScheduler:
    """The rate of stage 1, a cosine after a linear warm-up; its `step` takes the epochs from 1.

    Departs: of fewer than 30 epochs at most a sixth warm up, or a stage of 5 would never reach its rate.
    """
    warmup = min(WARMUP, epochs // 6)
    return CosineLRScheduler(optimiser, epochs, LAST_LR, warmup_t=warmup, warmup_lr_init=FIRST_LR)


def _fit(
    texts: nn.Module,
    scaled: Float[Tensor, "N E"],
    pid: Int[Tensor, "N"],
    settings: Prompts,
    generator: torch.Generator,
) -> None:
    """Learn the identities' vectors in place; `scaled` is the images' embeddings times the logits' scale."""
    optimiser = torch.optim.Adam(texts.parameters(), settings.lr, weight_decay=DECAY)
    schedule = prompt_schedule(optimiser, settings.epochs)
    for epoch in range(1, settings.epochs + 1):
        schedule.step(epoch)
        for rows in torch.randperm(len(pid), generator=generator).split(settings.batch):
            batch = pid[rows.to(pid.device)]
            present, place = batch.unique(return_inverse=True)  # an identity's text is embedded once
            loss = losses.contrast(scaled[rows.to(pid.device)], texts(present)[place], batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
