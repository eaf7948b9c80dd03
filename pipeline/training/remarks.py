"""What a training says before it begins: params without effect, and settings or data that teach little."""

from collections.abc import Callable, Mapping, Sequence, Set
from types import ModuleType
from typing import Any, get_args

import numpy as np

from pipeline.batches.views import ImageSet
from pipeline.core import distributed
from pipeline.core.params import plural
from pipeline.data.obstacles import OPAQUE, Source
from pipeline.training.schedule import Schedule, highest_rate

LEAST_RATE = 0.5  # of the full learning rate, that a training should reach
LEAST_CLIP = 1e-3  # largest norm of a gradient

# placement -> sources of obstacles whose area, or aspect, is drawn; a rectangle may replace a person
SIZED = {"anywhere": frozenset(get_args(Source)), "border": frozenset(get_args(Source)) - OPAQUE}
SHAPED = {
    "anywhere": frozenset({"rectangle", "person", "noise", "background"}),
    "border": frozenset({"noise"}),
}


def _draws(train: Schedule, sources: Set[str]) -> bool:
    return train.obstacles.probability > 0 and not sources.isdisjoint(train.obstacles.sources)


# param of `train` -> when it changes neither the log nor an embedding
WITHOUT_EFFECT: dict[str, Callable[[Schedule], bool]] = {
    "obstacles.sources": lambda train: train.obstacles.probability == 0,
    "obstacles.area": lambda train: not _draws(train, SIZED[train.obstacles.placement]),
    "obstacles.aspect": lambda train: not _draws(train, SHAPED[train.obstacles.placement]),
    "obstacles.cutouts": lambda train: train.obstacles.cutouts != "" and not _draws(train, {"cutout"}),
    "obstacles.patches": lambda train: train.obstacles.patches != "" and not _draws(train, {"patch"}),
    "obstacles.placement": lambda train: not _draws(train, OPAQUE | {"person"}),
    "mining": lambda train: distributed.world_size() == 1,
    "statistics": lambda train: distributed.world_size() == 1,
}


def without_effect(name: str, module: ModuleType, settings: Any, schedule: Schedule) -> list[str]:
    """The dotted names of params whose value changes nothing in this run.

    `settings` are those of the method `name`, and its module may have a table of them, `WITHOUT_EFFECT`:
    param -> condition on `settings` and `schedule`.
    """
    own: Mapping[str, Callable[[Any, Schedule], bool]] = getattr(module, "WITHOUT_EFFECT", {})
    return [f"{name}.{param}" for param, applies in own.items() if applies(settings, schedule)] + [
        f"train.{param}" for param, applies in WITHOUT_EFFECT.items() if applies(schedule)
    ]


def remarks(schedule: Schedule, images: ImageSet) -> list[str]:
    """What settings and training images will hardly teach, each with the remedy."""
    _, counts = np.unique(images.pid, return_counts=True)
    single = int((counts == 1).sum())
    texts = {
        f"{plural(single, 'identity')} of {len(counts)} with a single image: their positives are that image "
        "again, otherwise flipped, cropped and occluded. Give them more images.": single > 0,
        "no parsing map of a training image shows a part: nothing teaches the parts and their occlusion. See "
        "labels.json.": not images.parsing.any(),
        "no training image shows both a body and background (parsing maps): the source `background` cuts "
        "rectangles, as `rectangle` does. Name another source in train.obstacles.sources.": (
            _draws(schedule, {"background"}) and not any(0 in m and m.any() for m in images.parsing)
        ),
        "train.obstacles.probability = 0: no image is occluded in training, and both views are equal. Raise "
        "it.": schedule.obstacles.probability == 0,
        f"train.clip = {schedule.clip}: hardly a gradient is left. Raise it, or set 0 for no limit.": (
            0 < schedule.clip < LEAST_CLIP
        ),
    }
    return [text for text, applies in texts.items() if applies]


def rate_remarks(schedule: Schedule, steps: Sequence[int]) -> list[str]:
    """A remark if the learning rate hardly rises; `steps` are those of each epoch."""
    highest = highest_rate(schedule, steps)
    if highest >= LEAST_RATE:
        return []
    return [
        f"train.warmup = {schedule.warmup} of train.epochs = {schedule.epochs}: the learning rate reaches "
        f"{100 * highest:.0f} % of train.lr in {plural(sum(steps), 'step')}. Lower it, or train longer."
    ]


def say(lines: Sequence[str]) -> None:
    """Print lines, in one process of a run."""
    if lines and distributed.rank() == 0:
        print("\n".join(f"train: {line}" for line in lines), flush=True)
