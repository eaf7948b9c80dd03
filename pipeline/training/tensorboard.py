"""A training's log in TensorBoard while it runs: event files, which change no result and no stage reads.

Unusual here: a training that resumes writes its earlier steps again.  A killed process loses the events of
its last seconds, and the experiment that resumes it has another name.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipeline.core import distributed
from pipeline.core.files import disk_full_as_error
from pipeline.core.params import BadInput
from pipeline.training.loop import TIMES

FLUSH_SECONDS = 5  # between a step and its point in the browser, at most


def check_installed(folder: str) -> None:
    """Raise `BadInput` if event files are wanted, in a folder other than "", and TensorBoard is missing."""
    if folder and find_spec("tensorboard") is None:
        raise BadInput(
            f"params.yaml: tensorboard = {folder}: needs the package tensorboard. Run `uv sync --group "
            'tensorboard`, or set "" to train without.'
        )


class EventFiles(AbstractContextManager):
    """The event files of one run, in a folder of its own.

    Raises `BadInput` that names the folder if the disk is full.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder
        with disk_full_as_error(folder):
            self.writer = import_module("torch.utils.tensorboard").SummaryWriter(
                str(folder),
                purge_step=0,  # TensorBoard forgets what an earlier process wrote there
                flush_secs=FLUSH_SECONDS,
            )

    def write(self, rows: Sequence[Mapping[str, float | int]]) -> None:
        """Append steps of the log: times as `speed/<column>`, all else as `train/<column>`."""
        with disk_full_as_error(self.folder):
            for row in rows:
                for name in row.keys() - {"step"}:
                    group = "speed" if name in TIMES else "train"
                    self.writer.add_scalar(f"{group}/{name}", row[name], row["step"])

    def __exit__(self, *error: object) -> None:
        with disk_full_as_error(self.folder):
            self.writer.close()


def open_events(folder: str, run: str) -> AbstractContextManager[EventFiles | None]:
    """The event files of a run, below a folder of the project; None for the folder "", and on ranks but 0.

    They lie in `<folder>/<name of the DVC experiment>-<run>`, or in `<folder>/<run>` if there is none.
    """
    if not folder or distributed.rank() > 0:
        return nullcontext()
    root = Path(os.environ.get("DVC_ROOT", "."))  # the real project, even where DVC trains in a copy of it
    experiment = os.environ.get("DVC_EXP_NAME")
    return EventFiles(root / folder / (f"{experiment}-{run}" if experiment else run))
