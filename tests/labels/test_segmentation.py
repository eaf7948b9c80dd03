"""Person instances: of each crop alone, in the pixels of that crop, from weights that fit exactly."""

import hashlib
import os
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from pipeline.core import params, weights
from pipeline.core.params import BadInput
from pipeline.data.index import resize_crops
from pipeline.labels import segmentation
from pipeline.labels.parsers import load_rows
from pipeline.labels.segmentation import Detections, detectron2, small, torchvision
from pipeline.synthetic.pictures import training_picture

ROOT = Path(__file__).parents[2]
EMBEDDED = str(ROOT / "models/embedded/segmentation.safetensors")
PARAMS = params.read(ROOT / "params.yaml", "segment", segmentation.Segment)
SURE = replace(PARAMS, score_floor=0.5)


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [training_picture(11, i).image for i in range(7)]


@pytest.fixture(scope="module")
def segment():
    return segmentation.load(SURE, EMBEDDED)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return small.build().state_dict()


@pytest.fixture
def fixed(monkeypatch):
    """A backend that finds two persons, known by hand, in every crop."""

    def persons(resized: np.ndarray) -> list[Detections]:
        score = np.array([0.9, 0.6], np.float32)
        box = np.array([[0, 0, 128, 256], [32, 64, 64, 192]], np.float32)
        mask = np.stack([np.ones((28, 28)), np.full((28, 28), 0.25)]).astype(np.float32)
        return [Detections(score, box, mask)] * len(resized)

    monkeypatch.setattr(torchvision, "load", lambda settings, path: persons)
    return replace(PARAMS, size=(256, 128))


# ------------------------------------------------------------------ detected instances


def test_the_target_of_a_rendered_picture_is_found_with_high_score(segment, crops):
    instances = segment(crops)
    assert (instances.found >= 1).all()
    assert (instances.score[:, 0] > 0.8).all()


def test_scores_fall_and_rows_past_the_last_instance_are_empty(segment, crops):
    instances = segment(crops)
    assert (np.diff(instances.score) <= 0).all()
    for n, score, box, mask in zip(*instances, strict=True):
        assert (score[:n] >= SURE.score_floor).all()
        assert not score[n:].any() and not box[n:].any() and not mask[n:].any()


def test_alone_or_among_seven_a_crop_has_the_same_instances(segment, crops):
    """Up to what a convolution's order of summing moves: 1e-4 of score, 0.02 pixels, one step of 255."""
    together = segment(crops)
    for i, crop in enumerate(crops):
        close(segment([crop]), 0, together, i)


def test_permuting_a_batch_permutes_its_instances(segment, crops):
    order = [3, 0, 6, 2, 5, 1, 4]
    straight, mixed = segment(crops), segment([crops[i] for i in order])
    for place, i in enumerate(order):
        close(mixed, place, straight, i)


def close(a: segmentation.Instances, i: int, b: segmentation.Instances, j: int) -> None:
    assert a.found[i] == b.found[j]
    np.testing.assert_allclose(a.score[i], b.score[j], atol=1e-4)
    np.testing.assert_allclose(a.box[i], b.box[j], atol=0.02)
    assert np.abs(a.mask[i].astype(int) - b.mask[j]).max() <= 1


def test_a_crop_of_nobody_has_no_instance(segment):
    instances = segment([np.full((256, 128, 3), 127, np.uint8)])
    assert instances.found[0] == 0 and not instances.score.any()


def test_boxes_are_in_pixels_of_each_original_crop(fixed):
    instances = segmentation.load(fixed, "")(
        [np.zeros((64, 96, 3), np.uint8), np.zeros((512, 128, 3), np.uint8)]
    )
    assert instances.box[0, 0].tolist() == [0, 0, 96, 64]
    assert instances.box[0, 1].tolist() == [24, 16, 48, 48]  # 32/128 of 96, 64/256 of 64, ...
    assert instances.box[1, 1].tolist() == [32, 128, 64, 384]


def test_masks_are_255ths_of_the_probability(fixed):
    instances = segmentation.load(fixed, "")([np.zeros((64, 96, 3), np.uint8)])
    assert instances.mask[0, :2, 0, 0].tolist() == [255, 64]


