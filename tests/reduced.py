"""The embedded dataset made small enough for a test."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

KEYS = ("rank1", "rank5", "rank10", "mAP")


def reduce(path: str | Path) -> None:
    """Set few identities and one epoch in a params file."""
    render = {"train_identities": 16, "test_identities": 10, "distractors": 12}
    change(path, {"render": render, "train": {"epochs": 1}})


def change(path: str | Path, settings: dict[str, Any]) -> None:
    """Set parameters in a params file; a dict changes some of a section's."""
    yaml = YAML()
    values = yaml.load(Path(path))
    for name, value in settings.items():
        if isinstance(value, dict):
            values[name].update(value)
        else:
            values[name] = value
    yaml.dump(values, Path(path))


def replace(path: str | Path, settings: dict[str, Any]) -> None:
    """Set whole values of a params file."""
    yaml = YAML()
    values = yaml.load(Path(path))
    values.update(settings)
    yaml.dump(values, Path(path))


def check(metrics: str | Path, labels: str | Path) -> None:
    """Fail unless every group of every system has its scores, in percent, and the labels have theirs."""
    scores = json.loads(Path(metrics).read_text())
    for table in (scores, *scores["baselines"].values()):
        for group in ("all", "occluded", "holistic"):
            for key in KEYS:
                assert 0 <= table[group][key] <= 100, f"{metrics}: {group}.{key} = {table[group].get(key)}"
    systems = {"encoder", "histogram", "z_guessed", "z_unknown"}
    assert set(scores["baselines"]) == systems, f"{metrics}: {set(scores['baselines'])}"
    assert json.loads(Path(labels).read_text()), f"{labels}: empty"
