"""On a real GPU, by `pytest -m gpu`: numbers equal those of the CPU to rounding, and views to the byte."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.batches import gpu
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.inference import api
from pipeline.training.loop import Loop
from tests import toy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32, as on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def tensors(batch):
    views = [(view.image, view.parsing, view.hidden) for view in (batch.holistic, batch.occluded)]
    return [*sum(views, ()), batch.covered, batch.camid, batch.pid]


@pytest.mark.parametrize("jitter", [(0.0,) * 4, (0.1, 0.1, 0.1, 0.0), (0.5, 0.5, 0.5, 0.5)])
@pytest.mark.parametrize("pad", [0, 3, 40])
def test_views_are_made_on_the_gpu_byte_for_byte_as_on_the_cpu(pad, jitter):
    noise = np.random.default_rng(0).integers(0, 256, (16, *toy.SIZE, 3), np.uint8)
    images = replace(toy.people(), image=noise)
    rows, plan = np.array([3, 0, 15, 3, 7, 9]), replace(toy.schedule().obstacles, probability=0.7)
    rng = np.random.default_rng(1)
    augmentations = sample_augmentations(images, rows, 0.5, pad, plan, {}, rng, jitter)
    expected = training_batch(images, rows, augmentations)
    actual = gpu.image_set_on_gpu(images, CUDA).training_batch(rows, augmentations)
    for cpu_tensor, gpu_tensor in zip(tensors(expected), tensors(actual), strict=True):
        assert gpu_tensor.device == CUDA
        assert cpu_tensor.dtype == gpu_tensor.dtype and torch.equal(cpu_tensor, gpu_tensor.cpu())


@pytest.mark.parametrize("guess", [False, True])
def test_a_model_embeds_on_the_gpu_as_on_the_cpu(tmp_path, guess):
    folder = toy.trained(tmp_path)
    pictures = list(toy.people().image[:5])
    expected = api.load(folder, "cpu", batch=3).embed(pictures, guess=guess)
    actual = api.load(folder, "cuda", batch=3).embed(pictures, guess=guess)
    torch.testing.assert_close(actual.parts, expected.parts, atol=1e-4, rtol=1e-4)
    assert torch.equal(actual.visibility, expected.visibility)


def train_one_step(device):
    """The loss of a step without random masks, and the weights after it."""
    model = toy.model(erase="labels").train().to(device)
    loop = Loop(model, toy.schedule(optimiser="sgd", lr=1e-3, attention="math"), device)
    loop.step(toy.batch().to(device), 1.0)
    return loop.log[0]["loss"], {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def test_a_training_step_on_the_gpu_is_that_of_the_cpu():
    expected_loss, expected = train_one_step(torch.device("cpu"))
    loss, weights = train_one_step(CUDA)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