def test_no_more_instances_are_kept_than_asked_for(fixed):
    instances = segmentation.load(replace(fixed, instances=1), "")([np.zeros((9, 9, 3), np.uint8)])
    assert instances.found[0] == 1 and instances.score.shape == (1, 1)


def test_a_resized_crop_keeps_its_mean():
    crop = np.zeros((200, 60, 3), np.uint8)
    crop[:100] = 200
    assert abs(resize_crops([crop], (50, 30)).mean() - 100) < 1


def test_a_worker_computes_its_rows_in_order(segment, crops):
    make = pickle.loads(pickle.dumps(partial(load_rows, segmentation.load, SURE, EMBEDDED, crops)))
    arrays = make()(2, 4)
    assert set(arrays) == {"found", "score", "box", "mask"}
    np.testing.assert_allclose(arrays["box"], segment(crops[2:4]).box, atol=0.02)


class Direct(nn.Module):
    """A box predictor whose class logits are its input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.repeat(1, 4)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9))
def test_merging_classes_leaves_the_probability_of_a_person_alone(logits):
    scores = torch.tensor([logits])
    merged, _ = torchvision._PersonPredictor(Direct())(scores)
    assert torch.allclose(merged.softmax(1)[:, 1], scores.softmax(1)[:, torchvision.PERSON], atol=1e-6)


# ------------------------------------------------------------------ weights


def test_weights_of_another_network_are_refused_by_name(tmp_path, tensors):
    path = tmp_path / "other.safetensors"
    del tensors["roi_heads.mask_predictor.weight"]
    tensors["roi_heads.box_head.fc6.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(BadInput, match=r"other.safetensors: made for another network: 1 missing") as error:
        torchvision.load(PARAMS, str(path))
    assert "roi_heads.mask_predictor.weight" in str(error.value)
    assert "roi_heads.box_head.fc6.bias (3,) instead of (128,)" in str(error.value)
    assert "segment.weights" in str(error.value)


def test_a_state_dict_saved_by_torch_is_read_too(tmp_path, tensors):
    path = tmp_path / "small.pth"
    torch.save({"model": tensors}, path)
    assert set(weights.read(path)) == set(tensors)
    torchvision.load(PARAMS, str(path))


def test_half_precision_is_widened(tmp_path, tensors):
    path = tmp_path / "half.safetensors"
    weights.write(path, tensors, {"command": "by hand"})
    network = small.build()
    weights.load_strict(network, weights.read(path), path, "")
    assert next(network.parameters()).dtype == torch.float32
    assert path.with_suffix(".json").read_text().startswith('{\n  "command": "by hand"')


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


DAMAGED = {
    "cut.safetensors": lambda path: path.write_bytes(Path(EMBEDDED).read_bytes()[:1000]),
    "cut.pth": lambda path: path.write_bytes(b"PK\x03\x04cut"),
    "empty.pth": lambda path: path.write_bytes(b""),
    "list.pth": lambda path: torch.save([1, 2], path),
    "words.pth": lambda path: torch.save({"model": {"a": "text"}}, path),
    "evil.pth": lambda path: torch.save(Evil(), path),
    "evil.pkl": lambda path: path.write_bytes(pickle.dumps(Evil())),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_holds_no_weights_is_refused_and_runs_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    DAMAGED[name](tmp_path / name)
    with pytest.raises(BadInput, match=name):
        torchvision.load(PARAMS, str(tmp_path / name))
    assert not Path("executed").exists()


def test_a_missing_file_is_named():
    with pytest.raises(BadInput, match=r"no/such.safetensors: no such file"):
        torchvision.load(PARAMS, "no/such.safetensors")
    with pytest.raises(BadInput, match=r"no/such.safetensors: no such file"):
        weights.fingerprint("no/such.safetensors")


def test_weights_are_told_apart_by_the_hash_of_their_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert weights.fingerprint(segmentation.weights_file(PARAMS, str(tmp_path / "a"))).startswith("ba7816bf")


def test_one_param_puts_coco_networks_in_place_of_the_named_ones():
    assert segmentation.select_network(PARAMS, "") == PARAMS
    assert segmentation.select_network(PARAMS, "coco").network == "maskrcnn_resnet50_fpn_v2:COCO_V1"
    assert segmentation.select_network(THEIRS, "coco").network == f"{ZOO}:zoo"
    with pytest.raises(BadInput, match=r"parsers = 'imagenet' is unknown\. Name coco"):
        segmentation.select_network(PARAMS, "imagenet")


WRONG = {
    "resnet": "no Mask R-CNN of torchvision",
    "small:COCO_V1": "publishes no such weights",
    "maskrcnn_resnet50_fpn_v2:COCO_V9": "Name maskrcnn_resnet50_fpn_v2:COCO_V1",
}


@pytest.mark.parametrize("network", WRONG)
def test_an_unknown_network_or_publication_is_refused_with_the_known_ones(monkeypatch, network):
    monkeypatch.setattr(models, "get_model", lambda name, **settings: small.build(**settings))
    with pytest.raises(BadInput, match=WRONG[network]):
        torchvision.load(replace(PARAMS, network=network), EMBEDDED)


def test_published_weights_of_91_classes_give_persons_alone(tmp_path, monkeypatch, crops):
    def build(name: str = "", **settings):
        torch.manual_seed(1)
        settings = {k: v for k, v in settings.items() if not k.startswith("weights")}
        network = small.build(**settings)
        network.roi_heads.box_predictor = FastRCNNPredictor(128, 91)
        network.roi_heads.mask_predictor = nn.Conv2d(small.MASK_CHANNELS, 91, 1)
        return network

    published = tmp_path / "coco.pth"
    torch.save(build().state_dict(), published)
    monkeypatch.setattr(models, "get_model", build)
    monkeypatch.setattr(weights, "download", lambda url: published if url.endswith("73cbd019.pth") else None)
    settings = replace(PARAMS, network="maskrcnn_resnet50_fpn_v2:COCO_V1", score_floor=0.0)
    instances = segmentation.load(settings, "")(crops[:1])
    assert instances.found[0] == PARAMS.instances
    assert (instances.score[0] < 0.1).all()  # a random choice among 91


# ------------------------------------------------------------------ published files


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_offline_the_place_to_put_a_published_file_is_named(hub, monkeypatch):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(BadInput, match=r"checkpoints/net-ba7816bf.pth: not there.*put it there"):
        weights.download("https://example.org/net-ba7816bf.pth")


def test_a_place_for_published_files_that_cannot_be_written_is_named(hub, monkeypatch):
    (hub / "file").write_bytes(b"")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub / "file"))  # which no folder can be made in
    with pytest.raises(BadInput, match=r"file/checkpoints/net-ba7816bf.pth: not there.*TORCH_HOME chooses"):
        weights.download("https://example.org/net-ba7816bf.pth")


def test_a_published_file_is_downloaded_once_and_hashed_every_time(hub, monkeypatch):
    asked = []

    def download(url, path, hash_prefix):
        asked.append(hash_prefix)
        Path(path).write_bytes(b"abc")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert weights.download("https://example.org/net-ba7816bf.pth").read_bytes() == b"abc"
    assert asked == ["ba7816bf"]
    (hub / "net-ba7816bf.pth").write_bytes(b"changed")
    with pytest.raises(BadInput, match=r"is not the published file \(its sha256 begins [0-9a-f]{8}"):
        weights.download("https://example.org/net-ba7816bf.pth")


def test_the_file_of_a_published_network_is_the_one_whose_hash_is_recorded(hub, monkeypatch):
    name = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    (hub / name).write_bytes(b"abc")
    monkeypatch.setattr(weights, "verify", lambda path, algorithm: None)
    instances = segmentation.weights_file(segmentation.select_network(PARAMS, "coco"), EMBEDDED)
    assert instances == hub / name and weights.fingerprint(instances).startswith("ba7816bf")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="torch sees no GPU"):
        torchvision.load(replace(PARAMS, device="cuda"), EMBEDDED)


# ------------------------------------------------------------------ detectron2, by a stand-in
#
# Drawn after detectron2 0.6 (02b5c4e2) run on rendered crops: what is called, with what, and what comes back:
# Instances with scores (N,) float32, pred_classes (N,) int64, pred_boxes.tensor (N, 4) float32 in pixels of
# the input, pred_masks (N, 1, 28, 28) float32 probabilities; N = 0 without detections.

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"


class FakeInstances:
    def __init__(self, **fields):
        self.fields = fields

    def __getattr__(self, name):
        return self.__dict__["fields"][name]

    def __getitem__(self, chosen):
        boxes = SimpleNamespace(tensor=self.pred_boxes.tensor[chosen])
        rest = {name: value[chosen] for name, value in self.fields.items() if name != "pred_boxes"}
        return FakeInstances(pred_boxes=boxes, **rest)


class FakeNetwork(nn.Module):
    """Sees a car and a person in the upper left quarter of every picture that is not black."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1), persistent=False)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not self.training and not do_postprocess and detected_instances is None
        self.images = [entry["image"] for entry in batched_inputs]
        return [self.instances(image) for image in self.images]

    def instances(self, image):
        assert image.dtype == torch.float32 and image.shape[0] == 3
        n, (height, width) = 2 * bool(image.any()), image.shape[1:]
        box = torch.tensor([[0, 0, width / 2, height / 2]])
        return FakeInstances(
            scores=torch.tensor([0.9, 0.8])[:n],
            pred_classes=torch.tensor([2, 0])[:n],
            pred_boxes=SimpleNamespace(tensor=torch.cat([box * 2, box])[:n]),
            pred_masks=torch.full((2, 1, 28, 28), 0.5)[:n],
        )


