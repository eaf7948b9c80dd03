"""MSMT17 (Wei et al., CVPR 2018), V1 or V2 (faces masked), as in MSMT17_V1.tar.gz or MSMT17_V2.

    MSMT17_V1/list_train.txt     lines such as `0000/0000_000_01_0303morning_0015_0.jpg 0`: path, identity
    MSMT17_V1/list_val.txt       of the training identities; `index.validation` says where they go
    MSMT17_V1/list_query.txt, list_gallery.txt
    MSMT17_V1/train/0000/...     V2: mask_train_v2/
    MSMT17_V1/test/0000/...      V2: mask_test_v2/

The camera is the third number of a name.  The lists number the training identities from 0 and the test
identities from 0 again.  Here training identities are 1 to 1041 and test identities 1042 to 4101, because
identity 0 means a distractor.
"""

import re
from pathlib import PurePosixPath

from pipeline.indexing import kinds
from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import ImageEntry, Listing, Problem, PublishedCount, missing_images

FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
LISTS = {  # split: list, folder of its images, offset of its identities
    "train": ("list_train.txt", "train", 1),
    "val": ("list_val.txt", "train", 1),
    "query": ("list_query.txt", "test", 1042),
    "gallery": ("list_gallery.txt", "test", 1042),
}
COUNTS = {
    "train": PublishedCount(30248, 1041, 15),
    "val": PublishedCount(2373, None, None),
    "query": PublishedCount(11659, 3060, 15),
    "gallery": PublishedCount(82161, 3060, 15),
}
LINE = re.compile(r"(\S+)\s+(\d{1,6})")
CAMERA = re.compile(r"[^_]+_[^_]+_0*([1-9]\d{0,2})_")


def list_images(archive: Archive) -> Listing:
    """List the images that the four lists name."""
    listing, names = Listing(), set(archive.names)
    lists, splits = set(), set()  # files; folders
    for split, (title, side, offset) in LISTS.items():
        home = _parent(archive, title)
        if home is None:
            message = f"no {title} beside train/ and test/ (V2: mask_train_v2/, mask_test_v2/)"
            listing.problems.append(Problem("", message))
            continue
        folder = next((home / f for f in FOLDERS[side] if str(home / f) in archive.folders), None)
        if folder is None:
            message = f"no folder {' or '.join(f'{f}/' for f in FOLDERS[side])} beside {title}"
            listing.problems.append(Problem("", message))
            continue
        _read_list(listing, archive, home / title, folder, split, offset, names)
        lists.add(str(home / title))
        splits.add(f"{folder}/")
    listed = {image.name for image in listing.images}
    whole = not listing.problems  # else the pictures of a faulty list would be faults as well
    listing.leave_out(
        archive, listed | lists, kinds.UNLISTED, lambda name: whole and name.startswith(tuple(splits))
    )
    return listing


def _parent(archive: Archive, title: str) -> PurePosixPath | None:
    # folder of the list that lies highest
    paths = [PurePosixPath(name) for name in archive.names if PurePosixPath(name).name == title]
    return min(paths, key=lambda path: len(path.parts)).parent if paths else None


def _read_list(
    listing: Listing,
    archive: Archive,
    path: PurePosixPath,
    folder: PurePosixPath,
    split: str,
    offset: int,
    names: set[str],
) -> None:
    missing = []
    for number, line in enumerate(archive.read(str(path)).decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        camera = match and CAMERA.match(PurePosixPath(match[1]).name)
        if not camera:
            place = f"{path}, line {number}, {line!r}"
            listing.problems.append(Problem(place, "not like `0000/0000_000_01_0303morning_0015_0.jpg 0`"))
            continue
        name, key = str(folder / match[1]), f"{'train' if split == 'val' else split}/{match[1]}"
        if name in names:
            image = ImageEntry(name, split, key, int(match[2]) + offset, int(camera[1]) - 1)
            listing.images.append(image)
        else:
            missing.append(name)
    if missing:
        listing.problems.append(missing_images(str(path), missing))
