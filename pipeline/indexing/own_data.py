"""Pictures of one's own, as a table that layouts/table.py reads: from a folder a person, or from any CSV.

People and cameras may be called anything.  They are numbered here, in the order of their names: people from
1, cameras from 0.  The table keeps both, in the columns `person` and `camera`.

Without a split the people are divided at random: some to train on, the others to test on.  Of each person
to test on, one picture by each camera is a query (where cameras are unknown, a quarter of the pictures), if a
match by another camera is left for the gallery.
"""

import csv
import io
import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural, shorten
from pipeline.core.workers import progress_bar
from pipeline.data.index import SPLITS
from pipeline.indexing.archive import read_file, walk
from pipeline.indexing.kinds import is_hidden, picture_suffixes

TABLE = "people.csv"  # in the archive
TEST = "test"  # to be divided into query and gallery
COLUMNS = {  # what a table must say, and how its column is often called
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img", "imgpath"),
    "person": ("person", "personid", "pid", "identity", "identityid", "id", "label", "subject", "subjectid"),
    "camera": ("camera", "cameraid", "camid", "cam"),
    "split": ("split", "set", "subset", "partition"),
}
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "train", "valid": "train", "validation": "train",
    "query": "query", "probe": "query", "gallery": "gallery", "test": TEST, "testing": TEST,
}  # fmt: skip
NO_PERSON = ("", "-1")
FEW = 4  # people; fewer cannot be divided into two to train on and two to test on


# ------------------------------------------------------------------ reading


def read_folders(folder: Path, camera_pattern: str = "") -> pd.DataFrame:
    """The pictures below a folder a person, or below such folders in train/, query/, gallery/ or test/.

    `camera_pattern` is a regular expression; its group finds the camera in a picture's path.  Returns text
    columns path, person, camera and split, the last two empty where unknown.
    """
    paths = [
        name for name in walk_pictures(folder) if PurePosixPath(name).suffix.lower() in picture_suffixes()
    ]
    parts = [PurePosixPath(path).parts for path in paths]
    in_splits = bool(parts) and all(names[0].lower() in SPLIT_WORDS for names in parts)
    depth = 1 if in_splits else 0  # of the folder that is called as the person
    loose = [path for path, names in zip(paths, parts, strict=True) if len(names) < depth + 2]
    if loose or not paths:
        shown = f"; {', '.join(shorten(loose))} lie in none" if loose else ", and holds no picture"
        raise BadInput(
            f"{folder}: needs a folder for each person{shown}. Sort the pictures into such folders, or write "
            "a CSV with a row for each picture and give it by --csv."
        )
    return pd.DataFrame(
        {
            "path": paths,
            "person": [names[depth] for names in parts],
            "camera": _find_cameras(paths, camera_pattern),
            "split": [SPLIT_WORDS[names[0].lower()] if in_splits else "" for names in parts],
        }
    )