class FakeCheckpointer:
    def __init__(self, model):
        self.model = model

    def load(self, path):
        self.model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=False)  # as it does


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """detectron2 as far as the adapter sees it."""
    node = SimpleNamespace
    config = node(
        MODEL=node(DEVICE="cuda", RPN=node(), ROI_HEADS=node()), INPUT=node(FORMAT="BGR"), merged=None
    )
    config.merge_from_file = lambda path: setattr(config, "merged", path)
    file = tmp_path / "detectron2" / "model_zoo" / "configs" / f"{ZOO}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("")
    contents = {
        "detectron2": {"__file__": str(tmp_path / "detectron2" / "__init__.py")},
        "detectron2.config": {"get_cfg": lambda: config},
        "detectron2.model_zoo": {"get_checkpoint_url": lambda path: config.urls[path]},
        "detectron2.modeling": {"build_model": lambda config: FakeNetwork()},
        "detectron2.checkpoint": {"DetectionCheckpointer": FakeCheckpointer},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return config


THEIRS = replace(PARAMS, backend="detectron2", network=ZOO, size=(256, 128))
FITTING = {"head.weight": torch.eye(2), "head.bias": torch.zeros(2)}


def checkpoint(folder: Path, tensors: dict) -> str:
    torch.save({"model": tensors}, folder / "model.pth")
    return str(folder / "model.pth")


def zoo_pickle(folder: Path, content: object, name: str = "model_final_{}.pkl") -> str:
    data = pickle.dumps(content, protocol=2)
    path = folder / name.format(hashlib.md5(data).hexdigest()[:6])
    path.write_bytes(data)
    return str(path)


def test_detectron2_gives_persons_alone_in_the_common_form(zoo, tmp_path):
    crop = np.full((100, 50, 3), 7, np.uint8)
    instances = segmentation.load(THEIRS, checkpoint(tmp_path, FITTING))([crop, np.zeros_like(crop)])
    assert instances.found.tolist() == [1, 0]
    assert instances.score[0, 0] == np.float32(0.8)
    assert instances.box[0, 0].tolist() == [0, 0, 25, 50]
    assert instances.mask[0, 0, 0, 0] == 128 and instances.mask.shape == (2, 8, 28, 28)


def test_detectron2_is_set_up_as_the_params_say_and_sees_bgr(zoo, tmp_path):
    backend = detectron2.load(THEIRS, checkpoint(tmp_path, FITTING))
    assert zoo.merged.endswith(f"{ZOO}.yaml") and zoo.MODEL.DEVICE == "cpu"
    assert THEIRS.score_floor == zoo.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    assert THEIRS.proposals == zoo.MODEL.RPN.POST_NMS_TOPK_TEST
    backend(np.full((1, 256, 128, 3), (1, 2, 3), np.uint8))
    assert backend.network.images[0][:, 0, 0].tolist() == [3, 2, 1]
    assert torch.equal(backend.network.head.weight, torch.eye(2))


def test_a_partial_checkpoint_is_refused_before_detectron2_reads_it(zoo, tmp_path):
    with pytest.raises(BadInput, match=r"1 missing \(head.bias\)"):
        detectron2.load(THEIRS, checkpoint(tmp_path, {"head.weight": torch.eye(2)}))


def test_the_zoos_own_pickle_is_read_as_plain_arrays(zoo, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in FITTING.items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))  # as old files have
    path = zoo_pickle(tmp_path, {"model": arrays, "__author__": "Detectron2 Model Zoo"})
    assert torch.equal(detectron2.load(THEIRS, path).network.head.weight, torch.eye(2))


