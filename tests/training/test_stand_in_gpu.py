"""On a stand-in GPU: every tensor is on the device that CUDA wants, and numbers equal those of a CPU.

`tests/stand_in_gpu.py` stands in for one, and computes with the CPU's own operations.  What CUDA's kernels
do, their speed and their rounding, is left for a real one (test_gpu.py).
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import ranking
from pipeline.batches import gpu
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.batches.views import eval_batches
from pipeline.core import distributed
from pipeline.inference import api
from pipeline.inference.extract import extract_features
from pipeline.labels import pose, segmentation
from pipeline.model import compute
from pipeline.model.layers import set_drop_path
from pipeline.model.vit import plain_vit
from pipeline.synthetic.pictures import training_picture
from pipeline.training import checkpoint
from pipeline.training.run import train_model
from tests import stand_in_gpu, toy
from tests.labels import test_pose, test_segmentation
from tests.methods import test_contract

CUDA = stand_in_gpu.CUDA


@pytest.fixture
def there():
    """One GPU, as far as PyTorch can see."""
    with stand_in_gpu.stand_in():
        yield


# ------------------------------------------------------------------ the stand-in complains as CUDA does


def test_moved_tensors_report_the_device_cuda(there):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to("cuda")
    assert {t.device for t in network.state_dict().values()} == {CUDA}
    output = network(torch.ones(3, 2, device="cuda"))
    assert output.device == CUDA and torch.autograd.grad(output.sum(), [network[0].weight])[0].device == CUDA
    assert output.cpu().device.type == "cpu" and {t.device.type for t in network.cpu().buffers()} == {"cpu"}


@pytest.mark.parametrize(
    "meet",
    [
        lambda here, there: there + here,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: nn.Linear(2, 2).to("cuda")(here),
        lambda here, there: there.gather(0, torch.zeros(1, 2, dtype=torch.int64)),
        lambda here, there: setattr(there, "grad", here),
    ],
)
def test_tensors_of_two_devices_do_not_meet(there, meet):
    with pytest.raises(RuntimeError, match=r"on cpu|another device"):
        meet(torch.ones(2, 2), torch.ones(2, 2, device="cuda"))


def test_indices_and_single_numbers_may_come_from_the_cpu(there):
    values = torch.arange(4.0).to("cuda")
    assert (values[torch.tensor([1, 3])] * torch.tensor(2.0)).tolist() == [2, 6]
    values[torch.tensor([0])] = torch.tensor([5.0])
    assert values.tolist() == [5, 1, 2, 3]


def test_numpy_refuses_a_tensor_on_the_gpu(there):
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        torch.ones(2).to("cuda").numpy()
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        np.asarray(torch.ones(2).to("cuda"))


def test_autocast_keeps_in_float32_what_cuda_does(there):
    values = torch.ones(2, 4, device="cuda")
    with torch.autocast("cuda", torch.float16):
        product = values @ values.T
        assert product.dtype == torch.float16 and product.softmax(-1).dtype == torch.float32


# ------------------------------------------------------------------ learning


def ogfr(preset):
    return toy.model(preset=preset)


def learnt(make, preset="recommended", **changes):
    """A short training's weights and log."""
    model, plan = make(preset), toy.schedule(preset, epochs=2, attention="math", **changes)
    set_drop_path(model.encoder.blocks, plan.drop_path)
    log = train_model(model, toy.people(), plan, 1, held_out=toy.people(seed=3))
    return model.state_dict(), log


@pytest.mark.parametrize("preset", ["recommended", "paper"])
@pytest.mark.parametrize("name", test_contract.METHODS)
def test_a_method_trains_on_the_gpu_as_on_the_cpu(name, preset):
    make = partial(test_contract.model, name)
    here, log = learnt(make, preset)
    with stand_in_gpu.stand_in():
        there, other = learnt(make, preset)
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert log["loss"].tolist() == other["loss"].tolist()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_on_the_gpu_nearly_as_on_the_cpu(precision):
    here, _ = learnt(ogfr, precision=precision)
    with stand_in_gpu.stand_in():
        there, log = learnt(ogfr, precision=precision)
    assert np.isfinite(log["loss"]).all() and ("scale_reid" in log) == (precision == "float16")
    norm = lambda weights: torch.cat([w.flatten().float() for w in weights]).norm()  # noqa: E731
    off = norm([there[name] - here[name] for name in here]) / norm(here.values())
    assert off < 1e-3


