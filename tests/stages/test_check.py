"""The first stage: every fault of params.yaml, all together, before anything that costs hours."""

import re
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.indexing import datasets
from stages import check

ROOT = Path(__file__).parents[2]
MINE = {"mine": {"layout": "table", "archive": "data/raw/mine.zip"}}


def faults(folder: Path, **changed) -> list[str]:
    """The lines of `check` for params.yaml with other values: `a__b` is b of section a, None drops a key."""
    values = params.load(ROOT / "params.yaml")
    for name, value in changed.items():
        *path, last = name.split("__")
        section = values
        for key in path:
            section = section[key]
        section[last] = value
    YAML().dump({key: value for key, value in values.items() if value is not None}, folder / "params.yaml")
    try:
        check.main(
            str(folder / "data"),
            "models/trained",
            str(folder / "out.txt"),
            config=str(folder / "params.yaml"),
        )
    except BadInput as error:
        *lines, last = str(error).splitlines()
        assert last.endswith("; nothing was run.") and not (folder / "out.txt").exists()
        return [line.removeprefix(f"{folder / 'params.yaml'}: ") for line in lines]
    return []


def test_the_committed_params_are_without_fault(tmp_path, capsys):
    assert faults(tmp_path) == []
    assert "params.yaml: 1 dataset, every name and value is known\n" in capsys.readouterr().out


def test_what_it_writes_is_the_same_for_all_params(tmp_path):
    faults(tmp_path)
    before = (tmp_path / "out.txt").read_bytes()
    assert faults(tmp_path, seed=2) == [] and (tmp_path / "out.txt").read_bytes() == before


