"""Files that appear whole or not at all: written beside their place, fsynced, renamed.

Unusual here:
- A full disk is one clear error that says what is kept.
- HDF5 crashes when it cannot close a dataset; `DeferredErrorFile` takes every write and raises at the end.
"""

import errno
import glob
import hashlib
import io
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.params import BadInput

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------ whole or not at all


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends and vanishes if it fails.

    Works for a file or a folder; what a killed run left beside goes, too.  Raises `BadInput` if a file would
    take the place of a folder, or if the disk is full (see `room`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with disk_full_as_error(path):
            yield beside
            for part in (*beside.rglob("*"), beside):
                _fsync(part)
            if path.is_dir():
                if not beside.is_dir():
                    raise BadInput(
                        f"{path}: is a folder, and a file would take its place. Name a file in it."
                    )
                shutil.rmtree(path)
            os.replace(beside, path)
            _fsync(path.parent)
    except BaseException:
        _remove(beside)
        raise


def _remove_leftovers(path: Path) -> None:
    # only of this machine's processes can be told whether they live
    for left in path.parent.glob(f".{glob.escape(f'{path.name}.{socket.gethostname()}')}.*.part"):
        if not Path("/proc", left.name.split(".")[-2]).exists():
            _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def disk_full_as_error(path: str | Path) -> Iterator[None]:
    """Within it, a full disk becomes a `BadInput` that names `path` and says what is kept.

    It is known by Python's `OSError`: let libraries that write by themselves write to an `Output`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise BadInput(
            f"{path}: the disk is full or over quota. Free some space and run again; "
            "what was finished before is kept."
        ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DeferredErrorFile(io.FileIO):
    """A file that takes every write, remembers the first that the disk refused, and raises it when closed.

    HDF5 cannot close a dataset that it could not write: it crashes when the process ends.  torch.save says
    that a write failed, and not why.
    """

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.refusal is None:
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.refusal = error
        return len(view)

    def close(self) -> None:
        super().close()
        if self.refusal is not None:
            raise self.refusal
