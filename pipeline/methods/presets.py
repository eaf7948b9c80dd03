"""Presets: what a parameter is when params.yaml leaves it null, and the rows that several methods share.

`paper` takes the printed value wherever it is defined; `recommended`, the default, repairs what does not work
as printed.  Each method has one table, `PRESETS`.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

ParamsT = TypeVar("ParamsT")
Preset = Literal["recommended", "paper"]
Row = tuple[Any, Any, str]  # recommended, paper, reason
Presets = dict[str, Row]  # by the dotted name in params.yaml


def preset_value(presets: Presets, preset: Preset, row: str) -> Any:
    """What a preset sets a parameter to; `row` is its dotted name."""
    return presets[row][("recommended", "paper").index(preset)]


def resolve(params: ParamsT, presets: Presets, preset: Preset, section: str) -> ParamsT:
    """`params` with every null replaced by the preset's value; nested parameters have dotted names."""
    source: Any = params
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(source)):
        value, row = getattr(params, name), f"{section}.{name}"
        if is_dataclass(value):
            values[name] = resolve(value, presets, preset, row)
        elif value is None:
            values[name] = preset_value(presets, preset, row)
    return replace(source, **values)


# rows of a method's own section
ENCODER_AND_HEADS: Presets = {
    "stride": (16, 11, "11 gives the paper's cost (Table 9); 16 costs half as much and fits a CPU"),
    "head_gain": (
        10.0,
        1.0,
        "classifiers start from nothing beside a trained encoder, and Adam's steps are small",
    ),
    "triplet": (
        "necked",
        "plain",
        "tokens collapse under it; after the batch norm, as a mean over channels, it gained 6 points of mAP",
    ),
    "feature": (
        "after",
        "before",
        "not said; TransReID compares before the batch norm, but here that costs 3 points of mAP",
    ),
}

# rows of the section `train`
SCHEDULE: Presets = {
    "train.epochs": (8, 120, "not said; TransReID's, and what a CPU does in minutes"),
    "train.optimiser": ("adamw", "sgd", "a small ViT learns from few steps"),
    "train.lr": (7e-4, 0.008, "the same"),
    "train.bias_lr": (1.0, 2.0, "not said; TransReID's, an old habit of SGD that Adam's steps do not need"),
    "train.decay": (1e-2, 1e-4, "the same"),
    "train.warmup": (1.0, 5.0, "not said; TransReID's, and an eighth of our epochs"),
    "train.clip": (5.0, 0.0, "not said; keeps a rare bad batch from undoing the rest; 0 is off"),
    "train.drop_path": (0.0, 0.1, "not said; TransReID's, which 6 blocks and 8 epochs are too few for"),
    "train.jitter": ((0.0,) * 4, (0.0,) * 4, "not said; colours tell people apart"),
    "train.obstacles.probability": (1.0, 1.0, "not said; the student is the occluded branch"),
    "train.obstacles.sources": (
        ["rectangle", "person"],
        ["rectangle"],
        "the works it follows cut rectangles",
    ),
    "train.obstacles.area": ((0.1, 0.4), (0.05, 0.2), "not said; OPR-DAAO's, and what real queries hide"),
    "train.obstacles.aspect": ((0.3, 3.3), (0.3, 3.3), "not said; OPR-DAAO's"),
    "train.obstacles.placement": ("anywhere", "anywhere", "'a randomly chosen region'"),
}

# the same for methods that follow TransReID: its random erasing on one view, or the baseline's obstacles
RECIPE: Presets = {
    **SCHEDULE,
    "train.obstacles.probability": (0.5, 0.5, "the probability of TransReID's random erasing"),
    "train.obstacles.sources": (
        ["rectangle", "person"],
        ["noise"],
        "TransReID erases; ours are the baseline's, so that methods are compared and not augmentations",
    ),
    "train.obstacles.area": ((0.1, 0.4), (0.02, 1 / 3), "random erasing's; the baseline's"),
    "train.obstacles.aspect": ((0.3, 3.3), (0.3, 1 / 0.3), "the same"),
}
