"""Which files below a folder are pictures."""

import functools
import glob
import os
from collections.abc import Iterator
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
SIDE_FOLDERS = {"__MACOSX", "@eaDir"}  # of macOS and of Synology's disks


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of pictures, in lower case."""
    Image.preinit()  # the usual formats stay those that Pillow tries first
    formats = Image.registered_extensions()
    return frozenset(s for s, name in formats.items() if name in Image.OPEN and name not in NO_CROPS)


def is_picture(path: str) -> bool:
    """Whether a file is a picture by its suffix, or else by its content."""
    suffix = PurePath(path).suffix.lower()
    if suffix in picture_suffixes() or suffix in UNREAD_SUFFIXES:
        return suffix not in UNREAD_SUFFIXES
    known = [name for name, (_, by_content) in Image.OPEN.items() if by_content and name not in NO_CROPS]
    try:
        with Image.open(path, formats=known):
            return True
    except DECODE_ERRORS:
        return False


def expand(path: str) -> list[str] | None:
    """The files that a folder or a pattern (`*`, `?`, `[...]`, `**`) stands for, sorted; None for a file.

    A folder stands for all files below it, and so does a folder that a pattern matches.  Hidden files are
    left out.
    """
    if os.path.isdir(path):
        matches = [path]
    elif glob.has_magic(path) and not os.path.exists(path):
        matches = glob.glob(path, recursive=True)
    else:
        return None
    below = (_below(match) if os.path.isdir(match) else [match] for match in matches)
    return sorted(
        {file for files in below for file in files if SIDE_FOLDERS.isdisjoint(PurePath(file).parts)}
    )


def _below(folder: str) -> Iterator[str]:
    for file in glob.iglob(os.path.join(glob.escape(folder), "**"), recursive=True):
        if os.path.isfile(file) or (os.path.islink(file) and not os.path.exists(file)):
            yield file
