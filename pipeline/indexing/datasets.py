"""The datasets of params.yaml: how they are called, who refers to them, and what they must hold for that.

A name becomes a folder below data/, part of a DVC stage's name, and a key that YAML must take for a text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow
from pydantic import AfterValidator, ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pipeline.core import params
from pipeline.core.params import STRICT
from pipeline.indexing import build
from pipeline.indexing.archive import Encoding

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
RULE = "a letter, then letters of English, digits, _ or -; at most 40 in all"
RESERVED = "raw"  # the folder of the archives
OTHERS = ConfigDict(extra="ignore", strict=True)  # beside other params


def _check_layout(name: str) -> str:
    if name not in build.layout_names():
        raise PydanticCustomError("layout", f"No such layout. There are {', '.join(build.layout_names())}")
    return name


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """How a dataset is laid out, and the file that holds it."""

    layout: Annotated[str, AfterValidator(_check_layout)]  # a file of layouts/
    archive: params.QuotedPath
    names: Encoding | None = None  # of names whose encoding the archive does not record


# the sections that name datasets, as far as names go
NAMING: dict[str, Any] = {
    "datasets": dict[str, Any],
    "parse_on": list[str],
    "labels_from": dict[str, Any],
    "train_on": str,
    "test_on": list[str],
    "index": build.Index,
}


@dataclass(frozen=True, config=OTHERS)
class Batch:
    """How many people a batch takes from how many."""

    identities: params.Count  # in a batch
    held_out: params.Count  # training identities that are not trained on


@dataclass(frozen=True, config=OTHERS)
class Roles:
    """What the datasets are used for."""

    train_on: str
    test_on: list[str]
    train: Batch


def read_encoding(config: str | Path, dataset: str) -> str | None:
    """The key `names` of a dataset in a file of parameters; None without it."""
    values = params.read(config, "datasets", dict[str, Any]).get(dataset)
    return params.validate(values, Dataset, f"{config}: ", f"datasets.{dataset}").names if values else None


def read_roles(config: str | Path) -> Roles:
    """The roles in a file of parameters."""
    return params.read(config, None, Roles)


def suggest_name(text: Any) -> str:
    """A name of a dataset that resembles a text."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", str(text)).strip("_-")
    name = (plain if plain[:1].isalpha() else f"set_{plain}")[:40].rstrip("_-")
    return f"{name}_set" if name == RESERVED else name


def name_faults(names: Iterable[Any]) -> list[str]:
    """Names that a dataset cannot have: not of the rule, reserved, or alike but for the case of letters."""
    faults = []
    for name in names:
        if not isinstance(name, str):
            remedy = f"YAML takes it for a {type(name).__name__}: write {suggest_name(name)}"
            faults.append(f"datasets has {name}, which is not text: {remedy}.")
        elif not NAME.fullmatch(name):
            remedy = f"{RULE}. Write {suggest_name(name)}"
            faults.append(f"datasets has {name!r}, which is not a valid name: {remedy}.")
        elif name == RESERVED:
            faults.append(f"datasets has {name}: data/{name}/ holds the archives. Choose another name.")
    folders = Counter(str(name).lower() for name in names)
    return faults + [
        f"datasets has {' and '.join(str(name) for name in names if str(name).lower() == folder)}, "
        "which are one folder on some systems. Choose names that differ in more than case."
        for folder, count in folders.items()
        if count > 1
    ]


def reference_faults(values: Mapping[str, Any]) -> list[str]:
    """Names in params.yaml that no dataset has, that stand twice, and datasets without labels."""
    datasets = [str(name) for name in values["datasets"]]
    references = {
        "parse_on": values["parse_on"],
        "labels_from": list(values["labels_from"]),
        "train_on": [values["train_on"]],
        "test_on": values["test_on"],
        "index.occlude.datasets": values["index"]["occlude"]["datasets"],
        "index.range": list(values["index"]["range"]),
    }
    faults = []
    for where, items in references.items():
        names = [str(item) for item in items]
        faults += [_unknown(where, name, datasets) for name in dict.fromkeys(names) if name not in datasets]
        faults += [f"{where} has {name} twice." for name, count in Counter(names).items() if count > 1]
    parsed, labelled = set(references["parse_on"]), set(references["labels_from"])
    for name in datasets:
        if name in parsed & labelled:
            faults.append(f"{name} stands in parse_on and in labels_from. Take it out of one.")
        if name not in parsed | labelled:
            faults.append(
                f"{name} of datasets stands in neither parse_on nor labels_from, so it has no labels. "
                "Add it to parse_on, or name the folder of its labels in labels_from "
                "(pipeline/labels/README.md)."
            )
    return faults


def _unknown(where: str, name: Any, datasets: list[str]) -> str:
    near = get_close_matches(str(name), datasets, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{where} = {name!r}: no such dataset{hint} There are: {', '.join(datasets)}."


def read_splits(path: str | Path) -> pd.DataFrame | None:
    """The columns pid and split of an index; none if there is no readable one, as `index` then makes it."""
    try:
        return pd.read_parquet(path, columns=["pid", "split"])
    except (OSError, pyarrow.ArrowException):
        return None


def role_faults(index: pd.DataFrame, name: str, roles: Roles) -> list[str]:
    """What a dataset lacks to be trained or tested on, from its index's columns pid and split."""
    faults = []
    if name in roles.test_on:
        empty = [split for split in ("query", "gallery") if not (index["split"] == split).any()]
        if empty:
            faults.append(
                f"test_on names {name}, which has no image of the split {' and '.join(empty)}. "
                "Name another dataset in test_on."
            )
    if name == roles.train_on:
        count = index.loc[index["split"] == "train", "pid"].nunique()
        faults += _batch_faults(name, count, roles.train.identities, roles.train.held_out)
    return faults


def _batch_faults(name: str, count: int, identities: int, held_out: int) -> list[str]:
    # training compares two identities at least
    left = count - held_out
    if count == 0:
        return [f"train_on = {name}, which has no image of the split train. Train on another dataset."]
    if count == 1:
        return [f"train_on = {name}, which has one training identity, and training compares two."]
    if left < 2:
        return [
            f"train.held_out = {held_out}, but {name} has {count} training identities, and training "
            f"compares two. Set it to {count - 2 if count > 3 else 0} or less."
        ]
    if identities > left:
        rest = f" beside {held_out} held out" if held_out else ""
        return [
            f"train.identities = {identities}, but {name} has {left} training identities{rest}. "
            f"Set it to {left} or less."
        ]
    return []
