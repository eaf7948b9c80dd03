"""An archive of person crops -> its index, its pictures in one file, and its truth if it brings one.

Everything is looked at before anything is written: what is wrong is reported together, a line each.
"""

import hashlib
import importlib
import io
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Literal

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
from pydantic.dataclasses import dataclass as parameters

from pipeline.core.files import atomic_write
from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.core.workers import num_cores, progress_bar
from pipeline.data.index import COLUMNS, SPLITS, UNDECODABLE, decode, decode_error, index_hash
from pipeline.indexing import query_checks
from pipeline.indexing.archive import Archive, packing
from pipeline.indexing.layout import Fault, Picture
from pipeline.indexing.occluded_queries import Occlude, Queries

TRUTH = "truth.h5"
AT_ONCE = 256  # images handed to a worker
SHOWN = 8  # names that tell what an archive holds instead


@parameters(frozen=True, config=STRICT)
class Index:
    """What becomes a row."""

    junk: Literal["drop", "keep"]  # images of identity -1, which ranking leaves out in either case
    validation: Literal["train", "drop"]  # images that a set keeps for validation (MSMT17's list_val)
    counts: Literal["refuse", "warn"]  # what to do with a set that is not as published
    occlude: Occlude  # queries made of real ones


@dataclass(frozen=True)
class Indexed:
    """A dataset that passed every check; rows, blobs, sizes and truth are in one order."""

    index: pd.DataFrame
    names: list[str]  # of the images in the archive
    blobs: Callable[[], Iterator[bytes]]  # the images' files
    sizes: np.ndarray  # of the images, bytes
    truth: dict[str, np.ndarray]  # empty if the archive brings none
    pasted: dict[str, np.ndarray]  # what covers the occluded copies of queries; empty without
    ignored: int  # files that are no images of the dataset
    dropped: int  # images of identity -1 or kept for validation
    warnings: list[str] = field(default_factory=list)

    @property
    def hash(self) -> str:
        return index_hash(self.index)


def build_index(
    archive: Archive, layout: str, options: Index, workers: int = 0, occlude: bool = False
) -> Indexed:
    """Find, check and order every image of a dataset; `workers` 0 means one a core.

    With `occlude`, every query gets an occluded copy.

    Raises `BadInput` that lists everything wrong: folders missing or empty, names that do not parse,
    keys that occur twice, files that are no images or are cut off, truth for other images, queries that
    none could answer, counts that are not the published ones.
    """
    reader = load(layout)
    found = reader.find(archive)
    pictures = [_joined(p, options.validation) for p in found.pictures]
    kept = [p for p in pictures if p.split in SPLITS and (p.pid >= 0 or options.junk == "keep")]
    copies = Queries(kept if occlude else [], options.occlude, archive.read)
    kept += copies.pictures
    kept.sort(key=lambda p: (SPLITS.index(p.split), p.key))
    made = {p.key for p in copies.pictures}

    def read(picture: Picture) -> bytes:
        return copies.draw(picture) if picture.key in made else archive.read(picture.name)

    found.problems += _twice(found.pictures + copies.pictures) + _foreign(kept) + _unanswerable(kept)
    warnings = query_checks.differences(found.pictures, reader.COUNTS)
    if options.counts == "refuse":
        found.problems += [Fault("", f"{line}. `index.counts: warn` takes it as it is") for line in warnings]
    checked = list(_check(archive.path, kept, read, workers))
    truth_names = [name for name in archive.names if PurePosixPath(name).name == TRUTH]
    problems = found.problems + [
        Fault(p.name, c) for p, c in zip(kept, checked, strict=True) if isinstance(c, str)
    ]
    if occlude and truth_names:
        problems.append(Fault(truth_names[0], "a set that brings its truth needs no index.occlude"))
    if not (kept or problems):
        problems.append(Fault("", "not one image to use"))
    if problems:
        raise BadInput(_complaint(archive, problems, len(found.pictures)))
    index = _frame(kept, checked)
    return Indexed(
        index,
        [p.name for p in kept],
        lambda: map(read, kept),
        np.array([c.size for c in checked], np.int64),
        _truth(archive, truth_names, index["key"].tolist()),
        copies.truth(index["key"].tolist()) if occlude else {},
        found.ignored - len(truth_names),
        len(found.pictures) + len(made) - len(kept),
        warnings,
    )


