"""A trained model for users: the same embeddings as the stage's, with and without maps and cameras."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.core import params
from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.data.index import COLUMNS, index_hash
from pipeline.data.parts import COARSE
from pipeline.inference import api
from pipeline.labels import occlusion
from pipeline.methods.base import Embedding
from pipeline.model import compute
from pipeline.model.backbones import save_vit
from stages import embed
from tests import toy

CAMERAS = [0, 1, -1, 0, 1, 1]
LAMBDA = 5.0
WORDS = ("index.parquet", "images.h5", "parsing.h5", "occlusion.h5", "trained", "vit.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six pictures of six sizes, indexed, labelled and embedded by the stage, and the model."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    files = []
    for n in range(6):
        files.append(folder / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (40 + 9 * n, 20 + 5 * n, 3), np.uint8)).save(files[-1])
    index = pd.DataFrame({name: range(6) for name in COLUMNS})
    index = index.assign(camid=CAMERAS, pid=1, split=["query", "query", *["gallery"] * 4])
    index = index.astype({"key": str, "sha256": str})
    index.to_parquet(folder / "index.parquet", index=False)
    key = {"index": index_hash(index)}
    blobs = [file.read_bytes() for file in files]
    write_packed(folder / "images.h5", "images", blobs, np.array([len(b) for b in blobs]), key)
    maps = rng.integers(0, 9, (6, 96, 48), np.uint8)  # not the model's 64 x 32
    maps[1][np.isin(maps[1], (5, 6, 7, 8))] = 0  # no legs
    maps[2, maps[2] == 1] = 0  # a head of four pixels
    maps[2, 0, :4] = 1
    write_label_file(folder / "parsing.h5", "parsing", {"map": maps}, key)
    rule = occlusion.Label(parts=4, strict=True)
    labels = occlusion.occlusion_labels(LabelFile(folder / "parsing.h5")["map"], rule, LAMBDA)
    write_label_file(folder / "occlusion.h5", "occlusion", labels, key | {"parts": []})
    save_vit(folder / "vit.safetensors", toy.encoder(), {})
    toy.trained(folder / "trained")
    text = Path("params.yaml").read_text().replace("cameras: auto", "cameras: same")
    (folder / "params.yaml").write_text(text)
    embed.main(*(str(folder / word) for word in (*WORDS, "features.h5", "params.yaml")))
    return folder, files, maps


@pytest.fixture(scope="module")
def trained(world):
    return api.load(world[0] / "trained")


def staged(world, system):
    rows = LabelFile(world[0] / "features.h5")
    return torch.from_numpy(rows[f"{system}/part"][:]), torch.from_numpy(rows[f"{system}/visibility"][:])


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ embeddings


def test_pictures_are_embedded_to_the_bit_as_the_stage_embed_does(world, trained):
    _, files, maps = world
    embedding = trained.embed(files, CAMERAS, list(maps), LAMBDA)
    parts, visibility = staged(world, "model")
    assert torch.equal(embedding.parts, parts) and torch.equal(embedding.visibility, visibility)


HOW = [  # precision, products, attention
    ("float32", "default", "math"),
    ("float32", "onednn", "sdpa"),
    ("bfloat16", "default", "math"),
    ("bfloat16", "onednn", "sdpa"),
]


@pytest.mark.parametrize("how", HOW)
def test_that_holds_however_both_compute(world, tmp_path, monkeypatch, how):
    monkeypatch.setattr(compute, "_onednn_is_exact", lambda: True)
    folder, files, maps = world
    values, config = params.load(folder / "params.yaml"), tmp_path / "params.yaml"
    values["embed"] |= dict(zip(("precision", "matmul", "attention"), how, strict=True))
    config.write_text(json.dumps(values))
    embed.main(*(str(folder / word) for word in WORDS), str(tmp_path / "features.h5"), str(config))
    wanted = torch.from_numpy(LabelFile(tmp_path / "features.h5")["model/part"][:])
    model = api.load(folder / "trained", "cpu", 64, *how)
    matmul, precisions = (
        torch.backends.mkldnn.matmul,
        [],
    )  # so small products are the same to the bit by either
    model.model.encoder.register_forward_pre_hook(lambda *_: precisions.append(matmul.fp32_precision))
    with torch.inference_mode():
        assert torch.equal(model.embed(files, CAMERAS, maps, LAMBDA).parts, wanted)
    assert precisions == ["bf16" if "onednn" in how else "ieee"]
    exact = staged(world, "model")[0]
    assert ((wanted - exact).abs().max() > 1e-4) == (how[0] == "bfloat16")


@pytest.mark.parametrize("system", ["z_guessed", "z_unknown"])
def test_without_maps_they_are_embedded_as_the_stage_does_without(world, trained, system):
    embedding = trained.embed(world[1], CAMERAS, guess=system == "z_guessed")
    parts, visibility = staged(world, system)
    close(embedding.parts, parts)
    assert torch.equal(embedding.visibility, visibility)


@pytest.mark.parametrize("kind", [np.array, iter, tuple])
def test_arrays_and_iterators_serve_as_lists_do(trained, kind):
    images, maps = list(toy.people().image[:4]), list(toy.people().parsing[:4])
    known = [0, 1, -1, 0]
    listed = trained.embed(images, known, maps, LAMBDA)
    assert torch.equal(trained.embed(kind(images), kind(known), kind(maps), LAMBDA).parts, listed.parts)


def test_cameras_may_be_a_column(trained):
    known = pd.Series([0, 1, -1], index=[7, 8, 9])
    assert torch.equal(trained.embed([GOOD] * 3, known).parts, trained.embed([GOOD] * 3, [0, 1, -1]).parts)


def test_a_part_of_just_as_many_pixels_as_the_threshold_is_visible_if_strict(world, trained):
    _, files, maps = world
    few = maps[:1].copy()
    few[few == 1] = 0
    few[0, 0, :5] = 1  # a head of lambda pixels
    less = few.copy()
    less[0, 0, 0] = 0
    strict, loose, fewer = (
        trained.embed(files[:1], None, parsing, LAMBDA, strict=rule).parts
        for parsing, rule in ((few, True), (few, False), (less, True))
    )
    assert (strict - loose).abs().max() > 1e-3 and (loose - fewer).abs().max() < 1e-4


def test_maps_and_cameras_change_the_embeddings_that_they_concern(world, trained):
    _, files, maps = world
    known = trained.embed(files, CAMERAS, list(maps), LAMBDA).parts
    unknown = trained.embed(files, CAMERAS, guess=False).parts
    hides = torch.tensor([False, True, True, False, False, False])
    assert torch.equal((known - unknown).abs().amax((1, 2)) > 1e-3, hides)
    nowhere = trained.embed(files, None, list(maps), LAMBDA).parts
    assert torch.equal((known - nowhere).abs().amax((1, 2)) > 1e-3, torch.tensor(CAMERAS) >= 0)


def test_files_and_arrays_are_the_same_to_it_and_so_are_batch_sizes(world):
    files = [str(file) for file in world[1]]
    arrays = [np.asarray(Image.open(file)) for file in files]
    by_two = api.load(world[0] / "trained", batch=2)
    together = api.load(world[0] / "trained")
    assert torch.equal(by_two.embed(files).parts, by_two.embed(arrays).parts)
    close(by_two.embed(files, CAMERAS).parts, together.embed(files, CAMERAS).parts)
    shown = by_two.embed(files, None, list(world[2]), LAMBDA).parts
    close(shown, together.embed(files, None, list(world[2]), LAMBDA).parts)


def files_of_every_kind():
    """Bytes of files: turned, gray, transparent, of a palette, of four colours."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # stands on its side
    kinds = [(picture, "JPEG", {"exif": turned}), (picture, "PNG", {"exif": turned})]
    kinds += [(picture, "TIFF", {"exif": turned}), (picture.convert("CMYK"), "JPEG", {})]
    kinds += [(picture.convert("P"), "PNG", {"transparency": 3}), (picture.convert("L"), "PNG", {})]
    kinds += [(picture.convert(mode), "PNG", {}) for mode in ("1", "P", "LA", "RGBA")]
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


