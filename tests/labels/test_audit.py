"""The audit: statistics of label maps, and the page that shows them."""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.data import parts
from pipeline.data.index import Images, index_hash
from pipeline.drawing.pictures import panels
from pipeline.labels.external import label_maps
from pipeline.labels.quality import audit, checks, metrics, page, plots, statistics
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


def survey_labels(folder, maps, splits=None, pictures=None) -> statistics.Survey:
    write_label_file(folder / "maps.h5", "parsing", {"map": np.stack(maps)}, {"index": "a"})
    pictures = pictures or [BLANK] * len(maps)
    return statistics.survey_labels(
        LabelFile(folder / "maps.h5")["map"], pictures, pd.Series(splits or ["train"] * len(maps))
    )


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
    rows = np.arange(40)
    fit = statistics.colour_fit(pictures, maps, rows)
    assert fit.images == 40 and fit.own == pytest.approx(1) and fit.other < 0.7 and fit.moved == 0
    fit = statistics.colour_fit(pictures, maps[5:] + maps[:5], rows)
    assert fit.own == pytest.approx(fit.other, abs=0.1) and fit.moved == 0


@pytest.mark.parametrize("step", [-1, 1])
def test_maps_moved_by_one_row_fit_the_image_before_or_after(step):
    pictures, maps = people(40)
    moved = [maps[(n - step) % 40] for n in range(40)]  # row n has the map of image n - step
    assert statistics.colour_fit(pictures, moved, np.arange(40)).moved == step


def test_maps_moved_by_one_row_show_even_where_most_images_are_like_the_next():
    shots = [(np.roll(p, n, 0), np.roll(m, n, 0)) for p, m in zip(*people(10), strict=True) for n in range(4)]
    pictures, maps = map(list, zip(*shots, strict=True))  # four of each person, who moves by a pixel
    fit = statistics.colour_fit(pictures, maps[-1:] + maps[:-1], np.arange(40))
    assert fit.own / fit.other > checks.FIT[1] and fit.moved == 1


def test_a_split_that_shows_at_most_one_person_has_no_fit(tmp_path):
    survey = survey_labels(tmp_path, [WALKER, NOBODY, WALKER, WALKER], ["train", "train", "query", "query"])
    assert survey.fit["train"] is None and survey.fit["gallery"] is None
    assert survey.fit["query"].images == 2


def test_bands_follow_the_person_and_not_the_image():
    standing = np.zeros((48, 16), np.uint8)
    standing[4:44] = np.repeat([1, 4, 5, 7], [5, 15, 16, 4])[:, None]  # 40 rows high
    pixels = statistics.count_bands(standing)[:, [0, 3, 4, 6]] / 16
    assert pixels.tolist() == [[5, 0, 0, 0], [0, 7, 0, 0], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 8, 4]]


def test_bands_are_counted_where_someone_stands_from_head_to_legs(tmp_path):
    survey = survey_labels(tmp_path, [WALKER, LEGLESS, NOBODY, WALKER])
    assert survey.bands.sum(0).tolist() == [4, 2, 2, 4, 2, 2, 2, 2]  # of two walkers


def test_a_survey_counts_pixels_places_and_repetitions(tmp_path):
    survey = survey_labels(tmp_path, [WALKER, WALKER, LEGLESS, NOBODY, NOBODY])
    assert survey.pixels[0].tolist() == [2, 1, 1, 2, 1, 1, 1, 1]
    assert survey.frequency[:, 0, 1].tolist() == [0.4, 0.6, 0, 0, 0, 0, 0, 0, 0]
    assert survey.repeated == 1  # the second walker; of two empty maps none repeats the other
    assert survey.frequency.sum(0) == pytest.approx(np.ones((4, 4)))


def test_the_map_least_like_the_others_has_the_greatest_surprise(tmp_path):
    maps = [*[WALKER] * 8, WALKER[::-1]]
    assert survey_labels(tmp_path, maps).surprise.argmax() == 8


def test_occlusion_types_are_counted_in_every_split_and_new_ones_named():
    index = pd.DataFrame({"split": ["train", "train", "query", "gallery", "gallery"]})
    hidden = np.array([[0, 0], [0, 1], [1, 1], [1, 1], [0, 0]])
    table = statistics.count_patterns(index, hidden)
    assert table.index.tolist() == ["00", "11", "01"]
    assert table.loc["11"].tolist() == [0, 1, 1] and table.columns.tolist() == ["train", "query", "gallery"]
    assert statistics.unseen_patterns(table) == {"11": 2}


# ------------------------------------------------------------------ the page


