"""The stage `train` and a method that learns from texts: which tower it reads, refuses and records."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.core import params
from pipeline.core.files import sha256
from pipeline.core.params import BadInput
from pipeline.methods.base import load_trained
from pipeline.model import text
from pipeline.model.backbones import load_vit, save_vit
from pipeline.model.text.tower import TextTower
from stages import train
from tests import toy
from tests.training.test_train import WORDS, folder, trained  # noqa: F401  # `folder` is a fixture

VOCABULARY = list(dict.fromkeys([text.START, text.END, *text.BEFORE.split(), *text.AFTER.split()]))
DPMPP = {"stride": 16, "embedding": 5, "prompt_epochs": 2, "prompt_batch": 4}


@pytest.fixture
def texts(folder):  # noqa: F811
    """The same folder, with a text tower of the encoder, and dpmpp as the method."""
    projection = text.Projection(16, 5, pooled=True)
    tower = TextTower(len(VOCABULARY), 16, 12, 1, 2, 5)
    token = load_vit("vit.safetensors").cls_token.detach().flatten()
    text.write_towers("text.safetensors", text.Towers(tower, projection, token, (), ()), VOCABULARY, 2, {})
    values = params.load("params.yaml")
    values["dpmpp"] |= DPMPP
    Path("params.yaml").write_text(json.dumps(values | {"method": "dpmpp"}))
    return folder


def test_the_record_has_the_hash_of_the_text_tower_that_was_read(texts):
    train.main(*WORDS, "params.yaml")
    record = json.loads(Path("model/record.json").read_text())
    assert record["data"]["text.safetensors"] == sha256("text.safetensors")
    assert torch.allclose(load_trained("model").text.table.norm(dim=1), torch.ones(5))  # five people


def test_a_method_without_texts_reads_no_tower(folder):  # noqa: F811
    assert not Path("text.safetensors").exists() and "text.safetensors" not in trained()["data"]


def test_a_tower_of_another_encoder_stops_the_training_before_it_begins(texts):
    torch.manual_seed(9)
    save_vit("vit.safetensors", toy.encoder(), {})
    with pytest.raises(BadInput, match=r"dpmpp\.text: .*not of one training"):
        train.main(*WORDS, "params.yaml")
    assert not Path("model").exists()
