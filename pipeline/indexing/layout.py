"""What a layout finds in an archive.  Each layout is a file in `layouts/`, found by its name, with

find(archive) -> Found            every image, and what is wrong with the rest
COUNTS: dict[split, Count]        what is published of the set; none for a layout of any set
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.core.params import plural, shorten
from pipeline.indexing.archive import Archive

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
MARKET = re.compile(r"(-1|\d{1,9})_c([1-9]\d{0,3})(?=[s_])")
NUMBER = re.compile(r"(\d{1,8})(?=[_.])")
COPIES = "query/occluded/"  # keys of queries' occluded copies begin so

PersonCamera = tuple[int, int]  # identity and camera
Parse = Callable[
    [str], PersonCamera | str
]  # path inside a split's folder -> who, or what is wrong with the name


@dataclass(frozen=True)
class Picture:
    """An image, as far as its name tells."""

    name: str  # in the archive
    split: str  # train, val, query or gallery
    key: str  # split/path inside the split's folder
    pid: int  # 0 a distractor, -1 junk
    camid: int  # from 0; -1 unknown


@dataclass(frozen=True)
class Count:
    """What a split holds, junk left out; none is not published."""

    images: int
    identities: int | None  # distractors (identity 0) are none
    cameras: int | None  # 0: the files do not tell


class Fault(NamedTuple):
    """Something that a user must repair."""

    where: str  # file, row or key; "" if it is the whole set's
    what: str  # details in brackets

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    @property
    def kind(self) -> str:
        """What faults of a kind say alike: neither where they are nor what is in brackets."""
        return (self.what.replace(self.where, "") if self.where else self.what).partition(" (")[0]


@dataclass
class Listing:
    """A layout's findings; nothing is written while there are problems."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[Fault] = field(default_factory=list)
    ignored: int = 0  # files that are no images of the dataset


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image; hidden files and macOS's side files are not."""
    return is_own(name, IMAGES)


def is_own(name: str, kinds: Collection[str]) -> bool:
    """Whether a file is of one of these kinds (suffixes), and neither hidden nor a side file of macOS."""
    path = PurePosixPath(name)
    return path.suffix.lower() in kinds and not path.name.startswith(".") and path.parts[0] != "__MACOSX"


# ------------------------------------------------------------------ who a name tells


def market(inside: str) -> PersonCamera | str:
    """Identity and camera of `0002_c1s1_000451_03.jpg` or `0002_c1_f0046182.jpg`."""
    match = MARKET.match(PurePosixPath(inside).name)
    if match is None:
        return "the name does not parse; 0002_c1s1_000451_03.jpg would"
    return int(match[1]), int(match[2]) - 1


def numbered(inside: str) -> PersonCamera | str:
    """Identity of `001_01.tif` or `001.jpg`; the camera is unknown."""
    match = NUMBER.match(PurePosixPath(inside).name)
    if match is None:
        return "the name does not parse; 001_01.jpg would"
    return int(match[1]), -1


# ------------------------------------------------------------------ a folder a split


def by_folder(archive: Archive, folders: Mapping[str, str], parse: Parse) -> Listing:
    """Every image in the given folders (a path's last names: split); the folders may lie below others.

    What is in no such folder, and files that are no images (Thumbs.db), are left out and counted.
    """
    found, homes = Listing(), {}
    for name in archive.names:
        home, folder, inside = _split(name, folders)
        if not folder or not is_image(name):
            found.ignored += 1
            continue
        homes.setdefault(folder, set()).add(home)
        _add(found, name, folders[folder], _inside(folder, folders, inside), parse(inside))
    for folder in folders:
        _check_folder(found, archive, folder, homes.get(folder, set()))
    return found


def _split(name: str, folders: Mapping[str, str]) -> tuple[str, str, str]:
    # a/b/query/x.jpg -> a/b, query, x.jpg
    parts = name.split("/")
    for end in range(len(parts) - 1, 0, -1):
        for folder in folders:
            start = end - folder.count("/") - 1
            if start >= 0 and "/".join(parts[start:end]) == folder:
                return "/".join(parts[:start]), folder, "/".join(parts[end:])
    return "", "", ""


def _inside(folder: str, folders: Mapping[str, str], inside: str) -> str:
    # two folders of one split could hold files of one name
    shared = list(folders.values()).count(folders[folder]) > 1
    return f"{PurePosixPath(folder).name}/{inside}" if shared else inside


def _add(found: Listing, name: str, split: str, inside: str, who: PersonCamera | str) -> None:
    if isinstance(who, str):
        found.problems.append(Fault(name, who))
        return
    pid, camid = who
    if pid < 1 and split != "gallery":
        what = "junk" if pid < 0 else "a distractor"
        fault = f"identity {pid} means {what}, which only the gallery holds"
        found.problems.append(Fault(name, fault))
        return
    found.pictures.append(Picture(name, split, f"{split}/{inside}", pid, camid))


def _check_folder(found: Listing, archive: Archive, folder: str, homes: set[str]) -> None:
    if len(homes) > 1:
        places = ", ".join(f"{home or '.'}/{folder}" for home in sorted(homes))
        found.problems.append(Fault("", f"{folder}/ is there more than once: {places}"))
    elif not homes and any(f"/{name}".endswith(f"/{folder}") for name in archive.folders):
        found.problems.append(Fault("", f"{folder}/ holds no image"))
    elif not homes:
        found.problems.append(Fault("", f"no folder {folder}/"))


def absent(what: str, names: list[str]) -> Fault:
    """Files that a list names and the archive lacks."""
    return Fault(
        what, f"lists {plural(len(names), 'image')} that the archive lacks: {', '.join(shorten(names))}"
    )
