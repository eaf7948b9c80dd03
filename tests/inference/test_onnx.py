"""The exported graph gives in onnxruntime what the model gives in torch."""

import json
import math
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from pipeline import inference
from pipeline.batches.views import Batch, View, eval_batch
from pipeline.command_line import export
from pipeline.core.files import sha256
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.inference import onnx
from pipeline.methods.base import Embedding, load_trained, trained_data_spec
from tests import toy


@pytest.fixture(scope="module", params=["ogfr", "vit_baseline", "dpm"])
def exported(request, tmp_path_factory):
    folder = toy.trained(tmp_path_factory.mktemp("exported") / "trained", request.param)
    export.main(str(folder), str(folder / "model.onnx"))
    return load_trained(folder), onnxruntime.InferenceSession(folder / "model.onnx")


def test_the_number_of_images_is_called_n_and_all_other_sizes_are_fixed(exported):
    model, session = exported
    shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    embedding = embed_people(model)
    count = embedding.parts.shape[1]
    assert shapes == {
        "image": ["N", *toy.SIZE, 3],
        "hidden": ["N", 4],
        "camera": ["N"],
        "global": ["N", 16],
        "parts": ["N", count - 1, 16],
        "visibility": ["N", count],
        **({} if embedding.gate is None else {"gate": ["N", count, 16]}),
    }


def test_one_line_is_printed_and_says_what_was_written(tmp_path, capfd, recwarn):
    folder, file = toy.trained(tmp_path / "trained"), tmp_path / "model.onnx"
    export.main(str(folder), str(file))
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    wanted = f"{file}: {size}, image, hidden, camera -> global, parts, visibility\n"
    assert capfd.readouterr() == (wanted, "") and not recwarn.list


