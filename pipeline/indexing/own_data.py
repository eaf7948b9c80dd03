"""Pictures of one's own, as a table that layouts/table.py reads: from one folder for each person, or any CSV.

People and cameras may be called anything.  They are numbered here, in the order of their names: people from
1, cameras from 0.  The table keeps both, in the columns `person` and `camera`.
"""

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from pipeline.core.params import BadInput, plural, shorten
from pipeline.data.index import SPLITS
from pipeline.indexing.archive import Archive, Files, Folder, pack_command, write_zip
from pipeline.indexing.kinds import is_hidden, why_left_out
from pipeline.indexing.layout import Listing
from pipeline.indexing.layouts.folders import FOLDERS
from pipeline.indexing.layouts.table import nearest, read_csv

TABLE, HEADER = "people.csv", "path,pid,camid,split,person,camera"  # in the archive
TEST = "test"  # to be divided into query and gallery
COLUMNS = {  # what a table must say, and how its column is often called
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img", "imgpath"),
    "person": ("person", "personid", "pid", "identity", "identityid", "id", "label", "subject", "subjectid"),
    "camera": ("camera", "cameraid", "camid", "cam"),
    "split": ("split", "set", "subset", "partition"),
}
NO_COLUMN = "none"  # a table's camera or split is not read
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "train", "valid": "train", "validation": "train",
    "query": "query", "probe": "query", "gallery": "gallery", "test": TEST, "testing": TEST,
}  # fmt: skip
UNKNOWN = {"", "-1", "nan", "none", "null", "unknown", "n/a"}  # in lower case: no person, no camera


# ------------------------------------------------------------------ reading


def read_folders(folder: Path, files: Folder, camera_pattern: str = "") -> pd.DataFrame:
    """The pictures in one folder for each person, or in such folders below train/, query/, gallery/ or test/.

    `camera_pattern` is a regular expression; its group finds the camera in a picture's path.  Returns text
    columns path, person, camera and split, the last two empty where unknown; a split is a key of SPLIT_WORDS.
    """
    paths = [name for name in files.names if not why_left_out(files, name)]
    parts = [PurePosixPath(path).parts for path in paths]
    _check_splits(folder, {names[:-1] for names in parts})
    in_splits = bool(parts) and all(names[0].lower() in SPLIT_WORDS for names in parts)
    depth = 1 if in_splits else 0  # of the folder that is called as the person
    loose = [path for path, names in zip(paths, parts, strict=True) if len(names) < depth + 2]
    if loose or not paths:
        shown = f"; {', '.join(shorten(loose))} lie in none" if loose else ", and holds no picture"
        raise BadInput(
            f"{folder}: needs a folder for each person{shown}. Sort the pictures into such folders, or write "
            "a CSV with a row for each picture and give it by --csv."
        )
    table = pd.DataFrame(
        {
            "path": paths,
            "person": [names[depth] for names in parts],
            "camera": _find_cameras(paths, camera_pattern),
            "split": [names[0].lower() if in_splits else "" for names in parts],
        }
    )
    if faults := _nobody(table, "in {path}"):
        raise BadInput(f"{folder}: {plural(len(faults), 'fault')}\n  " + "\n  ".join(shorten(faults)))
    return table


def _check_splits(folder: Path, parents: set[tuple[str, ...]]) -> None:
    market = sorted({name for names in parents for name in names} & (set(FOLDERS) - set(SPLIT_WORDS)))
    if market:
        raise BadInput(
            f"{folder}: has {'/ and '.join(market)}/, the folders of Market-1501, which are no people. Run "
            f"{pack_command(f'{folder}.zip', folder)}, and name it in params.yaml with `layout: folders`."
        )
    tops = sorted({names[0] for names in parents if names})
    splits = [name for name in tops if name.lower() in SPLIT_WORDS]
    others = [name for name in tops if name not in splits]
    if splits and others:
        raise BadInput(
            f"{folder}: {'/, '.join(splits)}/ are called as splits, and {'/, '.join(shorten(others))}/ not. "
            "Move every person into a split, or rename the folders."
        )


