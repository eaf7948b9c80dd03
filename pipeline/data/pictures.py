"""Which files below a folder are pictures."""

import functools
import glob
import io
import os
from collections.abc import Callable
from pathlib import PurePath

from PIL import Image

from pipeline.data.index import DECODE_ERRORS

# formats of Pillow that are no crops: measurements, films, icons, and drawings that other programs render
NO_CROPS = {"BUFR", "CUR", "EPS", "FITS", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "WMF"}
# pictures that Pillow does not read, and camera raw files, of which it reads a thumbnail
UNREAD_SUFFIXES = {
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".eps"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
}
HEAD = 16  # bytes by which Pillow tells formats apart
SIDE_FOLDERS = {"__MACOSX", "@eaDir"}  # of macOS and of Synology's disks


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of pictures, in lower case."""
    Image.preinit()  # the usual formats stay those that Pillow tries first
    formats = Image.registered_extensions()
    return frozenset(s for s, name in formats.items() if name in Image.OPEN and name not in NO_CROPS)


def has_picture_suffix(path: str) -> bool:
    """Whether a file's name ends as that of a picture that is read."""
    suffix = PurePath(path).suffix.lower()
    return suffix in picture_suffixes() and suffix not in UNREAD_SUFFIXES


def has_picture_content(read: Callable[[int], bytes]) -> bool:
    """Whether a file is a picture by its content.  `read` gives its first bytes, or all for -1."""
    picture_suffixes()  # registers the formats
    head = read(HEAD).ljust(HEAD, b"\0")
    formats = [
        form
        for form, (_, accepts) in Image.OPEN.items()
        if form not in NO_CROPS and accepts is not None and accepts(head)
    ]
    if not formats:
        return False
    try:
        with Image.open(io.BytesIO(read(-1)), formats=formats):
            return True
    except DECODE_ERRORS:
        return False


def is_picture(path: str) -> bool:
    """Whether a file is a picture by its suffix, or else by its content."""

    def read(size: int) -> bytes:
        with open(path, "rb") as file:
            return file.read(size)

    if has_picture_suffix(path) or PurePath(path).suffix.lower() in UNREAD_SUFFIXES:
        return has_picture_suffix(path)
    try:
        return has_picture_content(read)
    except OSError:
        return False


def expand(path: str) -> tuple[list[str], list[str]] | None:
    """The files that a folder or a pattern (`*`, `?`, `[...]`, `**`) stands for; None for a file.

    A folder stands for all files below it, and so does a folder that a pattern matches.  Below a folder,
    hidden files and folders, side folders and links to folders are left out: the second list has their names,
    for none of the files in them.  Both are sorted.
    """
    if os.path.isdir(path):
        matches = [path]
    elif glob.has_magic(path) and not os.path.exists(path):
        matches = _once(glob.glob(path, recursive=True))
    else:
        return None
    files, left_out = set(), set()
    for match in matches:
        below = _below(match) if os.path.isdir(match) else ([match], [])
        files.update(below[0])
        left_out.update(below[1])
    return sorted(files), sorted(left_out)


def is_hidden(path: str) -> bool:
    """Whether a file or folder is not meant to be seen, by its name."""
    name = PurePath(path).name
    return name.startswith(".") or name in SIDE_FOLDERS


def _below(folder: str) -> tuple[list[str], list[str]]:
    files, left_out = [], []
    for place, folders, names in os.walk(folder):
        paths = [os.path.join(place, name) for name in (*names, *folders)]
        links = [path for path in paths if os.path.islink(path) and os.path.isdir(path)]
        left_out += [path for path in paths if is_hidden(path) or path in links]
        files += [path for path in paths if not is_hidden(path) and _is_file(path)]
        folders[:] = [name for name in folders if not is_hidden(name)]  # links are not followed
    return files, left_out


def _is_file(path: str) -> bool:
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _once(matches: list[str]) -> list[str]:
    """Each file and folder once, by its shortest path: `**` follows a link to a folder above many times."""
    places: dict[str, str] = {}
    for match in sorted(matches, key=lambda match: (match.count(os.sep), match)):
        folder, name = os.path.split(match)
        place = os.path.join(os.path.realpath(folder), name)
        if SIDE_FOLDERS.isdisjoint(PurePath(match).parts):
            places.setdefault(os.path.realpath(place) if os.path.isdir(place) else place, match)
    return list(places.values())
