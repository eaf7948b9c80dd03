"""A dataset in a folder of its own, on which the project's stages run as `dvc.yaml` declares them.

A stage runs in this process with one thread, so that its CPU time can be read.
"""

import contextlib
import dataclasses
import importlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

from ruamel.yaml import YAML

from benchmarks import ROOT
from benchmarks.labels import network_calls
from pipeline.core import params, resumable
from pipeline.core.resumable import Compute

LABEL_STAGES = ("segment", "pose", "parse", "label")


@dataclasses.dataclass
class Cost:
    """CPU seconds of one run of a stage in one process with one thread."""

    total: float
    setup: float  # of it, what each worker does once: read weights, open files
    network: float  # of it, inside networks

    @property
    def work(self) -> float:
        """Without the setup: the images, and the start and end of the stage."""
        return self.total - self.setup

    @property
    def around_network(self) -> float:
        """The work outside the networks."""
        return self.work - self.network

    def __sub__(self, other: "Cost") -> "Cost":
        """The cost of the images that a longer run has more than a shorter one."""
        return Cost(self.total - other.total, self.setup - other.setup, self.network - other.network)


class Sandbox:
    """A folder with `raw.zip`, `params.yaml` and the outputs of the stages."""

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

    def arguments(self, stage: str) -> list[str]:
        """The positional arguments of the stage's command in `dvc.yaml`, for this folder."""
        declared = params.load(ROOT / "dvc.yaml")["stages"][stage]
        words = shlex.split(declared.get("do", declared)["cmd"])[3:]
        variables = {"item.layout": "folders", "item.archive": str(self.path("raw.zip"))}
        return [self._resolve(word, variables) for word in words]

    def _resolve(self, word: str, variables: dict[str, str]) -> str:
        """A word with `${name}` replaced; `data/${...}/` is this folder, other paths are the project's."""
        if word.startswith("data/${"):
            return str(self.folder / word.split("/", 2)[2])
        name = word.removeprefix("${").removesuffix("}")
        if name in variables:
            return variables[name]
        if name != word:
            section, key = name.split(".")
            word = self.values[section][key]
        return str(ROOT / word)

    def run(self, stage: str, outputs: list | None = None, keep: bool = False) -> tuple[Cost, list]:
        """Run a stage in this process; returns its cost and, with `keep`, its networks' outputs.

        With `outputs`, networks are not run: each call returns the next of them.
        """
        module, arguments = importlib.import_module(f"stages.{stage}"), self.arguments(stage)
        network = network_calls.record(keep) if outputs is None else network_calls.replay(outputs)
        with single_process(self.folder) as setup, network as calls, suppress_output():
            start = time.process_time()
            module.main(*arguments, config=str(self.config))
            total = time.process_time() - start
        calls = calls or network_calls.NetworkCalls()
        return Cost(total, setup.seconds, calls.seconds), calls.outputs


@contextlib.contextmanager
def single_process(scratch: Path) -> Iterator["WorkerSetup"]:
    """Within the block, `compute_rows` works in this process; yields the time of the workers' setup."""
    setup = WorkerSetup()
    with (
        mock.patch.object(resumable, "WorkerPool", setup.executor),
        mock.patch.dict(os.environ, {"DVC_ROOT": str(scratch)}),
    ):
        yield setup


class WorkerSetup:
    """CPU seconds of what each worker does once."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def executor(self, workers: int, start: Callable, arguments: tuple) -> "InProcessExecutor":
        """Replaces `WorkerPool`; the setup is done here instead of by `start`."""

        def make() -> Compute:
            begin = time.process_time()
            compute = arguments[0]()
            self.seconds += time.process_time() - begin
            return compute

        resumable._make_compute, resumable._compute = make, None
        return InProcessExecutor()


class InProcessExecutor(contextlib.AbstractContextManager):
    """An executor that does the work when it is submitted."""

    def submit(self, work: Callable, *args: Any) -> Future:
        """Do the work and return its result as a finished future."""
        future: Future = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, **options: Any) -> None:
        """Nothing is pending."""

    def __exit__(self, *error: object) -> None:
        """Nothing is pending."""


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Within the block, stdout and stderr are discarded."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        yield
