"""Probing every image file of a dataset, in several processes: size and hash, or why it is unusable."""

import dataclasses
import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from pipeline.core.params import BadInput
from pipeline.core.workers import num_cores, progress_bar
from pipeline.data.index import DECODE_ERRORS, decode, error_detail
from pipeline.indexing.layout import ImageEntry

PROBE_BATCH = 256  # images in one task of a worker
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")  # how image files begin

T = TypeVar("T")
U = TypeVar("U")


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Size and hash of an image file."""

    width: int  # pixels, as displayed
    height: int
    size: int  # bytes
    sha256: str


def probe_files(
    path: str, images: list[ImageEntry], read: Callable[[ImageEntry], bytes], workers: int
) -> Iterator[FileInfo | str]:
    """The `FileInfo` of each image of the archive `path`, or what is wrong with it, in order.

    Files are read here, in order, and decoded by `workers` processes; 0 means one per core.
    """
    workers = min(workers or num_cores(), -(-len(images) // PROBE_BATCH))
    blobs = (_read_or_error(read, image) for image in images)
    with progress_bar(total=len(images), desc=Path(path).name) as bar:
        for infos in _parallel_map(_probe_batch, _batched(blobs), workers):
            bar.update(len(infos))
            yield from infos


def _read_or_error(read: Callable[[ImageEntry], bytes], image: ImageEntry) -> bytes | str:
    try:
        return read(image)
    except BadInput as error:
        return str(error)


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
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        queue: deque = deque()
        for batch in batches:
            queue.append(pool.submit(function, batch))
            if len(queue) > 2 * workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def _probe_batch(blobs: list[bytes | str]) -> list[FileInfo | str]:
    return [blob if isinstance(blob, str) else probe(blob) for blob in blobs]


def probe(blob: bytes) -> FileInfo | str:
    """Size and hash of an image file, or what is wrong with it."""
    if not blob:
        return "an empty file"
    try:
        height, width, _ = decode(blob).shape
    except DECODE_ERRORS as error:
        fault = "cut off or damaged" if blob.startswith(SIGNATURES) else "no image"
        return fault + error_detail(error)
    return FileInfo(width, height, len(blob), hashlib.sha256(blob).hexdigest())
