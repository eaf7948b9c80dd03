"""Files are written whole or not at all: to a temporary name in the same folder, fsynced, renamed.

Unusual here:
- A full disk raises one error that says what is kept.
- HDF5 crashes when it cannot close a dataset; `DeferredErrorFile` takes every write and raises when closed.
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


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path of a file or folder, which replaces `path` when the block ends.

    If the block fails, the temporary path is removed and `path` stays as it was.  Temporary files of killed
    runs are removed, too.  Raises `BadInput` if a file would replace a folder, if `path` ends without a name,
    or if the disk is full.
    """
    path = Path(path)
    if not path.name:
        raise BadInput(f"{path}: is no name of a file or folder to write. Name one in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with disk_full_as_error(path):
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                _fsync(part)
            if path.is_dir():
                if not temporary.is_dir():
                    check_file_path(path)
                shutil.rmtree(path)
            os.replace(temporary, path)
            _fsync(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            error.filename = str(path)  # which the user named
        _remove(temporary)
        raise


def check_file_path(path: str | Path) -> None:
    """Raises `BadInput` if a file would replace a folder: to be called before anything is computed."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, and a file would take its place. Name a file in it.")


def _remove_leftovers(path: Path) -> None:
    # of this machine's processes alone: whether another machine's are alive cannot be known
    for temporary in path.parent.glob(f".{glob.escape(f'{path.name}.{socket.gethostname()}')}.*.part"):
        if not Path("/proc", temporary.name.split(".")[-2]).exists():
            _remove(temporary)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def disk_full_as_error(path: str | Path) -> Iterator[None]:
    """Inside the block, a full disk raises `BadInput` that names `path` and says what is kept.

    Only Python's `OSError` is recognised: libraries with writers of their own need a `DeferredErrorFile`.
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
    """A file that accepts every write and raises the first error of the disk when it is closed.

    HDF5 cannot close a dataset that it could not write: it crashes when the process ends.  torch.save
    reports that a write failed, but not why.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)

    def close(self) -> None:
        super().close()
        if self.error is not None:
            raise self.error
