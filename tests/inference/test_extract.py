"""Embeddings of the test images: by the model, with and without parsing maps, by its encoder before
training, by a colour histogram."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batches.views import eval_batch, eval_batches, normalise
from pipeline.core.label_file import write_packed
from pipeline.core.params import BadInput
from pipeline.data.index import Images
from pipeline.inference import histogram
from pipeline.inference.extract import extract_features, model_cameras, rows_to_embed, untrained_encoder
from pipeline.methods.base import Embedding, Method, data_spec
from pipeline.model import compute
from pipeline.model.backbones import load_vit, save_vit
from pipeline.model.vit import plain_vit
from pipeline.training import selection
from tests import toy


def plain(colour, size=(64, 32)):
    return np.full((*size, 3), colour, np.uint8)


def standing(upper, lower, ground=(90, 90, 90)):
    """A person of two colours in the middle of a ground."""
    image = plain(ground)
    image[8:32, 8:24], image[32:60, 8:24] = upper, lower
    return image


def apart(one, two):
    return float(np.linalg.norm(histogram.histogram(one) - histogram.histogram(two)))


RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 200, 30)

# ------------------------------------------------------------------ the histogram


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_a_histogram_has_length_one_and_no_negative_share(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    shares = histogram.histogram(image)
    assert shares.min() >= 0 and np.linalg.norm(shares) == pytest.approx(1, abs=1e-5)


def test_every_stripe_counts_the_same():
    stripes = histogram.histogram(standing(RED, BLUE)).reshape(histogram.STRIPES, -1)
    np.testing.assert_allclose((stripes**2).sum(1), 1 / histogram.STRIPES, rtol=1e-5)


def test_the_same_clothes_are_nearer_than_others():
    person = standing(RED, BLUE)
    assert apart(person, standing(RED, BLUE, (110, 100, 90))) < apart(person, standing(RED, GREEN))


def test_a_shirt_and_trousers_of_swapped_colours_are_another_person():
    assert apart(standing(RED, BLUE), standing(BLUE, RED)) > 0.5


def test_the_middle_counts_more_than_the_sides():
    person, side, middle = standing(RED, BLUE), standing(RED, BLUE), standing(RED, BLUE)
    side[:, :6] = middle[:, 13:19] = GREEN
    assert apart(person, side) < apart(person, middle)


def test_a_cameras_tint_is_balanced_away():
    rng = np.random.default_rng(0)
    image = rng.integers(20, 180, (64, 32, 3), np.uint8)
    tinted = (image * np.array([1.3, 1.0, 0.8])).astype(np.uint8)
    assert apart(image, tinted) < 0.15


def test_a_mirrored_picture_has_the_same_histogram():
    image = np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)
    np.testing.assert_allclose(
        histogram.histogram(image), histogram.histogram(image[:, ::-1].copy()), atol=1e-5
    )


def slow_histogram(image):
    """Read aloud, pixel by pixel, for a picture of the working size in balance."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float)
    hues, saturations, values = histogram.BINS
    counts = np.zeros((histogram.STRIPES, *histogram.BINS))
    height, width = histogram.SIZE
    for y in range(height):
        for x in range(width):
            weight = np.exp(-((((x - (width - 1) / 2) / width) / histogram.SPREAD) ** 2) / 2)
            h, s, v = hsv[y, x] * [hues / 180, (saturations - 1) / 255, (values - 1) / 255]
            for i, j, k in np.ndindex(2, 2, 2):
                share = [1 - h % 1, h % 1][i] * [1 - s % 1, s % 1][j] * [1 - v % 1, v % 1][k]
                if share:
                    stripe = y * histogram.STRIPES // height
                    counts[stripe, (int(h) + i) % hues, int(s) + j, int(v) + k] += weight * share
    shares = counts / counts.sum((1, 2, 3), keepdims=True)
    return np.sqrt(shares / histogram.STRIPES).ravel()


def test_a_histogram_equals_the_one_counted_pixel_by_pixel(monkeypatch):
    monkeypatch.setattr(histogram, "_balanced", lambda image: image)
    image = np.random.default_rng(1).integers(0, 256, (*histogram.SIZE, 3), np.uint8)
    np.testing.assert_allclose(histogram.histogram(image), slow_histogram(image), atol=1e-5)


def test_a_black_picture_has_a_histogram_too():
    assert np.isfinite(histogram.histogram(plain(0))).all()


# ------------------------------------------------------------------ the test set


class Stripes(Method):
    """Embeds the mean colours of the upper and the lower half; the lower one is half visible."""

    def embed(self, batch):
        image = normalise(batch.holistic.image)
        halves = torch.stack([half.mean((2, 3)) for half in image.chunk(2, 2)], 1)
        return Embedding(halves, torch.tensor([1.0, 0.5]).expand(len(image), 2), self.gate(halves))

    def gate(self, halves):
        return None


class Gated(Stripes):
    def gate(self, halves):
        return (halves > 0).float()


def plain_encoder():
    return plain_vit(toy.encoder(), toy.SIZE)


