"""A set of one's own: pictures anywhere in the archive, and a table that says who is on them.

    path,pid,camid,split
    monday/door 1.jpg,1,0,train

The table is the archive's only .csv or .parquet file.  `path` starts at the table's folder; `pid` is a
whole number (0 a distractor, -1 junk, both in the gallery alone); `camid` counts from 0, -1, an empty cell
or no such column mean that the camera is unknown; `split` is train, query or gallery.  Other columns, and
pictures that the table does not name, are left out.
"""

import csv
import io
import unicodedata
from collections.abc import Hashable
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow

from pipeline.core.params import shorten
from pipeline.data.index import SPLITS
from pipeline.indexing.archive import Archive
from pipeline.indexing.layout import Count, Fault, Listing, Picture, absent, is_own

COUNTS: dict[str, Count] = {}
KINDS = {".csv", ".parquet"}
NEEDED = ("path", "pid", "split")
NUMBERS = {  # the largest of a column, and how to repair it
    "pid": (2**31 - 1, "number the identities 1, 2, ..."),
    "camid": (2**15 - 1, "number the cameras 0, 1, ...; empty is unknown"),
}

Row = dict[Hashable, Any]  # cells by column


def find(archive: Archive) -> Listing:
    """Every image that the table names, and what is wrong with its rows."""
    tables = [name for name in archive.names if is_own(name, KINDS)]
    if len(tables) != 1:
        held, kinds = ", ".join(tables) or "none", " or ".join(sorted(KINDS))
        fault = f"needs one table ({kinds}) with the columns {', '.join(NEEDED)}; found: {held}"
        return Listing(problems=[Fault("", fault)])
    title = tables[0]
    try:
        rows = _rows(archive, title)
    except Unreadable as error:
        return Listing(problems=[Fault(title, str(error))])
    found = _found(rows, title, archive.names)
    found.ignored = len(archive.names) - len({picture.name for picture in found.pictures})
    return found


class Unreadable(ValueError):
    """A table that cannot be used at all; the message says why and what to do."""


# ------------------------------------------------------------------ the table


def _rows(archive: Archive, name: str) -> dict[int, Row]:
    # by number; the header is row 1
    blob = archive.read(name)
    try:
        columns, rows = _csv(blob) if name.lower().endswith(".csv") else _parquet(blob)
    except (ValueError, OSError, csv.Error, pyarrow.ArrowException) as error:
        raise Unreadable(f"no readable table ({' '.join(str(error).split())})") from None
    if not set(NEEDED) <= set(columns):
        meant = {_alike(column): column for column in columns}
        renamed = [
            f"; rename {meant[needed]!r} to {needed}"
            for needed in NEEDED
            if needed not in columns and needed in meant
        ]
        raise Unreadable(f"has columns {columns}, but needs {list(NEEDED)}{''.join(renamed)}")
    for row in rows.values():
        camera = row.get("camid", "")
        row["camid"] = -1 if pd.isna(camera) or camera == "" else camera
    return rows


def _csv(blob: bytes) -> tuple[list[str], dict[int, Row]]:
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16
        raise ValueError("not in UTF-8: save it as CSV in UTF-8")
    header = text.partition("\n")[0]
    if "," not in header and (";" in header or "\t" in header):
        raise ValueError(f"its first line is {header.strip()!r}: separate the columns by commas")
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True)
    filled = ((reader.line_num, row) for row in reader if any(row[column] for column in reader.fieldnames))
    return list(reader.fieldnames or []), dict(filled)


def _parquet(blob: bytes) -> tuple[list[str], dict[int, Row]]:
    table = pd.read_parquet(io.BytesIO(blob))
    return list(table.columns), dict(enumerate(table.to_dict("records"), 2))


def _alike(text: object) -> str:
    return unicodedata.normalize("NFC", str(text)).strip().lower()


# ------------------------------------------------------------------ its rows


def _found(rows: dict[int, Row], title: str, held: list[str]) -> Listing:
    names = {unicodedata.normalize("NFC", name): name for name in held}
    similar = {_alike(name): name for name in held}
    home = PurePosixPath(title).parent
    found, missing, places = Listing(), [], {}
    for number, row in rows.items():
        inside = str(PurePosixPath(str(row["path"]).replace("\\", "/")))
        name = names.get(unicodedata.normalize("NFC", str(home / inside)))
        fault = _fault(row)
        if fault:
            cell, what = fault
            found.problems.append(Fault(f"{title}, row {number}, {cell}", what))
        elif name is None:
            near = similar.get(_alike(home / inside))
            missing.append(f"{inside} (row {number}{f'; there is {near}' if near else ''})")
        else:
            same = places.setdefault((row["split"], name), [])
            same.append(number)
            if len(same) == 1:
                key = f"{row['split']}/{inside}"
                picture = Picture(name, row["split"], key, _whole(row["pid"]), _whole(row["camid"]))
                found.pictures.append(picture)
    for (split, name), numbers in places.items():
        if len(numbers) > 1:
            lines = ", ".join(shorten([str(number) for number in numbers]))
            found.problems.append(Fault(f"{title}, rows {lines}, {name}", f"more than once in {split}"))
    if missing:
        found.problems.append(absent(title, missing))
    return found


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _fault(row: Row) -> tuple[str, str] | None:
    if pd.isna(row["path"]) or not str(row["path"]).strip():
        return "path is empty", "name the picture, or take the row out"
    if row["split"] not in SPLITS:
        meant = f"; write {_alike(row['split'])}" if _alike(row["split"]) in SPLITS else ""
        return f"split = {row['split']!r}", f"none of {', '.join(SPLITS)}{meant}"
    for column, (largest, remedy) in NUMBERS.items():
        number = _whole(row[column])
        if number is None or not -1 <= number <= largest:
            return f"{column} = {row[column]!r}", f"no whole number from -1 to {largest}; {remedy}"
    if _whole(row["pid"]) < 1 and row["split"] != "gallery":
        return f"pid = {row['pid']}", "for images of nobody in particular, which only the gallery holds"
    return None
