"""The layout of Market-1501, which most re-identification sets share.

    bounding_box_train/0002_c1s1_000451_03.jpg     train    identity 2, first camera
    query/                                         query
    bounding_box_test/                             gallery; identity 0 is a distractor, -1 junk

The folders may lie below others.  What is in no such folder, and files that are no images (Thumbs.db),
are left out and counted.
"""

import re
from pathlib import PurePosixPath

from pipeline.datasets.archive import Archive
from pipeline.datasets.found import Found, Picture, is_image

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
NAME = re.compile(r"(-1|\d{1,9})_c([1-9]\d{0,3})(?=[s_])")


def find(archive: Archive) -> Found:
    """Every image of the three folders, and what is wrong with the rest."""
    found, homes = Found(), {}
    for name in archive.names:
        home, folder, inside = _split(name)
        if not folder or not is_image(name):
            found.ignored += 1
            continue
        homes.setdefault(folder, set()).add(home)
        _add(found, name, FOLDERS[folder], inside)
    for folder in FOLDERS:
        _check_folder(found, archive, folder, homes.get(folder, set()))
    return found


def _split(name: str) -> tuple[str, str, str]:
    # a/b/query/x.jpg -> a/b, query, x.jpg
    parts = name.split("/")
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in FOLDERS:
            return "/".join(parts[:i]), parts[i], "/".join(parts[i + 1 :])
    return "", "", ""


def _add(found: Found, name: str, split: str, inside: str) -> None:
    match = NAME.match(PurePosixPath(inside).name)
    if match is None:
        found.problems.append(f"{name}: the name does not parse; 0002_c1s1_000451_03.jpg would")
        return
    pid = int(match[1])
    if pid < 1 and split != "gallery":
        what = "junk" if pid < 0 else "a distractor"
        found.problems.append(f"{name}: identity {pid} means {what}, which only the gallery holds")
        return
    found.pictures.append(Picture(name, split, f"{split}/{inside}", pid, int(match[2]) - 1))


def _check_folder(found: Found, archive: Archive, folder: str, homes: set[str]) -> None:
    if len(homes) > 1:
        places = ", ".join(f"{home or '.'}/{folder}" for home in sorted(homes))
        found.problems.append(f"{folder}/ is there more than once: {places}")
    elif not homes and any(PurePosixPath(name).name == folder for name in archive.folders):
        found.problems.append(f"{folder}/ holds no image")
    elif not homes:
        found.problems.append(f"no folder {folder}/")
