"""PifPaf's confidences: of each crop alone, on a grid whose cells lie at known pixels of the crop."""

import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openpifpaf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.core import params, weights
from pipeline.core.files import sha256
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.labels import pose, pose_params
from pipeline.labels.parsers import load_rows
from pipeline.pretraining import pifpaf as pretraining
from pipeline.synthetic.pictures import training_picture

ROOT = Path(__file__).parents[2]
EMBEDDED = str(ROOT / "models/embedded/pose.safetensors")
PARAMS = params.read(ROOT / "params.yaml", "pose", pose_params.Pose)
NOSE, TORSO = 0, (21, 22, 23, 24)  # channels: a keypoint; limbs between hips and shoulders


@pytest.fixture(scope="module")
def pictures() -> list:
    return [training_picture(11, i) for i in range(7)]


@pytest.fixture(scope="module")
def crops(pictures) -> list[np.ndarray]:
    return [picture.image for picture in pictures]


@pytest.fixture(scope="module")
def fields() -> pose.FieldNetwork:
    return pose.load(PARAMS, EMBEDDED)


# ------------------------------------------------------------------ the network's confidences


def test_a_torso_is_confident_where_the_renderer_put_it(fields, pictures):
    for picture, maps in zip(pictures, fields([p.image for p in pictures]), strict=True):
        cells = picture.map[:: fields.grid.stride, :: fields.grid.stride] == parts.TORSO
        torso = maps[list(TORSO)].max(0)[: cells.shape[0], : cells.shape[1]]
        assert torso[cells].mean() > 128 > torso[~cells].mean()


def test_alone_or_among_seven_a_crop_has_the_same_fields(fields, crops):
    """Up to one step of 255, where a convolution's order of summing decides a rounding."""
    together = fields(crops)
    for i, crop in enumerate(crops):
        assert np.abs(fields([crop])[0].astype(int) - together[i]).max() <= 1


def test_permuting_a_batch_permutes_its_fields(fields, crops):
    order = [3, 0, 6, 2, 5, 1, 4]
    mixed = fields([crops[i] for i in order])
    assert np.abs(mixed.astype(int) - fields(crops)[order]).max() <= 1


def test_crops_of_any_sizes_share_a_batch(fields, crops):
    confidence = fields([crops[0], crops[1][:200, :90], np.zeros((17, 300, 3), np.uint8)])
    assert confidence.dtype == np.uint8 and confidence.shape == (3, 36, 33, 17)


def test_a_worker_computes_its_rows_in_order(fields, crops):
    make = pickle.loads(pickle.dumps(partial(load_rows, pose.load, PARAMS, EMBEDDED, crops)))
    assert pose.load(PARAMS, EMBEDDED).attrs == fields.grid._asdict()
    assert np.abs(make()(2, 4)["confidence"].astype(int) - fields(crops[2:4])).max() <= 1


# ------------------------------------------------------------------ where cells lie


class Sampled(nn.Module):
    """A network that is its own picture: every confidence of cell (r, c) is pixel (16 r, 16 c)."""

    def __init__(self):
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1))
        self.head_metas = openpifpaf.plugins.coco.CocoKp().head_metas
        for meta in self.head_metas:
            meta.base_stride = 16
        self.base_net = SimpleNamespace(stride=16)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = (pixels[:, :1, ::16, ::16] > 0).float()  # 0 is the mean colour, and the pad's
        cif, caf = (cells[:, None].repeat(1, n, m, 1, 1) for n, m in ((17, 5), (19, 8)))
        return torch.cat([cif[:, :, :1] * 0, cif[:, :, 1:]], 2), torch.cat(
            [caf[:, :, :1] * 0, caf[:, :, 1:]], 2
        )


