"""TransReID as it is: its model, the steps of its loop, its transforms."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.checkouts import import_loss, read_settings, stand_in
from benchmarks.complexity.counts import OCCLUDED_DUKE
from benchmarks.training.__main__ import SETTINGS
from benchmarks.training.modes import DEVICE, autocast


class TransReID:
    """TransReID's model and the steps of its loop."""

    def __init__(self, checkout: Path, stride: int, images: int):
        config = read_config(checkout, stride)
        modules = import_modules(checkout)
        spec = OCCLUDED_DUKE
        self.model = modules["model"].make_model(config, spec.identities, spec.cameras, 1).to(DEVICE)
        unused = nn.Linear(1, 1)
        self.optimiser, _ = modules["solver"].make_optimizer(config, self.model, unused)
        self.loss, _ = modules["loss"].make_loss(config, spec.identities)
        self.image = torch.randn(images, 3, *spec.size, device=DEVICE)
        self.pid = torch.arange(images, device=DEVICE) // 2
        self.camera = torch.arange(images, device=DEVICE) % spec.cameras
        self.view = torch.zeros_like(self.camera)

    def step(self, precision: torch.dtype) -> None:
        """A training step, as in `do_train`."""
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == torch.float16)
        self.model.train()
        self.optimiser.zero_grad()
        with autocast(precision):
            score, feature = self.model(self.image, self.pid, cam_label=self.camera, view_label=self.view)
            loss = self.loss(score, feature, self.pid, self.camera)
        scaler.scale(loss).backward()
        scaler.step(self.optimiser)
        scaler.update()
        (score[0].max(1)[1] == self.pid).float().mean()
        loss.item()

    def embed(self, precision: torch.dtype) -> None:
        """An embedding, as in `do_inference`."""
        self.model.eval()
        with torch.no_grad(), autocast(precision):
            self.model(self.image, cam_label=self.camera, view_label=self.view)


def import_modules(checkout: Path) -> dict[str, ModuleType]:
    """TransReID's modules, unchanged but for a loss that is built and not used."""
    stand_in()
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    names = {"model": "model.make_model", "solver": "solver.make_optimizer"}
    names |= {"data": "datasets.make_dataloader"}
    modules = {name: importlib.import_module(module) for name, module in names.items()}
    return modules | {"loss": import_loss()}


def read_config(checkout: Path, stride: int) -> SimpleNamespace:
    """TransReID's configuration for Occluded-Duke at a stride, without pre-trained weights."""
    import_modules(checkout)
    return read_settings(checkout / SETTINGS, stride)


def training_dataset(checkout: Path, rows: list[tuple[str, int, int, int]]) -> Any:
    """TransReID's training set of files (path, pid, camid, view): `dataset[i]` is a transformed image."""
    data, config = import_modules(checkout)["data"], read_config(checkout, 16)
    split = SimpleNamespace(
        train=rows, query=rows[:1], gallery=rows[:1],
        num_train_pids=len(rows), num_train_cams=1, num_train_vids=1,
    )  # fmt: skip
    vars(data)["__factory"]["ours"] = lambda root: split
    config.DATASETS.NAMES, config.DATASETS.ROOT_DIR = "ours", ""
    return data.make_dataloader(config)[0].dataset
