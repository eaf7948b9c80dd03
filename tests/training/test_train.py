"""The stage `train`: what it refuses before it begins, and what its record of a run holds."""

import json
import platform
import random
import shutil
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.batches.views import eval_batch
from pipeline.core import distributed, params
from pipeline.core.files import sha256
from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.data.index import COLUMNS, index_hash, read_index
from pipeline.labels import occlusion
from pipeline.methods import vit_baseline
from pipeline.methods.base import load_trained
from pipeline.model.backbones import save_vit
from pipeline.training import run, selection
from pipeline.training.run import train_model
from stages import train
from tests import toy

TINY = "vit_tiny_patch16_224"
WORDS = (
    *("index.parquet", "images.h5", "parsing.h5", "occlusion.h5", "vit.safetensors", "text.safetensors"),
    *("model", "log.csv", "curves"),
)
OBSTACLES = {
    "probability": 1,
    "sources": ["cutout"],
    "cutouts": "poles",
    "patches": "",
    "area": [0.1, 0.4],
    "aspect": [0.5, 2],
    "placement": "anywhere",
}
TRAIN = {
    "size": list(toy.SIZE),
    "identities": 2,
    "images": 2,
    "epochs": 1,
    "pad": 2,
    "precision": "float32",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five people, of whom one alone passes camera 3, and cut-outs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    values = params.load(Path(__file__).parents[2] / "params.yaml")
    values |= {"method": "vit_baseline", "train": values["train"] | TRAIN | {"obstacles": OBSTACLES}}
    values["vit_baseline"] |= {"stride": 16, "gamma_camera": 3.0}
    Path("params.yaml").write_text(json.dumps(values))
    people = toy.people(identities=5)
    people.camid[people.pid == 2] = 3
    index = pd.DataFrame({name: range(20) for name in COLUMNS})
    index = index.assign(camid=people.camid, pid=people.pid + 1, split="train")
    index.astype({"key": str, "sha256": str}).to_parquet("index.parquet", index=False)
    key = {"index": index_hash(read_index("index.parquet"))}
    blobs = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in people.image]
    write_packed("images.h5", "images", blobs, np.array([len(blob) for blob in blobs]), key)
    write_label_file("parsing.h5", "parsing", {"map": people.parsing}, key)
    rule = occlusion.Label(parts=4, strict=True)
    labels = occlusion.occlusion_labels(LabelFile("parsing.h5")["map"], rule, 5.0)
    write_label_file("occlusion.h5", "occlusion", labels, key | {"parts": []})
    save_vit("vit.safetensors", toy.encoder(), {})
    pole("red", (200, 0, 0, 255))
    return tmp_path


def pole(name, colour):
    Path("poles").mkdir(exist_ok=True)
    Image.fromarray(np.full((8, 4, 4), colour, np.uint8)).save(f"poles/{name}.png")


def trained(held_out=0, seed=1, **changes):
    """The record of a run; `changes` are params of the method."""
    values = params.load("params.yaml")
    values["train"] |= {"held_out": held_out}
    values["seed"] = seed
    values["vit_baseline"] |= changes
    Path("params.yaml").write_text(json.dumps(values))
    train.main(*WORDS, "params.yaml")
    return json.loads(Path("model/record.json").read_text())


def test_a_record_has_the_hash_of_the_encoders_file_and_of_its_weights(folder):
    record = trained()
    assert (
        record["data"]["vit.safetensors"] == sha256("vit.safetensors") and len(record["vit"]["weights"]) == 64
    )
    save_vit("vit.safetensors", toy.encoder(), {})
    other = trained()
    assert other["data"]["vit.safetensors"] != record["data"]["vit.safetensors"]
    assert other["vit"]["weights"] != record["vit"]["weights"]