def test_a_stopped_run_resumes_on_the_gpu(tmp_path, there):
    whole, log = learnt(ogfr)
    plan = toy.schedule(epochs=2, attention="math")

    class Stopped(checkpoint.Checkpoints):
        def step(self, loop, state, best):
            super().step(loop, state, best)
            if len(loop.log) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(
            ogfr("recommended"), toy.people(), plan, 1, None, toy.people(seed=3), Stopped(tmp_path, 0.0)
        )
    torch.manual_seed(99)
    model, saves = ogfr("recommended"), checkpoint.Checkpoints(tmp_path, 0.0)
    again = train_model(model, toy.people(), plan, 1, None, toy.people(seed=3), saves)
    assert all(torch.equal(whole[name], tensor) for name, tensor in model.state_dict().items())
    assert again["loss"].tolist() == log["loss"].tolist()


@pytest.mark.parametrize("placement", ["anywhere", "border"])
@pytest.mark.parametrize("jitter", [(0.0,) * 4, (0.1, 0.1, 0.1, 0.0), (0.5, 0.5, 0.5, 0.5)])
@pytest.mark.parametrize("pad", [0, 3, 40])
def test_views_are_made_on_the_gpu_byte_for_byte_as_on_the_cpu(pad, jitter, placement):
    pictures = replace(
        toy.people(), image=np.random.default_rng(0).integers(0, 256, (16, *toy.SIZE, 3), np.uint8)
    )
    rows = np.array([3, 0, 15, 3, 7, 9])
    plan = replace(toy.schedule().obstacles, probability=0.7, placement=placement)
    chances = sample_augmentations(pictures, rows, 0.5, pad, plan, {}, np.random.default_rng(1), jitter)
    assert (
        {chance.flip_crop.flipped for chance in chances}
        == {chance.obstacle is None for chance in chances}
        == {True, False}
    )
    here = training_batch(pictures, rows, chances)
    with stand_in_gpu.stand_in():
        there = gpu.image_set_on_gpu(pictures, distributed.local_device()).training_batch(rows, chances)
    pairs = list(zip(tensors(here), tensors(there), strict=True))
    assert len(pairs) == 9 and all(stand_in_gpu.is_on_gpu(tensor) for _, tensor in pairs)
    for wanted, tensor in pairs:
        assert wanted.dtype == tensor.dtype and torch.equal(wanted, tensor)


def tensors(batch):
    views = [(view.image, view.parsing, view.hidden) for view in (batch.holistic, batch.occluded)]
    return [*sum(views, ()), batch.covered, batch.camid, batch.pid]