def left_out(files: Files, paths: Iterable[str], csv_file: str = "") -> Listing:
    """The files that a table of these paths leaves out; without a CSV, people's folders are a split's."""

    def is_in_split(name: str) -> bool:
        parent = str(PurePosixPath(name).parent)
        return not csv_file and not is_hidden(parent) and (parent != "." or name in files.links)

    listing = Listing()
    listing.leave_out(files, set(paths), f"not named in {csv_file}", is_in_split)
    return listing


def _find_cameras(paths: list[str], pattern: str) -> list[str]:
    if not pattern:
        return [""] * len(paths)
    try:
        matches = [re.search(pattern, path) for path in paths]
        cameras = [match[1] if match else "" for match in matches]
    except (re.error, IndexError) as error:
        raise BadInput(
            f"--pattern {pattern!r}: no regular expression with a group ({error}). "
            r"Write one such as 'cam(\d+)'."
        ) from None
    without = [path for path, camera in zip(paths, cameras, strict=True) if not camera]
    if without:
        raise BadInput(
            f"--pattern {pattern!r}: finds no camera in {plural(len(without), 'path')}: "
            f"{', '.join(shorten(without))}. Rename them, or widen the pattern."
        )
    return cameras


def read_table(folder: Path, files: Folder, file: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """The pictures that a CSV file names, as `read_folders` returns them.

    `columns` says which column is the path, person, camera and split; one left empty is guessed by its name.
    Paths start at `folder` or at the file's own.
    """
    rows = _read_rows(file)
    chosen = _choose_columns(file, list(rows.columns), columns)
    table = pd.DataFrame(
        {name: rows[column].str.strip() if column else "" for name, column in chosen.items()}
    )
    table["split"] = table["split"].str.lower()
    faults = [
        *_locate(table, folder, files, file), *_nobody(table, "row {row}"), *_split_faults(table),
        *_repeated(table),
    ]  # fmt: skip
    if faults:
        raise BadInput(f"{file}: {plural(len(faults), 'fault')}\n  " + "\n  ".join(shorten(faults)))
    return table


def _read_rows(file: Path) -> pd.DataFrame:
    try:
        columns, rows = read_csv(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}). Name the CSV file.") from None
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{file}: no readable CSV ({' '.join(str(error).split())}).") from None
    if not rows:
        raise BadInput(f"{file}: has no row below its header. Write one for each picture.")
    return pd.DataFrame(list(rows.values()), list(rows), columns)


