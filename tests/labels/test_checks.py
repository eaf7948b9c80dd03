"""What stands out in a label set: each fault gives its finding, and a right set gives none."""

import re

import numpy as np
import pytest

from pipeline.data import parts
from pipeline.data.index import Images
from pipeline.labels.external import label_maps
from pipeline.labels.quality import checks, metrics, statistics
from pipeline.labels.quality.checks import check_labels
from tests.labels.test_audit import people, survey_labels
from tests.labels.test_quality import LEGLESS, RULE, SCORE, WALKER, world

FIT = {"images": 200, "own": 0.3, "other": 0.2, "moved": 0}
SPLIT = {
    "images": 100, "no_person": 1, "ambiguous": 5, "hide_part": 10,
    "hidden": {"upper body": 1, "lower body": 9}, "fit": FIT,
}  # fmt: skip
SPLITS = dict.fromkeys(("train", "query", "gallery"), SPLIT)
GOOD = {"images": 300, "repeated": 0, "unseen": {}, "splits": SPLITS}


def good_but(split: str, **changes) -> dict:
    """A report whose one split differs."""
    return GOOD | {"splits": SPLITS | {split: SPLIT | changes}}


def survey_of(maps) -> statistics.Survey:
    pixels = np.stack([np.bincount(m.ravel(), minlength=9)[1:] for m in maps])
    bands = np.sum([statistics.count_bands(m) for m in maps], 0)
    place = np.stack([np.mean([m == k for m in maps], 0) for k in range(9)])
    return statistics.Survey(pixels, bands, place, 0, np.zeros(len(maps)), {})


BAD = {
    "one file for all": ({"repeated": 299}, "wrong", "100% of the maps equal another"),
    "types that training lacks": ({"unseen": {"11": 4}}, "look", r"2% of the test .* never saw \(z = 11\)"),
    "flags unlike the truth": ({"all": {"balanced_accuracy": {"mean": 0.6}}}, "wrong", "accuracy 0.60"),
}


def test_good_labels_give_no_finding():
    assert check_labels(GOOD, survey_of([WALKER] * 2)) == []


def test_a_single_image_of_a_new_type_is_no_finding():
    assert check_labels(GOOD | {"unseen": {"11": 1}}, survey_of([WALKER])) == []


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_gives_its_finding(fault):
    change, level, text = BAD[fault]
    ((actual_level, sentence),) = check_labels(GOOD | change, survey_of([WALKER] * 2))
    assert actual_level == level and re.search(text, sentence)


# ------------------------------------------------------------------ split by split