REFUSED = {
    "asks for more than arrays": (Evil(), "model_final_{}.pkl", "no checkpoint of detectron2's zoo"),
    "is not the published file": ({"model": {}}, "model_final_abcdef.pkl", "is not the published file"),
    "holds no model": ({"weights": 1}, "model_final_{}.pkl", "holds no model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pickle_is_refused_that(zoo, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, name, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        detectron2.load(THEIRS, zoo_pickle(tmp_path, content, name))
    assert not Path("executed").exists()


def test_the_zoos_weights_are_downloaded_by_name_once_and_checked_by_their_md5(zoo, hub, monkeypatch):
    arrays = {name: tensor.numpy() for name, tensor in FITTING.items()}
    path = Path(zoo_pickle(hub, {"model": arrays}))
    data = path.read_bytes()
    path.unlink()
    zoo.urls, asked = {f"{ZOO}.yaml": f"https://example.org/137849600/{path.name}"}, []

    def download(url, target, hash_prefix):
        asked.append((url, hash_prefix))
        Path(target).write_bytes(data)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    named = replace(THEIRS, network=f"{ZOO}:zoo")
    for _ in range(2):
        assert torch.equal(detectron2.load(named, EMBEDDED).network.head.weight, torch.eye(2))
    assert asked == [(zoo.urls[f"{ZOO}.yaml"], None)]  # torch.hub would take the digits for a sha256
    path.write_bytes(data + b"x")
    with pytest.raises(BadInput, match="is not the published file"):
        detectron2.load(named, EMBEDDED)


def test_weights_that_the_zoo_never_published_are_refused(zoo, monkeypatch):
    def lacking(path):
        raise RuntimeError(f"{path} not available in Model Zoo!")  # as detectron2 says

    monkeypatch.setattr(sys.modules["detectron2.model_zoo"], "get_checkpoint_url", lacking)
    with pytest.raises(BadInput, match=r"the zoo has no weights for mask_rcnn_R_50_FPN_3x\.yaml"):
        detectron2.weights_file(replace(THEIRS, network=f"{ZOO}:zoo"), "")
    with pytest.raises(BadInput, match=f"publishes no such weights. Name {ZOO}:zoo"):
        detectron2.weights_file(replace(THEIRS, network=f"{ZOO}:COCO_V1"), "")


def test_a_missing_zoo_file_says_where_such_files_are(zoo):
    with pytest.raises(BadInput, match=r"gone.pkl: no such file.*MODEL_ZOO"):
        detectron2.load(THEIRS, "gone.pkl")


def test_a_config_that_the_zoo_lacks_is_refused_with_those_it_has(zoo):
    with pytest.raises(BadInput, match=f"Name one of {ZOO}"):
        detectron2.load(replace(THEIRS, network="mask_rcnn"), "")


def test_where_detectron2_is_not_installed_choosing_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(BadInput, match=r"INSTALL.md.*--no-build-isolation.*setuptools<82.*--inexact"):
        segmentation.load(THEIRS, "")


def test_the_backend_is_among_the_libraries_of_the_result(monkeypatch):
    assert segmentation.libraries(PARAMS) == ("torch", "torchvision")

    def version(name: str) -> str:
        raise detectron2.PackageNotFoundError(name)

    monkeypatch.setattr(detectron2, "version", version)
    with pytest.raises(BadInput, match="is not installed"):
        segmentation.libraries(THEIRS)
    monkeypatch.setattr(detectron2, "version", lambda name: "0.6")
    assert segmentation.libraries(THEIRS) == ("torch", "detectron2")