def audit_of(folder, maps, truth, margins=None, classes=(), **options) -> audit.Audit:
    index, labels = world(folder, maps, truth, **options)
    outcome = {name: labels.parsing[name][:] for name in labels.parsing.names()}
    if margins is not None:
        outcome["margin"] = np.array(margins, np.float32)
    attrs = {"index": index_hash(index), "classes": list(classes)}
    write_label_file(folder / "parsing.h5", "parsing", outcome, attrs)
    labels = labels._replace(parsing=LabelFile(folder / "parsing.h5"))
    images = Images(folder / "images.h5")
    surveyed = statistics.survey_labels(labels.parsing["map"], images, index["split"])
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
    assert "<td>1111</td>" not in text  # nobody hides nothing
    assert row in text and "<td>0000</td><td>nothing</td>" in text
    assert "query/1.jpg<br>z = 0001 · IoU" in text and "lead 0.20" in text
    assert "query/2.jpg<br>nobody found · IoU" in text


def test_the_page_shows_the_numbers_of_each_split(tmp_path):
    view = audit_of(tmp_path, [WALKER, LEGLESS, NOBODY, WALKER, WALKER], None, chosen=[0, 0, -1, 0, 0])
    text = page.render(view, b"", 3)
    cells = re.search("<tr><td>query</td>(.*?)</tr>", text).group(1)
    # images, nobody, ambiguous, hide a part, head, arms, torso, legs of three people, fit of three maps
    numbers = re.findall(r'<td class="n">(.*?)</td>', cells)
    assert numbers[:4] == ["4", "1<br>25.0%", "0<br>0.0%", "1<br>33.3%"]
    assert numbers[4:8] == [*["0<br>0.0%"] * 3, "1<br>33.3%"] and numbers[-1].endswith("<br>too few")
    assert '<td>gallery</td><td class="n">0</td>' in text and '<td class="n">–</td>' * 3 in text
    assert "<b>1</b>hide a part" in text and "<b>1</b>without a person" in text


def test_labels_in_which_nobody_is_found_have_a_page(tmp_path):
    text = page.render(audit_of(tmp_path, [NOBODY] * 2, None, chosen=[-1, -1]), b"", 3)
    assert "In 100% of the training images nobody was found." in text and "seem out of step" not in text


ARMS, LEGS, FEET = parts.FINE[1:3], parts.FINE[4:6], parts.FINE[6:]
GUESSED = {
    "no side has a class": (("head", "torso", "arms", "legs", "feet"), ARMS + LEGS + FEET),
    "legs take the side of the shoes": (("arms", "legs", "left foot", "right foot"), ARMS),
    "a class of one side is not enough": (("arms", "left arm"), ARMS),
    "every part has a class": (parts.FINE, ()),
    "labels without classes": ((), ()),
    "Pascal-Person-Part": (label_maps.CLASSES["pascal"], ARMS + LEGS),
    "LIP": (label_maps.CLASSES["lip"], ()),
}


@pytest.mark.parametrize("case", GUESSED)
def test_sides_that_a_source_never_labels_are_guessed(case):
    classes, guessed = GUESSED[case]
    assert tuple(audit.guessed_sides(classes)) == guessed


def test_guessed_sides_are_marked_on_the_page(tmp_path):
    classes = ["background", "head", "arms", "torso", "legs", "left foot", "right foot"]
    text = page.render(audit_of(tmp_path, [WALKER] * 2, [WALKER] * 2, classes=classes), b"", 3)
    assert "<b>left arm (side guessed)</b>" in text and "<b>left leg</b>" in text
    assert "</i>right arm (side guessed)</span>" in text and "<td>right arm (side guessed)</td>" in text
    assert "does not tell left from right" in text
    (tmp_path / "sided").mkdir()
    assert "guessed" not in page.render(audit_of(tmp_path / "sided", [WALKER] * 2, None), b"", 3)


SHAPES = {"upright": ((100, 50), (192, 96)), "square": ((50, 50), (192, 192)), "wide": ((20, 40), (96, 192))}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_keeps_its_shape_and_so_does_the_map_beside_it(shape):
    size, (height, width) = SHAPES[shape]
    picture = audit.fit_picture(np.full((*size, 3), 200, np.uint8))
    assert picture.shape == (height, width, 3)
    both = panels(picture, [np.array([[1, 0]], np.uint8)])
    assert both.shape == (height, 2 * width, 3)
    assert both[0, width].tolist() == (100 + plots.COLOURS[1] // 2).tolist()  # tinted by the head
    assert both[0, -1].tolist() == [66] * 3  # background


def test_the_page_says_so_if_nothing_stands_out_and_shows_no_truth_that_is_not_there(tmp_path):
    view = audit_of(tmp_path, [WALKER] * 2, None)
    text = page.render(view._replace(report=view.report | {"repeated": 0}), b"", 2)
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
    assert picture.shape == (256, 128, 3)
