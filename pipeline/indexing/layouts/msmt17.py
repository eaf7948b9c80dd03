"""MSMT17 (Wei et al., CVPR 2018), V1 or V2 (faces masked), as in MSMT17_V1.tar.gz or MSMT17_V2.

    MSMT17_V1/list_train.txt     lines such as `0000/0000_000_01_0303morning_0015_0.jpg 0`: path, identity
    MSMT17_V1/list_val.txt       of the training identities; `index.validation` says where they go
    MSMT17_V1/list_query.txt, list_gallery.txt
    MSMT17_V1/train/0000/...     V2: mask_train_v2/
    MSMT17_V1/test/0000/...      V2: mask_test_v2/

The camera is the third number of a name.  Identities start at 0 among the training people and at 0 again
among those of the test: here training people are 1 to 1041, the others 1042 to 4101, and nobody is 0.
"""

import re
from pathlib import PurePosixPath

from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Fault, Listing, Picture, absent

FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
LISTS = {  # split: list, folder of its images, what is added to its identities
    "train": ("list_train.txt", "train", 1),
    "val": ("list_val.txt", "train", 1),
    "query": ("list_query.txt", "test", 1042),
    "gallery": ("list_gallery.txt", "test", 1042),
}
COUNTS = {
    "train": Count(30248, 1041, 15),
    "val": Count(2373, None, None),
    "query": Count(11659, 3060, 15),
    "gallery": Count(82161, 3060, 15),
}
LINE = re.compile(r"(\S+)\s+(\d{1,6})")
CAMERA = re.compile(r"[^_]+_[^_]+_0*([1-9]\d{0,2})_")


def find(archive: Archive) -> Listing:
    """Every image that the four lists name, and what is wrong with them."""
    found, names = Listing(), set(archive.names)
    for split, (title, side, offset) in LISTS.items():
        home = _home(archive, title)
        if home is None:
            fault = f"no {title} beside train/ and test/ (V2: mask_train_v2/, mask_test_v2/)"
            found.problems.append(Fault("", fault))
            continue
        folder = next((home / f for f in FOLDERS[side] if str(home / f) in archive.folders), None)
        if folder is None:
            fault = f"no folder {' or '.join(f'{f}/' for f in FOLDERS[side])} beside {title}"
            found.problems.append(Fault("", fault))
            continue
        _read(found, archive, home / title, folder, split, offset, names)
    listed = {picture.name for picture in found.pictures}
    found.ignored = sum(name not in listed for name in archive.names)
    return found


def _home(archive: Archive, title: str) -> PurePosixPath | None:
    places = [PurePosixPath(name) for name in archive.names if PurePosixPath(name).name == title]
    return min(places, key=lambda path: len(path.parts)).parent if places else None


def _read(
    found: Listing,
    archive: Archive,
    listing: PurePosixPath,
    folder: PurePosixPath,
    split: str,
    offset: int,
    names: set[str],
) -> None:
    missing = []
    for number, line in enumerate(archive.read(str(listing)).decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        camera = match and CAMERA.match(PurePosixPath(match[1]).name)
        if not camera:
            where = f"{listing}, line {number}, {line!r}"
            found.problems.append(Fault(where, "not like `0000/0000_000_01_0303morning_0015_0.jpg 0`"))
            continue
        name, key = str(folder / match[1]), f"{'train' if split == 'val' else split}/{match[1]}"
        if name in names:
            picture = Picture(name, split, key, int(match[2]) + offset, int(camera[1]) - 1)
            found.pictures.append(picture)
        else:
            missing.append(name)
    if missing:
        found.problems.append(absent(str(listing), missing))
