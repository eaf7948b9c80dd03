"""Labels against the truth: IoU, balanced accuracy, counts; and the pictures of them."""

import hashlib
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.data.index import Images, index_hash
from pipeline.indexing import build
from pipeline.labels import occlusion, parsing
from pipeline.labels.quality import metrics, plots, statistics
from stages import score

RULE = occlusion.Label(parts=4, strict=True)
SCORE = metrics.Score(reference=5.0, pictures=3, columns=2)
WALKER = np.array([[0, 1, 1, 0], [2, 4, 4, 3], [0, 5, 6, 0], [0, 7, 8, 0]], np.uint8)
LEGLESS = np.where(WALKER > 4, 0, WALKER).astype(np.uint8)  # behind a wall
NOBODY = np.zeros((4, 4), np.uint8)
FLAGS = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).random((2, 20)) < 0.5)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 4, 3), 128, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def world(folder, maps, truth, chosen=None, people=1, threshold=2.0, occluder=None):
    """Four label files and two of the dataset, of images 4 x 4: one training image, the others queries."""
    n = len(maps)
    keys = [f"{'train' if i == 0 else 'query'}/{i}.jpg" for i in range(n)]
    index = pd.DataFrame(
        {
            "row": np.arange(n, dtype=np.int32),
            "key": keys,
            "pid": np.ones(n, np.int32),
            "camid": np.zeros(n, np.int16),
            "split": [key.split("/")[0] for key in keys],
            "width": np.full(n, 4, np.int32),
            "height": np.full(n, 4, np.int32),
            "sha256": [hashlib.sha256(key.encode()).hexdigest() for key in keys],
        }
    )
    attrs = {"index": index_hash(index)}
    build.write_index(str(folder / "index.parquet"), index, dataset="tiny", layout="folders")
    write_packed(folder / "images.h5", "images", [jpeg()] * n, np.full(n, len(jpeg())), attrs)
    box = np.array([[0, 0, 4, 4], [0, 0, 1, 4], [0, 0, 0, 0]], np.float32)[:2]
    instances = {
        "found": np.full(n, people, np.int32),
        "score": np.ones((n, 2), np.float32),
        "box": np.broadcast_to(box, (n, 2, 4)),
        "mask": np.full((n, 2, 28, 28), 255, np.uint8),
    }
    write_label_file(folder / "instances.h5", "instances", instances, attrs)
    chosen = np.zeros(n, np.int8) if chosen is None else np.array(chosen, np.int8)
    status = np.where(chosen < 0, parsing.NO_PERSON, parsing.OK).astype(np.uint8)
    outcome = {"map": np.stack(maps), "status": status, "instance": chosen, "margin": np.ones(n, np.float32)}
    write_label_file(folder / "parsing.h5", "parsing", outcome, attrs)
    labels = occlusion.occlusion_labels(LabelFile(folder / "parsing.h5")["map"], RULE, threshold)
    names = {"parts": list(parts.COARSE[4])}
    write_label_file(folder / "occlusion.h5", "occlusion", labels, {**attrs, **names})
    known = truth is not None
    exact = np.stack(truth) if known else NOBODY[None]
    arrays = {"map": exact, "person": (exact > 0).astype(np.uint8)}
    arrays["occluder"] = np.array(occluder or [1] * n, np.uint8)
    write_label_file(folder / "truth.h5", "truth", arrays if known else {}, {**attrs, "truth": int(known)})
    kinds = ("instances", "parsing", "occlusion", "truth")
    return index, metrics.Labels(*(LabelFile(folder / f"{kind}.h5", kind) for kind in kinds))


def report(folder, maps, truth, threshold=2.0, **options):
    index, labels = world(folder, maps, truth, threshold=threshold, **options)
    survey = statistics.survey_labels(labels.parsing["map"], Images(folder / "images.h5"), index["split"])
    return metrics.report(index, labels, survey, RULE, threshold, SCORE)[0]


# ------------------------------------------------------------------ worked examples


def test_perfect_labels_score_one(tmp_path):
    exact = [WALKER, WALKER, LEGLESS]
    scores = report(tmp_path, exact, exact)
    assert scores["part_iou"]["mean"] == 1.0 and set(scores["part_iou"]) == {*parts.FINE, "mean"}
    assert scores["occluded"]["balanced_accuracy"]["legs"] == 1.0


