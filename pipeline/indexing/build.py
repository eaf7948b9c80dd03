"""From an archive of person crops to its index, its images in one file, and its truth if it holds one.

Everything is checked before anything is written.  All problems are reported together, one line each.
"""

import dataclasses
import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Literal

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
from pydantic import field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pipeline.core.files import atomic_write
from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.data.index import COLUMNS, SPLITS, ValueRange, decode, encode_png, index_hash
from pipeline.data.obstacle_pictures import describe_folder
from pipeline.indexing import copies, kinds, own_data, query_checks
from pipeline.indexing.archive import Archive, pack_command
from pipeline.indexing.layout import ImageEntry, Listing, Problem
from pipeline.indexing.occluded_queries import Occlude, OccludedQueries
from pipeline.indexing.probing import DEEP, FileInfo, probe_files

TRUTH = "truth.h5"
MAX_NAMES = 8  # names of an archive that an error lists


@dataclass(frozen=True, config=STRICT)
class Index:
    """Which images become rows, and which datasets are refused."""

    junk: Literal["drop", "keep"]  # images of identity -1; ranking leaves them out in either case
    validation: Literal["train", "drop"]  # images of a validation split (MSMT17's list_val)
    counts: Literal["refuse", "warn"]  # a dataset whose counts differ from the published ones
    # pictures, links and archives in a split's folder that are not read
    others: Literal["refuse", "warn"]
    contradictions: Literal["refuse", "warn"]  # one file under two identities of train, or of the test splits
    range: dict[str, ValueRange]  # by dataset: values that become 0 and 255 in pictures of more than 8 bits
    occlude: Occlude  # occluded copies of the queries

    @field_validator("range")
    @classmethod
    def _check_range(cls, ranges: dict[str, ValueRange]) -> dict[str, ValueRange]:
        for black, white in ranges.values():
            if black == white:
                raise PydanticCustomError("range", "Black and white must differ")
        return ranges


@dataclasses.dataclass(frozen=True)
class IndexedDataset:
    """A dataset that passed every check; index, names, blobs, sizes and truth are in one order."""

    index: pd.DataFrame
    names: list[str]  # in the archive
    blobs: Callable[[], Iterator[bytes]]  # the image files
    sizes: np.ndarray  # of the image files, in bytes
    truth: dict[str, np.ndarray]  # empty if the archive holds none
    pasted: dict[str, np.ndarray]  # what covers the queries' occluded copies; empty without copies
    left_out: list[kinds.LeftOut]  # files that are not read
    dropped: int  # junk and validation images without a row
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def hash(self) -> str:
        return index_hash(self.index)


def build_index(
    archive: Archive,
    layout: str,
    options: Index,
    workers: int = 0,
    occlude: bool = False,
    value_range: ValueRange | None = None,
) -> IndexedDataset:
    """List, check and order every image of a dataset, in `workers` processes; 0 means one per core.

    With `occlude`, every query gets an occluded copy.  `value_range` is that of the pictures of more than 8
    bits a sample (`decode`), which are stored as PNG files of 8.

    Raises `BadInput` that lists every problem: missing or empty folders, names that do not parse, duplicate
    keys, files that are no images or are cut off, pictures of a split that are not read, truth for other
    images, queries without any match, and counts that differ from the published ones.
    """
    module = load_layout(layout)
    listing = module.list_images(archive)
    images = _select(listing.images, options)
    occluded = OccludedQueries(images if occlude else [], options.occlude, archive.read, value_range)
    images = sorted(images + occluded.images, key=lambda image: (SPLITS.index(image.split), image.key))
    occluded_keys = {image.key for image in occluded.images}

    def read(image: ImageEntry) -> bytes:
        return occluded.render(image) if image.key in occluded_keys else archive.read(image.name)

    def read_stored(image: ImageEntry, info: FileInfo) -> bytes:
        blob = read(image)
        return encode_png(decode(blob, value_range)) if info.deep else blob

    warnings = query_checks.count_differences(listing.images, module.COUNTS)
    probes = list(probe_files(archive.path, images, read, workers, value_range))
    truth_names = [name for name in archive.names if PurePosixPath(name).name == TRUTH]
    contradictions = _contradictions(images, probes)
    problems = [
        *listing.problems,
        *(missed_files(listing) if options.others == "refuse" else []),
        *_duplicate_keys(listing.images + occluded.images),
        *_non_utf8_names(images),
        *_unmatched_queries(images),
        *(_count_problems(warnings, listing) if options.counts == "refuse" else []),
        *_file_problems(images, probes),
        *(_contradiction_problems(contradictions) if options.contradictions == "refuse" else []),
        *_truth_problems(truth_names, occlude),
    ]
    if not (images or problems):
        problems.append(Problem("", "not one image to use"))
    if problems:
        raise BadInput(_error_message(archive, problems, listing))
    infos = [probe for probe in probes if isinstance(probe, FileInfo)]  # all of them
    index = _index_table(images, infos)
    keys = index["key"].tolist()
    return IndexedDataset(
        index=index,
        names=[image.name for image in images],
        blobs=lambda: map(read_stored, images, infos),
        sizes=np.array([info.size for info in infos], np.int64),
        truth=_read_truth(archive, truth_names, keys),
        pasted=occluded.truth(keys) if occlude else {},
        left_out=[item for item in listing.left_out if item.name not in truth_names],
        dropped=len(listing.images) + len(occluded.images) - len(images),
        warnings=[
            *(f"not as published: {line}" for line in warnings),
            *_encoding_notes(archive),
            *listing.notes,
            *(describe_folder("cutout", options.occlude.cutouts) if occluded.images else []),
            *_oddities(images, infos, occluded_keys, value_range),
            *(f"one file under several identities: {names}" for names in contradictions),
            *copies.copy_warnings(index),
        ],
    )