def inputs(count, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, *toy.SIZE, 3), np.uint8)
    return {
        "image": image,
        "hidden": rng.integers(0, 2, (count, 4)).astype(bool),
        "camera": np.arange(count) % 3 - 1,  # unknown, 0, 1
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_graph_embeds_any_number_of_images_as_the_model_does(exported, count):
    model, session = exported
    arrays = inputs(count)
    whole, rows, visibility = session.run(["global", "parts", "visibility"], arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    nothing = torch.zeros_like(tensors["image"][..., 0])
    view = View(tensors["image"].permute(0, 3, 1, 2), nothing, tensors["hidden"])
    embedding = model.embed(Batch(view, tensors["camera"], tensors["camera"]))
    np.testing.assert_allclose(whole, embedding.parts[:, 0], atol=1e-4)
    np.testing.assert_allclose(rows, embedding.parts[:, 1:], atol=1e-4)
    np.testing.assert_array_equal(visibility, embedding.visibility)
    if embedding.gate is not None:
        np.testing.assert_allclose(session.run(["gate"], arrays)[0], embedding.gate, atol=1e-4)


def test_camera_and_z_reach_the_graph(exported):
    model, session = exported
    arrays = inputs(2)
    (one,) = session.run(["global"], arrays)
    (elsewhere,) = session.run(["global"], {**arrays, "camera": np.array([1, 1])})
    (other,) = session.run(["global"], {**arrays, "hidden": ~arrays["hidden"]})
    assert np.abs(one - elsewhere).max() > 1e-3
    assert (np.abs(one - other).max() > 1e-3) == (model.predict_occlusion(embed_people(model)) is not None)


def embed_people(model):
    return model.embed(eval_batch(toy.people()))


@pytest.mark.parametrize("camera", [2, 99, 2**40, -2, -(2**40)])
def test_a_camera_that_the_model_was_not_trained_with_is_unknown(exported, camera):
    _, session = exported
    arrays = inputs(3)
    one, other = (session.run(None, {**arrays, "camera": np.array([0, c, 1])}) for c in (-1, camera))
    for unknown, mapped in zip(one, other, strict=True):
        np.testing.assert_array_equal(unknown, mapped)


def test_a_camera_between_the_trained_ones_is_unknown_too(exported):
    model, _ = exported
    tensors = {name: torch.from_numpy(array) for name, array in inputs(1).items()}
    graph = onnx.Graph(model, cameras=(1,))
    unknown, untrained, known = (graph(**tensors | {"camera": torch.tensor([c])})[0] for c in (-1, 0, 1))
    assert torch.equal(unknown, untrained) and not torch.allclose(unknown, known, atol=1e-3)


def test_no_image_has_no_embedding(exported, capfd):
    model, session = exported
    count = embed_people(model).parts.shape[1]
    outputs = session.run(["global", "parts", "visibility"], inputs(0))
    assert [array.shape for array in outputs] == [(0, 16), (0, count - 1, 16), (0, count)]
    assert capfd.readouterr().err == ""  # the runtime warns of shapes that are not the file's


@pytest.mark.parametrize("name", ["hidden", "camera"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_row_for_several_images_is_the_runtimes_error(exported, name, count):
    with pytest.raises((Fail, InvalidArgument)):
        exported[1].run(None, {**inputs(3), name: inputs(count)[name]})


# ------------------------------------------------------------------ the metadata


def test_the_file_says_what_a_runtime_needs_to_know(exported):
    model, session = exported
    metadata = session.get_modelmeta().custom_metadata_map
    method = type(model).__module__.split(".")[2]
    file = Path(session._model_path).with_name("model.safetensors")
    assert (metadata["method"], metadata["model_sha256"]) == (method, sha256(file))
    lists = {name: json.loads(metadata[name]) for name in ("hidden", "cameras", "parts")}
    assert lists == {
        "hidden": ["head", "arms", "torso", "legs"],
        "cameras": [0, 1],
        "parts": list(parts.FINE) if method == "ogfr" else [],
    }
    assert "RGB" in metadata["image"] and "resize((32, 64), BICUBIC)" in metadata["image"]
    assert metadata["distance"] == onnx.DISTANCE + onnx.GATED * (embed_people(model).gate is not None)


def test_the_file_of_a_method_with_a_gate_says_what_it_is_for(tmp_path):
    folder = toy.trained(tmp_path)
    metadata = onnx.metadata(folder, trained_data_spec(folder), 2, True)
    assert metadata["distance"].endswith("channel by channel, and scale it to length 1.")
    assert json.loads(metadata["parts"]) == ["1", "2"]


def test_the_file_names_this_version_of_the_project():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert f"{project['name']} {project['version']}" == onnx.PROJECT


def read_aloud(q, g, gate=None):
    """d of two images, each (f, v), as the metadata says it."""
    (f_q, v_q), (f_g, v_g) = q, g
    upper = lower = 0.0
    for p in range(len(f_q)):
        other = f_g[p] if gate is None else f_g[p] * gate[p] / np.linalg.norm(f_g[p] * gate[p])
        upper += v_q[p] * v_g[p] * np.linalg.norm(f_q[p] - other)
        lower += v_q[p] * v_g[p]
    return upper / lower if lower else math.inf


@pytest.mark.parametrize("gated", [False, True])
def test_two_outputs_are_compared_as_the_metadata_says(gated):
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4, 3, 5), dim=2)
    visibility = torch.tensor([[1, 1, 0], [1, 0.5, 1], [0, 0, 1], [1, 1, 0]])
    gate = torch.rand(4, 3, 5) if gated else None
    embedding = Embedding(features, visibility, gate)
    images = list(zip(features.numpy(), visibility.numpy(), strict=True))
    gates = [None] * 4 if gate is None else gate.numpy()
    wanted = [[read_aloud(q, g, row) for g in images] for q, row in zip(images, gates, strict=True)]
    np.testing.assert_allclose(inference.distances(embedding, embedding), wanted, atol=1e-3)


def test_outputs_of_the_file_are_as_far_apart_as_embeddings_of_the_model(exported):
    model, session = exported
    whole, rows, visibility, *gate = session.run(None, inputs(5))
    images = list(zip(np.concatenate([whole[:, None], rows], 1), visibility, strict=True))
    gates = gate[0] if gate else [None] * 5
    tensors = {name: torch.from_numpy(array) for name, array in inputs(5).items()}
    view = View(tensors["image"].permute(0, 3, 1, 2), tensors["image"][..., 0] * 0, tensors["hidden"])
    with torch.no_grad():
        embedding = model.embed(Batch(view, tensors["camera"], tensors["camera"]))
    wanted = inference.distances(embedding, embedding).numpy()
    assert wanted.max() > 0.1
    table = [[read_aloud(q, g, row) for g in images] for q, row in zip(images, gates, strict=True)]
    np.testing.assert_allclose(table, wanted, atol=1e-3)


def test_a_model_that_needs_maps_is_not_exported(tmp_path):
    folder = toy.trained(tmp_path / "trained", fep="student", erase="labels")
    with pytest.raises(BadInput, match="erases by parsing maps"):
        export.main(str(folder), str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_without_onnx_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inference.onnx.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs onnx and onnxscript"):
        export.main("models/trained", str(tmp_path / "model.onnx"))
