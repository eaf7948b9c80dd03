"""How the embedded detectors were made: endless rendered people, kept states, strict results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.labels import pose, pose_params, segmentation
from pipeline.model.backbones import load_vit
from pipeline.pretraining import annotations
from pipeline.pretraining import garments_vit as vit_training
from pipeline.pretraining import mask_rcnn as segmentation_training
from pipeline.pretraining import pifpaf as pose_training
from pipeline.pretraining.fit import Schedule, fit_network
from pipeline.synthetic.people import ATTRIBUTES
from stages import pretrain

ROOT = Path(__file__).parents[2]
SHORT = Schedule(
    seed=5, steps=2, batch=2, pool=2, learning_rate=1e-3, weight_decay=0.0, warmup=1, clip=1.0, average=0.5,
    keep_every=1, held_out=2, renderers=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------ what is learnt from

BODY = np.zeros((40, 20), bool)
BODY[5:35, 5:15] = True


def joint(number: int, x: float, y: float, v: float) -> np.ndarray:
    points = np.zeros((17, 3), np.float32)
    points[number] = x, y, v
    return points


CASES = {  # a keypoint (number, x, y, v) and the v that a network should learn
    "a visible wrist": ((9, 10, 20, 2), 2),
    "a wrist behind the person's own torso": ((9, 10, 20, 1), 0),
    "a wrist behind a pole beside the body": ((9, 2, 20, 1), 1),
    "a wrist out of the picture": ((9, 30, 20, 1), 1),
    "a hip behind the person's own arm": ((11, 10, 20, 1), 1),
    "a nose on the far side of the head": ((0, 10, 8, 1), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_network_should_make_of(case):
    given, learnt = CASES[case]
    assert annotations.label_keypoints(BODY, joint(*given))[given[0], 2] == learnt


def test_the_second_round_of_the_pool_is_the_first_in_a_mirror():
    first, second, third = (annotations.annotated_scene(5, i, 2) for i in (0, 2, 4))
    assert (second.image == first.image[:, ::-1]).all()
    assert (second.masks == first.masks[..., ::-1]).all()
    left, right = 5, 6  # shoulders
    assert (second.keypoints[0, left, 1:] == first.keypoints[0, right, 1:]).all()
    assert second.keypoints[0, left, 0] == 127 - first.keypoints[0, right, 0]
    assert (third.image == first.image).all()


# ------------------------------------------------------------------ the loop


def fit(steps: int, state: Path) -> tuple[nn.Module, list]:
    """Learn to double a number."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    pairs = lambda seed, i: (torch.tensor([i % 7 - 3.0]), torch.tensor([2 * (i % 7 - 3.0)]))  # noqa: E731
    loss = lambda net, batch: sum((net(x) - y).square().sum() for x, y in batch)  # noqa: E731
    score = lambda net: {"slope": net.weight.item()}  # noqa: E731
    schedule = Schedule(**{**vars(SHORT), "steps": steps, "learning_rate": 0.1, "clip": 100.0})
    return fit_network(network, loss, pairs, score, schedule, state)


def test_the_loop_learns_and_scores_every_kept_state():
    network, history = fit(60, Path("a.pt"))
    assert abs(history[-1]["slope"] - 2) < 0.2 and not network.training
    assert [line["step"] for line in history] == list(range(1, 61))


def test_raising_the_steps_goes_on_from_the_kept_state():
    _, first = fit(3, Path("b.pt"))
    _, longer = fit(5, Path("b.pt"))
    assert longer[:3] == first and [line["step"] for line in longer] == [1, 2, 3, 4, 5]
    _, again = fit(5, Path("b.pt"))
    assert again == longer


# ------------------------------------------------------------------ the encoder

VIT = vit_training.Pretrain(
    seed=5, width=16, depth=1, heads=2, patch=16, pictures=4, held_out=2, epochs=2, batch=2,
    learning_rate=1e-3, decay=0.0, warmup=1.0, pad=4, brightness=0.1, part_weight=0.5, patch_weight=1.0,
)  # fmt: skip