def test_iou_of_a_part_is_pooled_over_the_images(tmp_path):
    more = WALKER.copy()
    more[0] = 1  # four head pixels where two are
    assert report(tmp_path, [more, WALKER], [WALKER, WALKER])["part_iou"]["head"] == round(4 / 6, 4)


def test_mask_iou_is_that_of_the_chosen_person(tmp_path):
    everywhere = np.full((4, 4), 1, np.uint8)
    half = np.array([[1, 1, 0, 0]] * 4, np.uint8)
    assert report(tmp_path, [everywhere] * 2, [everywhere, half])["mask_iou"] == 0.75


def test_an_image_without_a_chosen_person_has_no_mask_and_is_counted(tmp_path):
    scores = report(tmp_path, [WALKER, NOBODY], [np.full((4, 4), 1, np.uint8)] * 2, chosen=[0, -1])
    assert (scores["no_person"], scores["mask_iou"], scores["wrong_person"]) == (1, 0.5, 0)


def test_another_person_who_fits_far_better_makes_the_chosen_one_wrong(tmp_path):
    everywhere = [np.full((4, 4), 1, np.uint8)] * 2
    assert report(tmp_path, everywhere, everywhere, people=2, chosen=[0, 1])["wrong_person"] == 1


def test_another_person_who_fits_less_than_twice_as_well_makes_nobody_wrong(tmp_path):
    everywhere = np.full((4, 4), 1, np.uint8)
    stout = np.array([[1, 1, 1, 0]] * 2 + [[1, 1, 0, 0]] * 2, np.uint8)  # ten pixels
    # the first person's mask is all 16 pixels, the second's the 4 of the left column: IoU 10/16 and 4/10
    scores = report(tmp_path, [everywhere] * 2, [everywhere, stout], people=2, chosen=[0, 1])
    assert (scores["mask_iou"], scores["wrong_person"]) == ((1 + 0.4) / 2, 0)


def test_balanced_accuracy_averages_hidden_and_visible(tmp_path):
    truth = [WALKER, LEGLESS, LEGLESS, WALKER]
    maps = [WALKER, LEGLESS, WALKER, WALKER]  # one of two hidden pairs of legs is missed
    scores = report(tmp_path, maps, truth)
    assert scores["all"]["balanced_accuracy"]["legs"] == 0.75
    assert scores["all"]["hidden"]["legs"] == 2 and scores["all"]["constant"] == 0.5


def test_a_part_that_is_hidden_nowhere_has_no_balanced_accuracy(tmp_path):
    scores = report(tmp_path, [WALKER, LEGLESS], [WALKER, LEGLESS])
    assert scores["all"]["balanced_accuracy"]["head"] is None
    assert scores["all"]["balanced_accuracy"]["mean"] == scores["all"]["balanced_accuracy"]["legs"] == 1.0


def test_occluded_means_queries_behind_something(tmp_path):
    scores = report(tmp_path, [WALKER] * 4, [WALKER] * 4, occluder=[1, 0, 2, 1])  # the first is for training
    assert scores["all"]["images"] == 4 and scores["occluded"]["images"] == 2


def test_the_true_flags_follow_from_the_lambda_of_the_labels(tmp_path):
    exact = [WALKER, LEGLESS]
    (tmp_path / "low").mkdir(), (tmp_path / "high").mkdir()
    assert report(tmp_path / "low", exact, exact, threshold=2.0)["all"]["hidden"]["head"] == 0
    assert report(tmp_path / "high", exact, exact, threshold=3.0)["all"]["hidden"]["head"] == 2


def test_changed_counts_the_flags_that_the_reference_lambda_gives_otherwise(tmp_path):
    # pixels: head 2, arms 2, torso 2, legs 4; lambda 5 hides them all, lambda 2 none
    scores = report(tmp_path, [WALKER], None)
    assert scores["changed"] == 4 and scores["patterns"] == {"0000": 1}


def test_patterns_are_counted_in_the_order_of_the_parts(tmp_path):
    scores = report(tmp_path, [WALKER, LEGLESS, LEGLESS], None)
    assert scores["patterns"] == {"0000": 1, "0001": 2}
    assert scores["hidden"] == {"head": 0, "arms": 0, "torso": 0, "legs": 2}


