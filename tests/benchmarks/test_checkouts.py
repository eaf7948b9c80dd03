"""Checkouts of published code run where what they import is missing."""

import sys
from types import SimpleNamespace
from unittest import mock

from benchmarks.checkouts import import_loss, read_settings, stand_in

CHECKOUT = {
    "config/defaults.py": """
from yacs.config import CfgNode as CN
_C = CN()
_C.MODEL = CN()
_C.MODEL.NAME, _C.MODEL.PRETRAIN_CHOICE = "resnet50", "imagenet"
""",
    "loss/make_loss.py": """
from einops import rearrange
from torch._six import container_abcs
class CenterLoss:
    def __init__(self, num_classes):
        raise RuntimeError("needs a GPU")
""",
    "configs/vit.yml": "MODEL:\n  NAME: transformer\nOUTPUT_DIR: ''\n",
}


def test_settings_and_losses_are_read_without_what_is_not_installed(tmp_path, monkeypatch):
    for name, text in CHECKOUT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with mock.patch.dict(sys.modules):
        monkeypatch.syspath_prepend(tmp_path)
        stand_in(einops={"rearrange": None})
        settings = read_settings(tmp_path / "configs/vit.yml", 12)
        assert len(list(import_loss().CenterLoss(num_classes=702).parameters())) == 2
    model = {"NAME": "transformer", "PRETRAIN_CHOICE": "none", "STRIDE_SIZE": [12, 12]}
    assert settings == SimpleNamespace(MODEL=SimpleNamespace(**model))
