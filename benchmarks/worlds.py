"""A small dataset in a folder of its own, and the project's stages run on it as `dvc.yaml` says.

In `serial` runs a stage computes in this process, with one thread, so that its CPU time can be read.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ruamel.yaml import YAML

from benchmarks import networks
from pipeline.core import params, resumable
from pipeline.core.resumable import Compute

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ("segment", "pose", "parse", "label")


@dataclass
class Cost:
    """CPU seconds of one run of a stage, one process, one thread."""

    total: float
    build: float  # of it, building what a worker builds once: reading weights, opening files
    inside: float  # of it, inside networks

    @property
    def images(self) -> float:
        """What is left for the images, and for beginning and ending a stage."""
        return self.total - self.build

    @property
    def around(self) -> float:
        """What is spent outside the networks."""
        return self.images - self.inside

    def __sub__(self, other: "Cost") -> "Cost":
        """What more images cost: of a larger run, what a smaller one took as well."""
        return Cost(self.total - other.total, self.build - other.build, self.inside - other.inside)


class World:
    """A folder with `raw.zip`, `params.yaml` and what the stages make of them."""

    def __init__(self, folder: Path, workers: int = 1, **settings: dict[str, Any]):
        self.folder, self.config = folder, folder / "params.yaml"
        values = {**params.load(ROOT / "params.yaml"), "workers": workers}
        for section, changes in settings.items():
            values[section] = {**values[section], **changes}
        self.values = values
        folder.mkdir(parents=True, exist_ok=True)
        YAML(typ="safe").dump(values, self.config)

    def path(self, name: str) -> Path:
        """A file of this dataset."""
        return self.folder / name

    def words(self, stage: str) -> list[str]:
        """The words of the stage's command in `dvc.yaml`, for this folder."""
        declared = params.load(ROOT / "dvc.yaml")["stages"][stage]
        command = declared.get("do", declared)["cmd"].split()[3:]
        known = {"item.layout": "folders", "item.archive": str(self.path("raw.zip"))}
        return [self._word(word, known) for word in command] + [str(self.config)]

    def _word(self, word: str, known: dict[str, str]) -> str:
        """A word with `${name}` filled in; `data/${...}/` is this folder, other paths are the project's."""
        if word.startswith("data/${"):
            return str(self.folder / word.split("/", 2)[2])
        name = word.removeprefix("${").removesuffix("}")
        if name in known:
            return known[name]
        if name != word:
            section, key = name.split(".")
            word = self.values[section][key]
        return str(ROOT / word)

    def run(self, stage: str, answers: list | None = None, keep: bool = False) -> tuple[Cost, list]:
        """Run a stage here and return its cost and, if they are kept, its networks' answers.

        With `answers`, networks are not run: each call is answered by the next of them.
        """
        module, words = importlib.import_module(f"stages.{stage}"), self.words(stage)
        network = networks.timed(keep) if answers is None else networks.replayed(answers)
        with serial(self.folder) as built, network as inside, silent():
            start = time.process_time()
            module.main(*words)
            total = time.process_time() - start
        inside = inside or networks.Inside()
        return Cost(total, built.seconds, inside.seconds), inside.answers


@contextlib.contextmanager
def serial(scratch: Path) -> Iterator["Built"]:
    """Within the block, `compute_rows` works in this process; the result says how long building took."""
    built = Built()
    with (
        mock.patch.object(resumable, "ProcessPoolExecutor", built.pool),
        mock.patch.dict(os.environ, {"DVC_ROOT": str(scratch)}),
    ):
        yield built


class Built:
    """Times what a worker builds once."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def pool(self, workers: int, context: Any, initializer: Callable, initargs: tuple) -> "Here":
        """Stands for `ProcessPoolExecutor`; the worker's set-up is done here instead of by `initializer`."""

        def make() -> Compute:
            start = time.process_time()
            compute = initargs[0]()
            self.seconds += time.process_time() - start
            return compute

        _make_compute, _compute = make, None
        return Here()


class Here(contextlib.AbstractContextManager):
    """An executor that does the work when it is handed over."""

    def submit(self, work: Callable, *args: Any) -> Future:
        """Do it now."""
        future: Future = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, **options: Any) -> None:
        """Nothing is left to do."""

    def __exit__(self, *error: object) -> None:
        """Nothing is left to do."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within the block, what stages print goes nowhere."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