def layout_names() -> list[str]:
    """The names of all layouts."""
    folder = Path(__file__).parent / "layouts"
    return sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def load_layout(layout: str) -> ModuleType:
    """The module of a layout.  Raises `BadInput` that lists the layouts there are."""
    if layout not in layout_names():
        raise BadInput(f"params.yaml: layout {layout!r} is unknown. There are: {', '.join(layout_names())}.")
    return importlib.import_module(f"pipeline.indexing.layouts.{layout}")


def _select(images: list[ImageEntry], options: Index) -> list[ImageEntry]:
    # the images that become rows, those of a validation split moved to where `validation` says
    moved = [
        dataclasses.replace(image, split=options.validation) if image.split == "val" else image
        for image in images
    ]
    return [image for image in moved if image.split in SPLITS and (image.pid >= 0 or options.junk == "keep")]


# ------------------------------------------------------------------ problems


def _duplicate_keys(images: list[ImageEntry]) -> list[Problem]:
    names_of: dict[str, list[str]] = {}
    for image in images:
        names_of.setdefault(image.key, []).append(image.name)
    return [
        Problem(
            key,
            f"{len(names)} images of a split have this name ({', '.join(shorten(names))}); rename or remove",
        )
        for key, names in sorted(names_of.items())
        if len(names) > 1
    ]


def _non_utf8_names(images: list[ImageEntry]) -> list[Problem]:
    # an old tar does not record the encoding of its names; bytes that are not UTF-8 are read as surrogates
    names = [i.name for i in images if i.name.encode(errors="ignore").decode() != i.name]
    remedy = "state its encoding in params.yaml, beside the archive's path, as `names: gbk`"
    return [Problem(f"{name!a}", f"the name is not UTF-8; {remedy}") for name in names]


def missed_files(listing: Listing) -> list[Problem]:
    """The problems of files that are not read and may be images of a split."""
    return [
        Problem(
            item.name,
            f"{item.reason}, which is not read; {kinds.REMEDIES[item.reason]}. "
            "`index.others: warn` leaves it out",
        )
        for item in listing.left_out
        if item.missed
    ]


def _encoding_notes(archive: Archive) -> list[str]:
    hint = archive.encoding_hint()
    return [hint] if hint else []


def _unmatched_queries(images: list[ImageEntry]) -> list[Problem]:
    table = pd.DataFrame([(i.split, i.pid, i.camid) for i in images], columns=["split", "pid", "camid"])
    query, gallery = (table[table["split"] == split] for split in ("query", "gallery"))
    return [Problem("", line) for line in query_checks.unmatched_queries(query, gallery)]


def _count_problems(differences: list[str], listing: Listing) -> list[Problem]:
    missed = listing.problems or any(item.missed for item in listing.left_out)
    remedy = "Mend the files above first" if missed else "`index.counts: warn` takes it as it is"
    return [Problem("", f"{line}. {remedy}") for line in differences]


def _file_problems(images: list[ImageEntry], probes: list[FileInfo | str]) -> list[Problem]:
    faults = {i.name: probe for i, probe in zip(images, probes, strict=True) if isinstance(probe, str)}
    return [Problem(name, fault) for name, fault in faults.items()]  # once for a query and its occluded copy


def _contradictions(images: list[ImageEntry], probes: list[FileInfo | str]) -> list[str]:
    pairs = zip(images, probes, strict=True)
    rows = [(i.key, i.pid, i.split, info.sha256) for i, info in pairs if isinstance(info, FileInfo)]
    return copies.contradictions(pd.DataFrame(rows, columns=["key", "pid", "split", "sha256"], dtype=object))


def _contradiction_problems(contradictions: list[str]) -> list[Problem]:
    remedy = "remove the wrong ones. `index.contradictions: warn` takes them all"
    return [Problem("", f"one file under several identities; {remedy} ({names})") for names in contradictions]


def _oddities(
    images: list[ImageEntry], infos: list[FileInfo], skip: set[str], value_range: ValueRange | None
) -> list[str]:
    # `skip` holds keys
    names: dict[str, list[str]] = {}
    for image, info in zip(images, infos, strict=True):
        for oddity in () if image.key in skip else info.oddities:
            names.setdefault(oddity, []).append(image.name)
    lines = [f"{plural(len(n), 'picture')} {oddity}: {', '.join(shorten(n))}" for oddity, n in names.items()]
    if value_range and DEEP not in names:
        lines.append("`index.range` has no effect: no picture has more than 8 bits a sample")
    return lines


