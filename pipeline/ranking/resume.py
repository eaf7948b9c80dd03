"""What a long ranking has found so far, so that a run that was stopped goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.core.files import atomic_write
from pipeline.ranking import products

T = TypeVar("T")
EVERY = 128  # tiles between two notes


@contextmanager
def product(folder: Path | None, width: int, device: str | torch.device) -> Iterator[str]:
    """`products.chosen`, the same one as when the notes in this folder were begun."""
    page = None if folder is None else folder / "product"
    before = page.read_text() if page is not None and page.exists() else ""
    with products.chosen(width, device, before) as name:
        if page is not None and name != before:
            with atomic_write(page) as beside:
                beside.write_text(name)
        yield name


class Notes:
    """A page in a folder; without a folder, nothing is noted."""

    def __init__(self, folder: Path | None, name: str):
        self.path = None if folder is None else folder / f"{name}.npz"
        self.every = 0 if folder is None else EVERY

    def read(self, kind: type[T]) -> T | None:
        """The dataclass that was last written, or none."""
        if self.path is None or not self.path.exists():
            return None
        with np.load(self.path, allow_pickle=False) as page:
            return kind(**{name: page[name] if page[name].ndim else page[name].item() for name in page})

    def write(self, found: Any) -> None:
        """Note it in place of what was noted before."""
        if self.path is not None:
            with atomic_write(self.path) as beside, open(beside, "wb") as file:
                np.savez(file, **asdict(found))
