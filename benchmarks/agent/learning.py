"""The constructed task, and how the agent learns it.  `benchmarks.agent` describes both."""

import dataclasses
from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks import ROOT
from pipeline.batches.views import Batch, View
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.methods.base import DataSpec, Objective
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import HOLISTIC, PRESETS, K, Params
from pipeline.methods.presets import Preset, resolve
from pipeline.model.backbones import small_vit
from pipeline.training.loop import Loop
from pipeline.training.schedule import Schedule

ROWS, COLUMNS, PATCH = 8, 4, 8  # patches down and across an image, pixels of a patch
PATCHES, IDENTITIES, IMAGES = ROWS * COLUMNS, 16, 32
SPEC = DataSpec((ROWS * PATCH, COLUMNS * PATCH), IDENTITIES, cameras=1, coarse=4, trained_cameras=(0,))
PERSON_SHARE = 0.5  # of the patches
IDENTITY_CONTRAST = 0.25  # of what differs between people, relative to the look of a part
GRAIN = 0.5  # noise in each patch that shows a person; noise patches have 1
EPOCH = 20  # steps
READER_EPOCHS = 6

Variant = tuple[Preset, tuple[str, ...]]  # preset, and the parameters that are as the paper prints them


def measure(variants: dict[str, Variant], rates: list[float], seeds: int, steps: int) -> dict[str, Any]:
    """Everything that is printed: one entry per variant, and per learning rate of the recommended agent."""
    torch.set_num_threads(1)
    cases = {name: make_case(*variant) for name, variant in variants.items()}
    cases |= {f"rate_{lr}": make_case("recommended", (), agent_lr=lr) for lr in rates}
    rows = {name: _run_seeds(case, seeds, steps) for name, case in cases.items()}
    return {"steps": steps, "seeds": seeds, **rows}


def _run_seeds(case: "Case", seeds: int, steps: int) -> dict[str, Any]:
    try:
        runs = [train_agent(case, seed, steps) for seed in range(1, seeds + 1)]
    except BadInput as error:
        return {"failed": str(error)}
    return {
        name: {"mean": round(mean(r[name] for r in runs), 3), "all": [round(r[name], 3) for r in runs]}
        for name in runs[0]
    }


# ------------------------------------------------------------------ the task


@dataclasses.dataclass(frozen=True)
class Task:
    """The look of noise and parts, and what of each part differs between identities."""

    noise: Float[Tensor, "3 P P"]
    part: Float[Tensor, "K 3 P P"]
    identity: Float[Tensor, "I K 3 P P"]
    generator: torch.Generator

    def sample_batch(self) -> Batch:
        """A batch with parts and noise at random positions, which its parsing maps label."""
        pid = torch.arange(IMAGES) % IDENTITIES
        order = torch.rand(IMAGES, PATCHES, generator=self.generator).argsort(1)
        label = torch.where(order < PERSON_SHARE * PATCHES, order % K + 1, 0)
        part = (label - 1).clamp(min=0)
        person = self.part[part] + IDENTITY_CONTRAST * self.identity[pid[:, None], part]
        shows_person = (label > 0)[..., None, None, None]
        grain = torch.randn(IMAGES, PATCHES, 3, PATCH, PATCH, generator=self.generator)
        patch = torch.where(shows_person, person + GRAIN * grain, self.noise + grain)
        hidden = torch.zeros(IMAGES, SPEC.coarse, dtype=torch.bool)
        view = View(_arrange_patches(patch), _label_map(label), hidden)
        covered = torch.zeros(IMAGES, *SPEC.size, dtype=torch.bool)
        return Batch(view, torch.zeros(IMAGES, dtype=torch.long), pid, view, covered)