def test_weights_of_another_run_beside_a_record_are_refused(folder):
    record = trained()
    assert record["sha256"] == sha256("model/model.safetensors") and load_trained("model")
    Path("model").rename("first")
    trained(seed=2)
    shutil.copy("first/model.safetensors", "model/model.safetensors")  # of equal names and shapes
    with pytest.raises(
        BadInput, match=r"model\.safetensors: not the model of record\.json.*Run `dvc checkout`"
    ):
        load_trained("model")


def test_a_trained_model_lacks_what_only_training_needs_and_is_as_good(folder, monkeypatch):
    whole = trained(held_out=2)
    people = toy.people()
    wanted = load_trained("model").embed(eval_batch(people))
    Path("model").rename("first")
    monkeypatch.setattr(vit_baseline.Baseline, "LEAVES_OUT", ("head.w",))
    record = trained(held_out=2)
    names = set(load_file("model/model.safetensors"))
    assert set(load_file("first/model.safetensors")) - names == {"head.weight"}
    assert record["start"] == whole["start"] and record["sha256"] == sha256("model/model.safetensors")
    for trained_folder in ("model", "first"):  # one that was trained before is read, too
        embedding = load_trained(trained_folder).embed(eval_batch(people))
        assert torch.equal(embedding.parts, wanted.parts)


@pytest.mark.parametrize(
    ("name", "value"), [("drop_path", 0.5), ("bias_lr", 3.0), ("optimiser", "adam"), ("jitter", [0.5] * 4)]
)
def test_how_a_training_goes_changes_the_weights_and_not_what_is_loaded(folder, name, value):
    values = params.load("params.yaml")
    trained()
    Path("model").rename("first")
    values["train"][name] = value
    Path("params.yaml").write_text(json.dumps(values))
    assert trained()["train"][name] == value
    first, other = (load_file(f"{model}/model.safetensors") for model in ("first", "model"))
    assert first.keys() == other.keys()
    assert not torch.equal(first["encoder.blocks.0.mlp.fc1.bias"], other["encoder.blocks.0.mlp.fc1.bias"])


def test_two_trainings_from_a_vit_of_timm_start_from_equal_bytes(folder):
    save_file(timm.create_model(TINY).state_dict(), "tiny.safetensors")
    records = []
    for start in (1, 2):
        torch.manual_seed(start)  # what was drawn before does not matter
        records.append(trained(vit=TINY, weights="tiny.safetensors"))
    assert records[0] == records[1] and records[0]["data"]["tiny.safetensors"] == sha256("tiny.safetensors")


def test_a_run_says_and_records_which_params_have_no_effect(folder, capsys):
    record = trained()
    obstacles = ["train.obstacles.aspect", "train.obstacles.placement"]  # cut-outs are put anywhere
    assert record["without_effect"] == [*obstacles, "train.mining", "train.statistics"]
    printed = capsys.readouterr().out
    assert f"train: without effect: {', '.join(record['without_effect'])}\n" in printed
    assert "of train.epochs = 1: the learning rate reaches 27 % of train.lr in 5 steps" in printed


def test_nothing_is_drawn_before_the_seeds_are_set(folder, monkeypatch):
    drawn = []

    def encoder(*words):
        drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "pretrained_encoder", encoder)
    for start in (1, 2):
        torch.manual_seed(start), np.random.seed(start), random.seed(start)
        with pytest.raises(KeyboardInterrupt):
            trained()
    assert drawn[0] == drawn[1]


def test_a_file_that_is_not_the_encoders_trains_nothing(folder):
    save_file({"a": torch.zeros(1)}, "a.safetensors")
    with pytest.raises(
        BadInput, match=r"a\.safetensors: made for another network: 150 missing.*unexpected \(a\)"
    ):
        trained(vit=TINY, weights="a.safetensors")
    assert not Path("model").exists()


