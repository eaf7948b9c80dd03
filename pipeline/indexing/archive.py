"""A dataset's archive file: reading it without unpacking, and packing a folder into one.

A dataset is one file because DVC checks its dependencies at every command: a file costs nothing, a folder of
36,000 images costs seconds.
"""

import gzip
import os
import re
import shlex
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Protocol, runtime_checkable

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural, shorten
from pipeline.core.workers import progress_bar

GZIP, ZIP = b"\x1f\x8b", b"PK"
# signatures of formats that need another program
UNSUPPORTED = {
    b"Rar!": "RAR",
    b"7z\xbc\xaf": "7-Zip",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
NESTED_SUFFIXES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z"}
ARCHIVE_SUFFIX = re.compile(r"(\.(zip|tar|tar\.gz|gz|tgz|rar|7z))?$", re.IGNORECASE)  # of file names
TAR_BLOCK = 512  # bytes; a tar ends with blocks of zeros
UTF8_FLAG = 0x800  # of a zip's entry: its name is UTF-8
READ_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # zipfile: encrypted, or of a compression it does not know
    KeyError,  # tarfile: a hard link to a file that is not in the archive
    UnicodeDecodeError,  # zipfile: a name that is not UTF-8 as its flag says
)
# of the names in zips that do not record it; beside UTF-8, which is recognised
ENCODINGS = ("gbk", "gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp866", "cp1252", "cp850")


def _check_encoding(name: str) -> str:
    """The name of an encoding, for pydantic.  Raises `PydanticCustomError` if there is no such encoding."""
    try:
        "a".encode(name)
    except (LookupError, ValueError):
        examples = ", ".join(ENCODINGS)
        raise PydanticCustomError("encoding", f"No such encoding. Choose one such as {examples}") from None
    return name


Encoding = Annotated[str, AfterValidator(_check_encoding)]


@runtime_checkable
class Files(Protocol):
    """Files that are read by name: an `Archive` or a `Folder`."""

    names: list[str]
    links: set[str]  # names of links and devices

    def read(self, name: str, size: int = -1) -> bytes:
        """The bytes of a file, or the first `size`; raises `BadInput` if it cannot be read."""