def learn(model, count=2, precision="float32"):
    pictures, cpu = toy.people(), torch.device("cpu")
    stream = eval_batches(pictures, count)
    with compute.inference_mode(model, cpu, compute.Compute(precision, "default", "math")):
        return pictures, extract_features(model, plain_encoder(), stream, len(pictures), 6, cpu, False)


def test_model_and_encoder_embed_every_image_in_order_whatever_the_batch():
    torch.manual_seed(0)
    pictures, arrays = learn(Stripes())
    means = pictures.image[:, :32].mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(arrays["model/part"][:, 0], means, atol=1e-5)
    assert (arrays["model/visibility"] == [1, 0.5]).all()
    torch.manual_seed(0)
    _, other = learn(Stripes(), count=7)
    np.testing.assert_allclose(arrays["encoder/part"], other["encoder/part"], atol=1e-5)


def test_the_encoder_is_one_global_feature_of_the_bare_vit():
    torch.manual_seed(0)
    pictures, arrays = learn(Stripes())
    torch.manual_seed(0)
    bare = toy.encoder().eval()
    with torch.no_grad():
        wanted = bare(normalise(torch.from_numpy(pictures.image).permute(0, 3, 1, 2)))
    token = torch.from_numpy(arrays["encoder/part"][:, 0])
    torch.testing.assert_close(token, torch.nn.functional.normalize(wanted), atol=1e-4, rtol=1e-4)
    assert (arrays["encoder/visibility"] == 1).all() and arrays["encoder/part"].shape[1] == 1


def test_features_may_be_computed_in_bfloat16_and_are_kept_in_float32():
    model = toy.model(toy.people()).eval()
    exact, rough = (learn(model, precision=p)[1]["model/part"] for p in ("float32", "bfloat16"))
    assert rough.dtype == np.float32 and (rough != exact).any()
    assert (rough * exact).sum(-1).min() > 0.99  # cosines


@pytest.mark.parametrize("count", [2, 4, 16])
def test_the_gates_of_queries_alone_are_kept_if_the_method_has_any(count):
    _, arrays = learn(Gated(), count)
    np.testing.assert_array_equal(arrays["model/gate"], arrays["model/part"][:6] > 0)
    assert "model/gate" not in learn(Stripes(), count)[1]


class ZAsPart(Method):
    """Embeds z as its only part.  Predicts that the legs of dark pictures are hidden."""

    def __init__(self, guesses=True):
        super().__init__()
        self.guesses, self.asked = guesses, 0

    def embed(self, batch):
        self.asked += len(batch.pid)
        dark = batch.holistic.image.float().mean((1, 2, 3)) < 128
        return Embedding(batch.holistic.hidden.float()[:, None], 1 - dark.float()[:, None])

    def predict_occlusion(self, embedding):
        return torch.nn.functional.pad(embedding.visibility == 0, (3, 0)) if self.guesses else None


HEAD, LEGS = [1, 0, 0, 0], [0, 0, 0, 1]


def two_dark_two_light():
    """The first of each pair hides its head by the cached labels."""
    pictures = toy.people(identities=2, each=2)
    hidden = np.array([HEAD, [0] * 4, HEAD, [0] * 4], bool)
    image = np.array([20, 20, 200, 200], np.uint8)[:, None, None, None] + np.zeros_like(pictures.image)
    return replace(pictures, image=image, hidden=hidden)


def test_without_maps_z_is_zero_or_the_one_that_the_model_predicts():
    stream = eval_batches(two_dark_two_light(), 3)
    model = ZAsPart()
    arrays = extract_features(model, plain_encoder(), stream, 4, 2, torch.device("cpu"), True)
    assert arrays["model/part"][:, 0].tolist() == [HEAD, [0] * 4, HEAD, [0] * 4]
    assert arrays["z_unknown/part"][:, 0].tolist() == [[0] * 4] * 4
    assert arrays["z_guessed/part"][:, 0].tolist() == [LEGS, LEGS, [0] * 4, [0] * 4]
    assert model.asked == 4 + 2 + 2  # only where z is another one


def test_a_method_without_parts_predicts_no_z():
    arrays = extract_features(
        ZAsPart(guesses=False),
        plain_encoder(),
        eval_batches(two_dark_two_light(), 4),
        4,
        2,
        torch.device("cpu"),
        True,
    )
    assert arrays["z_guessed/part"].tolist() == arrays["z_unknown/part"].tolist() == [[[0] * 4]] * 4


def test_test_rows_are_the_queries_then_the_gallery():
    index = pd.DataFrame({"split": ["train", "train", "query", "gallery", "gallery"]})
    assert rows_to_embed(index).tolist() == [2, 3, 4]


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_a_test_set_without_one_of_them_is_refused(split):
    with pytest.raises(BadInput, match=rf"no {split} images. Let `test_on` name"):
        index = pd.DataFrame({"split": ["train", *({"query", "gallery"} - {split})]})
        rows_to_embed(index)


# ------------------------------------------------------------------ cameras

