"""A dataset as the stages see it: the index, a row an image, and the pictures, decoded when asked for.

How an archive becomes these two files is told in `indexing.py`; nothing downstream depends on it.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput

COLUMNS = {
    "row": pyarrow.int32(),  # the place in every label file
    "key": pyarrow.string(),  # split/path inside the split's folder: unique, unlike the file's name
    "pid": pyarrow.int32(),  # identity; 0 a distractor, -1 junk
    "camid": pyarrow.int16(),  # from 0; -1 unknown
    "split": pyarrow.string(),  # train, query or gallery
    "width": pyarrow.int32(),  # pixels, as displayed
    "height": pyarrow.int32(),
    "sha256": pyarrow.string(),  # of the file
}
SPLITS = ("train", "query", "gallery")
Crop = UInt8[np.ndarray, "_ _ 3"]  # height, width; crops of one batch differ in size

# what Pillow raises for bytes that are no picture, or not a whole one
UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# how parts of a JPEG file begin: APP1, which holds EXIF or XMP; frames, whose tenth byte counts the colours
APP1, FRAMES = b"\xff\xe1", (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2")


def read_index(path: str | Path) -> pd.DataFrame:
    """The index of a dataset, a row an image: train, query, gallery; by key within each.

    Raises `BadInput` if the file is missing, damaged or no index.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file. Run `dvc repro`, or `dvc pull` to fetch it.")
    try:
        index = pyarrow.parquet.read_table(path).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: no readable index ({error}). Run `dvc repro`, or `dvc pull`.") from None
    if list(index.columns) != list(COLUMNS):
        raise BadInput(f"{path}: has columns {list(index.columns)}, not {list(COLUMNS)}. Run `dvc repro`.")
    return index


def index_hash(index: pd.DataFrame) -> str:
    """Hex digest that label files carry, so that they are never read with another index.

    It covers what is labelled and in which order: key, identity, camera and bytes of every image.
    """
    columns = (index[name].tolist() for name in ("key", "pid", "camid", "sha256"))
    text = "\n".join("\t".join(map(str, row)) for row in zip(*columns, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


class Images:
    """The pictures of a dataset in index order: `images[i]` is (height, width, 3), RGB, 0 to 255.

    Opened on first use in each process, so it can be handed to workers.  Raises `BadInput` if the file
    is missing, damaged or belongs to another index.
    """

    def __init__(self, path: str | Path, index_hash: str | None = None):
        self._rows = LabelFile(path, "images", index_hash)
        self._data, self._offset = self._rows["data"], self._rows["offset"][:]

    def __len__(self) -> int:
        return len(self._offset) - 1

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        blob = self._data[self._offset[i] : self._offset[i + 1]].tobytes()
        try:
            return decode_again(blob)
        except UNDECODABLE as error:
            raise BadInput(
                f"{self._rows.path}: the image in row {i} cannot be decoded{decode_error(error)}. "
                "Run `dvc repro`."
            ) from None


def decode(blob: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """An image file's bytes as RGB, turned upright by its EXIF tag; raises one of `UNDECODABLE`."""
    with Image.open(io.BytesIO(blob)) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """An image of Pillow as RGB, not turned; raises one of `UNDECODABLE` if its file is damaged.

    Gray is repeated, CMYK and palettes are converted, transparency is dropped; 16-bit samples keep their
    upper eight bits.
    """
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        gray = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_error(error: Exception) -> str:
    """What one of `UNDECODABLE` tells beside that there is no picture, in brackets; "" for nothing."""
    if isinstance(error, UnidentifiedImageError):  # it names an object in memory
        return ""
    return f" ({' '.join(str(error).split())})"


def decode_again(blob: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """What `decode` makes of an image file's bytes that it has read before, in half the time where it can.

    Plain JPEG files take OpenCV's decoder, which gives the same pixels.  It also lets pass some damage that
    `decode` refuses, so files that nobody has checked are not for it.
    """
    image = None
    if _plain_jpeg(blob):
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB)
    return decode(blob) if image is None else image


def _plain_jpeg(blob: bytes) -> bool:
    """Whether a file is a JPEG of gray or three colours that no tag turns."""
    if not blob.startswith(b"\xff\xd8") or APP1 in blob:
        return False
    at = 2
    while (begin := blob[at : at + 2]).startswith(b"\xff") and begin not in FRAMES:
        at += 2 + int.from_bytes(blob[at + 2 : at + 4])
    return begin in FRAMES and blob[at + 9 : at + 10] in (b"\x01", b"\x03")


def resize_crop(crops: Sequence[Crop], size: tuple[int, int]) -> UInt8[np.ndarray, "B h w 3"]:
    """Every crop at `size` (height, width), whatever its shape was: bilinear, averaging where it shrinks."""
    wanted = size[::-1]
    images = (Image.fromarray(crop) for crop in crops)
    return np.stack([np.asarray(i.resize(wanted, Image.Resampling.BILINEAR)) for i in images])
