"""Whether the agent learns what it is for: `uv run python -m benchmarks.agent` prints one JSON object.

The task is constructed, so that its answer is known.  Half of a picture's patches show a part of somebody,
the others show noise.  A reader (encoder without blocks, decoder, heads) has learnt to tell people apart from
pictures whose noise was erased by the labels; noise misleads it, for it has never met any.  From there the
agent alone learns, by the method's own actions, rewards and steps: it should keep the patches that show
somebody and erase the noise.

The reader stays as it is: a decoder that goes on learning soon passes over noise by itself, and no mask
gains anything.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks.worlds import ROOT
from pipeline.batches.views import Batch, View
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.methods.base import DataSpec, Objective
from pipeline.methods.ogfr import agent
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import HOLISTIC, PRESETS, K, Params
from pipeline.methods.presets import Preset, resolve
from pipeline.model.backbones import small_vit
from pipeline.training import schedule
from pipeline.training.loop import Loop

DOWN, ACROSS, PATCH = 8, 4, 8  # patches down and across a picture, pixels of a patch
PATCHES, IDENTITIES, IMAGES = DOWN * ACROSS, 16, 32
WORLD = DataSpec((DOWN * PATCH, ACROSS * PATCH), IDENTITIES, cameras=1, coarse=4, trained_cameras=(0,))
SHOWN = 0.5  # share of the patches that show somebody
OWN = 0.25  # contrast of what differs between people, beside 1 for what a part looks like
GRAIN = 0.5  # of every patch that shows somebody; noise has 1
EPOCH = 20  # steps
READER = 6  # epochs
PRINTED = ("baseline", "reward_floor", "reward_clip")
VARIANTS = {  # preset, and what of the agent is as the paper prints it
    "recommended": ("recommended", ()),
    "printed_baseline": ("recommended", ("baseline",)),
    "printed_reward": ("recommended", PRINTED),
    "printed_agent": ("recommended", (*PRINTED, "agent_bias", "agent_optimiser", "agent_lr")),
    "paper": ("paper", ()),
}


def main() -> None:
    """Measure what the command line asks for."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of each variant")
    parser.add_argument("--steps", type=int, default=600, help="of the agent")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[], help="of the recommended agent, besides"
    )
    options = parser.parse_args()
    cases = {name: case(*VARIANTS[name]) for name in options.variants}
    cases |= {f"rate_{lr}": case("recommended", (), agent_lr=lr) for lr in options.rates}
    rows = {name: _several(c, options.seeds, options.steps) for name, c in cases.items()}
    print(json.dumps({"steps": options.steps, "seeds": options.seeds, **rows}, indent=1))


def _several(case: "Case", seeds: int, steps: int) -> dict[str, Any]:
    try:
        runs = [learn(case, seed, steps) for seed in range(1, seeds + 1)]
    except BadInput as error:
        return {"failed": str(error)}
    return {
        name: {"mean": round(mean(r[name] for r in runs), 3), "all": [round(r[name], 3) for r in runs]}
        for name in runs[0]
    }


# ------------------------------------------------------------------ the task


@dataclass(frozen=True)
class Task:
    """What parts and noise look like, and what of each part is a person's own."""

    noise: Float[Tensor, "3 P P"]
    part: Float[Tensor, "K 3 P P"]
    own: Float[Tensor, "I K 3 P P"]
    chance: torch.Generator

    def draw(self) -> Batch:
        """A batch; parts and noise lie anywhere, and its labels tell which is which."""
        pid = torch.arange(IMAGES) % IDENTITIES
        order = torch.rand(IMAGES, PATCHES, generator=self.chance).argsort(1)
        label = torch.where(order < SHOWN * PATCHES, order % K + 1, 0)
        which = (label - 1).clamp(min=0)
        person = self.part[which] + OWN * self.own[pid[:, None], which]
        shown = (label > 0)[..., None, None, None]
        grain = torch.randn(IMAGES, PATCHES, 3, PATCH, PATCH, generator=self.chance)
        patch = torch.where(shown, person + GRAIN * grain, self.noise + grain)
        view = View(_lay(patch), _spread(label), torch.zeros(IMAGES, WORLD.coarse, dtype=torch.bool))
        nothing = torch.zeros(IMAGES, *WORLD.size, dtype=torch.bool)
        return Batch(view, torch.zeros(IMAGES, dtype=torch.long), pid, view, nothing)


def task(seed: int) -> Task:
    """The task of a seed."""
    chance = torch.Generator().manual_seed(seed)
    shape = (3, PATCH, PATCH)
    noise, part = torch.randn(shape, generator=chance), torch.randn(K, *shape, generator=chance)
    return Task(noise, part, torch.randn(IDENTITIES, K, *shape, generator=chance), chance)