BAD_SPLIT = {
    "maps of other images": ({"fit": FIT | {"own": 0.2}}, "wrong", "{} images .* explains 1.00 times"),
    "maps that fit badly": ({"fit": FIT | {"own": 0.25}}, "look", "{} images seem out of step"),
    "maps moved on": ({"fit": FIT | {"moved": 1}}, "wrong", "{} images .* the next row fits"),
    "maps moved back": ({"fit": FIT | {"moved": -1}}, "wrong", "{} images .* the previous row fits"),
    "a detector that is blind": ({"no_person": 30}, "wrong", "30% of the {} images nobody was found"),
    "people in groups": ({"ambiguous": 11}, "look", "11% of the {} images two people"),
    "a parser that misses legs": ({"hidden": {"upper body": 1, "lower body": 90}}, "wrong",
                                  "Lower body hidden in 91% of the {} images that show a person"),
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
@pytest.mark.parametrize("fault", BAD_SPLIT)
def test_one_bad_split_of_three_decides(fault, split):
    change, level, text = BAD_SPLIT[fault]
    ((actual_level, sentence),) = check_labels(good_but(split, **change), survey_of([WALKER]))
    assert actual_level == level and re.search(text.format(checks.SPLIT_NAMES[split]), sentence)


def test_of_two_bad_splits_the_worse_one_is_named():
    report = good_but("query", no_person=30)
    report["splits"]["gallery"] = SPLIT | {"no_person": 60}
    (finding,) = check_labels(report, survey_of([WALKER]))
    assert finding.text == "In 60% of the gallery images nobody was found."


def test_a_split_without_images_or_with_few_is_not_judged_by_its_fit():
    few = {"fit": FIT | {"images": checks.FEWEST - 1, "own": 0.2, "moved": 1}}
    none = {"images": 0, "no_person": 0, "ambiguous": 0, "fit": None}
    report = good_but("query", **few)
    report["splits"]["gallery"] = SPLIT | none
    assert check_labels(report, survey_of([WALKER])) == []


def test_queries_may_be_occluded_more_often_than_training_images():
    third = {"hidden": {"upper body": 1, "lower body": 33}}
    assert check_labels(good_but("query", **third), survey_of([WALKER])) == []
    (finding,) = check_labels(good_but("train", **third), survey_of([WALKER]))
    assert finding == ("look", "Lower body hidden in 33% of the training images that show a person.")


def test_nothing_hidden_in_training_stands_out():
    report = good_but("train", hide_part=0, hidden={"upper body": 0, "lower body": 0})
    (finding,) = check_labels(report, survey_of([WALKER]))
    assert "is lambda too small?" in finding.text


def drawn_set(folder, query_step):
    """Findings on 160 images of training and 40 queries whose maps lie `query_step` rows too late."""
    pictures, maps = people(200)
    splits = ["train"] * 160 + ["query"] * 40
    maps = maps[:160] + np.roll(maps[160:], query_step, 0).tolist()
    survey = survey_labels(folder, np.array(maps, np.uint8), splits, pictures)
    fits = {s: SPLIT | {"fit": fit and fit._asdict()} for s, fit in survey.fit.items()}
    fits["gallery"] = fits["gallery"] | {"images": 0}
    # without the places of parts, which these pictures do not show as people do
    return survey.fit, check_labels(GOOD | {"splits": fits}, survey_of([WALKER]))


def test_query_labels_alone_that_are_moved_on_by_one_row_stand_out(tmp_path):
    assert drawn_set(tmp_path, 0)[1] == []
    fit, (finding,) = drawn_set(tmp_path, 1)
    assert finding.level == "wrong" and "query images seem moved by one row" in finding.text
    own, other = (0.8 * np.array(fit["train"][1:3]) + 0.2 * np.array(fit["query"][1:3])).tolist()
    assert own / other > checks.FIT[1]  # all images together stay above the threshold


def test_query_labels_alone_that_are_in_another_order_stand_out(tmp_path):
    _, (finding,) = drawn_set(tmp_path, 7)
    assert finding.level == "wrong" and finding.text.startswith("Maps and query images seem out of step")


def test_images_in_which_nobody_is_found_hide_no_part(tmp_path):
    # of ten training images two show nobody and one hides its legs: 12%, not 30%
    maps = [WALKER] * 7 + [LEGLESS] + [np.zeros((4, 4), np.uint8)] * 2
    index, labels = world(tmp_path, maps, None, chosen=[0] * 8 + [-1] * 2)
    index["split"] = "train"
    survey = statistics.survey_labels(labels.parsing["map"], Images(tmp_path / "images.h5"), index["split"])
    report, _ = metrics.report(index, labels, survey, RULE, 2.0, SCORE)
    assert report["splits"]["train"]["hidden"]["legs"] == 1
    found = [f.text for f in check_labels(report, survey) if "hidden" in f.text or "nobody" in f.text]
    assert found == ["In 20% of the training images nobody was found."]


# ------------------------------------------------------------------ where parts lie


def test_a_part_that_is_never_there_upside_down_or_one_sided_stands_out():
    hole, missing = check_labels(
        GOOD, survey_of([np.where(WALKER == parts.TORSO, 0, WALKER).astype(np.uint8)])
    )
    assert hole == ("wrong", "In 100.0% of the images the torso is missing between head and legs.")
    assert missing == ("wrong", "No map shows a torso.")
    said = [f.text for f in check_labels(GOOD, survey_of([WALKER[::-1]]))]
    assert said[0] == "The head lies below the torso on average." and len(said) == 3
    one_sided = np.array([[0, 1, 1, 0], [2, 4, 4, 3], [5, 5, 5, 6], [5, 5, 7, 8]], np.uint8)
    (finding,) = check_labels(GOOD, survey_of([one_sided]))
    assert finding == (
        "wrong",
        "The left leg has 5.0 times as many pixels as the right leg: are the sides right?",
    )


CLASSES = ("background", "hair", "face", "clothes", "arms", "trousers", "calves", "shoes")
# rows from the top of a person who is 40 rows high, and columns
STANDING = {
    "hair": (slice(0, 3), slice(4, 10)), "face": (slice(3, 6), slice(4, 10)),
    "clothes": (slice(6, 19), slice(3, 11)), "arms": (slice(6, 19), [1, 2, 11, 12]),
    "trousers": (slice(19, 28), slice(3, 11)), "calves": (slice(28, 37), [4, 5, 8, 9]),
    "shoes": (slice(37, 40), [4, 5, 8, 9]),
}  # fmt: skip
RIGHT = {"background": "background", "hair": "head", "face": "head", "clothes": "torso", "arms": "arms",
         "trousers": "legs", "calves": "legs", "shoes": "feet"}  # fmt: skip


def mapped(**changes) -> statistics.Survey:
    """Someone drawn in classes, whose parts are those of `RIGHT` but for the changes."""
    classes = np.zeros((44, 16), np.uint8)
    for name, (rows, columns) in STANDING.items():
        classes[2:42][rows, columns] = CLASSES.index(name)
    names = RIGHT | changes
    codes = label_maps.class_codes("classes", [names[name] for name in CLASSES])
    return survey_of([label_maps.assign_sides(codes[classes])])


SKIN = {
    "skin of face and arms": ({"face": "arms"}, "wrong", "17% of the pixels of the arms lie where heads"),
    "skin of arms and calves": ({"calves": "arms"}, "wrong", "41% of the pixels of the arms lie where legs"),
    "a head with arms": ({"arms": "head", "calves": "arms"}, "wrong", "the head lie where arms and torso"),
}


@pytest.mark.parametrize("fault", SKIN)
def test_a_class_that_covers_two_parts_stands_out_with_the_remedy(fault):
    changes, level, text = SKIN[fault]
    assert check_labels(GOOD, mapped()) == []
    survey = mapped(**changes)
    finding = check_labels(GOOD, survey)[0]
    assert finding.level == level and re.search(text, finding.text)
    assert "as skin covers face and arms: take a parser that tells them apart, or name" in finding.text
    assert "background in labels_from" in finding.text


def test_nothing_else_would_say_that_skin_is_mapped_to_arms():
    survey = mapped(face="arms")
    assert check_labels(GOOD, survey._replace(bands=0 * survey.bands)) == []


def test_a_coat_may_reach_to_the_legs():
    assert check_labels(GOOD, mapped(trousers="torso")) == []
