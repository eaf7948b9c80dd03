"""How fast labels are read: one row at a time, in order, and by the workers of a torch DataLoader."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.core.label_file import LabelFile

AT_LEAST = 0.5  # seconds that each figure is measured
BATCH, WORKERS = 64, 2


class Labels(Dataset):
    """What training reads for an image: its parsing map and its flags."""

    def __init__(self, parsing: Path, occlusion: Path):
        self.parsing, self.occlusion = LabelFile(parsing, "parsing"), LabelFile(occlusion, "occlusion")

    def __len__(self) -> int:
        return len(self.parsing["map"])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.parsing["map"][i]), torch.from_numpy(self.occlusion["occluded"][i])


def measure(parsing: Path, occlusion: Path) -> dict[str, float]:
    """Images, map and flags: those a process reads in a CPU second, those a DataLoader does in a second."""
    labels = Labels(parsing, occlusion)
    random = np.random.default_rng(0).permutation(len(labels))
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
    return {
        "random_per_cpu_second": _rate(lambda: [labels[i] for i in random], labels, time.process_time),
        "sequential_per_cpu_second": _rate(
            lambda: [labels[i] for i in sorted(random)], labels, time.process_time
        ),
        "dataloader_per_second": _rate(lambda: [None for _ in loader], labels, time.perf_counter),
        "dataloader_workers": WORKERS,
        "dataloader_batch": BATCH,
    }


def _rate(read: Callable[[], object], rows: Labels, clock: Callable[[], float]) -> float:
    start, done = clock(), 0
    while (seconds := clock() - start) < AT_LEAST:
        read()
        done += len(rows)
    return round(done / seconds, 1)


def sizes(folder: Path, count: int) -> dict[str, float]:
    """Bytes an image of every file of a dataset."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".h5", ".parquet"))
    return {path.name: round(path.stat().st_size / count, 1) for path in files}