def make_task(seed: int) -> Task:
    """The task of a seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, PATCH, PATCH)
    noise, part = torch.randn(shape, generator=generator), torch.randn(K, *shape, generator=generator)
    return Task(noise, part, torch.randn(IDENTITIES, K, *shape, generator=generator), generator)


def _arrange_patches(patch: Float[Tensor, "B N 3 P P"]) -> Float[Tensor, "B 3 H W"]:
    rows = patch.unflatten(1, (ROWS, COLUMNS)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(len(patch), 3, *SPEC.size)


def _label_map(label: Int[Tensor, "B N"]) -> Tensor:
    grid = label.unflatten(1, (ROWS, COLUMNS)).to(torch.uint8)
    return grid.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


# ------------------------------------------------------------------ learning


@dataclasses.dataclass(frozen=True)
class Case:
    """Resolved parameters of the method and its schedule."""

    ogfr: Params
    train: Schedule


def make_case(preset: Preset, printed: tuple[str, ...], **changes: Any) -> Case:
    """A preset with the parameters `printed` as the paper prints them, and further changes."""
    values = {name: PRESETS[f"ogfr.{name}"][1] for name in printed}
    settings = dataclasses.replace(_read("ogfr", Params), preset=preset, stride=PATCH, **values, **changes)
    schedule = dataclasses.replace(_read("train", Schedule), size=SPEC.size, precision="float32")
    if preset == "recommended":
        schedule = dataclasses.replace(schedule, lr=3e-3)  # the reader is small and untrained
    settings = resolve(settings, PRESETS, preset, "ogfr")
    return Case(settings, resolve(schedule, PRESETS, preset, "train"))


def _read(section: str, schema: type) -> Any:
    return params.read(ROOT / "params.yaml", section, schema)


class AgentAlone(OGFR):
    """OGFR of which only the agent learns; the heads' statistics stay fixed, too."""

    def train(self, mode: bool = True) -> "AgentAlone":
        """Set the mode of all but the heads, which stay in evaluation mode."""
        super().train(mode)
        self.heads.eval()
        self.global_head.eval()
        return self

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """Only the agent's objective."""
        yield from (o for o in super().objectives(batch) if o.group == "agent")


def train_agent(case: Case, seed: int, steps: int) -> dict[str, float]:
    """What the agent keeps after so many steps, the reader's scores under several masks, and the reward."""
    task = make_task(seed)
    reader = train_reader(case, task, seed)
    model = build(AgentAlone, case.ogfr)
    model.load_state_dict(reader.state_dict())
    log = train(model.train(), dataclasses.replace(case.train, epochs=steps // EPOCH), task.sample_batch)
    reward = mean(row["reward"] for row in log[-EPOCH:])
    return {**evaluate(model.eval(), task.sample_batch()), "reward": reward}


def train_reader(case: Case, task: Task, seed: int) -> OGFR:
    """A reader that has learnt to tell identities apart where the labels erase the noise."""
    torch.manual_seed(seed)
    reader = build(OGFR, dataclasses.replace(case.ogfr, erase="labels")).train()
    train(reader, dataclasses.replace(case.train, epochs=READER_EPOCHS), task.sample_batch)
    return reader


def build(kind: type[OGFR], settings: Params) -> OGFR:
    """A small untrained model whose encoder has no blocks, so that no patch reads another."""
    vit = small_vit(img_size=SPEC.size, patch_size=PATCH, embed_dim=32, depth=1, num_heads=2)
    model = kind(settings, SPEC, vit)
    model.encoder.blocks = nn.Sequential()
    return model


def train(model: OGFR, schedule: Schedule, sample_batch: Callable[[], Batch]) -> list[dict[str, float]]:
    """Train by the project's loop and return its log."""
    loop = Loop(model, schedule, torch.device("cpu"))
    for epoch in range(schedule.epochs):
        model.begin_epoch(epoch, lambda: (sample_batch() for _ in range(4)))
        for step in range(EPOCH):
            loop.step(sample_batch(), epoch + step / EPOCH)
    return loop.log


@torch.no_grad()
def evaluate(model: OGFR, batch: Batch) -> dict[str, float]:
    """Probabilities of keeping either kind of patch, and of the true identity under several masks."""
    view = batch.holistic
    h = model.encode(view, batch.camid)
    keep = model.agent(correlation(h.patch, h.part)).sigmoid()
    shows_person = view.parsing[:, ::PATCH, ::PATCH].flatten(1) > 0

    def score(mask: Bool[Tensor, "B N"]) -> float:
        return model.heads.score(model.purify(h, mask)[:, 0], HOLISTIC, batch.pid).mean().item()

    return {
        "keep_identity": keep[shows_person].mean().item(),
        "keep_noise": keep[~shows_person].mean().item(),
        "score_without_mask": score(torch.ones_like(shows_person)),
        "score_by_agent": score(keep > 0.5),
        "score_by_truth": score(shows_person),
    }