def test_a_set_that_is_too_large_for_the_gpu_stays_on_the_cpu(there, monkeypatch):
    pictures = toy.people()
    assert gpu.image_set_on_gpu(pictures, torch.device("cpu")) is None
    for free, fits in ((pictures.image.nbytes * 5, False), (pictures.image.nbytes * 6, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert (gpu.image_set_on_gpu(pictures, CUDA) is not None) == fits


def test_auto_stands_for_pytorchs_kernel_and_bfloat16_on_the_gpu(there):
    assert compute.attention_kernel("auto", CUDA) == "sdpa"
    assert compute.dtype("auto", CUDA) == torch.bfloat16


def test_layers_are_compiled_where_triton_supports_the_gpu(there, monkeypatch):
    assert compute.should_compile("auto", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    assert not compute.should_compile("auto", CUDA)


# ------------------------------------------------------------------ embedding


def extract(device, precision):
    stream = eval_batches(toy.people(), 5)
    encoder, model = plain_vit(toy.encoder(), toy.SIZE), toy.model()
    with compute.inference_mode(model, device, compute.Compute(precision, "default", "math")):
        return extract_features(model, encoder, stream, 16, 6, device, True)


@pytest.mark.parametrize(("precision", "off"), [("float32", 0), ("bfloat16", 0.01)])
def test_test_images_are_embedded_on_the_gpu_as_on_the_cpu(precision, off):
    torch.manual_seed(0)
    here = extract(torch.device("cpu"), "float32")
    torch.manual_seed(0)
    with stand_in_gpu.stand_in():
        there = extract(distributed.local_device(), precision)
    assert here.keys() == there.keys()
    systems = ["model", "encoder", "z_unknown"]  # what z the model guesses may hang on a rounding
    assert max(np.abs(here[f"{name}/part"] - there[f"{name}/part"]).max() for name in systems) <= off


@pytest.mark.parametrize("guess", [False, True])
def test_a_trained_model_embeds_pictures_on_the_gpu_as_on_the_cpu(tmp_path, guess):
    folder = toy.trained(tmp_path)
    pictures = list(toy.people().image[:5])
    here = api.load(folder, batch=3).embed(pictures, guess=guess)
    with stand_in_gpu.stand_in():
        there = api.load(folder, "cuda", batch=3).embed(pictures, guess=guess)
    assert there.parts.device.type == "cpu"
    torch.testing.assert_close(there.parts, here.parts, atol=1e-5, rtol=1e-5)  # by another kernel, maybe
    assert torch.equal(there.visibility, here.visibility)


def test_parsers_give_on_the_gpu_what_they_give_on_the_cpu():
    crops = [training_picture(11, i).image for i in range(3)]
    parsers = [
        (pose.load, test_pose.PARAMS, test_pose.EMBEDDED),
        (segmentation.load, test_segmentation.SURE, test_segmentation.EMBEDDED),
    ]
    for load, settings, weights in parsers:
        here = load(settings, weights)(crops)
        with stand_in_gpu.stand_in():
            there = load(replace(settings, device="cuda"), weights)(crops)
        np.testing.assert_equal(there, here)


# ------------------------------------------------------------------ ranking


def drawn(count, seed, gated=False):
    """Images of 8 people by 3 cameras, some parts hidden."""
    rng = np.random.default_rng(seed)
    people = np.random.default_rng(0).standard_normal((8, 3, 16))
    pid, camid = rng.integers(0, 8, count), rng.integers(-1, 3, count)
    parts = torch.from_numpy(people[pid] + rng.standard_normal((count, 3, 16))).float()
    visibility = torch.from_numpy(rng.random((count, 3)) < 0.8).float()
    gate = torch.from_numpy(rng.random((count, 3, 16)) < 0.7).float() if gated else None
    return ranking.Embedded(parts, visibility, pid, camid, gate)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "squared", "cosine"])
def test_a_gallery_is_ranked_on_the_gpu_as_on_the_cpu(metric, gated):
    query, gallery = drawn(20, 1, gated), drawn(70, 2)
    here = ranking.rank(query, gallery, metric, top=10)
    with stand_in_gpu.stand_in():
        there = ranking.rank(query, gallery, metric, top=10, device=distributed.local_device())
    np.testing.assert_allclose(there.ap, here.ap)
    np.testing.assert_array_equal(there.top, here.top)
    np.testing.assert_allclose(there.top_distance, here.top_distance, atol=1e-6)


def test_shortlists_are_reranked_on_the_gpu_as_on_the_cpu():
    query, gallery = drawn(20, 1), drawn(70, 2)
    plain = ranking.rank(query, gallery, top=30)
    options = ranking.Rerank(depth=30, k1=5, k2=3, original=0.3)
    here = ranking.rerank(query, gallery, plain, options)
    with stand_in_gpu.stand_in():
        there = ranking.rerank(query, gallery, plain, options, device=distributed.local_device())
    np.testing.assert_allclose(there.ap, here.ap)
    np.testing.assert_array_equal(there.top, here.top)
