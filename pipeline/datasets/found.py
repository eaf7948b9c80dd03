"""What a layout finds in an archive; each layout is a file beside this one with a function `find`."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Picture:
    """An image, as far as its name tells."""

    name: str  # in the archive
    split: str
    key: str  # split/path inside the split's folder
    pid: int  # 0 a distractor, -1 junk
    camid: int  # from 0; -1 unknown


@dataclass
class Found:
    """A layout's findings; nothing is written while there are problems."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what a user must repair, a line each
    ignored: int = 0  # files that are no images of the dataset


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image; hidden files and macOS's side files are not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.parts[0] != "__MACOSX"