def load(layout: str) -> ModuleType:
    """The module of a layout.  Raises `BadInput` that lists the layouts there are."""
    folder = Path(__file__).parent / "layouts"
    known = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    if layout not in known:
        raise BadInput(f"params.yaml: layout {layout!r} is unknown. There are: {', '.join(known)}.")
    return importlib.import_module(f"pipeline.indexing.layouts.{layout}")


def _joined(picture: Picture, validation: str) -> Picture:
    return replace(picture, split=validation) if picture.split == "val" else picture


def _complaint(archive: Archive, problems: list[Fault], count: int) -> str:
    kinds: dict[str, list[str]] = {}
    for fault in problems:
        kinds.setdefault(fault.kind, []).append(str(fault))
    lines = "\n  ".join(line for faults in kinds.values() for line in shorten(faults))
    among = f" among {plural(count, 'image')}" if count else ""
    top = sorted({"/".join(name.split("/")[:2]) for name in archive.names})
    holds = f"The archive holds {', '.join(top[:SHOWN]) or 'no file'}.\n" if count == 0 else ""
    return (
        f"{archive.path}: {plural(len(problems), 'fault')}{among}; nothing was written.\n  {lines}\n"
        f"{holds}Repair or remove them, then pack the folder again: {packing(archive.path)}."
    )


def _unanswerable(pictures: list[Picture]) -> list[Fault]:
    table = pd.DataFrame([(p.split, p.pid, p.camid) for p in pictures], columns=["split", "pid", "camid"])
    splits = {split: table[table["split"] == split] for split in ("query", "gallery")}
    return [Fault("", line) for line in query_checks.unanswerable(*splits.values())]


def _twice(pictures: list[Picture]) -> list[Fault]:
    files: dict[str, list[str]] = {}
    for picture in pictures:
        files.setdefault(picture.key, []).append(picture.name)
    return [
        Fault(
            key,
            f"{len(names)} images of a split have this name ({', '.join(shorten(names))}); rename or remove",
        )
        for key, names in sorted(files.items())
        if len(names) > 1
    ]


def _foreign(pictures: list[Picture]) -> list[Fault]:
    # an old tar does not say how its names are encoded; what is not UTF-8 stands in them as surrogates
    faulty = [p.name for p in pictures if p.name.encode(errors="ignore").decode() != p.name]
    return [Fault(f"{name!a}", "the name is not UTF-8; unpack it where it was made") for name in faulty]


# ------------------------------------------------------------------ looking at every image


@dataclass(frozen=True)
class Checked:
    """What an image's bytes tell."""

    width: int
    height: int
    size: int  # bytes
    sha256: str


