"""Make a dataset of pictures of your own, and name it in params.yaml.  Run by hand, once for a dataset.

Takes:
    pattern    in a folder a person: regular expression whose group finds the camera in a path, as 'cam(\\d+)'
    csv        a CSV file with a row for each picture and any columns, instead of a folder a person
    path       its column of paths; this and the next three are found where they are called as usual
    person     its column of people
    camera     its column of cameras
    split      its column of splits
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
from pathlib import Path
from typing import Any, Literal

from pipeline.core import editing, params
from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput, plural, shorten
from pipeline.indexing import build, datasets, own_data


def main(
    folder: str, archives: str = "data/raw", csv: str = "", pattern: str = "",
    path: str = "", person: str = "", camera: str = "", split: str = "",
    name: str = "", test: int = 50, seed: int = 1, parsers: Literal["coco", "embedded"] = "coco",
    force: bool = False, config: str = "params.yaml",
) -> None:  # fmt: skip
    source = Path(folder)
    name = name or datasets.suggest_name(source.resolve().name)
    archive = Path(archives, f"{name}.zip")
    check_params(config)
    check_target(name, archive, test, force, params.load(config))
    columns = {"path": path, "person": person, "camera": camera, "split": split}
    read = own_data.read_csv(source, Path(csv), columns) if csv else own_data.read_folders(source, pattern)
    table, notes = own_data.split(own_data.numbered(read), test / 100, seed)
    own_data.write_archive(archive, source, table)
    identities = table.loc[table["split"] == "train", "pid"].nunique()
    entry = {"layout": "table", "archive": archive.as_posix()}
    edits = editing.edit(config, lambda values: use(values, name, entry, identities, parsers))
    others = sorted(set(own_data.walk_pictures(source)) - set(table["path"]))
    lines = [
        f"{archive}: {plural(table['path'].nunique(), 'picture')} of {folder}",
        *own_data.describe(table),
    ]
    lines += [f"left out: {plural(len(others), 'file')}: {', '.join(shorten(others))}"] if others else []
    print("\n".join([*lines, *notes, *(f"{config}: {edit}" for edit in edits)]))
    print(f"Next: `uv run dvc repro index@{name}` checks every picture, `uv run dvc repro` does the rest.")


def check_params(config: str) -> None:
    """Raise `BadInput` unless a parameter file has what `use` sets."""
    datasets.read_roles(config)
    params.read(config, "index", build.Index)
    for section, schema in {"datasets": dict, "labels_from": dict, "parse_on": list, "parsers": str}.items():
        params.read(config, section, schema)


def check_target(name: str, archive: Path, test: int, force: bool, values: dict[str, Any]) -> None:
    """Raise `BadInput` for a name that cannot be, a share of none or all, and what would be replaced."""
    if faults := datasets.name_faults([name]):
        raise BadInput("\n".join(fault.replace("datasets has", "--name:") for fault in faults))
    if not 0 < test < 100:
        raise BadInput(f"--test {test}: give percent of the people, 1 to 99.")
    existing = [f"{archive} exists"] if archive.exists() else []
    existing += [f"params.yaml has a dataset {name}"] if name in values["datasets"] else []
    if existing and not force:
        raise BadInput(f"{' and '.join(existing)}. Choose another --name, or replace it with --force.")


def use(values: Any, name: str, entry: dict[str, str], identities: int, parsers: str) -> None:
    """Let the values of params.yaml parse, train and test on a dataset, and leave out the embedded one."""
    lists = (values["parse_on"], values["test_on"], values["index"]["occlude"]["datasets"])
    for names in lists:
        names[:] = [other for other in names if other != "embedded"]
    values["datasets"].pop("embedded", None)
    values["labels_from"].pop(name, None)
    values["datasets"][name] = entry
    if name not in values["parse_on"]:
        values["parse_on"].append(name)
    values["test_on"][:] = [name]
    values["train_on"] = name
    values["parsers"] = {"coco": "coco", "embedded": ""}[parsers]
    train = values["train"]
    train["held_out"] = train["held_out"] if identities - train["held_out"] >= 2 else 0
    train["identities"] = min(train["identities"], identities - train["held_out"])


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