def _truth_problems(names: list[str], occlude: bool) -> list[Problem]:
    if not (names and occlude):
        return []
    return [Problem(names[0], "a set that brings its truth needs no index.occlude; take it out there")]


def _error_message(archive: Archive, problems: list[Problem], listing: Listing) -> str:
    by_kind: dict[str, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(str(problem))
    lines = "\n  ".join(line for messages in by_kind.values() for line in shorten(messages))
    among = f" among {plural(len(listing.images), 'image')}" if listing.images else ""
    holds = ""
    if not listing.images:
        top = sorted({"/".join(name.split("/")[:2]) for name in archive.names})
        holds = f"The archive holds {', '.join(top[:MAX_NAMES]) or 'no file'}.\n"
        holds += "\n".join([*kinds.left_out_lines(listing.left_out), ""]) if listing.left_out else ""
    settled = any(word in line for word in ("`index.", "params.yaml") for line in by_kind)
    choice = " Or set what is named above in params.yaml." if settled else ""
    repair = f"Repair the files, then pack their folder again: {pack_command(archive.path)}"
    if own_data.is_written_here(archive):
        name = Path(archive.path).stem
        repair = f"Repair them in their folder, then run `python -m stages.init FOLDER --name {name} --force`"
    return (
        f"{archive.path}: {plural(len(problems), 'fault')}{among}; nothing was written.\n  {lines}\n"
        f"{holds}{repair}.{choice}"
    )


# ------------------------------------------------------------------ tables


def _index_table(images: list[ImageEntry], infos: list[FileInfo]) -> pd.DataFrame:
    rows = [
        (row, i.key, i.pid, i.camid, i.split, info.width, info.height, info.sha256)
        for row, (i, info) in enumerate(zip(images, infos, strict=True))
    ]
    schema = pyarrow.schema(list(COLUMNS.items()))
    return pyarrow.table([list(column) for column in zip(*rows, strict=True)], schema).to_pandas()


def write_index(path: str | Path, index: pd.DataFrame, dataset: str, layout: str) -> None:
    """Write the index file; equal datasets give equal bytes."""
    metadata = {"dataset": dataset, "layout": layout, "index": index_hash(index)}
    schema = pyarrow.schema(list(COLUMNS.items()), metadata=metadata)
    table = pyarrow.Table.from_pandas(index, schema, preserve_index=False).replace_schema_metadata(metadata)
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _read_truth(archive: Archive, names: list[str], keys: list[str]) -> dict[str, np.ndarray]:
    """The arrays of the archive's truth.h5, one row per image in the index's order; none without it."""
    if not names:
        return {}
    path = f"{archive.path}: {names[0]}"
    if len(names) > 1:
        raise BadInput(f"{archive.path}: {' and '.join(names)}: more than one truth. Keep one.")
    try:
        with h5py.File(io.BytesIO(archive.read(names[0])), "r") as file:
            row_of = {key.decode(): row for row, key in enumerate(file["key"][...])}
            missing = [key for key in keys if key not in row_of]
            if missing:
                first = ", ".join(shorten(missing))
                raise BadInput(f"{path}: says nothing about {first}. Render the dataset again.")
            rows = [row_of[key] for key in keys]
            return {name: _reordered(file[name], rows) for name in sorted(file) if name != "key"}
    except (OSError, KeyError) as error:
        raise BadInput(f"{path}: not readable as truth ({error}). Render the dataset again.") from None


def _reordered(dataset: h5py.Dataset, rows: list[int]) -> np.ndarray:
    array = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    for target, source in enumerate(rows):  # one by one: memory need not hold the maps twice
        array[target] = dataset[source]
    return array


def describe(indexed: IndexedDataset) -> str:
    """A table of each split's images, identities, cameras, distractors and junk, then the warnings."""
    index = indexed.index
    lines = [f"{'':8}{'images':>8}{'identities':>12}{'cameras':>9}{'distractors':>13}{'junk':>7}"]
    for split in SPLITS:
        part = index[index["split"] == split]
        pids, camids = part.loc[part["pid"] > 0, "pid"], part.loc[part["camid"] >= 0, "camid"]
        distractors, junk = (part["pid"] == 0).sum(), (part["pid"] < 0).sum()
        lines.append(f"{split:8}{len(part):8}{pids.nunique():12}{camids.nunique():9}{distractors:13}{junk:7}")
    left_out, *reasons = kinds.left_out_lines(indexed.left_out)
    dropped = f"{plural(indexed.dropped, 'image')} of junk or validation dropped"
    lines += [f"{plural(len(index), 'image')}; {dropped}, {left_out}", *reasons]
    if indexed.pasted:
        queries = plural(int(indexed.pasted["occluder"].sum()), "query")
        lines.append(f"{queries} copied with an obstacle pasted")
    return "\n".join(lines + query_checks.dataset_warnings(index) + indexed.warnings)