def test_an_image_of_pillow_is_embedded_to_the_bit_as_its_file(trained, tmp_path):
    files = [tmp_path / str(n) for n, _ in enumerate(files_of_every_kind())]
    for file, blob in zip(files, files_of_every_kind(), strict=True):
        file.write_bytes(blob)
    images = [Image.open(file) for file in files]
    assert {"CMYK", "1", "L", "LA", "P", "RGB", "RGBA"} == {image.mode for image in images}
    assert torch.equal(trained.embed(images).parts, trained.embed(files).parts)
    flat = [np.asarray(image.convert("RGB")) for image in images[:2]]  # not turned
    assert not torch.equal(trained.embed(flat).parts, trained.embed(files[:2]).parts)


@pytest.mark.parametrize("loaded", [False, True])
def test_the_users_images_of_pillow_stay_as_they_are(trained, loaded):
    blobs = list(files_of_every_kind())
    images, others = ([Image.open(io.BytesIO(blob)) for blob in blobs] for _ in range(2))
    for image in images:
        _ = loaded and image.load()
    trained.embed(images)
    for image, other in zip(images, others, strict=True):
        assert image.tobytes() == other.tobytes()  # still open
        assert (image.size, image.mode, image.info) == (other.size, other.mode, other.info)
        assert dict(image.getexif()) == dict(other.getexif())