PADS = {  # size of the crop: the pad to a multiple of 16 plus one, left, top, right, bottom
    (256, 128): (0, 0, 1, 1),
    (257, 129): (0, 0, 0, 0),
    (250, 121): (4, 3, 4, 4),
    (384, 192): (0, 0, 1, 1),
    (1, 2): (7, 0, 8, 0),
}


@pytest.mark.parametrize("size", PADS)
def test_a_crop_is_padded_to_a_multiple_of_the_stride_plus_one(size):
    assert pose.field_grid(Sampled(), size) == pose.Grid(16, size, PADS[size])


@given(st.integers(1, 600), st.integers(1, 600))
def test_the_first_and_the_last_cell_are_the_padded_corners(height, width):
    left, top, right, bottom = pose.field_grid(Sampled(), (height, width)).pad
    assert (height + top + bottom - 1) % 16 == 0 and (width + left + right - 1) % 16 == 0
    assert 0 <= bottom - top <= 1 and 0 <= right - left <= 1 and top + bottom < 16


def test_a_bright_pixel_lights_the_cell_at_its_place():
    """On a crop of 250 x 121, cell (2, 3) is at y = 32 - 3, x = 48 - 4."""
    crop = np.zeros((250, 121, 3), np.uint8)
    crop[29, 44] = 255
    confidence = pose.FieldNetwork(Sampled(), (250, 121))([crop])
    assert confidence.shape == (1, 36, 17, 9)
    assert np.argwhere(confidence[0, NOSE] == 255).tolist() == [[2, 3]]
    assert (confidence == confidence[:, :1]).all()


def test_the_stride_is_read_from_the_networks_heads():
    assert pose.field_grid(pose.build(pose.SMALL), (256, 128)).stride == 8
    assert pose.field_grid(pose.build("shufflenetv2k16"), (256, 128)).stride == 16


def test_keypoints_come_before_limbs_whatever_heads_follow():
    class Dense(Sampled):
        def __init__(self):
            super().__init__()
            self.head_metas = [*self.head_metas, replace(self.head_metas[1], name="caf25")]

        def forward(self, pixels):
            cif, caf = super().forward(pixels)
            return cif * 0 + 1, caf * 0 + 0.5, caf * 0

    confidence = pose.confidences(Dense(), torch.rand(1, 3, 33, 33))[0, :, 0, 0]
    assert confidence.tolist() == [1] * 17 + [0.5] * 19


def test_building_a_network_leaves_openpifpafs_options_as_they_were():
    before = vars(openpifpaf.network.basenetworks.Resnet).copy()
    network = pose.build("resnet18")
    assert network.base_net.block5 is not None and network.base_net.out_features == 512
    assert vars(openpifpaf.network.basenetworks.Resnet) == before


# ------------------------------------------------------------------ weights


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(pose.build("mobilenetv3small").state_dict(), path)
    with pytest.raises(
        BadInput, match=r"other.safetensors: made for another network: \d+ missing \(base_net"
    ):
        pose.load(PARAMS, str(path))


def test_weights_of_a_named_network_load_from_plain_tensors(tmp_path):
    path = tmp_path / "mobile.pth"
    torch.save(pose.build("mobilenetv3small").state_dict(), path)
    network = pose.load(replace(PARAMS, network="mobilenetv3small"), str(path))
    assert network.grid.stride == 16


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_truncated_file_is_refused(tmp_path, name):
    path = tmp_path / name
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=name):
        pose.load(PARAMS, str(path))


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match=r"no network of openpifpaf. Name one of small, mobilenetv2"):
        pose.load(replace(PARAMS, network="k16"), EMBEDDED)


@pytest.mark.parametrize("network", ["small:cocokp", "shufflenetv2k16:coco", "resnet18:cocokp"])
def test_weights_that_openpifpaf_never_published_are_refused_with_those_it_did(network):
    with pytest.raises(BadInput, match=r"publishes no such weights.*shufflenetv2k16:cocokp"):
        pose.load(replace(PARAMS, network=network), "")