FAULTS = {  # changes: how each line starts
    "a name in parse_on": (
        {"parse_on": ["embedded", "embeded"]},
        ["parse_on = embeded: no such dataset; did you mean 'embedded'? There are: embedded."],
    ),
    "a name in train_on": ({"train_on": "market"}, ["train_on = market: no such dataset. There are:"]),
    "no name in train_on": ({"train_on": ""}, ["train_on = : no such dataset. There are:"]),
    "a name in test_on": ({"test_on": ["embedded", "mine"]}, ["test_on = mine: no such dataset."]),
    "a name twice": ({"test_on": ["embedded", "embedded"]}, ["test_on has embedded twice."]),
    "a name in labels_from": (
        {"labels_from": {"mine": {
            "source": "lip", "path": "x", "missing": "refuse",
            "folders": {"train": "a", "query": "b", "gallery": "c"},
        }}},
        ["labels_from = mine: no such dataset."],
    ),
    "a name in index.occlude.datasets": (
        {"index__occlude__datasets": ["market"]},
        ["index.occlude.datasets = market: no such dataset."],
    ),
    "a dataset without labels": (
        {"parse_on": []},
        ["embedded of datasets stands in neither parse_on nor labels_from"],
    ),
    "a misspelt layout": (
        {"datasets__embedded__layout": "folder"},
        ["layout 'folder' is unknown. There are:"],
    ),
    "a misspelt key": (
        {"lambda": None, "lamda": 5},
        ["lamda is not a parameter; did you mean 'lambda'?", "lambda is missing."],
    ),
    "a misspelt method": ({"method": "ogrf"}, ["method = 'ogrf': input should be 'ogfr' or 'vit_baseline'."]),
    "a misspelt param of a method that is not chosen": (
        {"vit_baseline__strid": 16},
        ["vit_baseline.strid is not a parameter; did you mean 'stride'?"],
    ),
    "a start that is no trained model": (
        {"train__start_from": "models/embedded"},
        ["train.start_from: models/embedded: no trained model."],
    ),
    "a start that the training replaces": (
        {"train__start_from": "models/trained"},
        ["train.start_from = models/trained: the training writes to models/trained"],
    ),
    "params that contradict each other": (
        {"ogfr__distil": False, "ogfr__fep": "teacher"},
        ["ogfr.fep = teacher, but ogfr.distil = false leaves no teacher."],
    ),
    "weights of an encoder that are not there": (
        {"ogfr__vit": "vit_base_patch16_224.orig_in21k", "ogfr__weights": "models/none.safetensors"},
        ["ogfr.weights = models/none.safetensors: no such file."],
    ),
    "an encoder that timm lacks": (
        {"ogfr__vit": "vit_bas_patch16_224"},
        ["ogfr.vit = vit_bas_patch16_224: timm knows no such model."],
    ),
    "a batch that processes cannot share": (
        {"processes__train": 3},
        ["train.identities = 16 is no multiple of processes.train = 3."],
    ),
    "cut-outs that are not there": (
        {"train__obstacles__cutouts": "cutouts"},
        ["cutouts: no such folder."],
    ),
    "no test set": ({"test_on": []}, ["test_on = []: list should have at least 1 item"]),
    "networks that nobody knows": ({"parsers": "cocos"}, ["parsers = 'cocos': input should be '' or"]),
    "no weights for our own network": (
        {"segment__weights": "", "pose__weights": ""},
        ["segment.weights is empty. Name the file.", "pose.weights is empty. Name the file."],
    ),
    "weights from the project's folder": (
        {"segment__weights": "models/mine.safetensors"},
        ["segment.weights = 'models/mine.safetensors': the path starts at models/embedded/."],
    ),
    "a path that a shell would change": (
        {"datasets__embedded__archive": "data/raw/a$b.zip"},
        ["datasets.embedded.archive = 'data/raw/a$b.zip': dvc.yaml quotes paths for the shell"],
    ),
    "no archive": ({"datasets__embedded__archive": ""}, ["datasets.embedded.archive is empty. Name"]),
    "faults of many sections": (
        {"lambda": -1, "train__images": 0, "draw__dpi": "high", "train_on": "mine", "pose__weights": ""},
        ["lambda = -1", "train.images = 0", "draw.dpi = 'high'", "train_on = mine", "pose.weights is empty"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(tmp_path, fault):
    changed, lines = FAULTS[fault]
    said = faults(tmp_path, **changed)
    assert len(said) == len(lines)
    assert all(line.startswith(start) for line, start in zip(said, lines, strict=True)), said


@pytest.mark.parametrize("weights", ["", "../nothing.safetensors"])
def test_weights_are_not_looked_at_beside_a_published_network(tmp_path, weights):
    assert faults(tmp_path, parsers="coco", segment__weights=weights, pose__weights=weights) == []


NAMES = {  # a name, or names: what is said of it
    "mine": None,
    "Occluded-Duke_2": None,
    "x" * 40: None,
    "my data": "'my data', which is no name: .* Write my_data.",
    2024: "2024, which is no text: YAML takes it for a int: write set_2024.",
    "2024": "'2024', which is no name: .* Write set_2024.",
    "../x": r"'\.\./x', which is no name: .* Write x.",
    "a.b": "Write a_b.",
    "a@b": "Write a_b.",
    "a:b": "Write a_b.",
    "a;b": "Write a_b.",
    "$a": "Write a.",
    "Müller": "Write M_ller.",
    "-a": "Write a.",
    "": "Write set.",
    "x" * 41: f"Write {'x' * 40}.",
    "raw": "raw: data/raw/ holds the archives.",
    True: "True, which is no text",
    None: "None, which is no text",
}


@pytest.mark.parametrize("name", NAMES, ids=map(repr, NAMES))
def test_a_dataset_has_a_plain_name(name):
    said = datasets.name_faults([name])
    if NAMES[name] is None:
        assert said == [] and datasets.suggest_name(name) == name
    else:
        (fault,) = said
        assert re.search(NAMES[name], fault), fault
        assert datasets.name_faults([datasets.suggest_name(name)]) == []


def test_names_that_differ_in_case_alone_are_one_folder_on_some_systems():
    (fault,) = datasets.name_faults(["mine", "Mine", "yours"])
    assert fault.startswith("datasets has mine and Mine, which are one folder on some systems.")


def test_a_date_as_a_name_is_reported_with_the_other_faults(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("  embedded: {layout", "  2024-05-01: {layout")
    (tmp_path / "params.yaml").write_text(text.replace("lambda: 5", "lambda: x"))
    with pytest.raises(BadInput) as error:
        check.main(config=str(tmp_path / "params.yaml"))
    assert "lambda = 'x'" in str(error.value)
    assert "datasets has 2024-05-01, which is no text: YAML takes it for a date" in str(error.value)


# ------------------------------------------------------------------ what datasets must hold


def index(train: int, query: int = 1, gallery: int = 1) -> pd.DataFrame:
    splits = {"train": train, "query": query, "gallery": gallery}
    rows = [(pid, split) for split, count in splits.items() for pid in range(1, count + 1)]
    return pd.DataFrame(rows, columns=["pid", "split"])


ROLES = {  # people, train.identities, train.held_out: what is said
    (16, 16, 0): None,
    (2, 2, 0): None,
    (15, 16, 0): "train.identities = 16, but mine has 15 training identities. Set it to 15 or less.",
    (20, 16, 8): (
        "train.identities = 16, but mine has 12 training identities beside 8 held out. Set it to 12 or less."
    ),
    (8, 2, 8): (
        "train.held_out = 8, but mine has 8 training identities, and training compares two. "
        "Set it to 6 or less."
    ),
    (1, 2, 0): "train_on = mine, which has one training identity, and training compares two.",
    (0, 2, 0): "train_on = mine, which has no image of the split train. Train on another dataset.",
}


@pytest.mark.parametrize("case", ROLES)
def test_a_batch_has_no_more_people_than_the_training_set(case):
    count, identities, held_out = case
    roles = datasets.Roles("mine", ["mine"], identities, held_out)
    assert datasets.role_faults(index(count), "mine", roles) == ([ROLES[case]] if ROLES[case] else [])
    assert datasets.role_faults(index(count), "other", roles) == []


def test_a_test_set_has_queries_and_a_gallery():
    roles = datasets.Roles("other", ["mine"], 16, 0)
    (fault,) = datasets.role_faults(index(4, gallery=0), "mine", roles)
    assert fault == "test_on names mine, which has no image of the split gallery. Take it out of test_on."


def test_a_dataset_that_is_indexed_is_checked_with_the_params(tmp_path):
    (tmp_path / "data/embedded").mkdir(parents=True)
    index(8).to_parquet(tmp_path / "data/embedded/index.parquet")
    (fault,) = faults(tmp_path)
    assert fault == (
        "train.identities = 16, but embedded has 8 training identities. Set it to 8 or less. "
        "If its archive has changed, run `dvc repro --single-item index@embedded` first."
    )
    (tmp_path / "data/embedded/index.parquet").write_bytes(b"of another version")
    assert faults(tmp_path) == []  # `index` makes it anew