def test_cameras_may_be_tensors(trained):
    known = torch.tensor([0, 1, -1])
    assert torch.equal(trained.embed([GOOD] * 3, known).parts, trained.embed([GOOD] * 3, [0, 1, -1]).parts)


def test_embeddings_are_on_the_cpu_with_one_row_per_picture(world, trained):
    embedding = trained.embed(world[1])
    assert (
        embedding.parts.shape == (6, 9, 16)
        and embedding.visibility.shape == (6, 9)
        and embedding.gate is None
    )
    assert embedding.parts.device.type == "cpu" and embedding.parts.dtype == torch.float32


# ------------------------------------------------------------------ folders, and a file of embeddings


@pytest.fixture
def people(tmp_path):
    """A folder of nine pictures, two of them broken, and of other files; the good pictures."""
    folder = tmp_path / "people"
    for n, image in enumerate(toy.people().image[:7]):
        place = folder / f"person {n // 3}"
        place.mkdir(parents=True, exist_ok=True)
        ending, kind = (("png", "PNG"), ("webp", "WebP"), ("JFIF", "JPEG"))[n % 3]
        Image.fromarray(image).save(place / f"{n}.{ending}", kind)
    good = [str(path) for path in sorted(folder.rglob("*.*"))]
    (folder / "person 0" / "broken.jpg").write_bytes(b"no picture")
    (folder / "person 2" / "link.jpg").symlink_to("gone.jpg")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(Path(good[0]).read_bytes())
    return folder, good


def test_a_folder_and_a_pattern_stand_for_the_pictures_in_them(trained, people):
    folder, good = people
    broken = [str(folder / "person 0" / "broken.jpg"), str(folder / "person 2" / "link.jpg")]
    wanted = sorted([*good, *broken])
    for pictures in (folder, str(folder), [folder], [folder / "**"], [folder / "person *"]):
        files, others = api.find_pictures(pictures)
        assert files == wanted
        assert others in ([], [str(folder / ".hidden.png"), str(folder / "notes.txt")])
    together = trained.embed([good[0], folder / "person 1", folder / "*" / "6.*"]).parts
    assert torch.equal(together, trained.embed([good[0], *good[3:]]).parts)
    assert torch.equal(trained.embed(folder / "person 1").parts, trained.embed(good[3:6]).parts)
    with pytest.raises(BadInput, match=r"broken\.jpg: .*\n.*link\.jpg: .*No such file"):
        trained.embed(folder)


def test_a_picture_that_is_found_again_is_taken_once(trained, people):
    folder, good = people
    place = folder / "person 1"
    for again in (
        [place, place],
        [place, f"{place}/."],
        [place, good[4]],
        [f"{place}/*", Path(good[3]), place],
    ):
        files, _ = api.find_pictures(again)
        assert sorted(map(os.path.realpath, files)) == good[3:6]
    assert api.find_pictures([good[3], place])[0] == good[3:6]
    assert api.find_pictures([good[3], good[3]])[0] == [good[3]] * 2  # named twice, it is two rows


