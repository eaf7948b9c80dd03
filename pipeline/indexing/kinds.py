"""What a file of a dataset is, by its name and its first bytes: a picture, or why it is left out.

A picture is what Pillow reads, by its suffix (`x.webp`, `x.JFIF`) or by its content (a JPEG named `x` or
`x.dat`).  Nothing else is read as an image of a split.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.core.params import BadInput, plural, shorten, tally
from pipeline.data import pictures
from pipeline.data.pictures import (
    HEAD,
    SIDE_FOLDERS,
    UNREAD_SUFFIXES,
    has_picture_content,
    has_picture_suffix,
)
from pipeline.indexing.archive import NESTED_SUFFIXES, Files

HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")  # bytes 4 to 12
NAMED = 3  # files that a line names

HIDDEN, HIDDEN_PICTURE = "hidden", "a hidden picture"
UNREAD = "a picture of a format that Pillow lacks"
NESTED = "an archive in the archive"
LINK = "a link or device"
DAMAGED = "a file that cannot be read from the archive"
NO_PICTURE = "no picture"
UNLISTED = "a picture that no list names"
REMEDIES = {  # of what may be an image of a split
    HIDDEN_PICTURE: "rename it, or remove it",
    UNREAD: "save it as PNG or JPEG",
    NESTED: "unpack it before you pack the folder",
    DAMAGED: "pack the folder again",
    LINK: "put the file itself there (`tar --dereference`)",
    UNLISTED: "add it to a list, or remove it",
}


class LeftOut(NamedTuple):
    """A file that is not read, with the reason."""

    name: str
    reason: str
    in_split: bool = False  # whether it lies where a split's images lie

    @property
    def missed(self) -> bool:
        """Whether it may be an image of a split."""
        return self.in_split and self.reason in REMEDIES


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, lies in a hidden folder, or is a side file of a system."""
    return any(map(pictures.is_hidden, PurePosixPath(name).parts))


def why_left_out(archive: Files, name: str) -> str:
    """Why a file or link of an archive is no image to read; "" for a picture."""
    path = PurePosixPath(name)
    suffix, hidden = path.suffix.lower(), is_hidden(name)
    if name in archive.links:
        return LINK
    if not SIDE_FOLDERS.isdisjoint(path.parts):
        return HIDDEN
    if not hidden:
        if suffix in UNREAD_SUFFIXES:
            return UNREAD
        if has_picture_suffix(name):
            return ""
        if suffix in NESTED_SUFFIXES:
            return NESTED
    try:
        reason = _reason_by_content(archive, name)
    except BadInput:
        return DAMAGED
    return {"": HIDDEN_PICTURE, NO_PICTURE: HIDDEN}.get(reason, reason) if hidden else reason


def _reason_by_content(archive: Files, name: str) -> str:
    if archive.read(name, HEAD)[4:12] in HEIF_BRANDS:
        return UNREAD
    return "" if has_picture_content(partial(archive.read, name)) else NO_PICTURE


def summarise(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each reason: how many files of each ending, and the first names."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        by_reason.setdefault(item.reason, []).append(item.name)
    lines = []
    for reason, names in by_reason.items():
        endings = tally(PurePosixPath(name).suffix or "without ending" for name in names)
        lines.append(f"  {reason}: {endings} ({', '.join(shorten(names, NAMED))})")
    return lines


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """`2 other files left out`, then a line for each reason."""
    head = f"{plural(len(left_out), 'other file')} left out"
    return [f"{head}:", *summarise(left_out)] if left_out else [head]
