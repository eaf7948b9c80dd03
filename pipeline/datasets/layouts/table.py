"""A set of one's own: pictures anywhere in the archive, and a table that says who is on them.

    path,pid,camid,split
    monday/door 1.jpg,1,0,train

The table is the archive's only .csv or .parquet file.  `path` starts at the table's folder; `pid` is a
whole number (0 a distractor, -1 junk, both in the gallery alone); `camid` counts from 0, -1, an empty cell
or no such column mean that the camera is unknown; `split` is train, query or gallery.  Other columns, and
pictures that the table does not name, are left out.
"""

import io
import unicodedata
from collections.abc import Hashable
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow

from pipeline.datasets import SPLITS
from pipeline.datasets.archive import Archive
from pipeline.datasets.found import Count, Found, Picture, absent, is_own

COUNTS: dict[str, Count] = {}
KINDS = {".csv", ".parquet"}
NEEDED = ("path", "pid", "split")
LARGEST = {"pid": 2**31 - 1, "camid": 2**15 - 1}


def find(archive: Archive) -> Found:
    """Every image that the table names, and what is wrong with its rows."""
    tables = [name for name in archive.names if is_own(name, KINDS)]
    if len(tables) != 1:
        held, kinds = ", ".join(tables) or "none", " or ".join(sorted(KINDS))
        needed = ", ".join(NEEDED)
        return Found(problems=[f"needs one table ({kinds}) with the columns {needed}; found: {held}"])
    found, missing = Found(), []
    names = {unicodedata.normalize("NFC", name): name for name in archive.names}
    home = PurePosixPath(tables[0]).parent
    for number, row in enumerate(_rows(found, archive, tables[0]), 2):  # the header is row 1
        inside = str(row["path"]).replace("\\", "/")
        name = names.get(unicodedata.normalize("NFC", str(home / inside)))
        fault = _fault(row)
        if name is None:
            missing.append(inside)
        elif fault:
            found.problems.append(f"{tables[0]}, row {number}: {fault}")
        else:
            split = row["split"]
            picture = Picture(name, split, f"{split}/{inside}", _whole(row["pid"]), _whole(row["camid"]))
            found.pictures.append(picture)
    if missing:
        found.problems.append(absent(tables[0], missing))
    found.ignored = len(archive.names) - len({picture.name for picture in found.pictures})
    return found


def _rows(found: Found, archive: Archive, name: str) -> list[dict[Hashable, Any]]:
    blob = io.BytesIO(archive.read(name))
    try:
        if name.lower().endswith(".csv"):
            table = pd.read_csv(blob, encoding="utf-8-sig", dtype=str, keep_default_na=False)
        else:
            table = pd.read_parquet(blob)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        found.problems.append(f"{name}: no readable table ({' '.join(str(error).split())})")
        return []
    if not set(NEEDED) <= set(table.columns):
        found.problems.append(f"{name}: has columns {list(table.columns)}, but needs {list(NEEDED)}")
        return []
    cameras = table["camid"] if "camid" in table else [-1] * len(table)
    table["camid"] = [-1 if pd.isna(value) or value == "" else value for value in cameras]
    return table.to_dict("records")


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _fault(row: dict[Hashable, Any]) -> str:
    if row["split"] not in SPLITS:
        return f"split = {row['split']!r} is none of {', '.join(SPLITS)}"
    for column, largest in LARGEST.items():
        number = _whole(row[column])
        if number is None or not -1 <= number <= largest:
            return f"{column} = {row[column]!r} is no whole number from -1 to {largest}"
    if _whole(row["pid"]) < 1 and row["split"] != "gallery":
        return f"pid = {row['pid']} is for images of nobody in particular, which only the gallery holds"
    return ""