def test_without_truth_only_counts_are_reported(tmp_path):
    scores = report(tmp_path, [WALKER], None)
    counts = {"images", "no_person", "ambiguous", "hide_part", "hidden"}
    assert set(scores) == counts | {"splits", "changed", "patterns", "unseen", "shown", "repeated"}
    assert set(scores["splits"]["query"]) == counts | {"fit"}


def test_images_that_hide_a_part_are_not_those_in_which_nobody_was_found(tmp_path):
    scores = report(tmp_path, [WALKER, LEGLESS, NOBODY], None, chosen=[0, 0, -1])
    assert (scores["images"], scores["hide_part"], scores["no_person"]) == (3, 1, 1)
    assert scores["hidden"] == {"head": 0, "arms": 0, "torso": 0, "legs": 1}
    assert scores["patterns"] == {"0000": 1, "0001": 1} and scores["unseen"] == {"0001": 1}


def test_every_split_is_counted_apart(tmp_path):
    splits = report(tmp_path, [WALKER, LEGLESS, LEGLESS, NOBODY], None, chosen=[0, 0, 0, -1])["splits"]
    assert [splits[s]["images"] for s in ("train", "query", "gallery")] == [1, 3, 0]
    assert [splits[s]["no_person"] for s in ("train", "query", "gallery")] == [0, 1, 0]
    assert [splits[s]["hide_part"] for s in ("train", "query", "gallery")] == [0, 2, 0]
    assert splits["train"]["fit"] is None and splits["query"]["fit"]["images"] == 2  # of one map: no other


def test_maps_that_came_without_a_chosen_person_have_no_mask_to_score(tmp_path):
    index, labels = world(tmp_path, [WALKER, WALKER], [WALKER, WALKER], chosen=[-1, -1])
    outcome = {name: labels.parsing[name][:] for name in labels.parsing.names()}
    outcome["status"] = np.full(2, parsing.OK, np.uint8)  # as of labels made elsewhere
    labels.parsing.close()
    write_label_file(tmp_path / "parsing.h5", "parsing", outcome, {"index": index_hash(index)})
    agreement = metrics.compare(index, labels)
    assert np.isnan(agreement.mask_iou).all() and not agreement.wrong.any()
    assert agreement.part_iou().tolist() == [1.0] * 8


def test_truth_of_another_grid_is_resized_to_that_of_the_labels():
    coarse = np.array([[1, 2], [3, 4]], np.uint8)
    fine = metrics.resize_nearest(coarse, (4, 4))
    assert fine.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert metrics.resize_nearest(fine, (2, 2)).tolist() == coarse.tolist()


# ------------------------------------------------------------------ laws and the slow version


@given(FLAGS)
def test_balanced_accuracy_equals_the_slow_version(both):
    truth, guess = both
    hidden = [g for t, g in zip(truth, guess, strict=True) if t]
    visible = [not g for t, g in zip(truth, guess, strict=True) if not t]
    if hidden and visible:
        slow = (sum(hidden) / len(hidden) + sum(visible) / len(visible)) / 2
        assert metrics.balanced_accuracy(truth, guess) == pytest.approx(slow)
        assert metrics.balanced_accuracy(truth, truth) == 1
        assert metrics.balanced_accuracy(truth, np.ones_like(truth)) == 0.5


@given(st.integers(0, 2**32 - 1))
def test_iou_of_the_parts_equals_the_slow_version(seed):
    truth, label = np.random.default_rng(seed).integers(0, 9, (2, 5, 4), np.uint8)
    table = metrics.confusion(truth, label)
    agreement = metrics.Agreement(table[None], np.ones(1), np.zeros(1, bool))
    for k, iou in enumerate(agreement.part_iou(), 1):
        either = ((truth == k) | (label == k)).sum()
        both = ((truth == k) & (label == k)).sum()
        assert np.isnan(iou) if either == 0 else iou == pytest.approx(both / either)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_counts_of_the_exact_map_are_those_of_equation_one(seed, count):
    maps = np.random.default_rng(seed).integers(0, 9, (2, 5, 4), np.uint8)
    fine = np.stack([np.bincount(m.ravel(), minlength=9)[1:] for m in maps])
    assert (
        metrics.merge_parts(fine, count).tolist()
        == occlusion.count_pixels(torch.from_numpy(maps), count).tolist()
    )


# ------------------------------------------------------------------ the stage


