"""The embedded dataset made small enough for a test.

`python -m tests.reduced params.yaml` rewrites the params;
`python -m tests.reduced check metrics.json labels.json` looks whether the results hold what they must.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

KEYS = ("rank1", "rank5", "rank10", "mAP")


def reduce(path: str | Path) -> None:
    """Few identities, few steps; everything else as it is."""
    render = {"train_identities": 16, "test_identities": 10, "distractors": 12}
    change(path, {"render": render, "train": {"epochs": 1}})


def change(path: str | Path, settings: dict[str, Any]) -> None:
    """Put settings into a params file: values, or some of a section's."""
    yaml = YAML()
    values = yaml.load(Path(path))
    for name, value in settings.items():
        if isinstance(value, dict):
            values[name].update(value)
        else:
            values[name] = value
    yaml.dump(values, Path(path))


def check(metrics: str, labels: str) -> None:
    """Fail unless every group and baseline has its figures, in percent, and the labels their scores."""
    found = json.loads(Path(metrics).read_text())
    for table in (found, *found["baselines"].values()):
        for group in ("all", "occluded", "holistic"):
            for key in KEYS:
                assert 0 <= table[group][key] <= 100, f"{metrics}: {group}.{key} = {table[group].get(key)}"
    systems = {"encoder", "histogram", "z_guessed", "z_unknown"}
    assert set(found["baselines"]) == systems, f"{metrics}: {set(found['baselines'])}"
    assert json.loads(Path(labels).read_text()), f"{labels}: empty"


if __name__ == "__main__":
    check(*sys.argv[2:]) if sys.argv[1] == "check" else reduce(sys.argv[1])