def _choose_columns(file: Path, present: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    chosen = {}
    for name, guesses in COLUMNS.items():
        similar = [c for c in present if re.sub(r"[^a-z]", "", c.lower()) in guesses]
        wanted = columns.get(name) or (similar[0] if len(similar) == 1 else "")
        if wanted == NO_COLUMN and wanted not in present and name in ("camera", "split"):
            chosen[name] = ""
            continue
        if columns.get(name) and wanted not in present:
            raise BadInput(f"{file}: has no column {wanted!r}. There are: {', '.join(present)}.")
        if len(similar) > 1 and not wanted:
            raise BadInput(
                f"{file}: {' and '.join(similar)} may each be the {name}. Say which: "
                f"{' or '.join(f'--{name} {column!r}' for column in similar)}."
            )
        if not wanted and name in ("path", "person"):
            raise BadInput(
                f"{file}: which column is the {name}? Say so by --{name} COLUMN. "
                f"There are: {', '.join(present)}."
            )
        chosen[name] = wanted
    return chosen


def _locate(table: pd.DataFrame, folder: Path, files: Folder, file: Path) -> list[str]:
    # writes paths in `folder` to the table
    known = {unicodedata.normalize("NFC", name): name for name in files.names}
    home = folder.resolve()
    starts = [home, file.parent.resolve()]
    faults, located = [], []
    for row, path in table["path"].items():
        plain = unicodedata.normalize("NFC", path.replace("\\", "/"))
        places = [Path(os.path.normpath(start / plain)) for start in starts]
        names = [p.relative_to(home).as_posix() for p in places if p.is_relative_to(home)]
        name = next((known[name] for name in names if name in known), None)
        if name is None:
            hint = next(filter(None, nearest(files, names)), "")
            faults.append(f"row {row}: no file {path!r} below {folder}{hint}")
        located.append(name or path)
    table["path"] = located
    return faults


def _nobody(table: pd.DataFrame, where: str) -> list[str]:
    nobody = table["person"].str.lower().isin(UNKNOWN)
    junk = (table["person"] == "-1") & (table["split"] == "gallery")
    return [
        f"{where.format(row=row, path=path)}: person = {person!r} is not a person. Take it out, or write -1 "
        "and the split gallery, which is junk"
        for row, path, person in table.loc[nobody & ~junk, ["path", "person"]].itertuples()
    ]


def _split_faults(table: pd.DataFrame) -> list[str]:
    wrong = ~table["split"].isin(SPLIT_WORDS) if table["split"].any() else table["split"] != ""
    return [
        f"row {row}: split = {word!r} is none of {', '.join(SPLIT_WORDS)}"
        for row, word in table.loc[wrong, "split"].items()
    ]


def _repeated(table: pd.DataFrame) -> list[str]:
    repeated = table[table.duplicated(["path", "split"])]
    return [f"row {row}: {path} stands above already" for row, path in repeated["path"].items()]


# ------------------------------------------------------------------ numbers


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns pid, from 1, and camid, from 0 and -1 where the camera is unknown.

    In the gallery alone, person 0 is a distractor and -1 junk, whose pid is the same.
    """
    known = table["camera"].mask(table["camera"].str.lower().isin(UNKNOWN), "")
    elsewhere = set(table.loc[table["split"] != "gallery", "person"])
    apart = {p: int(p) for p in set(table["person"]) - elsewhere if re.fullmatch("-1|0+", p)}
    people = _numbers(set(table["person"]) - set(apart), 1) | apart
    return table.assign(pid=table["person"].map(people), camid=known.map(_numbers(known, 0) | {"": -1}))


def _numbers(names: Iterable[str], first: int) -> dict[str, int]:
    ordered = sorted({name for name in names if name}, key=natural)
    return {name: number for number, name in enumerate(ordered, first)}


def natural(text: str) -> list[str | int]:
    """A key that sorts `cam10` behind `cam2`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


# ------------------------------------------------------------------ writing


def describe(table: pd.DataFrame) -> list[str]:
    """A line for each split: pictures, people, cameras; and the first people."""
    lines = []
    for name in SPLITS:
        rows = table[table["split"] == name]
        cameras = rows.loc[rows["camid"] >= 0, "camid"].nunique()
        seen = plural(cameras, "camera") if cameras else "cameras unknown"
        people = plural(rows.loc[rows["pid"] > 0, "pid"].nunique(), "person")
        kinds = {"distractor": sum(rows["pid"] == 0), "picture of junk": sum(rows["pid"] < 0)}
        apart = "".join(f", {plural(number, kind)}" for kind, number in kinds.items() if number)
        lines.append(f"{name:8}{plural(len(rows), 'picture')} of {people}, {seen}{apart}")
    return [*lines, f"people: {', '.join(shorten(sorted(set(table['person']), key=natural)))}"]


def deep_folders(table: pd.DataFrame) -> list[str]:
    """A warning if pictures lie in folders below those of people, which may be days or cameras instead."""
    deep = [p for p, name in zip(table["path"], table["person"], strict=True) if Path(p).parent.name != name]
    if not deep:
        return []
    return [
        f"WARNING: {plural(len(deep), 'picture')} in folders below those of people, such as {deep[0]}: the "
        "people above may be days or cameras. If so, give a CSV by --csv."
    ]


def write_archive(path: Path, files: Folder, table: pd.DataFrame) -> None:
    """The pictures of a table and the table itself, as one zip; equal pictures give equal bytes."""
    try:
        text = (
            table[HEADER.split(",")]
            .to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
            .encode()
        )
    except UnicodeEncodeError as error:
        raise BadInput(f"{error.object[error.start - 20 : error.end]!a}: not UTF-8. Rename it.") from None
    write_zip(path, {TABLE: text} | {name: files.files[name] for name in sorted(set(table["path"]))})


def is_written_here(archive: Archive) -> bool:
    """Whether `write_archive` wrote it."""
    return TABLE in archive.names and archive.read(TABLE, 99).startswith(f"{HEADER}\n".encode())