# ------------------------------------------------------------------ openpifpaf's own pickles


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return pose.build("mobilenetv3small")


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Save an object as openpifpaf saves checkpoints, under a name with its hash, as if it were published."""

    def save(content: object, published: bool = True) -> str:
        torch.save(content, tmp_path / "new")
        path = tmp_path / f"mobilenetv3small-cocokp-{sha256(tmp_path / 'new')[:8]}.pkl"
        (tmp_path / "new").rename(path)
        if published:
            url = f"https://example.org/{path.name}"
            monkeypatch.setitem(openpifpaf.CHECKPOINT_URLS, "mobilenetv3small", url)
        return str(path)

    return save


def test_a_published_checkpoint_loads_by_allow_list_and_gives_the_same_fields(publish, network, crops):
    path = publish({"model": network, "epoch": 0, "meta": {"args": {"lr": 1e-3}}})
    loaded = pose.load(replace(PARAMS, network="mobilenetv3small"), path)
    assert (loaded(crops[:2]) == pose.FieldNetwork(network, PARAMS.size)(crops[:2])).all()


def test_a_published_name_fetches_its_checkpoint(publish, network, monkeypatch):
    path = publish({"model": network, "epoch": 0})
    monkeypatch.setattr(
        weights, "download", lambda url: Path(path) if url.endswith(Path(path).name) else None
    )
    named = replace(PARAMS, network="mobilenetv3small:cocokp")
    assert pose.load(named, "").grid.stride == 16
    assert pose.weights_file(named, EMBEDDED) == Path(path) and pose.weights_file(PARAMS, EMBEDDED) == Path(
        EMBEDDED
    )


def test_one_param_puts_the_coco_network_in_place_of_the_named_one():
    assert pose_params.select_network(PARAMS, "") == PARAMS
    assert pose_params.select_network(PARAMS, "coco").network == "shufflenetv2k16:cocokp"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_openpifpaf_did_not_publish_is_refused(publish, network):
    path = publish({"model": network, "epoch": 0}, published=False)
    with pytest.raises(BadInput, match=r"a pickle that openpifpaf did not publish.*state_dict"):
        pose.load(PARAMS, path)


def test_a_published_name_with_other_bytes_is_refused(publish, network):
    path = publish({"model": network, "epoch": 0})
    Path(path).write_bytes(b"other")
    with pytest.raises(BadInput, match="is not the published file"):
        pose.load(PARAMS, path)


CONTENTS = {
    "acts when loaded": lambda network: {"model": Evil()},
    "holds no model": lambda network: {"epoch": 0},
    "holds a class that is no network": lambda network: {"model": openpifpaf.Annotation},
}


@pytest.mark.parametrize("case", CONTENTS)
def test_even_a_published_pickle_is_refused_if_it(publish, network, monkeypatch, tmp_path, case):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput):
        pose.load(PARAMS, publish(CONTENTS[case](network)))
    assert not Path("executed").exists()


def test_a_missing_pickle_is_named():
    with pytest.raises(BadInput, match=r"gone.pkl: no such file"):
        pose.load(PARAMS, "gone.pkl")


# ------------------------------------------------------------------ training of the embedded weights


@given(st.integers(0, 40))
@settings(max_examples=8, deadline=None)
def test_the_trainers_targets_for_limbs_are_openpifpafs_own(number):
    head = pose.build(pose.SMALL).head_metas[1]
    picture, blank = training_picture(5, number), torch.empty(3, 257, 129)
    people = [picture.keypoints, *(keypoints for _, keypoints in picture.others)]
    annotations = [pretraining.to_annotation(points) for points in people if (points[:, 2] > 0).sum() >= 3]
    slow = openpifpaf.encoder.Caf(head)
    fast = pretraining.LimbTargets(slow)(blank, annotations, {})
    np.testing.assert_array_equal(fast.numpy(), slow(blank, annotations, {}).numpy())