def walk_pictures(folder: Path) -> list[str]:
    """The paths of all files below a folder that are not hidden, sorted."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder. Name the folder that holds the pictures.")
    return [name for name in walk(folder)[0] if not is_hidden(name)]


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


def read_csv(folder: Path, file: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """The pictures that a CSV file names, as `read_folders` returns them.

    `columns` says which column is the path, person, camera and split; one left empty is guessed by its name.
    Paths start at `folder` or at the file's own.
    """
    rows = _read_rows(file)
    chosen = _choose_columns(file, list(rows.columns), columns)
    table = pd.DataFrame(
        {name: rows[column].str.strip() if column else "" for name, column in chosen.items()}
    )
    faults = [*_locate(table, folder, file), *_empty_people(table), *_split_words(table), *_repeated(table)]
    if faults:
        raise BadInput(f"{file}: {plural(len(faults), 'fault')}\n  " + "\n  ".join(shorten(faults)))
    return table


def _read_rows(file: Path) -> pd.DataFrame:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        header = text.partition("\n")[0]
        separator = max(",;\t", key=header.count)
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True,
            index_col=False, skip_blank_lines=False,
        )  # fmt: skip
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}). Name the CSV file.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not in UTF-8. Save it as CSV in UTF-8.") from None
    except ValueError as error:  # pandas' own are such
        raise BadInput(f"{file}: no readable CSV ({' '.join(str(error).split())}).") from None
    frame.index = frame.index + 2  # the header is row 1
    frame = frame[(frame.fillna("") != "").any(axis=1)]
    if frame.empty:
        raise BadInput(f"{file}: has no row below its header. Write one for each picture.")
    return frame


def _choose_columns(file: Path, present: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    chosen = {}
    for name, guesses in COLUMNS.items():
        similar = [c for c in present if re.sub(r"[^a-z]", "", c.lower()) in guesses]
        wanted = columns.get(name) or (similar[0] if len(similar) == 1 else "")
        if columns.get(name) and wanted not in present:
            raise BadInput(f"{file}: has no column {wanted!r}. There are: {', '.join(present)}.")
        if len(similar) > 1 and not wanted:
            raise BadInput(
                f"{file}: {' and '.join(similar)} may both be the {name}. Say which by --{name} {similar[0]}."
            )
        if not wanted and name in ("path", "person"):
            raise BadInput(
                f"{file}: which column is the {name}? Say so by --{name} COLUMN. "
                f"There are: {', '.join(present)}."
            )
        chosen[name] = wanted
    return chosen


def _locate(table: pd.DataFrame, folder: Path, file: Path) -> list[str]:
    # writes paths in `folder` to the table
    files = {unicodedata.normalize("NFC", name): name for name in walk_pictures(folder)}
    home = folder.resolve()
    starts = [home, file.parent.resolve()]
    faults, located = [], []
    for row, path in table["path"].items():
        plain = unicodedata.normalize("NFC", path.replace("\\", "/"))
        places = [Path(os.path.normpath(start / plain)) for start in starts]
        names = [p.relative_to(home).as_posix() for p in places if p.is_relative_to(home)]
        name = next((files[name] for name in names if name in files), None)
        if name is None:
            faults.append(f"row {row}: no file {path!r} below {folder}")
        located.append(name or path)
    table["path"] = located
    return faults


def _empty_people(table: pd.DataFrame) -> list[str]:
    empty = table.index[table["person"].isin(NO_PERSON)]
    return [
        f"row {row}: person = {table.at[row, 'person']!r} is nobody. Take the row out, or write a table with "
        "distractors yourself (pipeline/indexing/README.md)"
        for row in empty
    ]


def _split_words(table: pd.DataFrame) -> list[str]:
    # writes our names of the splits to the table
    words = table["split"].str.lower()
    if (words == "").all():
        return []
    table["split"] = words.map(SPLIT_WORDS)
    return [
        f"row {row}: split = {words[row]!r} is none of {', '.join(SPLIT_WORDS)}"
        for row in table.index[table["split"].isna()]
    ]


def _repeated(table: pd.DataFrame) -> list[str]:
    repeated = table[table.duplicated(["path", "split"])]
    return [f"row {row}: {path} stands above already" for row, path in repeated["path"].items()]


# ------------------------------------------------------------------ numbers


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns pid, from 1, and camid, from 0 and -1 where the camera is unknown."""
    people, cameras = _numbers(table["person"], 1), _numbers(table["camera"], 0) | {"": -1}
    return table.assign(pid=table["person"].map(people), camid=table["camera"].map(cameras))


def _numbers(names: Iterable[str], first: int) -> dict[str, int]:
    ordered = sorted({name for name in names if name}, key=natural)
    return {name: number for number, name in enumerate(ordered, first)}


