"""A dataset's archive file: reading it without unpacking, and packing a folder into one.

A dataset is one file because DVC checks its dependencies at every command: a file costs nothing, a folder of
36,000 images costs seconds.
"""

import gzip
import os
import re
import shlex
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural
from pipeline.core.workers import progress_bar

GZIP, ZIP = b"\x1f\x8b", b"PK"
# signatures of formats that need another program
UNSUPPORTED = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}
ARCHIVE_SUFFIX = re.compile(r"(\.(zip|tar|tar\.gz|gz|tgz|rar|7z))?$", re.IGNORECASE)  # of file names
TAR_BLOCK = 512  # bytes; a tar ends with blocks of zeros
READ_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # zipfile: encrypted, or of a compression it does not know
)


class Archive:
    """The files of a zip, tar or tar.gz, read by name in any order.

    Raises `BadInput` if the archive is missing, a folder, damaged or of another format, or if a name in it
    would lead out of the folder that it is unpacked to.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._stack = ExitStack()
        self._check_path()
        try:
            self._members, self.folders = self._open()
        except READ_ERRORS as error:
            self.close()
            raise BadInput(
                f"{path}: damaged, or no zip, tar or tar.gz ({error}). Download it again, or pack its "
                f"folder: {pack_command(path)}."
            ) from None
        self.names = [name for name, _ in self._members]
        self._check_names()
        self._by_name = dict(self._members)

    def _check_path(self) -> None:
        path = Path(self.path)
        if path.is_dir():
            target = f"{path}.zip"
            raise BadInput(
                f"{path}: is a folder, and a dataset is one archive file. "
                f"Run {pack_command(target, path)} and name {target} in params.yaml."
            )
        if not path.is_file():
            raise BadInput(
                f"{path}: no such file. Put the dataset's archive there, "
                f"or pack its folder: {pack_command(path)}."
            )
        with open(path, "rb") as file:
            unsupported = UNSUPPORTED.get(file.read(4))
        if unsupported:
            raise BadInput(
                f"{path}: a {unsupported} archive, which is not read here. "
                f"Unpack it, then run {pack_command(path)}."
            )

    def _check_names(self) -> None:
        traversals = [name for name in self.names if is_path_traversal(name)]
        if traversals:
            self.close()
            raise BadInput(
                f"{self.path}: {plural(len(traversals), 'name')} in it would lead out of the folder that it "
                f"is unpacked to, such as {traversals[0]}. Unpack what you trust, and pack that folder: "
                f"{pack_command(self.path)}."
            )

    def _open(self) -> tuple[list, set[str]]:
        self._file = self._stack.enter_context(_open_archive(self.path))
        entries: list[tuple[str, Any, bool]]  # name, member, whether it is a folder
        if isinstance(self._file, zipfile.ZipFile):
            entries = [(_normalise_name(m.filename), m, m.is_dir()) for m in self._file.infolist()]
        else:
            entries = [
                (_normalise_name(m.name), m, m.isdir())
                for m in self._file
                if m.isdir() or _is_regular_file(m)
            ]
        members = [(name, member) for name, member, is_folder in entries if not is_folder]
        folders = {name for name, _, is_folder in entries if is_folder}
        return members, folders | {str(parent) for name, _ in members for parent in Path(name).parents}

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises `BadInput` if the archive is damaged there."""
        try:
            if isinstance(self._file, zipfile.ZipFile):
                return self._file.read(self._by_name[name])
            with self._file.extractfile(self._by_name[name]) as file:
                return file.read()
        except READ_ERRORS as error:
            raise BadInput(f"{self.path}: {name} cannot be read from the archive ({error}).") from None

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _open_archive(path: str) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with open(path, "rb") as file:
        head = file.read(2)
    if head == ZIP:
        with zipfile.ZipFile(path) as archive:
            yield archive
    else:
        with _uncompressed(path, head) as file:
            file.seek(-min(TAR_BLOCK, file.seek(0, os.SEEK_END)), os.SEEK_END)
            if any(file.read()):
                raise tarfile.ReadError("its end is missing")  # tarfile would not notice missing members
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                yield archive


@contextmanager
def _uncompressed(path: str, head: bytes) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        if head != GZIP:
            yield file
            return
        # gzip allows no random access: decompress once into an unnamed file
        with gzip.open(file) as source, tempfile.TemporaryFile() as plain:
            shutil.copyfileobj(source, plain, 1 << 20)
            plain.seek(0)
            yield plain


def _normalise_name(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").rstrip("/")


def is_path_traversal(name: str) -> bool:
    """Whether a relative path may lead out of the folder that it starts from."""
    return name.startswith("/") or ".." in name.split("/")


def _is_regular_file(member: tarfile.TarInfo) -> bool:
    return member.isreg() or member.islnk()


def pack_command(path: str | Path, folder: str | Path = "FOLDER") -> str:
    """The shell command that packs a folder into the zip which replaces `path`, in backquotes.

    If `path` is not the name of a zip, the text also says which name to give in params.yaml.
    """
    target = ARCHIVE_SUFFIX.sub(".zip", str(path), count=1)
    command = f"`python -m pipeline.indexing pack {shlex.quote(str(folder))} {shlex.quote(target)}`"
    return command if target == str(path) else f"{command} and name {target} in params.yaml"


def pack(folder: str | Path, path: str | Path) -> int:
    """Pack every file below `folder` into the zip `path` and return their number.

    Files are stored uncompressed, ordered by name, with one constant date: equal files give equal bytes.
    Raises `BadInput` if the folder does not exist or holds no file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder. Name the folder that holds the dataset.")
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    if not files:
        raise BadInput(f"{folder}: holds no file. Name the folder that holds the dataset.")
    if Path(path).suffix != ".zip":
        raise BadInput(f"{path}: packing writes a zip. Choose a name that ends in .zip.")
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name, file in progress_bar(iterable=files, desc=Path(path).name, unit="file"):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            target.writestr(entry, file.read_bytes())
    return len(files)
