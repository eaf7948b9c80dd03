"""Dataset layouts: from an archive's file names to images with split, identity and camera.

A layout is a file in `layouts/`, selected by its name.  It defines

    list_images(archive) -> Listing             every image of the dataset, and every problem
    COUNTS: dict[split, PublishedCount]         published sizes; empty for a layout of any dataset
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.core.params import plural, shorten
from pipeline.indexing import kinds
from pipeline.indexing.archive import Archive, Files

MARKET_NAME = re.compile(r"(-1|\d{1,9})_c([1-9]\d{0,3})(?=[s_])")
NUMBERED_NAME = re.compile(r"(\d{1,8})(?=[_.])")
RENAME = "Rename it, or list the images in a table (`layout: table`)"
OCCLUDED_PREFIX = "query/occluded/"  # of the keys of queries' occluded copies

PidCamid = tuple[int, int]
# path inside a split's folder -> identity and camera, or an error
NameParser = Callable[[str], PidCamid | str]


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """An image as its file name describes it."""

    name: str  # in the archive
    split: str  # train, val, query or gallery
    key: str  # split/path inside the split's folder
    pid: int  # 0 a distractor, -1 junk
    camid: int  # from 0; -1 unknown


@dataclasses.dataclass(frozen=True)
class PublishedCount:
    """Published size of a split without its junk; `None` if not published."""

    images: int
    identities: int | None  # without distractors
    cameras: int | None  # 0: the file names hold no camera


class Problem(NamedTuple):
    """Something that the user must repair before the dataset can be indexed."""

    place: str  # file, row or key; "" if it concerns the whole dataset
    message: str  # details in brackets

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message

    @property
    def kind(self) -> str:
        """The message without its place and without details in brackets: equal for problems of a kind."""
        message = self.message.replace(self.place, "") if self.place else self.message
        return message.partition(" (")[0]


@dataclasses.dataclass
class Listing:
    """What a layout lists.  Nothing is written while there are problems."""

    images: list[ImageEntry] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    left_out: list[kinds.LeftOut] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def leave_out(
        self,
        archive: Files,
        read: Collection[str],
        unlisted: str,
        is_in_split: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """List every file and link of the archive but those that were `read`, with the reason.

        `unlisted` is the reason for pictures; `is_in_split` says whether a split's images lie there.
        """
        for name in sorted({*archive.names, *archive.links}.difference(read)):
            reason = kinds.why_left_out(archive, name) or unlisted
            self.left_out.append(kinds.LeftOut(name, reason, is_in_split(name)))


# ------------------------------------------------------------------ identity and camera from a file name


def parse_market_name(path: str) -> PidCamid | str:
    """Identity and camera of `0002_c1s1_000451_03.jpg` or `0002_c1_f0046182.jpg`, or an error."""
    name = PurePosixPath(path).name
    match = MARKET_NAME.match(name)
    if match is None:
        return f"the name does not parse: {_market_fault(name)}; 0002_c1s1_000451_03.jpg would. {RENAME}"
    return int(match[1]), int(match[2]) - 1


def _market_fault(name: str) -> str:
    # the first piece of a name that is not as in Market-1501; the details in brackets
    identity = re.match(r"(-1|\d{1,9})(?!\d)", name)
    if identity is None:
        return "it does not begin with an identity (a number of up to 9 digits, or -1)"
    rest = name[identity.end() :]
    camera = re.match(r"_c(\d*)", rest)
    if camera is None:
        return f"`_c` and a camera must follow the identity ({rest!r} does)"
    if not re.fullmatch(r"[1-9]\d{0,3}", camera[1]):
        return f"a camera is a number from 1 to 9999 without zeros before it ({rest!r} has none)"
    return f"`s` or `_` must follow the camera ({rest[camera.end() :]!r} does)"


def parse_numbered_name(path: str) -> PidCamid | str:
    """Identity of `001_01.tif` or `001.jpg`, with an unknown camera, or an error."""
    match = NUMBERED_NAME.match(PurePosixPath(path).name)
    if match is None:
        return (
            "the name does not parse: it does not begin with a number and `_` or `.` (up to 8 digits); "
            f"001_01.jpg would. {RENAME}"
        )
    return int(match[1]), -1


# ------------------------------------------------------------------ one folder per split


def list_folders(archive: Archive, folders: Mapping[str, str], parse: NameParser) -> Listing:
    """List every image in these folders (last names of their paths -> split), which may lie below others."""
    listing = Listing()
    parents: dict[str, set[str]] = {}  # of each folder
    outside = f"outside {', '.join(f'{folder}/' for folder in folders)}"
    for name in sorted({*archive.names, *archive.links}):
        place = f"{name}/" if name in archive.links else name  # a link may stand for the folder itself
        parent, folder, path = _split_path(place, folders)
        reason = kinds.why_left_out(archive, name)
        if reason or not folder:
            listing.left_out.append(kinds.LeftOut(name, reason or outside, folder != ""))
            continue
        parents.setdefault(folder, set()).add(parent)
        _add_image(listing, name, folders[folder], _path_in_split(folder, folders, path), parse(path))
    for folder in folders:
        _check_folder(listing, archive, folder, parents.get(folder, set()))
    odd = [image.name for image in listing.images if not kinds.has_picture_suffix(image.name)]
    if odd:
        counted = f"{plural(len(odd), 'picture')} without a picture's ending, read by content"
        listing.notes.append(f"{counted}: {', '.join(shorten(odd))}")
    return listing


def _split_path(name: str, folders: Mapping[str, str]) -> tuple[str, str, str]:
    # a/b/query/x.jpg -> a/b, query, x.jpg
    parts = name.split("/")
    for end in range(len(parts) - 1, 0, -1):
        for folder in folders:
            start = end - folder.count("/") - 1
            if start >= 0 and "/".join(parts[start:end]) == folder:
                return "/".join(parts[:start]), folder, "/".join(parts[end:])
    return "", "", ""


def _path_in_split(folder: str, folders: Mapping[str, str], path: str) -> str:
    # two folders of one split may hold files of one name
    shared = list(folders.values()).count(folders[folder]) > 1
    return f"{PurePosixPath(folder).name}/{path}" if shared else path


def _add_image(listing: Listing, name: str, split: str, path: str, identity: PidCamid | str) -> None:
    if isinstance(identity, str):
        listing.problems.append(Problem(name, identity))
        return
    pid, camid = identity
    if pid < 1 and split != "gallery":
        meaning = "junk" if pid < 0 else "a distractor"
        message = f"identity {pid} means {meaning}, which only the gallery holds; number people from 1"
        listing.problems.append(Problem(name, message))
        return
    listing.images.append(ImageEntry(name, split, f"{split}/{path}", pid, camid))


def _check_folder(listing: Listing, archive: Archive, folder: str, parents: set[str]) -> None:
    if len(parents) > 1:
        places = ", ".join(f"{parent or '.'}/{folder}" for parent in sorted(parents))
        listing.problems.append(Problem("", f"{folder}/ is there more than once: {places}"))
    elif not parents and any(f"/{name}".endswith(f"/{folder}") for name in archive.folders):
        listing.problems.append(Problem("", f"{folder}/ holds no image"))
    elif not parents:
        last = PurePosixPath(folder).name.casefold()
        near = sorted(n for n in archive.folders if PurePosixPath(n).name.strip().casefold() == last)
        hint = f" (there is {', '.join(shorten([f'{name}/' for name in near]))}; rename it)" if near else ""
        listing.problems.append(Problem("", f"no folder {folder}/{hint}"))


def missing_images(list_name: str, names: list[str]) -> Problem:
    """The problem of a list that names files which the archive lacks."""
    return Problem(
        list_name,
        f"lists {plural(len(names), 'image')} that the archive lacks: {', '.join(shorten(names))}",
    )