def natural(text: str) -> list[str | int]:
    """A key that sorts `cam10` behind `cam2`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


# ------------------------------------------------------------------ splits


def split(table: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """The numbered table with a split in every row, and what to know of it.

    The split is the table's own if it has one.  Otherwise `test_share` of the people are tested on.  Fewer
    than four are trained and tested on alike, so that the rows stand twice.  Raises `BadInput` if nobody
    could be found again: no person has two pictures, by two cameras where cameras are known.
    """
    rng = np.random.default_rng(seed)
    people = {int(pid): rows for pid, rows in table.groupby("pid")}
    if len(people) < 2:
        raise BadInput(f"one person alone ({table['person'].iloc[0]}): there is nobody to tell apart.")
    own = (table["split"] != "").any()
    tested = table[table["split"] == TEST] if own else table
    queries = {pid: choose_queries(rows["camid"].tolist(), rng) for pid, rows in tested.groupby("pid")}
    matched = [pid for pid, chosen in queries.items() if chosen]
    if len(tested) and not matched:
        raise BadInput(
            "nobody could be found again: no person has two pictures"
            + (" by two cameras. Leave the cameras out." if (table["camid"] >= 0).any() else ".")
        )
    if own:
        rest = table[table["split"] != TEST]
        return _ordered([rest, _test_rows(tested, queries)]), []
    if len(people) < FEW:
        return _ordered([table.assign(split="train"), _test_rows(table, queries)]), [
            f"WARNING: {plural(len(people), 'person')} cannot be divided into some to train on and others to "
            "test on. All are in both, so the scores say nothing about other people."
        ]
    count = min(max(round(test_share * len(people)), 1), len(matched), len(people) - 2)
    chosen = rng.permutation(matched)[:count]
    test = table["pid"].isin(chosen)
    note = f"{plural(count, 'person')} of {len(people)} drawn to test on, by seed {seed}"
    return _ordered([table[~test].assign(split="train"), _test_rows(table[test], queries)]), [note]


def _test_rows(table: pd.DataFrame, queries: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    is_query = pd.Series(False, index=table.index)
    for pid, rows in table.groupby("pid"):
        is_query[rows.index[queries[int(pid)]]] = True
    return table.assign(split=np.where(is_query, "query", "gallery"))


def _ordered(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts)
    rank = table["split"].map(SPLITS.index)
    return table.assign(rank=rank).sort_values(["rank", "pid", "path"]).drop(columns="rank")


def choose_queries(cameras: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Positions of one person's pictures that become queries; each has a match left for the gallery."""
    queries: list[int] = []
    unknown = max(1, len(cameras) // 4)
    for position in rng.permutation(len(cameras)).tolist():
        camera = cameras[position]
        same = sum(cameras[query] == camera for query in queries)
        if same < (unknown if camera < 0 else 1) and _all_matched([*queries, position], cameras):
            queries.append(position)
    return sorted(queries)


def _all_matched(queries: list[int], cameras: Sequence[int]) -> bool:
    gallery = [camera for position, camera in enumerate(cameras) if position not in queries]
    return all(any(cameras[q] < 0 or c < 0 or c != cameras[q] for c in gallery) for q in queries)


# ------------------------------------------------------------------ writing


def describe(table: pd.DataFrame) -> list[str]:
    """A line for each split: pictures, people, cameras."""
    lines = []
    for name in SPLITS:
        rows = table[table["split"] == name]
        cameras = rows.loc[rows["camid"] >= 0, "camid"].nunique()
        seen = plural(cameras, "camera") if cameras else "cameras unknown"
        lines.append(
            f"{name:8}{plural(len(rows), 'picture')} of {plural(rows['pid'].nunique(), 'person')}, {seen}"
        )
    return lines


def write_archive(path: Path, folder: Path, table: pd.DataFrame) -> None:
    """The pictures of a table and the table itself, as one zip; equal pictures give equal bytes."""
    columns = ["path", "pid", "camid", "split", "person", "camera"]
    try:
        text = table[columns].to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{error.object[error.start - 20 : error.end]!a}: no UTF-8. Rename it.") from None
    paths = sorted(set(table["path"]))
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        _add(target, TABLE, text)
        for name in progress_bar(iterable=paths, desc=path.name):
            _add(target, name, read_file(folder / name))


def _add(archive: zipfile.ZipFile, name: str, blob: bytes) -> None:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    archive.writestr(entry, blob)