def _check(
    path: str, pictures: list[Picture], read: Callable[[Picture], bytes], workers: int
) -> Iterator[Checked | str]:
    # the archive is read here, in order; decoding is shared out
    workers = min(workers or num_cores(), -(-len(pictures) // AT_ONCE))
    blobs = (_read(read, p) for p in pictures)
    with progress_bar(total=len(pictures), desc=Path(path).name) as bar:
        for results in _shared(_probe_all, _batched(blobs), workers):
            bar.update(len(results))
            yield from results


def _read(read: Callable[[Picture], bytes], picture: Picture) -> bytes | str:
    try:
        return read(picture)
    except BadInput as error:
        return str(error)


def _batched(items: Iterable) -> Iterator[list]:
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _shared(function, batches: Iterator[list], workers: int) -> Iterator[list]:
    """`map` over processes, in order, which takes no more batches than are being worked on."""
    if workers < 2:
        yield from map(function, batches)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque = deque()
        for batch in batches:
            waiting.append(pool.submit(function, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _probe_all(blobs: list[bytes | str]) -> list[Checked | str]:
    return [blob if isinstance(blob, str) else probe(blob) for blob in blobs]


def probe(blob: bytes) -> Checked | str:
    """Size and hash of an image file, or what is wrong with it."""
    if not blob:
        return "an empty file"
    try:
        height, width, _ = decode(blob).shape
    except UNDECODABLE as error:
        kind = "cut off or damaged" if _begins_as_image(blob) else "no image"
        return kind + decode_error(error)
    return Checked(width, height, len(blob), hashlib.sha256(blob).hexdigest())


def _begins_as_image(blob: bytes) -> bool:
    return blob.startswith((b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*"))


# ------------------------------------------------------------------ the tables


def _frame(pictures: list[Picture], checked: list[Checked]) -> pd.DataFrame:
    rows = [
        (row, p.key, p.pid, p.camid, p.split, c.width, c.height, c.sha256)
        for row, (p, c) in enumerate(zip(pictures, checked, strict=True))
    ]
    table = pyarrow.table([list(c) for c in zip(*rows, strict=True)], pyarrow.schema(list(COLUMNS.items())))
    return table.to_pandas()


def write_index(path: str | Path, index: pd.DataFrame, dataset: str, layout: str) -> None:
    """Write the index; equal datasets give equal bytes."""
    facts = {"dataset": dataset, "layout": layout, "index": index_hash(index)}
    schema = pyarrow.schema(list(COLUMNS.items()), metadata=facts)
    table = pyarrow.Table.from_pandas(index, schema, preserve_index=False).replace_schema_metadata(facts)
    with atomic_write(path) as beside:
        pyarrow.parquet.write_table(table, beside)


def _truth(archive: Archive, names: list[str], keys: list[str]) -> dict[str, np.ndarray]:
    """What the archive knows about each image, in the index's order."""
    if not names:
        return {}
    where = f"{archive.path}: {names[0]}"
    if len(names) > 1:
        raise BadInput(f"{archive.path}: {' and '.join(names)}: more than one truth. Keep one.")
    try:
        with h5py.File(io.BytesIO(archive.read(names[0])), "r") as file:
            place = {key.decode(): row for row, key in enumerate(file["key"][...])}
            missing = [key for key in keys if key not in place]
            if missing:
                raise BadInput(f"{where}: says nothing about {', '.join(missing)}. Render the dataset again.")
            order = [place[key] for key in keys]
            return {name: _ordered(file[name], order) for name in sorted(file) if name != "key"}
    except (OSError, KeyError) as error:
        raise BadInput(f"{where}: not readable as truth ({error}). Render the dataset again.") from None


def _ordered(dataset: h5py.Dataset, order: list[int]) -> np.ndarray:
    rows = np.empty((len(order), *dataset.shape[1:]), dataset.dtype)
    for row, place in enumerate(order):  # one by one: the maps need not fit twice
        rows[row] = dataset[place]
    return rows


def describe(indexed: Indexed) -> str:
    """How many images, identities and cameras each split holds, as a table for people."""
    index = indexed.index
    lines = [f"{'':8}{'images':>8}{'identities':>12}{'cameras':>9}{'distractors':>13}{'junk':>7}"]
    for split in SPLITS:
        part = index[index["split"] == split]
        ids, cameras = part.loc[part["pid"] > 0, "pid"].nunique(), part.loc[part["camid"] >= 0, "camid"]
        distractors, junk = (part["pid"] == 0).sum(), (part["pid"] < 0).sum()
        lines.append(f"{split:8}{len(part):8}{ids:12}{cameras.nunique():9}{distractors:13}{junk:7}")
    lines.append(
        f"{plural(len(index), 'image')}; {plural(indexed.dropped, 'image')} of junk or validation dropped, "
        f"{plural(indexed.ignored, 'other file')} left out"
    )
    if indexed.pasted:
        pasted = plural(int(indexed.pasted["occluder"].sum()), "query")
        lines.append(f"{pasted} copied with an obstacle pasted")
    warnings = [f"not as published: {line}" for line in indexed.warnings]
    return "\n".join(lines + query_checks.notes(index) + warnings)
