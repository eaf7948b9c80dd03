"""A dataset as the stages read it: the index, one row per image, and the images, decoded on access.

`pipeline/indexing` makes these two files from an archive; nothing downstream depends on it.
"""

import hashlib
import io
import re
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
    "row": pyarrow.int32(),  # of every label file
    "key": pyarrow.string(),  # split/path inside the split's folder; unique, unlike the file's name
    "pid": pyarrow.int32(),  # identity, from 1; 0 a distractor, -1 junk
    "camid": pyarrow.int16(),  # from 0; -1 unknown
    "split": pyarrow.string(),  # train, query or gallery
    "width": pyarrow.int32(),  # pixels, as displayed
    "height": pyarrow.int32(),
    "sha256": pyarrow.string(),  # of the file, as images.h5 holds it
}
SPLITS = ("train", "query", "gallery")
ValueRange = tuple[float, float]  # values of a deep picture that become 0 and 255
Crop = UInt8[np.ndarray, "_ _ 3"]  # height, width; crops of one batch differ in size

# what Pillow raises for bytes that are no image, or not a whole one
DECODE_ERRORS = (
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
# how Pillow calls channels of 16 bits, of which it reads the upper eight: a decoder, or the mode of its data
SIXTEEN_BITS = re.compile(r"SGI16|;16[BLN]$")
# of TIFF: tags with a value a channel, the value of signed samples, tag and value of channels stored apart
BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED, PLANES = 258, 339, 2, (284, 2)
# markers of JPEG segments: APP1 holds EXIF or XMP; byte 9 of a frame is its number of colour channels
APP1, START_OF_FRAME = b"\xff\xe1", (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2")


def read_index(path: str | Path) -> pd.DataFrame:
    """The index of a dataset, one row per image, ordered by split (train, query, gallery) and key.

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
    """Hex digest that label files carry, so that they are not read with another index.

    It covers key, identity, camera and bytes of every image, and their order.
    """
    columns = (index[name].tolist() for name in ("key", "pid", "camid", "sha256"))
    text = "\n".join("\t".join(map(str, row)) for row in zip(*columns, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


class Images:
    """The images of a dataset in the index's order: `images[i]` is (height, width, 3), RGB, 0 to 255.

    The file is opened on first use in each process, so an instance can be sent to workers.  Raises
    `BadInput` if the file is missing, damaged or belongs to another index.
    """

    def __init__(self, path: str | Path, index_hash: str | None = None):
        self._file = LabelFile(path, "images", index_hash)
        self._data, self._offset = self._file["data"], self._file["offset"][:]

    def __len__(self) -> int:
        return len(self._offset) - 1

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        blob = self._data[self._offset[i] : self._offset[i + 1]].tobytes()
        try:
            return decode_fast(blob)
        except DECODE_ERRORS as error:
            raise BadInput(
                f"{self._file.path}: the image in row {i} cannot be decoded{error_detail(error)}. "
                "Run `dvc repro`."
            ) from None


class DeepPicture(ValueError):
    """A picture of more than 8 bits a sample that cannot become bytes; the message says why."""


class NoRange(DeepPicture):
    """It is not stated which of its values are black and white; the message names its least and its most."""


def decode(blob: bytes, value_range: ValueRange | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to RGB, rotated upright by its EXIF tag; raises one of `DECODE_ERRORS`.

    A deep picture, such as a thermal one of 14 bits, needs a `value_range`: the values that become 0 and 255.
    What lies between is rounded, what lies beyond is clipped.  Raises `NoRange` without it, and `DeepPicture`
    for values that are no numbers and for files that are not read whole.
    """
    with Image.open(io.BytesIO(blob)) as file:
        image: Image.Image = file
        if is_deep(file):
            image = _to_bytes(_deep_samples(file, blob), file.getexif(), value_range)
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """A Pillow image as RGB, not rotated; raises one of `DECODE_ERRORS` if its file is damaged.

    Grey is repeated, CMYK and palettes are converted, transparency is dropped.  Raises `NoRange` for more
    than 8 bits a sample.
    """
    if is_deep(image):
        return to_rgb(_to_bytes(np.asarray(image), Image.Exif(), None))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def is_deep(image: Image.Image) -> bool:
    """Whether a Pillow image, not loaded yet, has more than 8 bits a sample, or signed ones.

    PPM, AVIF and colours of JPEG 2000 state themselves which value is white, and Pillow scales them by it.
    """
    tiles = getattr(image, "tile", ())  # how the file stores the pixels
    names = [
        str(n)
        for codec, *_, args in tiles
        for n in (codec, args if isinstance(args, str) else (args or [""])[0])
    ]
    tags = getattr(image, "tag_v2", {})
    in_bytes = max(tags.get(BITS_PER_SAMPLE, (8,))) <= 8 and SIGNED not in tags.get(SAMPLE_FORMAT, ())
    return image.mode[0] in "IF" or not in_bytes or any(map(SIXTEEN_BITS.search, names))


def _deep_samples(image: Image.Image, blob: bytes) -> np.ndarray:
    # (H, W) or (H, W, 3)
    pixels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "I" and SIGNED not in tags.get(SAMPLE_FORMAT, ()):
        return pixels.view(np.uint32)  # of 32 bits, whose upper half Pillow gives as negative numbers
    if image.mode[0] in "IF":
        return pixels
    samples = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR, perhaps with alpha
    in_planes = PLANES in tags.items()  # OpenCV takes them for interleaved channels
    if in_planes or samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise DeepPicture(f"samples of a form that is not read ({image.mode}); save them with 8 bits each")
    return samples[..., 2::-1]


def _to_bytes(samples: np.ndarray, exif: Image.Exif, value_range: ValueRange | None) -> Image.Image:
    infinite = np.count_nonzero(~np.isfinite(samples))
    if infinite:
        raise DeepPicture(f"values that are no numbers ({infinite} of {samples.size}); replace them")
    if value_range is None:
        raise NoRange(f"more than 8 bits a sample (values {samples.min():g} to {samples.max():g})")
    black, white = value_range
    levels = (samples.astype(np.float64) - black) * (255 / (white - black))
    image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    image.getexif().update(exif)
    return image


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An RGB image as a PNG file, which loses nothing."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def error_detail(error: Exception) -> str:
    """The text of one of `DECODE_ERRORS` in brackets, after a space; "" if it says nothing of use."""
    if isinstance(error, UnidentifiedImageError):  # its text is the address of an object
        return ""
    return f" ({' '.join(str(error).split())})"


def decode_fast(blob: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of `decode` in half the time, for image files that `decode` has accepted before.

    Plain JPEG files go through OpenCV's decoder, which gives the same pixels.  It accepts some damaged files
    that `decode` refuses.
    """
    image = None
    if _plain_jpeg(blob):
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB)
    return decode(blob) if image is None else image


def _plain_jpeg(blob: bytes) -> bool:
    """Whether a file is a JPEG of one or three channels without a tag that rotates it."""
    if not blob.startswith(b"\xff\xd8") or APP1 in blob:
        return False
    start = 2
    while (marker := blob[start : start + 2]).startswith(b"\xff") and marker not in START_OF_FRAME:
        start += 2 + int.from_bytes(blob[start + 2 : start + 4])
    return marker in START_OF_FRAME and blob[start + 9 : start + 10] in (b"\x01", b"\x03")


def resize_crops(crops: Sequence[Crop], size: tuple[int, int]) -> UInt8[np.ndarray, "B h w 3"]:
    """Crops of any shapes resized to `size` (height, width): bilinear, with antialiasing."""
    images = (Image.fromarray(crop) for crop in crops)
    return np.stack([np.asarray(i.resize(size[::-1], Image.Resampling.BILINEAR)) for i in images])
