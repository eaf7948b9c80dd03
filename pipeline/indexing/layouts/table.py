"""Your own dataset: images anywhere in the archive, and a table of their identities.

    path,pid,camid,split
    monday/door 1.jpg,1,0,train

The table is the archive's only .csv or .parquet file.  Its columns:
`path` starts at the table's folder;
`pid` is a whole number, 0 for a distractor and -1 for junk, both in the gallery only;
`camid` counts from 0, and -1, an empty cell or a missing column mean that the camera is unknown;
`split` is train, query or gallery.
Other columns are ignored.  Pictures that the table does not name are left out and counted.
"""

import csv
import io
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow

from pipeline.core.params import shorten
from pipeline.data.index import SPLITS
from pipeline.indexing.archive import Archive, Files
from pipeline.indexing.kinds import is_hidden
from pipeline.indexing.layout import ImageEntry, Listing, Problem, PublishedCount, missing_images

COUNTS: dict[str, PublishedCount] = {}
SUFFIXES = {".csv", ".parquet"}
OTHER_TABLES = {".tsv", ".xls", ".xlsx", ".ods", ".json", ".feather"}
REQUIRED = ("path", "pid", "split")
RANGES = {  # largest value of a column, and the remedy
    "pid": (2**31 - 1, "number the identities 1, 2, ..."),
    "camid": (2**15 - 1, "number the cameras 0, 1, ...; empty is unknown"),
}

Row = dict[Hashable, Any]  # cells by column


def list_images(archive: Archive) -> Listing:
    """List the images that the table names, and the problems of its rows."""
    tables = _with_suffix(archive, SUFFIXES)
    if len(tables) != 1:
        present, suffixes = ", ".join(shorten(tables)) or "none", " or ".join(sorted(SUFFIXES))
        others = ", ".join(shorten(_with_suffix(archive, OTHER_TABLES)))
        remedy = "; keep one" if tables else f"; save {others} as CSV" if others else ""
        message = (
            f"needs one table ({suffixes}) with the columns {', '.join(REQUIRED)}; found: {present}{remedy}"
        )
        return Listing(problems=[Problem("", message)])
    title = tables[0]
    try:
        rows = _read_table(archive, title)
    except Unreadable as error:
        return Listing(problems=[Problem(title, str(error))])
    listing = _list_rows(rows, title, archive)
    listing.leave_out(archive, {title, *(i.name for i in listing.images)}, f"not named in {title}")
    return listing


def _with_suffix(archive: Archive, suffixes: set[str]) -> list[str]:
    return [n for n in archive.names if PurePosixPath(n).suffix.lower() in suffixes and not is_hidden(n)]


class Unreadable(ValueError):
    """A table that cannot be read; the message holds the reason and the remedy."""


# ------------------------------------------------------------------ the table


def _read_table(archive: Archive, name: str) -> dict[int, Row]:
    # rows by number; the header is row 1
    blob = archive.read(name)
    try:
        columns, rows = read_csv(blob) if name.lower().endswith(".csv") else _read_parquet(blob)
    except (ValueError, OSError, csv.Error, pyarrow.ArrowException) as error:
        raise Unreadable(f"no readable table ({' '.join(str(error).split())})") from None
    if not set(REQUIRED) <= set(columns):
        similar = {_simplified(column): column for column in columns}
        renames = [
            f"; rename {similar[required]!r} to {required}"
            for required in REQUIRED
            if required not in columns and required in similar
        ]
        raise Unreadable(f"has columns {columns}, but needs {list(REQUIRED)}{''.join(renames)}")
    for row in rows.values():
        camera = row.get("camid", "")
        row["camid"] = -1 if pd.isna(camera) or camera == "" else camera
    return rows


def read_csv(blob: bytes) -> tuple[list[str], dict[int, Row]]:
    """The columns of a CSV and its rows by number; the header is row 1, empty rows are left out.

    Commas, semicolons or tabs separate the cells.  Raises `ValueError` or `csv.Error` if it cannot be read.
    """
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16
        raise ValueError("not in UTF-8: save it as CSV in UTF-8")
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    source = io.StringIO(text, newline="")
    reader = csv.DictReader(source, restval="", strict=True, delimiter=separator, skipinitialspace=True)
    columns = list(reader.fieldnames or [])
    twice = [column for column, count in Counter(columns).items() if count > 1 and column]
    if twice:
        raise ValueError(f"has more than one column {' and '.join(twice)}: rename or remove the others")
    rows = ((reader.line_num, row) for row in reader if any(row[column] for column in columns))
    return columns, dict(rows)


