"""Going on from a trained model: what is taken over, what is new, and which models are refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.params import BadInput
from pipeline.inference.extract import untrained_encoder
from pipeline.methods.base import data_spec, describe, load_method
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.start import check_start, describe_start, load_start
from stages import train
from tests import toy
from tests.methods.test_contract import EVERY, settings
from tests.training.test_train import WORDS, folder, trained  # noqa: F401  # `folder` is a fixture

OTHERS = toy.people(identities=6, each=5, seed=1)  # more people than those of `toy.trained`
SPEC = replace(data_spec(OTHERS), cameras=3, trained_cameras=(0, 1))


def built(name, spec=SPEC, **changes):
    """A new model of a method for other people, and its description."""
    own = settings(name, **{"gamma_camera": 3.0, **changes})
    torch.manual_seed(7)
    vit = toy.encoder(size=spec.size)
    return load_method(name).build(own, spec, vit), describe(name, own, spec, vit.architecture)


@EVERY
def test_what_belongs_to_people_and_cameras_is_new_and_the_rest_is_taken(tmp_path, name):
    source = toy.trained(tmp_path / "a", name)
    model, description = built(name)
    new = {n: t.clone() for n, t in model.state_dict().items()}
    start = load_start(model, str(source), description)
    theirs = load_file(source / "model.safetensors")
    for tensor, value in model.state_dict().items():
        assert torch.equal(value, (new if tensor in start["new"] else theirs)[tensor])
    assert start["taken"] + len(start["new"]) == len(theirs) == len(new)
    assert f"{start['taken']} tensors taken, new are " in describe_start(start)


@EVERY
def test_every_tensor_that_people_or_cameras_shape_belongs_to_a_training_set(name):
    spec, changes = data_spec(toy.people()), {"text": "embedded"} if name == "dpmpp" else {}
    sizes = [spec, replace(spec, identities=9), replace(spec, cameras=5)]
    models = [built(name, size, **changes)[0] for size in sizes]
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in models]
    shaped = {n for other in shapes for n, shape in other.items() if shape != shapes[0][n]}
    assert shaped <= set(models[0].TRAINING_SET) <= shapes[0].keys() and len(shaped) >= 2


REFUSED = {
    "another method": (
        lambda record: record.update(method="vit_baseline"),
        {},
        "method = vit_baseline there, ogfr here",
    ),
    "another encoder": (
        lambda record: record["vit"].update(depth=3),
        {},
        r"vit = embedded \[64, 32\] 16 16 3 2 there, embedded \[64, 32\] 16 16 2 2 here",
    ),
    "other coarse parts": (
        lambda record: record["data_spec"].update(coarse=8),
        {},
        r"label\.parts = 8 there, 4 here",
    ),
    "another size": (
        lambda record: record["data_spec"].update(size=[256, 128]),
        {},
        r"train\.size = \[256, 128\] there, \[64, 32\] here",
    ),
    "other layers": (
        lambda record: None,
        {"student_layers": 1},
        r"12 unexpected \(student\.1.*student_layers = 2 there, 1 here\. Set them as there",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused_by_the_values_of_both(tmp_path, case):
    change, params, message = REFUSED[case]
    source = toy.trained(tmp_path / "a")
    record = json.loads((source / "record.json").read_text())
    change(record)
    (source / "record.json").write_text(json.dumps(record))
    model, description = built("ogfr", **params)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(BadInput, match=message):
        load_start(model, str(source), description)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_timm_vits_tag_may_differ_and_so_may_losses_which_is_recorded(tmp_path):
    source = toy.trained(tmp_path / "a", alpha=0.9)
    record = json.loads((source / "record.json").read_text())
    record["vit"]["name"] = "embedded.older"
    (source / "record.json").write_text(json.dumps(record))
    start = load_start(*built("ogfr")[:1], str(source), built("ogfr")[1])
    assert start["params"] == {"alpha": [0.9, 0.3]} and describe_start(start).endswith("differ in alpha")


def test_a_file_with_half_of_the_tensors_is_no_start(tmp_path):
    source = toy.trained(tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "decoder.1" not in n}, source / "model.safetensors")
    model, description = built("ogfr")
    with pytest.raises(BadInput, match=r"10 missing \(decoder\.1\.attention"):
        load_start(model, str(source), description)


@pytest.mark.parametrize("inside", ["", "/old"])
def test_the_folder_that_the_training_writes_is_no_start(tmp_path, inside):
    source = f"{toy.trained(tmp_path / 'models/trained')}{inside}"
    with pytest.raises(BadInput, match=r"DVC empties that first\. Copy it \(`cp -r .*models/start"):
        check_start(source, str(tmp_path / "models" / ".." / "models" / "trained"))
    with pytest.raises(BadInput, match=r"train\.start_from: .*nothing: no trained model"):
        check_start(str(tmp_path / "nothing"), str(tmp_path / "models/trained"))


def test_a_record_of_something_else_is_no_start(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "record.json").write_text('{"method": "ogfr", "vit": {}}')
    with pytest.raises(BadInput, match=r"start_from: .*record\.json: has no params, data_spec\. Name a"):
        check_start(str(tmp_path), "models/trained")
    (tmp_path / "record.json").write_text('{"method": "ogfr", "vit": {}, "params": {}, "data_spec": {}}')
    with pytest.raises(BadInput, match=r"start_from: .*record\.json: has no data\. Name a folder that"):
        check_start(str(tmp_path), "models/trained")


def set_start(where):
    values = json.loads(Path("params.yaml").read_text())
    values["train"]["start_from"] = where
    Path("params.yaml").write_text(json.dumps(values))


def test_a_training_goes_on_from_a_colleagues_model_and_its_record_says_so(folder, capsys):  # noqa: F811
    first = trained()
    Path("model").rename("theirs")
    set_start("theirs")
    again = trained(seed=2)
    start = again["start_from"]
    assert start["new"] == ["encoder.camera", "head.weight"] and start["data"] == first["data"]
    assert again["start"] != first["start"] and "starts from theirs" in capsys.readouterr().out
    assert again["vit"] == first["vit"]  # the encoder before any training, which `embed` compares
    assert untrained_encoder("model", "vit.safetensors").size == toy.SIZE
    assert "start_from" not in first and first["train"]["start_from"] == ""


def test_a_killed_training_that_goes_on_from_a_model_ends_with_the_same_bytes(folder, monkeypatch):  # noqa: F811
    trained()
    Path("model").rename("theirs")
    set_start("theirs")
    trained(seed=2)
    whole, write, saved = Path("model/model.safetensors").read_bytes(), Checkpoints.step, []

    def killed(self, loop, *rest):
        self.every = 0.0
        write(self, loop, *rest)
        saved.append(len(loop.log))
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(seed=2)
    trained(seed=2)
    assert saved == [1, 2, 3, 4, 5] and Path("model/model.safetensors").read_bytes() == whole


def test_a_start_that_is_the_output_stops_before_anything_is_read(folder):  # noqa: F811
    set_start("model")
    Path("index.parquet").unlink()
    with pytest.raises(BadInput, match=re.escape("train.start_from = model: the training writes to model")):
        train.main(*WORDS, "params.yaml")