RECORD = {"data_spec": {"trained_cameras": [0, 4]}, "data": {"index.parquet": "own"}}
ROWS = [
    ("train", 3, 0),
    ("train", 3, 4),
    ("train", 0, 2),
    ("query", 4, 4),
    ("gallery", 4, 2),
    ("gallery", 4, -1),
]
CAMERAS = {  # param, index of the test set: cameras that the model gets, and the reason
    ("auto", "own"): ([0, 4, -1, 4, -1, -1], "those of the training images"),  # 2 shows nobody in training
    ("auto", "another"): ([-1] * 6, "unknown: trained on another dataset"),
    ("same", "another"): ([0, 4, -1, 4, -1, -1], "the test set's: embed.cameras"),
    ("unknown", "own"): ([-1] * 6, "unknown: embed.cameras"),
}


@pytest.mark.parametrize("case", CAMERAS)
def test_the_model_gets_the_cameras_that_it_was_trained_with(case):
    cameras, sha256 = case
    index = pd.DataFrame(ROWS, columns=["split", "pid", "camid"])
    camera_ids = model_cameras(index, RECORD, sha256, cameras)
    assert (camera_ids.camid.tolist(), camera_ids.reason) == CAMERAS[case]


def test_a_camera_that_only_people_held_out_passed_is_unknown_to_the_model():
    people = toy.people(identities=5)
    people.camid[people.pid == 2] = 3  # beyond the cameras of the others, 0 and 1
    index = pd.DataFrame({"split": "train", "pid": people.pid, "camid": people.camid})
    drawn = (selection.hold_out(people, [""] * 20, 1, seed) for seed in range(99))
    train, _, held_out = next(split for split in drawn if 3 not in split[0].camid)
    record = {"data_spec": asdict(data_spec(train)), "data": {"index.parquet": "own"}}
    camid = model_cameras(index, record, "own", "auto").camid
    assert camid.tolist() == np.where(people.camid == 3, -1, people.camid).tolist()
    assert set(held_out.camid) == {-1} and data_spec(people).trained_cameras == (0, 1, 3)
    toy.model(train).eval().embed(eval_batch(replace(people, camid=camid)))


@pytest.mark.parametrize(("known", "said"), [([0, 4], "0, 4"), ([], "none")])
def test_cameras_beyond_the_models_cannot_be_the_same(known, said):
    index = pd.DataFrame({"split": ["query"], "pid": [1], "camid": [5]})
    record = RECORD | {"data_spec": {"trained_cameras": known}}
    with pytest.raises(BadInput, match=rf"embed\.cameras = same, .* camera 5 .* trained with {said}\. "):
        model_cameras(index, record, "another", "same")


def test_a_model_trained_without_cameras_embeds_alike_whatever_the_camera():
    pictures = toy.people()
    blind = replace(pictures, camid=np.full(len(pictures), -1))
    assert data_spec(blind).cameras == 1
    model = toy.model(blind).eval()
    with torch.no_grad():
        embeddings = [
            model.embed(eval_batch(p, slice(0, 4))) for p in (blind, replace(blind, camid=blind.camid + 1))
        ]
    torch.testing.assert_close(embeddings[0].parts, embeddings[1].parts)


def test_histograms_follow_the_rows_asked_for(tmp_path):
    blobs = [cv2.imencode(".png", plain(colour))[1].tobytes() for colour in (RED, BLUE, GREEN)]
    sizes = np.array([len(blob) for blob in blobs])
    write_packed(tmp_path / "images.h5", "images", blobs, sizes, {"index": "x"})
    arrays = histogram.histograms(Images(tmp_path / "images.h5"), np.array([2, 0]))
    assert arrays["histogram/part"].shape[:2] == (2, 1) and (arrays["histogram/visibility"] == 1).all()
    np.testing.assert_array_equal(
        arrays["histogram/part"][0, 0], histogram.histogram(plain(GREEN)[..., ::-1])
    )


def test_the_encoder_before_training_is_the_one_the_record_names(tmp_path):
    encoder = toy.encoder()
    save_vit(tmp_path / "vit.safetensors", encoder, {})
    record = {"method": "ogfr", "data_spec": {"size": [64, 32]}}
    record["params"] = {"vit": "embedded", "weights": "not/read.safetensors", "colours": "auto"}
    record["vit"] = {
        "name": "embedded",
        "weights": load_vit(tmp_path / "vit.safetensors").architecture["weights"],
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").touch()
    untrained = untrained_encoder(tmp_path, str(tmp_path / "vit.safetensors"))
    assert untrained.size == (64, 32)
    torch.testing.assert_close(untrained.position, encoder.pos_embed, atol=1e-3, rtol=1e-2)
    save_vit(tmp_path / "vit.safetensors", toy.encoder(), {})  # another one, since the training
    with pytest.raises(BadInput, match=r"started from embedded with weights of the hash .*Restore the file"):
        untrained_encoder(tmp_path, str(tmp_path / "vit.safetensors"))
    record["params"]["vit"] = "no_such_vit"
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="no_such_vit"):
        untrained_encoder(tmp_path, "")