def _read_parquet(blob: bytes) -> tuple[list[str], dict[int, Row]]:
    table = pd.read_parquet(io.BytesIO(blob))
    return list(table.columns), dict(enumerate(table.to_dict("records"), 2))


def _simplified(text: object) -> str:
    return unicodedata.normalize("NFC", str(text)).strip().lower()


# ------------------------------------------------------------------ the rows


def _list_rows(rows: dict[int, Row], title: str, archive: Archive) -> Listing:
    names = {unicodedata.normalize("NFC", name): name for name in archive.names}
    home = PurePosixPath(title).parent
    listing = Listing()
    missing: dict[int, str] = {}  # by row
    row_numbers: dict[tuple[str, str], list[int]] = {}  # by split and file
    for number, row in rows.items():
        path = str(PurePosixPath(str(row["path"]).replace("\\", "/")))
        name = names.get(unicodedata.normalize("NFC", str(home / path)))
        error = _row_error(row)
        if error:
            cell, message = error
            listing.problems.append(Problem(f"{title}, row {number}, {cell}", message))
        elif name is None:
            missing[number] = path
        else:
            numbers = row_numbers.setdefault((row["split"], name), [])
            numbers.append(number)
            if len(numbers) == 1:
                key = f"{row['split']}/{path}"
                image = ImageEntry(name, row["split"], key, _integer(row["pid"]), _integer(row["camid"]))
                listing.images.append(image)
    for (split, name), numbers in row_numbers.items():
        if len(numbers) > 1:
            lines = ", ".join(shorten([str(number) for number in numbers]))
            listing.problems.append(Problem(f"{title}, rows {lines}, {name}", f"more than once in {split}"))
    if missing:
        hints = nearest(archive, [str(home / path) for path in missing.values()])
        named = [f"{p} (row {n}{hint})" for (n, p), hint in zip(missing.items(), hints, strict=True)]
        listing.problems.append(missing_images(title, named))
        encoding = archive.encoding_hint([str(home / path) for path in missing.values()])
        if encoding:
            listing.problems.append(Problem("", encoding))
    return listing


def nearest(archive: Files, paths: list[str]) -> list[str]:
    """What an archive holds in place of each path: other case, another suffix, another folder, or a link."""
    forms: tuple[Callable[[str], str], ...] = (_simplified, _without_suffix, _last_name)
    similar = [{form(name): name for name in archive.names} for form in forms]
    hints = []
    for path in paths:
        matches = (known.get(form(path)) for form, known in zip(forms, similar, strict=True))
        near = next(filter(None, matches), "")
        link = "; it is a link: put the file itself there" if path in archive.links else ""
        hints.append(link or (f"; there is {near}" if near else ""))
    return hints


def _without_suffix(path: str) -> str:
    return _simplified(posixpath.splitext(path)[0])


def _last_name(path: str) -> str:
    return _simplified(PurePosixPath(path).name)


def _integer(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _row_error(row: Row) -> tuple[str, str] | None:
    # cell and message
    if pd.isna(row["path"]) or not str(row["path"]).strip():
        return "path is empty", "name the image, or take the row out"
    if row["split"] not in SPLITS:
        split = _simplified(row["split"])
        remedy = f"; write {split}" if split in SPLITS else ""
        return f"split = {row['split']!r}", f"none of {', '.join(SPLITS)}{remedy}"
    for column, (largest, remedy) in RANGES.items():
        number = _integer(row[column])
        if number is None or not -1 <= number <= largest:
            return f"{column} = {row[column]!r}", f"no whole number from -1 to {largest}; {remedy}"
    if _integer(row["pid"]) < 1 and row["split"] != "gallery":
        return (
            f"pid = {row['pid']}",
            "means a distractor (0) or junk (-1), which only the gallery holds; number people from 1",
        )
    return None
