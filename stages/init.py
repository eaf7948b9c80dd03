"""Make a dataset of pictures of your own, and name it in params.yaml.  Run by hand, once for a dataset.

Takes:
    pattern    without a CSV: regular expression whose group finds the camera in a path, as 'cam(\\d+)'
    csv        a CSV file with a row for each picture and any columns, instead of one folder for each person
    path       its column of paths; this and the next three are found by their usual names
    person     its column of people
    camera     its column of cameras; none: they are unknown
    split      its column of splits; none: there is none
    name       of the dataset; the folder's if empty
    test       percent of the people that are tested on, where no split is given
    seed       of that choice
    parsers    coco for photographs, embedded for rendered people
    force      replace a dataset of this name
Reads:
    folder     a folder for each person, or such folders in train/, query/, gallery/ or test/; or any pictures
Writes:
    archives   folder of the archive

People and cameras may be called anything: they are numbered, and the table in the archive keeps their names.

    python -m stages.init photos --pattern '_cam(\\d+)'
    python -m stages.init photos --csv photos/list.csv --person name --name mine
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.core import editing, params
from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput, plural, shorten
from pipeline.indexing import build, datasets, kinds, own_data, own_splits
from pipeline.indexing.archive import Folder


def main(
    folder: str, archives: str = "data/raw", csv: str = "", pattern: str = "",
    path: str = "", person: str = "", camera: str = "", split: str = "",
    name: str = "", test: int = 50, seed: int = 1, parsers: Literal["coco", "embedded"] = "coco",
    force: bool = False, config: str = "params.yaml",
) -> None:  # fmt: skip
    source = Path(folder)
    name = name or datasets.suggest_name(source.resolve().name)
    archive = Path(archives, f"{name}.zip")
    columns = {"path": path, "person": person, "camera": camera, "split": split}
    options = check_params(config)
    check_options(csv, pattern, columns, test, seed)
    check_target(name, archive, force, params.load(config))
    files = Folder(source)
    if csv:
        read = own_data.read_table(source, files, Path(csv), columns)
    else:
        read = own_data.read_folders(source, files, pattern)
    listing = own_data.left_out(files, read["path"], csv)
    missed = [str(p) for p in build.missed_files(listing)] if options.others == "refuse" else []
    if missed:
        raise BadInput("\n  ".join([f"{folder}: {plural(len(missed), 'fault')}", *shorten(missed)]))
    table, notes = own_splits.split(own_data.numbered(read), test / 100, seed)
    own_data.write_archive(archive, files, table)
    entry = {"layout": "table", "archive": archive.as_posix()}
    splits = table.groupby("split")["pid"].nunique().to_dict()
    edits = editing.edit(config, lambda values: use(values, name, entry, splits, parsers))
    lines = [
        f"{archive}: {plural(table['path'].nunique(), 'picture')} of {folder}",
        *own_data.describe(table),
        *([] if csv else own_data.deep_folders(read)),
        *kinds.left_out_lines(listing.left_out),
    ]
    print("\n".join([*lines, *notes, *(f"{config}: {edit}" for edit in edits), *unchanged(config, name)]))
    print(f"Next: `uv run dvc repro index@{name}` checks every picture, `uv run dvc repro` does the rest.")


def check_params(config: str) -> build.Index:
    """Raise `BadInput` unless a parameter file has what `use` sets; returns its section `index`."""
    datasets.read_roles(config)
    for section, schema in {"datasets": dict, "labels_from": dict, "parse_on": list, "parsers": str}.items():
        params.read(config, section, schema)
    return params.read(config, "index", build.Index)


def check_options(csv: str, pattern: str, columns: dict[str, str], test: int, seed: int) -> None:
    """Raise `BadInput` for options that would not be read, a share of none or all, and a seed below 0."""
    if unread := [f"--{option}" for option, column in columns.items() if column and not csv]:
        raise BadInput(f"{', '.join(unread)}: columns of a CSV. Name the file by --csv.")
    if csv and pattern:
        raise BadInput("--pattern: not read with --csv. Name the CSV's column by --camera.")
    if not 0 < test < 100:
        raise BadInput(f"--test {test}: give percent of the people, 1 to 99.")
    params.check_count("--seed", seed)


def check_target(name: str, archive: Path, force: bool, values: dict[str, Any]) -> None:
    """Raise `BadInput` for a name that cannot be, and for what would be replaced."""
    if faults := datasets.name_faults([name]):
        raise BadInput("\n".join(fault.replace("datasets has", "--name:") for fault in faults))
    existing = [f"{archive} exists"] if archive.exists() else []
    existing += [f"params.yaml has a dataset {name}"] if name in values["datasets"] else []
    if existing and not force:
        raise BadInput(f"{' and '.join(existing)}. Choose another --name, or replace it with --force.")


def use(values: Any, name: str, entry: dict[str, str], identities: Mapping[str, int], parsers: str) -> None:
    """Let the values of params.yaml parse, train and test on a dataset, where its splits hold identities.

    The embedded dataset is left out unless it is still trained or tested on.
    """
    values["datasets"][name] = entry
    values["labels_from"].pop(name, None)
    if name not in values["parse_on"]:
        values["parse_on"].append(name)
    if "query" in identities and "gallery" in identities:
        values["test_on"][:] = [name]
    if identities.get("train", 0) > 1:
        values["train_on"] = name
        train, count = values["train"], identities["train"]
        train["held_out"] = train["held_out"] if count - train["held_out"] >= 2 else 0
        train["identities"] = min(train["identities"], count - train["held_out"])
    if "embedded" not in (name, values["train_on"], *values["test_on"]):
        for names in (values["parse_on"], values["index"]["occlude"]["datasets"]):
            names[:] = [other for other in names if other != "embedded"]
        values["datasets"].pop("embedded", None)
    values["parsers"] = {"coco": "coco", "embedded": ""}[parsers]


def unchanged(config: str, name: str) -> list[str]:
    """What a parameter file says of training and testing that `use` may have left as it was."""
    values = params.load(config)
    lines = [f"train.identities is {values['train']['identities']}: that many people are in a batch"]
    if values["train_on"] != name:
        lines.append(f"train_on stays {values['train_on']}: fewer than two people of {name} to train on")
    if name not in values["test_on"]:
        lines.append(f"test_on stays {', '.join(values['test_on'])}: no query or no gallery in {name}")
    return [f"{config}: {line}" for line in lines]


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