EMPTY = {  # files in a folder: what is said of it
    "nothing": ([], "an empty folder"),
    "another file": (["a.txt"], "no picture among 1 file"),
    "a hidden picture": (["a.txt", ".a.png"], "no picture among 2 files"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_folder_without_a_picture_is_refused(tmp_path, case):
    names, message = EMPTY[case]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match=f"{tmp_path}: {message}. Name another place"):
        api.find_pictures(tmp_path)


@pytest.mark.parametrize(("seconds", "progress", "shown"), [(0, True, 3), (0, False, None), (2, True, None)])
def test_progress_is_shown_of_what_takes_long(trained, capsys, monkeypatch, seconds, progress, shown):
    monkeypatch.setattr(api, "SHOWN_AFTER", seconds)
    trained.embed([GOOD] * 3, progress=progress)
    said = capsys.readouterr().err
    assert "embed: 100%" in said and "3/3" in said if shown else said == ""


# ------------------------------------------------------------------ z without maps


@given(st.sampled_from(sorted(COARSE)), st.lists(st.booleans(), min_size=8, max_size=8))
def test_a_coarse_part_is_guessed_hidden_if_none_of_its_fine_parts_is_visible(coarse, shown):
    model = toy.model()
    model.coarse = coarse
    visibility = torch.tensor([[1.0, *shown]])
    guess = model.predict_occlusion(Embedding(torch.zeros(1, 9, 4), visibility))[0].tolist()
    for hidden, fine in zip(guess, COARSE[coarse].values(), strict=True):
        assert hidden == all(not shown[label - 1] for label in fine)


def test_a_model_without_parts_embeds_alike_with_guess_and_without(world, tmp_path):
    plain = api.load(toy.trained(tmp_path / "plain", "vit_baseline"))
    one, other = (plain.embed(world[1], guess=guess) for guess in (True, False))
    assert torch.equal(one.parts, other.parts) and one.parts.shape == (6, 1, 16)


# ------------------------------------------------------------------ two people


def test_distances_are_the_mean_over_the_parts_that_both_show(world, trained):
    embedding = trained.embed(world[1], CAMERAS)
    table = api.distances(embedding, embedding)
    for q in range(6):
        for g in range(6):
            both = embedding.visibility[q] * embedding.visibility[g]
            each = (embedding.parts[q] - embedding.parts[g]).norm(dim=1)
            assert table[q, g].item() == pytest.approx(
                (both * each).sum().item() / both.sum().item(), abs=2e-3
            )


def test_a_gate_weighs_the_gallery():
    one = Embedding(torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1), torch.tensor([[[1.0, 0.0]]]))
    other = Embedding(torch.tensor([[[0.6, 0.8]]]), torch.ones(1, 1), torch.ones(1, 1, 2))
    assert api.distances(one, other).item() == pytest.approx(0.0, abs=1e-3)
    assert api.distances(other, one).item() == pytest.approx(0.8**0.5, abs=1e-3)


# ------------------------------------------------------------------ what it refuses

GOOD = np.zeros((4, 2, 3), np.uint8)
MAP = np.zeros((4, 2), np.uint8)
DEEP = io.BytesIO(cv2.imencode(".png", np.zeros((4, 2, 3), np.uint16))[1])
REFUSED = {  # pictures, cameras, maps, threshold: what the user reads
    "no pictures": ([], None, None, None, "pictures: none given"),
    "no such file": (["gone.jpg", GOOD, "lost.jpg"], None, None, None, "gone.jpg: (.|\n)*lost.jpg: "),
    "an empty pattern": (
        ["gone/*.jpg"],
        None,
        None,
        None,
        r"gone/\*\.jpg: no file matches\. Name another place",
    ),
    "more than 8 bits": ([Image.new("I;16", (2, 4))], None, None, None, "picture 0: .*more than 8 bits"),
    "16 bits in colour": ([Image.open(DEEP)], None, None, None, r"0 to 0\); save .* 8 bits.*\.decode"),
    "no picture": ([__file__], None, None, None, "test_api.py: cannot be used"),
    "floats": ([GOOD, GOOD.astype(np.float32)], None, None, None, "picture 1: .* float32"),
    "gray": ([MAP], None, None, None, r"picture 0: .* uint8 \(4, 2\)"),
    "no pixels": ([GOOD[:0]], None, None, None, r"picture 0: .* \(0, 2, 3\)"),
    "too few cameras": ([GOOD, GOOD], [0], None, None, "cameras: 1 for 2 pictures"),
    "unknown cameras": ([GOOD] * 4, [0, 2, -2, 2], None, None, r"cameras: 2, -2, but .* with 0, 1\. .* -1"),
    "missing cameras": ([GOOD] * 3, np.array([np.nan, 0, 0.5]), None, None, r"cameras: nan, 0\.5, but .* -1"),
    "too few maps": ([GOOD, GOOD], None, [MAP], 5.0, "maps: 1 for 2 pictures"),
    "no threshold": ([GOOD], None, [MAP], None, "threshold: none given"),
    "an empty image": ([Image.new("RGB", (0, 0))], None, None, None, "picture 0: cannot be used"),
    "cameras of text": ([GOOD] * 2, iter(["0", "c1"]), None, None, "cameras: 0, c1, but .* with 0, 1"),
    "no number": ([GOOD], None, [MAP], np.nan, "threshold: nan"),
    "a negative threshold": ([GOOD], None, [MAP], -5.0, r"threshold: -5\.0"),
    "a threshold without maps": ([GOOD], None, None, 5.0, "threshold: given without maps"),
    "a file alone": ("n", None, None, None, "n: cannot be used"),
    "a picture alone": (GOOD[:1], None, None, None, r"picture 0: .* uint8 \(2, 3\)"),
    "a map alone": ([GOOD], None, MAP, 5.0, "maps: 4 for 1 picture"),
    "no map": ([GOOD, GOOD], None, [MAP, GOOD], 5.0, r"maps: number \[1\]"),
    "an array of no maps": ([GOOD], None, MAP[None].astype(np.int64), 5.0, r"maps: number \[0\]"),
    "no such part": ([GOOD], None, [MAP + 9], 5.0, "label 9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_input_that_cannot_be_used_is_refused_with_a_remedy(trained, case):
    pictures, cameras, maps, threshold, message = REFUSED[case]
    with pytest.raises(BadInput, match=message) as said:
        trained.embed(pictures, cameras, maps, threshold)
    assert len(str(said.value)) < 300  # never the value of a picture


@pytest.mark.parametrize(("known", "said"), [([1], "1"), ([], "none")])
def test_a_camera_that_nobody_in_training_passed_is_refused(tmp_path, known, said):
    folder = toy.trained(tmp_path)
    record = json.loads((folder / "record.json").read_text())
    record["data_spec"]["trained_cameras"] = known
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=rf"cameras: 0, but the model was trained with {said}\. .* -1"):
        api.load(folder).embed([GOOD] * 3, [0, -1, -1])


def test_a_record_that_does_not_tell_the_cameras_is_refused(tmp_path):
    folder = toy.trained(tmp_path)
    record = json.loads((folder / "record.json").read_text())
    del record["data_spec"]["trained_cameras"]
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"record\.json: its data_spec has no trained_cameras\. Train again"):
        api.load(folder)


