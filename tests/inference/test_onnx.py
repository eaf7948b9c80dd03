"""The exported graph gives in onnxruntime what the model gives in torch."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from pipeline.batches.views import Batch, View, eval_batch
from pipeline.command_line import export
from pipeline.core.params import BadInput
from pipeline.methods.base import load_trained
from tests import toy


@pytest.fixture(scope="module", params=["ogfr", "vit_baseline"])
def exported(request, tmp_path_factory):
    folder = toy.trained(tmp_path_factory.mktemp("exported") / "trained", request.param)
    export.main(str(folder), str(folder / "model.onnx"))
    return load_trained(folder), onnxruntime.InferenceSession(folder / "model.onnx")


def test_the_number_of_images_is_called_n_and_all_other_sizes_are_fixed(exported):
    model, session = exported
    shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    parts = embed_people(model).parts.shape[1]
    assert shapes == {
        "image": ["N", *toy.SIZE, 3],
        "hidden": ["N", 4],
        "camera": ["N"],
        "global": ["N", 16],
        "parts": ["N", parts - 1, 16],
        "visibility": ["N", parts],
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
    whole, parts, visibility = session.run(["global", "parts", "visibility"], arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    nothing = torch.zeros_like(tensors["image"][..., 0])
    view = View(tensors["image"].permute(0, 3, 1, 2), nothing, tensors["hidden"])
    embedding = model.embed(Batch(view, tensors["camera"], tensors["camera"]))
    np.testing.assert_allclose(whole, embedding.parts[:, 0], atol=1e-4)
    np.testing.assert_allclose(parts, embedding.parts[:, 1:], atol=1e-4)
    np.testing.assert_array_equal(visibility, embedding.visibility)


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


def test_a_camera_that_the_model_does_not_know_is_the_runtimes_error(exported):
    with pytest.raises(InvalidArgument):
        exported[1].run(None, {**inputs(1), "camera": np.array([2])})


def test_a_model_that_needs_maps_is_not_exported(tmp_path):
    folder = toy.trained(tmp_path / "trained", fep="student", erase="labels")
    with pytest.raises(BadInput, match="erases by parsing maps"):
        export.main(str(folder), str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_without_onnx_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inference.onnx.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs onnx and onnxscript"):
        export.main("models/trained", str(tmp_path / "model.onnx"))