def test_a_record_tells_cutouts_apart_by_their_content(folder):
    first, again = trained(), trained()
    pole("red", (0, 0, 200, 255))
    other = trained()
    Path("poles/red.png").rename("poles/blue.png")  # the only one, whatever its name is
    renamed = trained()
    changed = {name: other[name] for name in ("data", "sha256")}
    assert first == again and other == renamed and first | changed == other
    assert [name for name in first["data"] if first["data"][name] != other["data"][name]] == ["poles"]


def test_files_among_the_cutouts_that_are_none_are_named(folder, capsys):
    Path("poles/read me.txt").write_text("poles")
    trained()
    assert "train: poles: 1 cut-out; 1 other file left out: read me.txt" in capsys.readouterr().out


def test_a_killed_run_does_not_go_on_with_other_cutouts(folder, monkeypatch):
    def killed(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", killed)
    for colour in ((200, 0, 0, 255), (200, 0, 0, 255), (0, 0, 200, 255)):
        pole("red", colour)
        with pytest.raises(KeyboardInterrupt):
            trained()
    assert len([path for path in Path(".scratch").iterdir() if path.is_dir()]) == 2


def test_a_record_holds_the_versions_of_the_libraries_that_draw(folder):
    versions = trained()["versions"]
    assert versions["python"] == platform.python_version()
    assert all(versions[name] == version(name) for name in ("opencv-python-headless", "pillow", "torch"))


def test_a_record_holds_the_cameras_that_the_model_was_trained_with(folder):
    assert trained()["data_spec"]["trained_cameras"] == [0, 1, 3]
    seed = next(n for n in range(99) if 2 in np.random.default_rng(n).permutation(5)[:2])
    assert trained(held_out=2, seed=seed)["data_spec"]["trained_cameras"] == [0, 1]


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"identities": 1}, r"train\.identities = 1: no image has a negative.* stay at ln 4\. Set 2 or more"),
        ({"images": 1}, r"train\.images = 1: no image has a positive.* stay at ln 4\. Set 2 or more"),
        ({"held_out": 1}, r"train\.held_out = 1: one identity ranks itself.*Set 0, 2 or more"),
        ({"pad": 32}, r"train\.pad = 32: it moves images out of their frame"),
        ({"size": [64, 0]}, r"train\.size\.1 = 0"),
        ({"identities": 6}, r"train\.identities = 6, but the training set has only 5\. Set it to 5 or less"),
        (
            {"held_out": 4},
            r"the training set has 1 identity, and training compares two.*lower train\.held_out",
        ),
        ({"size": [64, 8]}, r"train\.size = \[64, 8\].*patch of 16.*Raise"),
    ],
)
def test_a_training_that_cannot_learn_is_refused_with_the_remedy(folder, section, fault):
    values = params.load("params.yaml")
    values["train"] |= section
    Path("params.yaml").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=fault):
        train.main(*WORDS, "params.yaml")
    assert not Path("model").exists()


def test_held_out_identities_of_one_camera_each_choose_no_epoch():
    people = toy.people(identities=5)
    people.camid[:] = people.pid % 2
    with pytest.raises(BadInput, match=r"train\.held_out = 2: no such identity has images of two"):
        selection.hold_out(people, [""] * 20, 2, 1)


PROCESSES = {  # identities, processes, mining: what is refused
    (3, 2, "batch"): "cannot be shared by 2 processes",
    (2, 2, "process"): r"process finds no negative there\. Set it to 4, or mine in the batch",
    (2, 2, "batch"): None,
    (4, 2, "process"): None,
}


@pytest.mark.parametrize("case", PROCESSES)
def test_each_process_needs_identities_to_compare(monkeypatch, case):
    identities, count, mining = case
    people, plan = toy.people(), toy.schedule(identities=identities, mining=mining)
    model = toy.model(people)
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    monkeypatch.setattr(run, "pk_batches", lambda *_: 1 / 0)  # what follows the check
    with pytest.raises(BadInput if PROCESSES[case] else ZeroDivisionError, match=PROCESSES[case]):
        train_model(model, people, plan, 1)