class Archive:
    """The files of a zip, tar or tar.gz, read by name in any order.

    `encoding` is that of names whose encoding the archive does not record; None: UTF-8, or in a zip cp437.

    Raises `BadInput` if the archive is missing, a folder, damaged or of another format, if a name in it would
    lead out of the folder that it is unpacked to or stands twice, or if names are not of this encoding.
    """

    def __init__(self, path: str | Path, encoding: str | None = None):
        self.path = str(path)
        self._stack = ExitStack()
        self._check_path()
        try:
            self._file = self._stack.enter_context(_open_archive(self.path, encoding))
            members, self.folders, self.links = self._list()
        except READ_ERRORS as error:
            self.close()
            raise BadInput(
                f"{path}: damaged, or no zip, tar or tar.gz ({error}). Download it again, or pack its "
                f"folder: {pack_command(path)}."
            ) from None
        except BaseException:
            self.close()
            raise
        self.names = [name for name, _ in members]
        self._by_name = dict(members)
        self._check_names()

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
            head = file.read(4)
        unsupported = next((form for start, form in UNSUPPORTED.items() if head.startswith(start)), None)
        if unsupported:
            raise BadInput(
                f"{path}: a {unsupported} archive, which is not read here. "
                f"Unpack it, then run {pack_command(path)}."
            )

    def _check_names(self) -> None:
        traversals = [name for name in [*self.names, *self.links] if is_path_traversal(name)]
        twice = [name for name, number in Counter(self.names).items() if number > 1 or name in self.folders]
        fault = ""
        if traversals:
            fault = (
                f"{plural(len(traversals), 'name')} in it would lead out of the folder that it is unpacked "
                f"to, such as {traversals[0]}. Unpack what you trust"
            )
        elif twice:
            fault = (
                f"holds {plural(len(twice), 'name')} for several files, of which unpacking would keep the "
                f"last: {', '.join(shorten(twice))}. Unpack it, see which files you mean"
            )
        if fault:
            self.close()
            raise BadInput(f"{self.path}: {fault}, and pack that folder: {pack_command(self.path)}.")

    def _list(self) -> tuple[list[tuple[str, Any]], set[str], set[str]]:
        # files with their names; the names of folders; those of links and devices
        entries: list[tuple[str, Any, bool, bool]]  # name, member, whether a folder, whether a regular file
        if isinstance(self._file, zipfile.ZipFile):
            entries = [
                (_normalise_name(m.filename), m, m.is_dir(), not stat.S_ISLNK(m.external_attr >> 16))
                for m in self._file.infolist()
            ]
        else:
            entries = [(_normalise_name(m.name), m, m.isdir(), m.isreg() or m.islnk()) for m in self._file]
        members = [(name, member) for name, member, folder, regular in entries if regular and not folder]
        folders = {name for name, _, folder, _ in entries if folder}
        links = {name for name, _, folder, regular in entries if not (folder or regular)}
        folders |= {str(parent) for name in links.union(dict(members)) for parent in Path(name).parents}
        return members, folders, links

    def read(self, name: str, size: int = -1) -> bytes:
        """The bytes of a file, or the first `size`; raises `BadInput` if the archive is damaged there."""
        try:
            if isinstance(self._file, zipfile.ZipFile):
                with self._file.open(self._by_name[name]) as member:
                    return member.read(size)
            with self._file.extractfile(self._by_name[name]) as file:
                return file.read(size)
        except READ_ERRORS as error:
            reason = str(error).removesuffix(f" for file {name!r}")  # zipfile, of a bad CRC
            raise BadInput(f"{self.path}: {name} cannot be read from the archive ({reason}).") from None

    def undeclared(self, encoding: str = "cp437") -> list[str]:
        """The names in a zip whose encoding it does not record, decoded as this one; [] if one cannot be."""
        if not isinstance(self._file, zipfile.ZipFile) or getattr(self._file, "metadata_encoding", None):
            return []
        names = [
            m.orig_filename.encode("cp437")
            for m in self._file.infolist()
            if not m.flag_bits & UTF8_FLAG and not m.orig_filename.isascii()
        ]
        try:
            return [_normalise_name(name.decode(encoding)) for name in names]
        except UnicodeDecodeError:
            return []

    def encoding_hint(self, wanted: Collection[str] = ()) -> str:
        """What to do about names of no recorded encoding, if there are any; `wanted` are names to find."""
        names = self.undeclared()
        if not names:
            return ""
        targets = {unicodedata.normalize("NFC", name) for name in wanted}
        hits = {
            encoding: len(targets & {unicodedata.normalize("NFC", n) for n in self.undeclared(encoding)})
            for encoding in ENCODINGS
        }
        best = max(hits, key=lambda encoding: hits[encoding])
        example = f"`names: {best}`, which finds {hits[best]} of them" if hits[best] else "`names: gbk`"
        return (
            f"the zip does not record the encoding of {plural(len(names), 'name')} in it, such as "
            f"{names[0]}: state it in params.yaml, beside the archive's path, as {example}"
        )

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _open_archive(path: str, encoding: str | None) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with open(path, "rb") as file:
        head = file.read(2)
    if head == ZIP:
        with _open_zip(path, encoding) as archive:
            yield archive
    else:
        with _uncompressed(path, head) as file:
            file.seek(-min(TAR_BLOCK, file.seek(0, os.SEEK_END)), os.SEEK_END)
            if any(file.read()):
                raise tarfile.ReadError("its end is missing")  # tarfile would not notice missing members
            file.seek(0)
            with tarfile.open(fileobj=file, encoding=encoding or "utf-8") as archive:
                yield archive


def _open_zip(path: str, encoding: str | None) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path, metadata_encoding=encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is None:
            return zipfile.ZipFile(path)
        raise BadInput(
            f"{path}: names = {encoding!r}: {error.object!r} is no name in it. Choose another encoding, such "
            f"as {', '.join(ENCODINGS)}."
        ) from None


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
    # a\\b, ./a/b, a//b -> a/b
    path = name.replace("\\", "/")
    return path[: path.startswith("/")] + "/".join(part for part in path.split("/") if part not in ("", "."))