def _lay(patch: Float[Tensor, "B N 3 P P"]) -> Float[Tensor, "B 3 H W"]:
    rows = patch.unflatten(1, (DOWN, ACROSS)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(len(patch), 3, *WORLD.size)


def _spread(label: Int[Tensor, "B N"]) -> Tensor:
    plane = label.unflatten(1, (DOWN, ACROSS)).to(torch.uint8)
    return plane.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


# ------------------------------------------------------------------ who learns it


@dataclass(frozen=True)
class Case:
    """Resolved parameters of the method and its schedule."""

    ogfr: Params
    train: schedule.Schedule


def case(preset: Preset, printed: tuple[str, ...], **changes: Any) -> Case:
    """A preset, with the named parameters as the paper prints them."""
    rows = {name: PRESETS[f"ogfr.{name}"][1] for name in printed}
    given = replace(_read("ogfr", Params), preset=preset, stride=PATCH, **rows, **changes)
    plan = replace(_read("train", schedule.Schedule), size=WORLD.size, precision="float32")
    if preset == "recommended":
        plan = replace(plan, lr=3e-3)  # the reader is small and starts from nothing
    settings = resolve(given, PRESETS, preset, "ogfr")
    return Case(settings, resolve(plan, PRESETS, preset, "train"))


def _read(section: str, schema: type) -> Any:
    return params.read(ROOT / "params.yaml", section, schema)


class AgentAlone(OGFR):
    """OGFR of which only the agent learns: the heads' statistics stay too."""

    def train(self, mode: bool = True) -> "AgentAlone":
        """Explore, or not; the heads never learn."""
        super().train(mode)
        self.heads.eval()
        self.global_head.eval()
        return self

    def objectives(self, batch: Batch) -> Iterator[Objective]:
        """The agent's objective alone."""
        yield from (o for o in super().objectives(batch) if o.group == "agent")


def learn(case: Case, seed: int, steps: int) -> dict[str, float]:
    """What the agent keeps of either kind after so many steps, and what the reader makes of several masks."""
    found = task(seed)
    reader = read(case, found, seed)
    model = build(AgentAlone, case.ogfr)
    model.load_state_dict(reader.state_dict())
    log = train(model.train(), replace(case.train, epochs=steps // EPOCH), found.draw)
    return {**judge(model.eval(), found.draw()), "reward": mean(row["reward"] for row in log[-EPOCH:])}


def read(case: Case, found: Task, seed: int) -> OGFR:
    """A reader that has learnt to tell people apart where labels erase the noise."""
    torch.manual_seed(seed)
    reader = build(OGFR, replace(case.ogfr, erase="labels")).train()
    train(reader, replace(case.train, epochs=READER), found.draw)
    return reader


def build(kind: type[OGFR], settings: Params) -> OGFR:
    start = small_vit(img_size=WORLD.size, patch_size=PATCH, embed_dim=32, depth=1, num_heads=2)
    model = kind(settings, WORLD, start)
    model.encoder.blocks = nn.Sequential()  # patches know nothing of one another, the class token of none
    return model


def train(model: OGFR, plan: schedule.Schedule, draw: Callable[[], Batch]) -> list[dict[str, float]]:
    loop = Loop(model, plan, torch.device("cpu"))
    for epoch in range(plan.epochs):
        model.begin_epoch(epoch, lambda: (draw() for _ in range(4)))
        for step in range(EPOCH):
            loop.step(draw(), epoch + step / EPOCH)
    return loop.log


@torch.no_grad()
def judge(model: OGFR, batch: Batch) -> dict[str, float]:
    """The probabilities of keeping each kind of patch; the true identity's under several masks."""
    view = batch.holistic
    h = model.encoder(view.image, view.hidden, batch.camid)
    keep = model.agent(agent.correlation(h.patch, h.part)).sigmoid()
    shows = view.parsing[:, ::PATCH, ::PATCH].flatten(1) > 0

    def score(mask: Bool[Tensor, "B N"]) -> float:
        return model.heads.score(model.purify(h, mask)[:, 0], HOLISTIC, batch.pid).mean().item()

    return {
        "keep_identity": keep[shows].mean().item(),
        "keep_noise": keep[~shows].mean().item(),
        "score_without_mask": score(torch.ones_like(shows)),
        "score_by_agent": score(keep > 0.5),
        "score_by_truth": score(shows),
    }


if __name__ == "__main__":
    main()
