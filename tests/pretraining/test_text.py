"""How the embedded text tower was made: captions of rendered people, and what it knows of unseen ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import params
from pipeline.core.files import sha256
from pipeline.model.backbones import load_vit
from pipeline.model.text import AFTER, BEFORE, END, START, encode, read_towers
from pipeline.pretraining import garments_vit
from pipeline.pretraining import text as text_training
from pipeline.synthetic.people import ATTRIBUTES

ROOT = Path(__file__).parents[2]
PARAMS = params.load(ROOT / "params.yaml")["pretrain"]["text"]
VIT, TEXT = (ROOT / f"models/embedded/{name}.safetensors" for name in ("vit", "text"))
SHORT = text_training.Pretrain(
    seed=5, vit=str(VIT), width=8, depth=1, heads=2, embedding=4, length=48, pictures=6, held_out=5, steps=2,
    batch=4, learning_rate=1e-3, decay=0.0, warmup=1, dropped=0.3,
)  # fmt: skip
LOOKS = st.tuples(*(st.integers(0, len(names) - 1) for names in ATTRIBUTES.values()))
PLACE = {word: n for n, word in enumerate(text_training.vocabulary())}


def classes(**look):
    """The class of each attribute: the first but for those that `look` names."""
    return np.array([names.index(look.get(name, names[0])) for name, names in ATTRIBUTES.items()])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_vocabulary_is_about_sixty_words_of_which_the_first_two_start_and_end_a_text():
    words = text_training.vocabulary()
    assert words[:2] == [START, END] and len(words) == len(set(words)) and 55 <= len(words) <= 70


@given(attribute=LOOKS, dropped=st.sampled_from([0.0, 0.3, 0.99]), seed=st.integers(0, 99))
def test_every_caption_is_a_prompt_in_the_vocabulary_that_fits_the_tower(attribute, dropped, seed):
    caption = text_training.caption(np.array(attribute), dropped, np.random.default_rng(seed))
    assert caption.startswith(BEFORE) and caption.endswith(".") and "person" in caption
    assert len(encode(PLACE, caption)) <= PARAMS["length"]


def test_a_whole_caption_says_what_can_be_seen_and_nothing_else():
    look = classes(
        hair_style="bald", hair_colour="blond", upper_pattern="plain", second_colour="red", bag="none",
        bag_colour="brown", lower_colour="light jeans", skin="dark",
    )  # fmt: skip
    caption = text_training.caption(look, 0.0, np.random.default_rng(0))
    assert all(
        f" {phrase} " in caption for phrase in ("bald hair", "dark skin", "light jeans trousers bottom")
    )
    assert "none bag" in caption and not {"blond", "red", "details", "brown"} & set(caption.split())


def test_captions_leave_attributes_out_and_change_their_order():
    rng, look = np.random.default_rng(0), classes(bag="backpack", upper_pattern="stripes")
    whole = {text_training.caption(look, 0.0, rng) for _ in range(20)}
    assert len({frozenset(caption.split()) - {"with"} for caption in whole}) == 1 and len(whole) > 10
    assert {caption.startswith(f"{BEFORE} person") for caption in whole} == {True, False}
    said = [len(text_training.caption(look, 0.3, rng).split()) for _ in range(200)]
    assert np.mean(said) < len(next(iter(whole)).split()) - 4


def test_a_short_training_writes_towers_for_the_encoder_and_the_same_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(garments_vit, "BLOCK", 3)
    for name in ("one", "two"):
        text_training.train(SHORT, f"{name}.safetensors")
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    record, towers = json.loads(Path("one.json").read_text()), read_towers("one.safetensors")
    assert [line["step"] for line in record["history"]] == [1, 2] and record["vit"] == sha256(VIT)
    assert 0 <= record["history"][-1]["top1"] <= record["history"][-1]["top5"] <= 1
    towers.check_pair(load_vit(VIT).cls_token, "dpmpp")
    assert towers.sizes == (SHORT.embedding, SHORT.length - 8)
    assert towers.before == encode(PLACE, BEFORE)[:-1] and towers.after == encode(PLACE, AFTER)[1:]


def test_the_embedded_tower_is_small_and_of_the_embedded_encoder():
    record = json.loads(TEXT.with_suffix(".json").read_text())
    assert record["sha256"] == sha256(TEXT) and record["vit"] == sha256(VIT)
    assert TEXT.stat().st_size < 1_000_000
    read_towers(TEXT).check_pair(load_vit(VIT).cls_token, "dpmpp")
    assert read_towers(TEXT).sizes == (128, 40)
    assert record["params"] == PARAMS


def test_the_embedded_tower_knows_the_caption_of_an_unseen_person(monkeypatch):
    monkeypatch.setattr(garments_vit, "BLOCK", 100)
    towers = read_towers(TEXT)
    people = text_training.encode_people(load_vit(VIT).eval(), 7300, 100)
    figures = text_training.score(towers.text, towers.projection, people, PLACE)
    assert figures["top1"] >= 0.8 and figures["top5"] >= 0.95