def run(folder, reference=5.0):
    YAML().dump(
        {
            "lambda": 2,
            "label": {"parts": 4, "strict": True},
            "score": {"reference": reference, "pictures": 3, "columns": 2},
        },
        folder / "params.yaml",
    )
    names = ("index.parquet", "images.h5", "instances.h5", "parsing.h5", "occlusion.h5", "truth.h5")
    paths = [str(folder / name) for name in (*names, "labels.json", "labels", "params.yaml")]
    score.main(*paths)


def test_the_stage_writes_one_report_and_the_pictures(tmp_path):
    world(tmp_path, [WALKER, LEGLESS, NOBODY], [WALKER, LEGLESS, WALKER], chosen=[0, 0, -1])
    run(tmp_path)
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert report["no_person"] == 1
    printed = json.loads((tmp_path / "labels.json").read_text())
    assert printed == {"labels": report["all"]["balanced_accuracy"]["mean"]}
    first = {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    assert sorted(first) == ["audit.html", "labels.png", "pixels.png", "report.json", "worst.png"]
    run(tmp_path)  # the same again, byte for byte
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}


def test_a_dataset_without_truth_gets_no_sheet_of_the_worst(tmp_path):
    world(tmp_path, [WALKER, NOBODY], None)
    run(tmp_path)
    files = sorted(p.name for p in (tmp_path / "labels").iterdir())
    assert files == ["audit.html", "labels.png", "pixels.png", "report.json"]
    assert json.loads((tmp_path / "labels.json").read_text()) == {}


def test_labels_of_another_index_are_refused_and_nothing_is_written(tmp_path):
    world(tmp_path, [WALKER], [WALKER])
    write_label_file(tmp_path / "parsing.h5", "parsing", {"map": WALKER[None]}, {"index": "other"})
    with pytest.raises(BadInput, match=r"parsing\.h5: made for another index"):
        run(tmp_path)
    assert not (tmp_path / "labels.json").exists() and not (tmp_path / "labels").exists()


def test_a_tile_shows_the_parts_over_the_image():
    picture = plots.tile(np.zeros((8, 4, 3), np.uint8), [WALKER], ["a", "b"])
    assert picture.shape == (192 + 2 * plots.LINE + 2, 192, 3)
    assert picture[10, 96 + 48].tolist() == (plots.COLOURS[1] // 2).tolist()  # the head, half transparent
    assert not picture[10, :96].any()  # the image itself
    assert (picture[192:] < 128).any() and (picture[-1] == 255).all()  # text on white


def test_below_a_tile_stand_the_key_of_its_image_and_what_its_label_says(tmp_path):
    maps = [WALKER, LEGLESS, NOBODY]
    index, labels = world(tmp_path, maps, [WALKER] * 3, chosen=[0, 0, -1])
    lines = [plots._facts(index["key"].tolist(), labels, i, np.array([1, 0.625, np.nan])) for i in range(3)]
    said = ["hides nothing · IoU 1.00", "hides legs · IoU 0.62", "no person"]
    assert [key for key, _ in lines] == index["key"].tolist() and [facts for _, facts in lines] == said


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2))])
def test_a_sheet_has_no_more_columns_than_tiles_and_names_every_colour(count, shape):
    tiles = [np.full((40, 288, 3), 7, np.uint8)] * count
    picture = plots.sheet("A title", ["image", "true map", "map"], tiles, 2)
    assert (picture == 7).all(2).sum() == count * 40 * 288
    columns = shape[1]
    assert picture.shape[1] == 2 * plots.MARGIN + columns * 288 + (columns - 1) * plots.GAP
    pixels = set(map(tuple, picture.reshape(-1, 3).tolist()))
    assert {tuple(colour) for colour in plots.COLOURS[1:].tolist()} <= pixels


def test_text_that_is_too_wide_loses_its_start():
    canvas, short = plots._canvas(20, 60), plots._canvas(20, 60)
    plots.write(canvas, (0, 0), "a very long name/0001_c1.png", plots.SMALL, plots.INK, 60)
    assert (np.asarray(canvas) < 255).any()
    name = "…_c1.png"
    plots.write(short, (0, 0), name, plots.SMALL, plots.INK, 60)
    assert plots._font(plots.SMALL).getlength(name) <= 60 < plots._font(plots.SMALL).getlength("…1_c1.png")
    assert np.array_equal(canvas, short)
