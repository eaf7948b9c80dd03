"""Probing every image file of a dataset, in several processes: size, hash and oddities, or its fault.

A picture of more than 8 bits a sample becomes a PNG file of 8 here, so that no later stage meets one.
"""

import dataclasses
import functools
import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.core.params import BadInput
from pipeline.core.workers import WorkerPool, num_cores, progress_bar
from pipeline.data.index import (
    DECODE_ERRORS,
    DeepPicture,
    NoRange,
    ValueRange,
    decode,
    encode_png,
    error_detail,
    is_deep,
)
from pipeline.indexing.layout import ImageEntry

PROBE_BATCH = 256  # images in one task of a worker
# how image files begin
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8")
FEW_LEVELS = 32  # of 256

# what the pixels of a usable picture may not mean
DEEP = "of more than 8 bits a sample, stored with 8 by `index.range`"
FEW = f"of {FEW_LEVELS} levels or fewer"
CLIPPED = "in which most samples are 0 or 255"
TRANSPARENT = "with transparent pixels, taken in the colours that lie below them"
CMYK = "in CMYK, converted without a colour profile"
FRAMES = "of several frames, of which the first is taken"

T = TypeVar("T")
U = TypeVar("U")


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Size, hash and oddities of an image file."""

    width: int  # pixels, as displayed
    height: int
    size: int  # bytes, as stored
    sha256: str
    deep: bool  # whether it is stored as another file, of 8 bits a sample
    oddities: tuple[str, ...]


def probe_files(
    path: str,
    images: list[ImageEntry],
    read: Callable[[ImageEntry], bytes],
    workers: int,
    value_range: ValueRange | None = None,
) -> Iterator[FileInfo | str]:
    """The `FileInfo` of each image of the archive `path`, or what is wrong with it, in order.

    Files are read here, in order, and decoded by `workers` processes; 0 means one per core.  `value_range` is
    that of pictures of more than 8 bits a sample (`decode`).
    """
    workers = min(workers or num_cores(), -(-len(images) // PROBE_BATCH))
    blobs = (_read_or_error(read, image) for image in images)
    with progress_bar(total=len(images), desc=Path(path).name) as bar:
        probe_batch = functools.partial(_probe_batch, value_range)
        for infos in _parallel_map(probe_batch, _batched(blobs), workers):
            bar.update(len(infos))
            yield from infos


def _read_or_error(read: Callable[[ImageEntry], bytes], image: ImageEntry) -> bytes | str:
    try:
        return read(image)
    except BadInput as error:
        return str(error).split(f"{image.name} ", 1)[-1]  # the problem's place names the file


def _batched(items: Iterable[T]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == PROBE_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _parallel_map(function: Callable[[T], U], batches: Iterator[T], workers: int) -> Iterator[U]:
    """`map` over processes, in order; takes at most two batches per worker ahead."""
    if workers < 2:
        yield from map(function, batches)
        return
    with WorkerPool(workers) as pool:
        queue: deque = deque()
        for batch in batches:
            queue.append(pool.submit(function, batch))
            if len(queue) > 2 * workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def _probe_batch(value_range: ValueRange | None, blobs: list[bytes | str]) -> list[FileInfo | str]:
    return [blob if isinstance(blob, str) else probe(blob, value_range) for blob in blobs]


def probe(blob: bytes, value_range: ValueRange | None = None) -> FileInfo | str:
    """Size, hash and oddities of an image file, or what is wrong with it."""
    if not blob:
        return "an empty file"
    fault = "cut off or damaged" if blob.startswith(SIGNATURES) else "no image"
    try:
        with Image.open(io.BytesIO(blob)) as image:
            fault, deep = "cut off or damaged", is_deep(image)
            oddities = [*_file_oddities(image)]
        pixels = decode(blob, value_range)
    except NoRange as error:
        deep_by, _, values = str(error).partition(" (")
        return f"{deep_by}; state in `index.range` which values are black and white ({values}"
    except DeepPicture as error:
        return str(error)
    except UnidentifiedImageError:
        return f"{fault}, or of a kind that Pillow does not read" if fault != "no image" else fault
    except DECODE_ERRORS as error:
        return fault + error_detail(error)
    stored = encode_png(pixels) if deep else blob
    height, width, _ = pixels.shape
    oddities += _pixel_oddities(pixels)
    return FileInfo(width, height, len(stored), hashlib.sha256(stored).hexdigest(), deep, tuple(oddities))


def _file_oddities(image: Image.Image) -> Iterator[str]:
    if is_deep(image):
        yield DEEP
    if image.mode == "CMYK":
        yield CMYK
    if getattr(image, "is_animated", False):
        yield FRAMES
    has_alpha = image.mode.endswith(("A", "a")) or "transparency" in image.info
    if has_alpha and image.mode[0] not in "IF" and np.asarray(image.convert("RGBA"))[..., 3].min() < 128:
        yield TRANSPARENT


def _pixel_oddities(pixels: UInt8[np.ndarray, "H W 3"]) -> Iterator[str]:
    counts = np.bincount(pixels.ravel(), minlength=256)
    if np.count_nonzero(counts) <= FEW_LEVELS:
        yield FEW
    if counts[0] + counts[255] > pixels.size / 2:
        yield CLIPPED
