"""What a trained model depends on, for its `record.json`."""

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from pipeline.core import distributed
from pipeline.methods.base import Method
from pipeline.model import compute
from pipeline.training.schedule import Schedule

LIBRARIES = ("torch", "timm", "numpy", "safetensors", "opencv-python-headless", "pillow")


def run_record(method: Method, schedule: Schedule, seed: int, data: dict[str, str]) -> dict[str, Any]:
    """What a run depends on: initial weights, schedule, seed, data by hash, versions and hardware.

    `method` is as it is before training.  On a CPU an equal record means equal weights.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {
        "train": asdict(schedule), "seed": seed, "start": weights_hash(method), "data": data,
        "parameters": sum(p.numel() for p in method.parameters()),
        "versions": versions, "machine": hardware(), "computed": resolved_compute(schedule),
    }  # fmt: skip


def resolved_compute(schedule: Schedule) -> dict[str, str]:
    """How the run computes: what each `auto` of the schedule stands for on this device."""
    device = distributed.local_device()
    names = compute.Compute(schedule.precision, schedule.matmul, schedule.attention)
    compiled = compute.should_compile(schedule.compile, device)
    return compute.resolve(names, device)._asdict() | {"compiled": str(compiled).lower()}


def weights_hash(method: Method) -> str:
    """Hex digest of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in method.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hardware() -> dict[str, Any]:
    """The kind of processor, and how many threads and processes: the weights' last digits depend on these."""
    device = distributed.local_device()
    number = {"threads": torch.get_num_threads(), "processes": distributed.world_size()}
    return {"device": device.type, "processor": compute.processor(device), **number}
