"""The first stage: every fault of params.yaml, all together, before anything that costs hours."""

import argparse
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.indexing import datasets
from pipeline.methods.ogfr.params import STUDENT_WEIGHTS
from pipeline.model import backbones
from pipeline.studies.tables import METHODS
from pipeline.training import tensorboard
from stages import check

ROOT = Path(__file__).parents[2]
CHOICES = " or ".join(", ".join(repr(name) for name in sorted(METHODS)).rsplit(", ", 1))
UNUSED = 12 + len(METHODS - {"ogfr"})  # params of the committed params.yaml without effect
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
MINE = {"mine": {"layout": "table", "archive": "data/raw/mine.zip"}}
EMBEDDED = {"embedded": {"layout": "folders", "archive": "data/embedded/raw.zip"}}
FOLDERS = {"train": "a", "query": "b", "gallery": "c"}
LABELS = {"source": "lip", "path": "x", "missing": "refuse", "folders": FOLDERS}


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


def test_tensorboard_is_named_where_it_is_wanted_and_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    (line,) = faults(tmp_path, tensorboard="runs")
    assert line.startswith("tensorboard = runs: needs the package tensorboard. Run `uv sync --group")


def test_weights_that_are_a_pickle_are_named_before_any_stage_with_the_command_that_converts_them(tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"teacher": {"a": torch.zeros(1)}, "args": argparse.Namespace()}, file)
    (line,) = faults(tmp_path, ogfr__vit="vit_small_patch16_224", ogfr__weights=str(file))
    assert line.startswith(f"ogfr.weights = {file}: holds argparse.Namespace, which is refused")
    assert f"`python -m pipeline convert {file} " in line


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
        ["parse_on = 'embeded': no such dataset; did you mean 'embedded'? There are: embedded."],
    ),
    "a name in train_on": ({"train_on": "market"}, ["train_on = 'market': no such dataset. There are:"]),
    "no name in train_on": ({"train_on": ""}, ["train_on = '': no such dataset. There are:"]),
    "a name in test_on": ({"test_on": ["embedded", "mine"]}, ["test_on = 'mine': no such dataset."]),
    "a name twice": ({"test_on": ["embedded", "embedded"]}, ["test_on has embedded twice."]),
    "a name in labels_from": (
        {"labels_from": {"mine": LABELS}},
        ["labels_from = 'mine': no such dataset."],
    ),
    "a name in index.occlude.datasets": (
        {"index__occlude__datasets": ["market"]},
        ["index.occlude.datasets = 'market': no such dataset."],
    ),
    "a dataset without labels": (
        {"parse_on": []},
        ["embedded of datasets stands in neither parse_on nor labels_from"],
    ),
    "a misspelt layout": (
        {"datasets__embedded__layout": "folder"},
        ["datasets.embedded.layout = 'folder': no such layout. There are dukemtmc"],
    ),
    "a misspelt key": (
        {"lambda": None, "lamda": 5},
        ["lamda is not a parameter; did you mean 'lambda'?", "lambda is missing."],
    ),
    "a misspelt method": ({"method": "ogrf"}, [f"method = 'ogrf': input should be {CHOICES}."]),
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
        ["ogfr.vit = 'vit_bas_patch16_224': timm has no such model."],
    ),
    "no encoder": ({"ogfr__vit": ""}, ["ogfr.vit = '': timm has no such model."]),
    "an encoder that is no ViT": ({"ogfr__vit": "resnet50"}, ["ogfr.vit = 'resnet50': not a plain ViT"]),
    "an encoder's tag that timm lacks": (
        {"ogfr__vit": "vit_tiny_patch16_224.nope"},
        ["ogfr.vit = 'vit_tiny_patch16_224.nope': Invalid pretrained tag (nope)"],
    ),
    "a detector that torchvision lacks": (
        {"segment__network": "foo"},
        ["segment.network = 'foo' is no Mask R-CNN of torchvision. Name one of small, maskrcnn"],
    ),
    "weights that torchvision does not publish": (
        {"segment__network": "maskrcnn_resnet50_fpn_v2:NOPE"},
        ["segment.network = 'maskrcnn_resnet50_fpn_v2:NOPE': torchvision publishes no such weights."],
    ),
    "a network that openpifpaf lacks": (
        {"pose__network": "bar"},
        ["pose.network = 'bar' is no network of openpifpaf. Name one of small, "],
    ),
    "weights that openpifpaf does not publish": (
        {"pose__network": "shufflenetv2k16:nope"},
        ["pose.network = 'shufflenetv2k16:nope': openpifpaf publishes no such weights."],
    ),
    "weights of a parser that are not there": (
        {"segment__weights": "missing.safetensors"},
        ["segment.weights = 'missing.safetensors': there is no file models/embedded/missing.safetensors."],
    ),
    "classes of a source that brings its own": (
        {"datasets": MINE | EMBEDDED, "labels_from": {"mine": LABELS | {"classes": ["nose"]}}},
        ["labels_from: `classes` lists the part of every class for `source: classes`, and for that alone."],
    ),
    "a class that is no part": (
        {
            "datasets": MINE | EMBEDDED,
            "labels_from": {"mine": LABELS | {"source": "classes", "classes": ["nose"]}},
        },
        ["labels_from: classes: nose is no part. Name background, head"],
    ),
    "a batch that processes cannot share": (
        {"processes__train": 3},
        ["train.identities = 16 cannot be shared by 3 processes. Let it be a multiple."],
    ),
    "a batch of which each process has one identity": (
        {"processes__train": 16, "train__mining": "process"},
        ["train.identities = 16 gives each process one, and train.mining = process finds no negative there."],
    ),
    "a student that nothing teaches": (
        {f"ogfr__{name}": 0.0 for name in STUDENT_WEIGHTS},
        ["ogfr.alpha, ogfr.beta, ogfr.mu_1, ogfr.mse_weight, ogfr.student_triplet are all 0"],
    ),
    "weights that the embedded encoder does not read": (
        {"ogfr__weights": "models/mine.safetensors"},
        ["ogfr.weights = 'models/mine.safetensors': the vit `embedded` has its own"],
    ),
    "colours that the embedded encoder does not read": (
        {"ogfr__colours": "clip"},
        ["ogfr.colours = clip: the vit `embedded` has its own"],
    ),
    "colours of no name": (
        {"ogfr__colours": "grey"},
        ["ogfr.colours = 'grey': input should be 'auto', 'half', 'imagenet' or 'clip'"],
    ),
    "cut-outs that are not there": (
        {"train__obstacles__cutouts": "cutouts"},
        ["cutouts: no such folder."],
    ),
    "no test set": ({"test_on": []}, ["test_on = []: list should have at least 1 item"]),
    "networks that nobody knows": ({"parsers": "cocos"}, ["parsers = 'cocos': input should be '' or"]),
    "no weights for our own network": (
        {"segment__weights": "", "pose__weights": ""},
        ["segment.weights = '': name the file.", "pose.weights = '': name the file."],
    ),
    "weights from the project's folder": (
        {"segment__weights": "models/mine.safetensors"},
        [
            "segment.weights = 'models/mine.safetensors': the path starts at models/embedded/. Write "
            "../mine.safetensors for models/mine.safetensors."
        ],
    ),
    "weights from the root": (
        {"pose__weights": f"{ROOT.parent}/shared/x.safetensors"},
        [
            f"pose.weights = '{ROOT.parent}/shared/x.safetensors': the path starts at models/embedded/. "
            f"Write ../../../shared/x.safetensors for {ROOT.parent}/shared/x.safetensors."
        ],
    ),
    "a path that a shell would change": (
        {"datasets__embedded__archive": "data/raw/a$b.zip"},
        ["datasets.embedded.archive = 'data/raw/a$b.zip': dvc.yaml quotes paths for the shell"],
    ),
    "no archive": ({"datasets__embedded__archive": ""}, ["datasets.embedded.archive = '': name the file."]),
    "blocks that the encoder does not have": (
        {"method": "dpm", "dpm__taps": [2, 7]},
        ["dpm.taps = [2, 7]: the encoder has 6 blocks."],
    ),
    "blocks that no encoder of that name has": (
        {"method": "dpmpp", "dpmpp__vit": CLIP, "dpmpp__taps": [2, 13], "dpmpp__text": "none"},
        ["dpmpp.taps = [2, 13]: the encoder has 12 blocks."],
    ),
    "more stripes than the preset's stride leaves rows": (
        {"method": "fed", "fed__stripes": 17},
        ["fed.stripes = 17, but the grid of patches has 16 rows."],
    ),
    "an erasing after the encoder's end": (
        {"ogfr__erase_before": 6},
        ["ogfr.erase_before = 6, but the encoder has 6 blocks"],
    ),
    "more local features than one patch has": (
        {"method": "transreid", "transreid__stride": 256, "transreid__shift": 1, "transreid__groups": 1},
        ["transreid.divide = 4: more than the 1 patches."],
    ),
    "images of less than a patch": (
        {"train__size": [12, 128]},
        ["train.size = [12, 128] is less than a patch of 16."],
    ),
    "texts of CLIP beside our encoder": (
        {"method": "dpmpp", "dpmpp__preset": "paper"},
        ["dpmpp.text = clip: its tower was not trained with dpmpp.vit = embedded."],
    ),
    "our texts beside CLIP's encoder": (
        {"method": "dpmpp", "dpmpp__vit": CLIP},
        [f"dpmpp.text = embedded: its tower was not trained with dpmpp.vit = {CLIP}."],
    ),
    "a table beside an encoder without a tower": (
        {"method": "dpmpp", "dpmpp__vit": "vit_base_patch16_224", "dpmpp__text": "table"},
        ["dpmpp.text = table: its tower was not trained with dpmpp.vit = vit_base_patch16_224."],
    ),
    "an embedding of CLIP's width beside our tower": (
        {"method": "dpmpp", "dpmpp__embedding": 512},
        ["dpmpp.embedding = 512: the text tower's embeddings have 128 channels."],
    ),
    "more learned words than the tower has places": (
        {"method": "dpmpp", "dpmpp__prompt_tokens": 41},
        ["dpmpp.prompt_tokens = 41: the text tower has room for 40"],
    ),
    "a gate where neighbours must be mutual": (
        {"method": "dpm", "evaluate__rerank__depth": 50},
        ["evaluate.rerank.depth = 50: gated features: nearest neighbours are not mutual."],
    ),
    "texts and a gate": (
        {"method": "dpmpp", "evaluate__rerank__depth": 50, "dpmpp__embedding": 512},
        ["dpmpp.embedding = 512", "evaluate.rerank.depth = 50: gated features"],
    ),
    "faults of many sections": (
        {"lambda": -1, "train__images": 0, "draw__dpi": "high", "train_on": "mine", "pose__weights": ""},
        ["lambda = -1", "train.images = 0", "draw.dpi = 'high'", "train_on = 'mine'", "pose.weights = ''"],
    ),
    "faults of a dataset beside a name that none has": (
        {
            "datasets__embedded__layout": "folder",
            "datasets__embedded__archive": "$x.zip",
            "train_on": "mine",
            "seed": -1,
            "index__junk": "maybe",
        },
        [
            "seed = -1", "datasets.embedded.layout = 'folder'", "datasets.embedded.archive = '$x.zip'",
            "index.junk = 'maybe'",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(tmp_path, fault):
    changed, lines = FAULTS[fault]
    said = faults(tmp_path, **changed)
    assert len(said) == len(lines)
    assert all(line.startswith(start) for line, start in zip(said, lines, strict=True)), said


FITTING = {
    "blocks of a method that is not chosen": {"dpm__taps": [2, 99]},
    "as many learned words as there are places": {"method": "dpmpp", "dpmpp__prompt_tokens": 40},
    "free vectors": {"method": "dpmpp", "dpmpp__prompt_tokens": 41, "dpmpp__text": "table"},
    "no texts": {"method": "dpmpp", "dpmpp__transfer": [], "dpmpp__preset": "paper"},
    "no gate": {"method": "dpmpp", "dpmpp__mask": "none", "evaluate__rerank__depth": 50},
}


@pytest.mark.parametrize("fitting", FITTING)
def test_what_a_training_takes_is_no_fault(tmp_path, fitting):
    assert faults(tmp_path, **FITTING[fitting]) == []


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_each_method_is_built_without_downloads_and_weights(tmp_path, monkeypatch, name, preset):
    monkeypatch.setattr(backbones, "load_pretrained", lambda *_, **__: pytest.fail("weights are downloaded"))
    changes = {"dpmpp__text": "none"} if name == "dpmpp" else {}
    for vit in ("embedded", "vit_tiny_patch16_224"):
        values = {"method": name, f"{name}__preset": preset, f"{name}__vit": vit, **changes}
        assert faults(tmp_path, **values) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"text_weights": "models/none.pt"}, "dpmpp.text_weights = models/none.pt: no such file of weights."),
        ({"text_weights": "nope"}, "dpmpp.text_weights = 'nope': dpmpp.text_tower = ViT-B-16-quickgelu has"),
        ({"text_tower": "ViT-C"}, "dpmpp.text_tower = 'ViT-C': not one of open_clip's CLIPs"),
        ({"text_tower": "ViT-L-14"}, "dpmpp.embedding = 512: the text tower's embeddings have 768 channels."),
    ],
)
def test_a_clip_that_cannot_be_used_is_named_without_a_download(tmp_path, changes, line):
    pytest.importorskip("open_clip", reason="the dependency group clip is not installed")
    values = {"method": "dpmpp", "dpmpp__vit": CLIP, "dpmpp__preset": "paper"}
    (said,) = faults(tmp_path, **values, **{f"dpmpp__{name}": value for name, value in changes.items()})
    assert said.startswith(line)


