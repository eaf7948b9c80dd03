"""The device, and the modes of computing that are compared on it."""

from typing import Any

import torch

from benchmarks import ROOT
from pipeline.core import params

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODES = {  # name: library of float32 products, precision; the first is TransReID's own
    "cpu": {
        "float32": ("default", torch.float32),
        "onednn": ("onednn", torch.float32),
        "bfloat16": ("default", torch.bfloat16),
    },
    "cuda": {"float16": ("default", torch.float16), "bfloat16": ("default", torch.bfloat16)},
}[DEVICE.type]
SHARED = {name: mode for name, mode in MODES.items() if mode[1] != torch.float16}  # modes of both sides


def autocast(precision: torch.dtype) -> torch.autocast:
    """Autocast to a precision; none for float32."""
    return torch.autocast(DEVICE.type, precision, precision != torch.float32)


def read_params(section: str, schema: type) -> Any:
    """A section of the project's params.yaml."""
    return params.read(ROOT / "params.yaml", section, schema)
