"""The audit: statistics of label maps, findings, and the page that shows them."""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.label_file import Dataset, LabelFile, write_label_file
from pipeline.data import parts
from pipeline.data.index import Images, index_hash
from pipeline.labels.quality import audit, metrics, page, plots, statistics
from pipeline.labels.quality.checks import check_labels
from tests.labels.test_quality import LEGLESS, NOBODY, RULE, SCORE, WALKER, world

SEEDS = st.integers(0, 2**32 - 1)


BLANK = np.full((8, 4, 3), 128, np.uint8)


def people(count, seed=0, size=(64, 32)):
    """Pictures of people at different places, an even colour a part, and their maps."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((count, *size), np.uint8)
    for n in range(count):
        top, left = rng.integers(0, 16), rng.integers(0, 16)
        maps[n, top : top + 48, left : left + 16] = np.repeat(np.arange(1, 9), 6)[:, None]
    colours = rng.integers(0, 256, (count, 9, 3))
    return [colours[n][maps[n]].astype(np.uint8) for n in range(count)], list(maps)


def column(folder, maps) -> Dataset:
    write_label_file(folder / "maps.h5", "parsing", {"map": np.stack(maps)}, {"index": "a"})
    return LabelFile(folder / "maps.h5")["map"]


# ------------------------------------------------------------------ the survey


def test_a_map_explains_all_of_a_picture_that_is_even_in_every_part():
    (picture,), (label,) = people(1)
    assert statistics.explained_variance(picture, label) == pytest.approx(1)
    assert statistics.explained_variance(picture, np.zeros_like(label)) == 0


@given(SEEDS)
def test_explained_variance_equals_the_slow_version(seed):
    rng = np.random.default_rng(seed)
    picture, label = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8), rng.integers(0, 3, (5, 4), np.uint8)
    mean, total, between = picture.reshape(-1, 3).mean(0), 0.0, 0.0
    for y in range(5):
        for x in range(4):
            total += ((picture[y, x] - mean) ** 2).sum()
            between += ((picture[label == label[y, x]].mean(0) - mean) ** 2).sum()
    assert statistics.explained_variance(picture, label) == pytest.approx(between / total)


def test_maps_out_of_step_with_the_images_fit_no_better_than_others():
    pictures, maps = people(40)
    same_image, next_image = statistics.colour_fit(pictures, maps)
    assert same_image == pytest.approx(1) and next_image < 0.7
    same_image, next_image = statistics.colour_fit(pictures, maps[5:] + maps[:5])
    assert same_image == pytest.approx(next_image, abs=0.1)


def test_a_survey_counts_pixels_places_and_repetitions(tmp_path):
    survey = statistics.survey_labels(
        column(tmp_path, [WALKER, WALKER, LEGLESS, NOBODY, NOBODY]), [BLANK] * 5
    )
    assert survey.pixels[0].tolist() == [2, 1, 1, 2, 1, 1, 1, 1]
    assert survey.frequency[:, 0, 1].tolist() == [0.4, 0.6, 0, 0, 0, 0, 0, 0, 0]
    assert survey.repeated == 1  # the second walker; of two empty maps none repeats the other
    assert survey.frequency.sum(0) == pytest.approx(np.ones((4, 4)))


def test_the_map_least_like_the_others_has_the_greatest_surprise(tmp_path):
    maps = [*[WALKER] * 8, WALKER[::-1]]
    assert statistics.survey_labels(column(tmp_path, maps), [BLANK] * 9).surprise.argmax() == 8


def test_occlusion_types_are_counted_in_every_split_and_new_ones_named():
    index = pd.DataFrame({"split": ["train", "train", "query", "gallery", "gallery"]})
    hidden = np.array([[0, 0], [0, 1], [1, 1], [1, 1], [0, 0]])
    table = statistics.count_patterns(index, hidden)
    assert table.index.tolist() == ["00", "11", "01"]
    assert table.loc["11"].tolist() == [0, 1, 1] and table.columns.tolist() == ["train", "query", "gallery"]
    assert statistics.unseen_patterns(table) == {"11": 2}


# ------------------------------------------------------------------ what stands out

GOOD = {
    "images": 100, "no_person": 1, "ambiguous": 5, "repeated": 0, "unseen": {},
    "fit": {"own": 0.3, "other": 0.2}, "hidden": {"upper body": 1, "lower body": 9},
}  # fmt: skip
TYPES = pd.DataFrame({"train": [90, 9, 1], "query": 0, "gallery": 0}, index=["00", "01", "10"])


def survey_of(maps) -> statistics.Survey:
    pixels = np.stack([np.bincount(m.ravel(), minlength=9)[1:] for m in maps])
    place = np.stack([np.mean([m == k for m in maps], 0) for k in range(9)])
    return statistics.Survey(pixels, place, 0, np.zeros(len(maps)), (0.3, 0.2))


BAD = {
    "maps of other images": (
        {"fit": {"own": 0.2, "other": 0.2}},
        "wrong",
        "explains 1.00 times",
    ),
    "maps that fit badly": ({"fit": {"own": 0.25, "other": 0.2}}, "look", "out of step"),
    "a detector that is blind": ({"no_person": 30}, "wrong", "30% of the images nobody was found"),
    "people in groups": ({"ambiguous": 11}, "look", "11% of the images two people"),
    "one file for all": ({"repeated": 99}, "wrong", "99% of the maps equal another"),
    "types that training lacks": ({"unseen": {"11": 3}}, "look", r"never saw: 3 \(z = 11\)"),
    "flags unlike the truth": ({"all": {"balanced_accuracy": {"mean": 0.6}}}, "wrong", "accuracy 0.60"),
}


def test_good_labels_give_no_finding():
    assert check_labels(GOOD, survey_of([WALKER] * 2), TYPES) == []


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_gives_its_finding(fault):
    change, level, text = BAD[fault]
    ((actual_level, sentence),) = check_labels(GOOD | change, survey_of([WALKER] * 2), TYPES)
    assert actual_level == level and re.search(text, sentence)


def test_a_part_that_is_hidden_nearly_always_stands_out_and_so_does_none():
    types = TYPES.assign(train=[10, 85, 5])
    assert (
        check_labels(GOOD, survey_of([WALKER]), types)[0].text
        == "Lower body hidden in 85% of the training images."
    )
    types = TYPES.assign(train=[100, 0, 0])
    assert "is lambda too small?" in check_labels(GOOD, survey_of([WALKER]), types)[0].text


def test_a_part_that_is_never_there_upside_down_or_one_sided_stands_out():
    hole, missing = check_labels(
        GOOD, survey_of([np.where(WALKER == parts.TORSO, 0, WALKER).astype(np.uint8)]), TYPES
    )
    assert hole == ("wrong", "In 100.0% of the images the torso is missing between head and legs.")
    assert missing == ("wrong", "No map shows a torso.")
    said = [f.text for f in check_labels(GOOD, survey_of([WALKER[::-1]]), TYPES)]
    assert said[0] == "The head lies below the torso on average." and len(said) == 3
    one_sided = np.array([[0, 1, 1, 0], [2, 4, 4, 3], [5, 5, 5, 6], [5, 5, 7, 8]], np.uint8)
    (finding,) = check_labels(GOOD, survey_of([one_sided]), TYPES)
    assert finding == (
        "wrong",
        "The left leg has 5.0 times as many pixels as the right leg: are the sides right?",
    )


# ------------------------------------------------------------------ the page


def audit_of(folder, maps, truth, margins=None, **options) -> audit.Audit:
    index, labels = world(folder, maps, truth, **options)
    if margins is not None:
        outcome = {name: labels.parsing[name][:] for name in labels.parsing.names()}
        outcome["margin"] = np.array(margins, np.float32)
        labels.parsing.close()
        write_label_file(folder / "parsing.h5", "parsing", outcome, {"index": index_hash(index)})
    images = Images(folder / "images.h5")
    surveyed = statistics.survey_labels(labels.parsing["map"], images)
    report, agreement = metrics.report(index, labels, surveyed, RULE, 2.0, SCORE)
    return audit.Audit("tiny & co", index, images, labels, surveyed, report, agreement, 2.0)


def test_the_sheets_show_the_worst_the_odd_the_close_and_the_empty(tmp_path):
    maps, margins = [WALKER, LEGLESS, NOBODY, WALKER, WALKER], [0.5, 0.2, 0, np.inf, np.inf]
    view = audit_of(tmp_path, maps, [WALKER] * 5, margins=margins, chosen=[0, 0, -1, 0, 0])
    rows = {title: rows.tolist() for title, (_, rows) in audit.select_rows(view, 3).items()}
    assert list(rows) == ["At random", "Worst", "Oddest", "Closest calls", "Nobody found"]
    assert rows["Closest calls"] == [1, 0] and rows["Nobody found"] == [2]
    assert rows["Worst"][0] == 2 and rows["Oddest"][0] == 1 and len(rows["At random"]) == 3


def test_labels_made_elsewhere_without_truth_have_neither_worst_nor_close_calls(tmp_path):
    view = audit_of(tmp_path, [WALKER, LEGLESS], None, margins=[np.nan] * 2)
    assert list(audit.select_rows(view, 3)) == ["At random", "Oddest"]


def test_the_page_holds_everything_in_one_file(tmp_path):
    view = audit_of(
        tmp_path, [WALKER, LEGLESS, NOBODY], [WALKER] * 3, margins=[0.5, 0.2, 0], chosen=[0, 0, -1]
    )
    text = page.render(view, b"PNG", 3)
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text
    assert base64.b64encode(b"PNG").decode() in text and "<h1>Labels of tiny &amp; co</h1>" in text
    for title in (
        "Where each part lies",
        "Occlusion types",
        "Against the truth",
        "Closest calls",
        "λ = 2 pixels",
    ):
        assert title in text
    row = '<tr class="new"><td>0001</td><td>legs</td>'  # in no training image
    assert row in text and "<td>0000</td><td>nothing</td>" in text
    assert "query/1.jpg<br>z = 0001 · IoU" in text and "lead 0.20" in text


def test_the_page_says_so_if_nothing_stands_out_and_shows_no_truth_that_is_not_there(tmp_path):
    view = audit_of(tmp_path, [WALKER] * 2, None)
    text = page.render(
        view._replace(report=view.report | {"fit": {"own": 1, "other": 0.5}, "repeated": 0}), b"", 2
    )
    assert "Against the truth" not in text and 'class="look"' in text  # nothing is ever hidden
    assert "Nothing stands out." in page._findings([])


def test_the_target_is_boxed_in_white_and_the_others_in_red(tmp_path):
    view = audit_of(tmp_path, [WALKER], None, people=2, chosen=[1])  # the whole image, and its left column
    picture = audit.draw_boxes(view, 0)
    assert picture.shape[0] == plots.TILE[0]
    assert picture[50, 0].tolist() == [255, 255, 255] and picture[50, -1].tolist() == [230, 60, 60]
    assert picture[150, 50].tolist() == [128, 128, 128]


def test_a_part_is_darkest_where_it_lies_most_often():
    share = np.zeros((4, 2))
    share[0], share[1] = 0.5, 0.25
    picture = page.heat_map(share, np.array([0, 0, 0], np.uint8))
    assert picture[0, 0, 0] < picture[96, 0, 0] < picture[-1, 0, 0] == 255