def test_the_encoder_learns_from_people_with_nothing_before_them():
    for number in range(3):
        picture = vit_training.draw_picture(5, number)
        assert picture.occluder == 0 and (picture.visible == picture.whole).all()


def test_a_patch_is_asked_only_for_what_its_part_tells():
    torch.manual_seed(0)
    model, patch = vit_training.GarmentClassifier(VIT), VIT.patch
    maps = torch.zeros(1, 256, 128, dtype=torch.uint8)
    maps[:, :patch, :patch] = parts.HEAD
    attribute = torch.zeros(1, len(ATTRIBUTES), dtype=torch.int64)
    vit_training.loss(model, torch.randn(1, 3, 256, 128), maps, attribute, VIT).backward()
    moved = model.attribute.bias.grad.split(list(model.sizes.values()))
    asked = {name for name, gradient in zip(ATTRIBUTES, moved, strict=True) if gradient.any()}
    assert asked == {"hair_style", "hair_colour", "skin"}


def test_a_short_training_of_the_vit_writes_an_encoder_that_fits(monkeypatch):
    monkeypatch.setattr(vit_training, "BLOCK", 2)
    vit_training.train(VIT, "new.safetensors")
    record = json.loads(Path("new.json").read_text())
    assert [line["epoch"] for line in record["history"]] == [1, 2]
    assert 0 <= record["history"][-1]["kinds"] <= 1 and record["params"]["seed"] == VIT.seed
    assert load_vit("new.safetensors").forward_features(torch.zeros(2, 3, 256, 128)).shape[::2] == (2, 16)


def test_the_same_seed_trains_the_same_encoder(monkeypatch):
    monkeypatch.setattr(vit_training, "BLOCK", 2)
    for name in ("one", "two"):
        vit_training.train(VIT, f"{name}.safetensors")
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


# ------------------------------------------------------------------ the two detectors


def test_a_short_training_of_mask_rcnn_writes_weights_that_fit():
    settings = segmentation_training.Pretrain(SHORT, smallest=150, proposals=20, sampled=8, mask_weight=2.0)
    segmentation_training.train(settings, "new.safetensors")
    record = json.loads(Path("new.json").read_text())
    assert record["history"][-1]["step"] == 2 and 0 <= record["history"][-1]["mask_iou"] <= 1
    given = params.read(ROOT / "params.yaml", "segment", segmentation.Segment)
    segmentation.load(given, "new.safetensors")([annotations.annotated_scene(5, 0, 2).image])


def test_a_short_training_of_pifpaf_writes_weights_that_fit():
    settings = pose_training.Pretrain(SHORT, (1.0, 0.1, 0.1, 1.0, 0.1, 0.1))
    pose_training.train(settings, "new.safetensors")
    record = json.loads(Path("new.json").read_text())
    assert 0 <= record["history"][-1]["keypoints_found"] <= 1 and len(record["sha256"]) == 64
    given = params.read(ROOT / "params.yaml", "pose", pose_params.Pose)
    pose.load(given, "new.safetensors")([annotations.annotated_scene(5, 0, 2).image])


def test_only_the_embedded_networks_can_be_pretrained(capsys):
    with pytest.raises(SystemExit):
        run_stage(pretrain.main, ["resnet", "x.safetensors"])
    said = capsys.readouterr().err
    assert "argument network: invalid choice: 'resnet'" in said
    assert all(network in said.partition("choose from")[2] for network in pretrain.MODULES)


@pytest.mark.parametrize("network", pretrain.MODULES)
def test_a_misspelt_setting_of_a_training_is_named(network):
    values = params.load(ROOT / "params.yaml")
    values["pretrain"][network]["stepz"] = 1
    YAML().dump(values, Path("params.yaml"))
    with pytest.raises(BadInput, match=rf"params.yaml: pretrain.{network}.stepz is not a parameter"):
        pretrain.main(network, "x.safetensors")