def is_path_traversal(name: str) -> bool:
    """Whether a relative path may lead out of the folder that it starts from."""
    return name.startswith("/") or ".." in name.split("/")


def pack_command(path: str | Path, folder: str | Path = "FOLDER") -> str:
    """The shell command that packs a folder into the zip which replaces `path`, in backquotes.

    If `path` is not the name of a zip, the text also says which name to give in params.yaml.
    """
    target = ARCHIVE_SUFFIX.sub(".zip", str(path), count=1)
    command = f"`python -m pipeline.indexing pack {shlex.quote(str(folder))} {shlex.quote(target)}`"
    return command if target == str(path) else f"{command} and name {target} in params.yaml"


def walk(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files below a folder, and why each other entry is none, both by their paths in it.

    A link to a file is that file.  Links to folders are not followed.  Raises `BadInput` if a folder in it
    cannot be read.
    """
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
            for path in (Path(parent, name) for name in [*folders, *names]):
                title = path.relative_to(folder).as_posix()
                if path.is_file():
                    files[title] = path
                elif path.is_symlink():
                    others[title] = "a link to a folder" if path.is_dir() else "a broken link"
                elif not path.is_dir():
                    others[title] = "no regular file"
    except PermissionError as error:  # a folder that may be listed, but not entered
        _raise_unreadable(error)
    return dict(sorted(files.items())), dict(sorted(others.items()))


class Folder:
    """The files below a folder, named by their paths in it.  Raises `BadInput` if it cannot be read."""

    def __init__(self, path: Path):
        if not path.is_dir():
            raise BadInput(f"{path}: no such folder. Name the folder that holds the pictures.")
        self.files, others = walk(path)
        self.names, self.links = list(self.files), set(others)

    def read(self, name: str, size: int = -1) -> bytes:
        """The bytes of a file, or the first `size`; raises `BadInput` if it cannot be read."""
        return read_file(self.files[name], size)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _raise_unreadable(error: OSError) -> None:
    raise BadInput(f"{error.filename}: cannot be read ({error.strerror}). Allow it, or take it out.")


def pack(folder: str | Path, path: str | Path) -> tuple[int, dict[str, str]]:
    """Pack every file below `folder` into the zip `path`: their number, and why other entries are left out.

    Files are ordered by name: equal files give equal bytes.
    Hidden files are packed, too.  Raises `BadInput` if the folder does not exist, holds no file, or holds one
    that cannot be read.
    """
    folder, path = Path(folder), Path(path)
    if folder.is_file():
        raise BadInput(f"{folder}: a file, no folder. Name an archive in params.yaml as it is, or unpack it.")
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder. Name the folder that holds the dataset.")
    if path.suffix != ".zip":
        raise BadInput(f"{path}: packing writes a zip. Choose a name that ends in .zip.")
    files, others = walk(folder)
    for name in [name for name, file in files.items() if _is_target(file, path)]:
        del files[name]
        others[name] = "the zip that is written, or a part of it"
    if not files:
        raise BadInput(f"{folder}: holds no file. Name the folder that holds the dataset.")
    write_zip(path, files)
    return len(files), others


def write_zip(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """A zip of files or their bytes, by name in this order; uncompressed, with one constant date."""
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name, file in progress_bar(iterable=files.items(), desc=path.name, unit="file"):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            target.writestr(entry, file if isinstance(file, bytes) else read_file(file))


def _is_target(file: Path, path: Path) -> bool:
    # x.zip, or .x.zip.host.1.part of a run that is killed or still at work
    unfinished = file.name.startswith(f".{path.name}.") and file.suffix == ".part"
    return (file.name == path.name or unfinished) and file.parent.resolve() == path.parent.resolve()


def read_file(file: Path, size: int = -1) -> bytes:
    """The bytes of a file, or the first `size`.

    Raises `BadInput` if it cannot be read, or if its name is not UTF-8.
    """
    try:
        str(file).encode()
        with open(file, "rb") as source:
            return source.read(size)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}). Allow it, or take it out.") from None
    except UnicodeEncodeError:
        raise BadInput(f"{str(file)!a}: the name is not UTF-8. Rename it.") from None
