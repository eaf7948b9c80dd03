"""A folder of pictures made into a gallery file, or such a file brought up to date.

Unusual here:
- A run that is killed continues from its finished shards, which are small gallery files in `.scratch/`
  beside the file.  They are read as an earlier gallery is: a picture is embedded only if no row has its name,
  size and time.
- The file is written anew, as a whole, unless nothing changed: a search that reads the old one goes on.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from pipeline.core.files import check_file_path
from pipeline.core.label_file import Arrays
from pipeline.core.params import BadInput, plural
from pipeline.core.resumable import resumable_folder
from pipeline.core.workers import progress_bar
from pipeline.inference.api import find_pictures
from pipeline.search import gallery_file
from pipeline.search.embedder import Embedder
from pipeline.search.gallery import Gallery
from pipeline.search.gallery_file import GalleryFile, LeftOut

SHARD_ROWS, MAX_SHARDS = 256, 128  # pictures of the smallest shard, which is what a kill loses
BLOCK = 1024  # rows that are copied at a time


@dataclass(frozen=True)
class Indexed:
    """What `index` did."""

    count: int  # rows of the gallery
    added: int  # pictures embedded that were not in it, or were changed
    removed: int  # rows of pictures that are gone, or were changed
    left_out: list[LeftOut]  # pictures that cannot be used: in the file, too
    others: list[str]  # paths below the folder that are no pictures, or hidden


@dataclass(frozen=True)
class _Listing:
    """The pictures below a folder in the order of their names, and what tells that one is changed."""

    root: Path
    names: list[str]
    size: Int[np.ndarray, "N"]  # bytes; -1 where there is no file
    changed: Int[np.ndarray, "N"]  # nanoseconds

    @classmethod
    def of(cls, root: Path, files: Iterable[str]) -> "_Listing":
        names = sorted(os.path.relpath(file, root) for file in files)
        stamps = np.array([_stamp(root / name) for name in names], np.int64).reshape(-1, 2)
        return cls(root, names, stamps[:, 0], stamps[:, 1])

    def rows_in(self, paths: Sequence[Path]) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """For each picture, which gallery file has it unchanged, -1 for none, and its row there."""
        place = {name: number for number, name in enumerate(self.names)}
        source, row = np.full((2, len(self.names)), -1)
        for n, path in enumerate(paths):
            with closing(GalleryFile(path)) as file:
                names = file.texts("name")
                if not names:  # nor any other dataset
                    continue
                size, changed = file["size"][:], file["changed"][:]
            at = np.array([place.get(name, -1) for name in names])
            same = (at >= 0) & (size == self.size[at]) & (changed == self.changed[at])
            source[at[same]], row[at[same]] = n, np.flatnonzero(same)
        return source, row

    def choose(self, chosen: Bool[np.ndarray, "N"]) -> "_Listing":
        names = [self.names[n] for n in np.flatnonzero(chosen)]
        return _Listing(self.root, names, self.size[chosen], self.changed[chosen])


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # which `decode` will name
        return -1, -1
    return status.st_size, status.st_mtime_ns


def index(
    folder: str | Path, embedder: Embedder, out: str | Path, model: str | Path, pattern: str = ""
) -> Indexed:
    """Embed all pictures below a folder into a gallery file; if there is one, only those new or changed.

    Rows of pictures that are gone are dropped.  Pictures that cannot be used are left out and listed; they
    are tried again each time.  `model` is the folder to record, `pattern` a regular expression whose group
    finds the camera in a picture's path.  Shows progress.  Raises `BadInput` for a folder without a picture,
    if none can be used, and for a file of another folder or model, or of pictures embedded otherwise.
    """
    check_file_path(out)
    _check_pattern(pattern)
    root, out = Path(os.path.abspath(folder)), Path(out)
    if not root.is_dir():
        raise BadInput(f"{folder}: no such folder. Name the folder of the pictures.")
    before = Gallery(out) if out.exists() else None
    if before is not None:
        _check_same(before, embedder, root)
    files, others = find_pictures(root)
    listing = _Listing.of(root, map(str, files))
    source = {"root": str(root), "model": os.path.abspath(model), "pattern": pattern}
    attrs = embedder.attrs | {"source": source}
    known = [] if before is None else [out]
    with resumable_folder("gallery", [out.name, attrs], root=out.parent) as scratch:
        _embed_missing(listing, embedder, known, scratch, attrs)
        shards = sorted(scratch.glob("*.h5"))
        paths = [*known, *shards]
        found, row = listing.rows_in(paths)
        good = found >= 0
        reasons = dict(fault for shard in shards for fault in Gallery(shard).left_out)
        left_out = [(name, reasons[name]) for name in listing.choose(~good).names]
        if not good.any():
            name, reason = left_out[0]
            none = f"none of {plural(len(left_out), 'picture')} can be used"
            raise BadInput(f"{folder}: {none}. The first is {name} ({reason}).")
        added = int((found >= len(known)).sum())
        removed = 0 if before is None else len(before) - int((good & (found < len(known))).sum())
        stays = before is not None and not added + removed and before.attrs["source"] == source
        if not (stays and before.left_out == left_out):
            _merge(out, listing.choose(good), paths, found[good], row[good], attrs, left_out)
    return Indexed(int(good.sum()), added, removed, left_out, others)


def _check_pattern(pattern: str) -> None:
    try:
        if pattern and not re.compile(pattern).groups:
            raise BadInput(f"--pattern {pattern!r}: has no group. Put the camera in brackets: 'cam(\\d+)'.")
    except re.error as error:
        raise BadInput(f"--pattern {pattern!r}: no regular expression ({error}). Correct it.") from None


def _check_same(gallery: Gallery, embedder: Embedder, root: Path) -> None:
    embedder.check(gallery)
    if gallery.root != root and gallery.root.is_dir():  # else it was moved
        raise BadInput(f"{gallery.path}: holds the pictures of {gallery.root}. Index into another file.")


def _embed_missing(
    listing: _Listing, embedder: Embedder, known: list[Path], scratch: Path, attrs: dict[str, Any]
) -> None:
    """Write shards of the pictures that are in no file yet; those that failed before are tried last."""
    shards = sorted(scratch.glob("*.h5"))
    source, _ = listing.rows_in([*known, *shards])
    failed = {name for shard in shards for name, _ in Gallery(shard).left_out}
    missing = listing.choose(source < 0)
    again = np.array([name in failed for name in missing.names], bool)
    step = max(SHARD_ROWS, -(-len(listing.names) // MAX_SHARDS))
    number = len(shards)
    with progress_bar(total=len(listing.names), initial=int((source >= 0).sum()), desc="index") as bar:
        for part in (missing.choose(~again), missing.choose(again)):
            for start in range(0, len(part.names), step):
                chosen = np.zeros(len(part.names), bool)
                chosen[start : start + step] = True
                _write_shard(scratch / f"{number:09d}.h5", part.choose(chosen), embedder, attrs, bar)
                number += 1


def _write_shard(path: Path, listing: _Listing, embedder: Embedder, attrs: dict[str, Any], bar: tqdm) -> None:
    place = {name: number for number, name in enumerate(listing.names)}
    blocks: list[tuple[list[str], Arrays]] = []
    left_out: list[LeftOut] = []
    for names, images, faults in embedder.decode(listing.names, listing.root):
        left_out += faults
        if names:
            rows = [place[name] for name in names]
            stamps = {"size": listing.size[rows], "changed": listing.changed[rows]}
            blocks.append((names, embedder.arrays(images) | stamps))
        bar.update(len(names) + len(faults))
    with gallery_file.create(path, sum(len(names) for names, _ in blocks), attrs, left_out) as append:
        for block in blocks:
            append(*block)


def _merge(
    out: Path,
    listing: _Listing,
    paths: Sequence[Path],
    source: Int[np.ndarray, "N"],
    row: Int[np.ndarray, "N"],
    attrs: dict[str, Any],
    left_out: list[LeftOut],
) -> None:
    """Write the gallery: picture n is row row[n] of the file source[n]."""
    with gallery_file.create(out, len(listing.names), attrs, left_out) as append:
        for start in range(0, len(listing.names), BLOCK):
            block = slice(start, start + BLOCK)
            append(listing.names[block], _gather(paths, source[block], row[block]))


def _gather(paths: Sequence[Path], source: Int[np.ndarray, "n"], row: Int[np.ndarray, "n"]) -> Arrays:
    arrays: Arrays = {}
    for n in np.unique(source):
        with closing(GalleryFile(paths[n])) as file:
            here = source == n
            for name, rows in _read_rows(file, row[here]):
                if name not in arrays:
                    arrays[name] = np.empty((len(source), *rows.shape[1:]), rows.dtype)
                arrays[name][here] = rows
    return arrays


def _read_rows(file: GalleryFile, rows: Int[np.ndarray, "n"]) -> Iterator[tuple[str, np.ndarray]]:
    for name in gallery_file.IN_ONE_PIECE:
        if name in file:
            yield name, file.mapped(name)[rows]
    if "map" in file:
        yield "map", np.stack([file["map"][row] for row in rows])