def test_our_encoder_and_its_tower_are_missed_where_the_method_needs_them(tmp_path, monkeypatch):
    (tmp_path / "models/embedded").mkdir(parents=True)
    for name in ("pose", "segmentation"):
        (tmp_path / f"models/embedded/{name}.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    (line,) = faults(tmp_path, method="dpmpp")
    assert line.startswith("models/embedded/vit.safetensors: no such file of weights.")
    (tmp_path / "models/embedded/vit.safetensors").symlink_to(ROOT / "models/embedded/vit.safetensors")
    (line,) = faults(tmp_path, method="dpmpp")
    assert line.startswith("models/embedded/text.safetensors: no such file of weights.")
    assert faults(tmp_path, method="dpm") == []


@pytest.mark.parametrize("weights", ["", "../nothing.safetensors"])
def test_weights_are_not_looked_at_beside_a_published_network(tmp_path, weights):
    assert faults(tmp_path, parsers="coco", segment__weights=weights, pose__weights=weights) == []


NAMES = {  # a name, or names: what is said of it
    "mine": None,
    "Occluded-Duke_2": None,
    "x" * 40: None,
    "my data": "'my data', which is not a valid name: .* Write my_data.",
    2024: "2024, which is not text: YAML takes it for a int: write set_2024.",
    "2024": "'2024', which is not a valid name: .* Write set_2024.",
    "../x": r"'\.\./x', which is not a valid name: .* Write x.",
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
    True: "True, which is not text",
    None: "None, which is not text",
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
    assert "datasets has 2024-05-01, which is not text: YAML takes it for a date" in str(error.value)


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
    roles = datasets.Roles("mine", ["mine"], datasets.Batch(identities, held_out))
    assert datasets.role_faults(index(count), "mine", roles) == ([ROLES[case]] if ROLES[case] else [])
    assert datasets.role_faults(index(count), "other", roles) == []


def test_a_test_set_has_queries_and_a_gallery():
    roles = datasets.Roles("other", ["mine"], datasets.Batch(16, 0))
    (fault,) = datasets.role_faults(index(4, gallery=0), "mine", roles)
    assert (
        fault
        == "test_on names mine, which has no image of the split gallery. Name another dataset in test_on."
    )


def test_a_dataset_that_is_indexed_is_checked_with_the_params_until_its_index_is_deleted(tmp_path):
    file = tmp_path / "data/embedded/index.parquet"
    file.parent.mkdir(parents=True)
    index(8).to_parquet(file)
    (fault,) = faults(tmp_path)
    assert fault == (
        "train.identities = 16, but embedded has 8 training identities. Set it to 8 or less. "
        f"If the dataset or `index` has changed, delete {file} first, and `dvc repro` makes it anew."
    )
    assert len(faults(tmp_path, **{"lambda": -1})) == 2
    file.unlink()
    assert faults(tmp_path) == []
    file.write_bytes(b"of another version")
    assert faults(tmp_path) == []  # `index` makes it anew


@pytest.mark.parametrize(("newer", "count"), [(-10, 1), (10, 0)])
def test_an_index_older_than_its_archive_is_not_asked(tmp_path, newer, count):
    archive, file = tmp_path / "mine.zip", tmp_path / "data/embedded/index.parquet"
    archive.write_bytes(b"")
    file.parent.mkdir(parents=True)
    index(3).to_parquet(file)
    os.utime(archive, (0, file.stat().st_mtime + newer))
    assert len(faults(tmp_path, datasets__embedded__archive=str(archive))) == count


# ------------------------------------------------------------------ by hand


def test_by_hand_it_looks_into_data_and_at_the_trained_model(tmp_path, monkeypatch):
    (tmp_path / "data/embedded").mkdir(parents=True)
    index(8).to_parquet(tmp_path / "data/embedded/index.parquet")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/embedded").symlink_to(ROOT / "models/embedded")
    text = (ROOT / "params.yaml").read_text().replace('start_from: ""', "start_from: models/trained")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"the training writes to models/trained(?s:.*)8 training identities"):
        check.main()


def test_params_without_effect_are_named_by_hand_and_counted_before_a_run(tmp_path, capsys):
    check.main(str(tmp_path), config=str(ROOT / "params.yaml"))
    wanted = f"{UNUSED} params without effect as the others are set: "
    assert f"{wanted}parse.spread, " in capsys.readouterr().out
    check.main(str(tmp_path), out=str(tmp_path / "out.txt"), config=str(ROOT / "params.yaml"))
    assert f"{wanted}`python -m sta" in capsys.readouterr().out


def test_weights_of_a_parser_that_dvc_may_fetch_are_taken(tmp_path, monkeypatch):
    (tmp_path / "models/embedded").mkdir(parents=True)
    for name in ("mine.safetensors.dvc", "pose.safetensors"):
        (tmp_path / "models" / name).write_bytes(b"")
    (tmp_path / "models/embedded/vit.safetensors").symlink_to(ROOT / "models/embedded/vit.safetensors")
    monkeypatch.chdir(tmp_path)
    changed = {"segment__weights": "../mine.safetensors", "pose__weights": "../pose.safetensors"}
    assert faults(tmp_path, **changed) == []
