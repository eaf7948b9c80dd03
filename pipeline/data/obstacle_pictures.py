"""Folders of obstacles: cut-outs, which are pictures with alpha, and patches, which are opaque pictures."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pipeline.core.params import BadInput, plural, shorten
from pipeline.data.index import DECODE_ERRORS, error_detail, is_deep
from pipeline.data.obstacles import Obstacle, Obstacles
from pipeline.data.pictures import expand, is_picture


class Kind(NamedTuple):
    """What a folder of obstacles holds, in the words of its messages."""

    name: str
    content: str
    format: str


KINDS = {
    "cutout": Kind("cut-out", "pictures with alpha", "PNG with transparency"),
    "patch": Kind("obstacle", "opaque pictures", "JPEG"),
}
PictureSource = Literal["cutout", "patch"]
Pictures = Mapping[str, Sequence[Obstacle]]  # of each source that has a folder


def folders(params: Obstacles) -> dict[PictureSource, str]:
    """The folder of each source that has one."""
    named: dict[PictureSource, str] = {"cutout": params.cutouts, "patch": params.patches}
    return {source: folder for source, folder in named.items() if folder}


def read_folders(params: Obstacles) -> Pictures:
    """The pictures of each source that has a folder; raises `BadInput` as `read_pictures`."""
    return {source: read_pictures(source, folder) for source, folder in folders(params).items()}


def read_pictures(source: PictureSource, folder: str) -> list[Obstacle]:
    """The pictures below a folder as obstacles, ordered by path; solid where alpha is at least one half.

    Raises `BadInput` if there is none, or that lists all that are not what the source needs.  [] for "".
    """
    pictures, faults, kind = [], [], KINDS[source]
    for file in picture_files(source, folder)[0] if folder else []:
        try:
            pictures.append(_read_picture(source, file))
        except DECODE_ERRORS as error:
            faults.append(f"{file}: no {kind.name}{error_detail(error)}. Save it as {kind.format}.")
    if faults:
        raise BadInput("\n".join(shorten(faults)))
    return pictures


def digest(source: PictureSource, folder: str) -> str:
    """Hex digest of the pictures below a folder, ordered by path; raises `BadInput` if there is none."""
    hashes = [hashlib.sha256(file.read_bytes()).digest() for file in picture_files(source, folder)[0]]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def picture_files(source: PictureSource, folder: str) -> tuple[list[Path], list[Path]]:
    """The pictures at any depth below a folder, and its other files; both without hidden ones.

    Raises `BadInput` if the folder is missing or holds no picture.
    """
    name, content, file_format = KINDS[source]
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: no such folder. Put {name}s there, {content}, or name another.")
    files, _ = expand(folder)
    is_one = {file: is_picture(file) for file in files}
    pictures, others = ([Path(file) for file in files if is_one[file] is wanted] for wanted in (True, False))
    if not pictures:
        names = ", ".join(shorten([file.name for file in others])) or "no file"
        raise BadInput(
            f"{folder}: no picture in it or below it, but {names}. Put {name}s there, as {file_format}, or "
            "do without them."
        )
    return pictures, others


def describe_folder(source: PictureSource, folder: str) -> list[str]:
    """A line about a folder: its number of pictures, and the files that are none; no line for ""."""
    if not folder:
        return []
    pictures, others = picture_files(source, folder)
    names = ", ".join(shorten([str(file.relative_to(folder)) for file in others]))
    left_out = f"; {plural(len(others), 'other file')} left out: {names}" if others else ""
    return [f"{folder}: {plural(len(pictures), KINDS[source].name)}{left_out}"]


def _read_picture(source: PictureSource, file: Path) -> Obstacle:
    with Image.open(file) as image:
        has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
        if is_deep(image):
            raise ValueError("more than 8 bits a sample")
        array = np.asarray(image.convert("RGBA"))
    solid = array[..., 3] >= 128
    if source == "patch" and (array[..., 3] < 255).any():
        raise ValueError("transparent pixels")
    if source == "cutout" and not has_alpha:
        raise ValueError("no alpha channel")
    if not solid.any():
        raise ValueError("no solid pixel")
    return Obstacle(array[..., :3].copy(), solid)
