"""Setting values in a parameter file whose comments stay."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.files import atomic_write

LINE = 4096  # characters; a flow collection that is longer is broken anew


def edit(path: str | Path, change: Callable[[Any], None]) -> list[str]:
    """Let `change` set values of a parameter file; returns a line for each that changed."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, LINE  # type: ignore[assignment]
    yaml.representer.add_representer(type(None), _write_null)
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    values = yaml.load(text.replace("\r\n", "\n"))
    before = params.load(path)
    change(values)
    ending = "\r\n" if "\r\n" in text else "\n"
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline=ending) as file:
        yaml.dump(values, file)
    return _differences(before, params.load(path))


def _write_null(representer: Any, value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], section: str = "") -> list[str]:
    lines = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and section == "" and name != "datasets":
            lines += _differences(old, new, f"{name}.")
        elif old != new:
            lines.append(f"{section}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines
