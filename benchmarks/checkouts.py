"""What lets a checkout of published code run as it is, and how its settings are read."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ruamel.yaml import YAML
from torch import nn


def stand_in(**contents: dict[str, Any]) -> None:
    """Modules in place of what torch no longer has (`torch._six`) or may not be installed (yacs).

    `contents` are further modules that may not be installed, by name, with what is imported of them.
    """
    container_abcs = importlib.import_module("collections.abc")
    contents |= {"torch._six": {"container_abcs": container_abcs}, "yacs": {}}
    for name, content in (contents | {"yacs.config": {"CfgNode": SimpleNamespace}}).items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)


def read_settings(path: Path, stride: int) -> SimpleNamespace:
    """The configuration of the checkout on `sys.path` by a file of it, at a stride and without weights."""
    config = importlib.import_module("config.defaults")._C
    for section, values in YAML(typ="safe").load(path).items():
        if isinstance(values, dict):
            vars(getattr(config, section)).update(values)
    config.MODEL.PRETRAIN_CHOICE, config.MODEL.STRIDE_SIZE = "none", [stride, stride]
    return config


def import_loss() -> Any:
    """The checkout's module of losses, without one that is built on a GPU and never used."""
    module: Any = importlib.import_module("loss.make_loss")
    module.CenterLoss = lambda **_: nn.Linear(1, 1)
    return module