def test_all_bad_pictures_are_listed_by_their_numbers_in_whatever_batch_they_are(world, trained):
    with pytest.raises(BadInput, match=r"picture 2: .*\npicture 5: "):
        replace(trained, batch=2).embed([GOOD, GOOD, MAP, GOOD, GOOD, MAP])


def test_a_model_that_erases_by_maps_asks_for_them(tmp_path):
    model = api.load(toy.trained(tmp_path / "erases", fep="student", erase="labels"))
    assert model.embed([GOOD], None, [MAP], 5.0).parts.shape == (1, 9, 16)
    with pytest.raises(BadInput, match="erases by parsing maps"):
        model.embed([GOOD])


@pytest.mark.parametrize("name", ["precision", "matmul", "attention"])
def test_a_way_to_compute_that_is_none_is_refused(world, name):
    with pytest.raises(BadInput, match=rf"inference\.load: {name} = 'fast': input should be '(auto|default)"):
        api.load(world[0] / "trained", **{name: "fast"})


BAD_LOAD = {
    "no batch": ({"batch": 0}, r"inference\.load: batch = 0: give a whole number, 1 or more"),
    "less than none": ({"batch": -1}, "batch = -1"),
    "no device": ({"device": "gpu"}, "device = 'gpu': no such device"),
}


@pytest.mark.parametrize("case", BAD_LOAD)
def test_a_batch_or_a_device_that_is_none_is_refused(world, case):
    words, message = BAD_LOAD[case]
    with pytest.raises(BadInput, match=message):
        api.load(world[0] / "trained", **words)


def test_a_metric_that_is_none_is_refused(trained):
    embedding = trained.embed([GOOD])
    with pytest.raises(BadInput, match=r"metric = 'manhattan': .* Choose one of euclidean, squared, cosine"):
        api.distances(embedding, embedding, "manhattan")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no trained model"):
        api.load(tmp_path)


def test_the_stage_embeds_without_maps_only_if_params_say_so(world, tmp_path):
    folder = world[0]
    config = tmp_path / "params.yaml"
    config.write_text(Path("params.yaml").read_text().replace("without_maps: true", "without_maps: false"))
    out = str(tmp_path / "features.h5")
    embed.main(*(str(folder / word) for word in WORDS), out, str(config))
    rows = LabelFile(out)
    assert rows.attrs["systems"] == ["model", "encoder", "histogram"] and "z_guessed/part" not in rows
    assert LabelFile(folder / "features.h5").attrs["systems"][1:3] == ["z_guessed", "z_unknown"]
