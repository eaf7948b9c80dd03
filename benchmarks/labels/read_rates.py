"""How fast labels are read: one row at a time, in order, and by the workers of a torch DataLoader."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.core.label_file import LabelFile

MIN_SECONDS = 0.5  # that each rate is measured
BATCH, WORKERS = 64, 2


class LabelDataset(Dataset):
    """The labels that training reads for an image: its parsing map and its flags."""

    def __init__(self, parsing: Path, occlusion: Path):
        self.parsing, self.occlusion = LabelFile(parsing, "parsing"), LabelFile(occlusion, "occlusion")

    def __len__(self) -> int:
        return len(self.parsing["map"])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.parsing["map"][i]), torch.from_numpy(self.occlusion["occluded"][i])


def measure_read_rates(parsing: Path, occlusion: Path) -> dict[str, float]:
    """Images, map and flags, that a process reads per CPU second, and a DataLoader per second."""
    labels = LabelDataset(parsing, occlusion)
    order = np.random.default_rng(0).permutation(len(labels))
    loader = DataLoader(
        labels,
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    for _ in loader:  # starts the workers
        pass
    count, cpu = len(labels), time.process_time
    return {
        "random_per_cpu_second": _rate(lambda: [labels[i] for i in order], count, cpu),
        "sequential_per_cpu_second": _rate(lambda: [labels[i] for i in range(count)], count, cpu),
        "dataloader_per_second": _rate(lambda: [None for _ in loader], count, time.perf_counter),
        "dataloader_workers": WORKERS,
        "dataloader_batch": BATCH,
    }


def _rate(read: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    start, done = clock(), 0
    while (seconds := clock() - start) < MIN_SECONDS:
        read()
        done += count
    return round(done / seconds, 1)
