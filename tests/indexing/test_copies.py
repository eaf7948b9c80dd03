"""Equal files of a dataset: contradictions are refused, copies are counted and named."""

import pytest

from pipeline.core.params import BadInput
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index, describe
from pipeline.indexing.copies import contradictions, copy_warnings
from tests.indexing.test_build import options, picture, zipped


def dataset(names):
    """Train, query and gallery of two people each, then one file under all of `names`."""
    folders = {
        "bounding_box_train": ("0001_c1s1_1", "0002_c1s1_1"),
        "query": ("0003_c1s1_1", "0004_c1s1_1"),
        "bounding_box_test": ("0003_c2s1_1", "0004_c2s1_1"),
    }
    names_apart = [f"{folder}/{name}.jpg" for folder, names in folders.items() for name in names]
    return {name: picture(n) for n, name in enumerate(names_apart)} | dict.fromkeys(names, picture(99))


def build(path, names, **changes):
    with Archive(zipped(path, dataset(names))) as archive:
        return build_index(archive, "folders", options(**changes), 1)


CONTRADICTIONS = {
    "two people of train": (
        ["bounding_box_train/0001_c1s1_8.jpg", "bounding_box_train/0007_c2s1_8.jpg"],
        "1: train/0001_c1s1_8.jpg, 7: train/0007_c2s1_8.jpg",
    ),
    "a query and another one's match": (
        ["query/0003_c1s1_8.jpg", "bounding_box_test/0004_c2s1_8.jpg"],
        "3: query/0003_c1s1_8.jpg, 4: gallery/0004_c2s1_8.jpg",
    ),
    "two people of the gallery": (
        ["bounding_box_test/0003_c1s1_8.jpg", "bounding_box_test/0009_c2s1_8.jpg"],
        "3: gallery/0003_c1s1_8.jpg, 9: gallery/0009_c2s1_8.jpg",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_one_file_under_two_identities_is_refused_with_both_names(tmp_path, kind):
    names, text = CONTRADICTIONS[kind]
    with pytest.raises(BadInput) as error:
        build(tmp_path / "a.zip", names)
    message = "one file under several identities; remove the wrong ones. `index.contradictions: warn` takes"
    assert f"{message} them all ({text})" in str(error.value) and "1 fault among" in str(error.value)


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_published_sets_that_contradict_themselves_can_be_taken_as_they_are(tmp_path, kind):
    names, text = CONTRADICTIONS[kind]
    indexed = build(tmp_path / "a.zip", names, contradictions="warn")
    assert len(indexed.index) == 8 and f"one file under several identities: {text}" in describe(indexed)


COPIES = {  # names of one file: what is said
    "inside train": (
        ["bounding_box_train/0001_c1s1_8.jpg", "bounding_box_train/0001_c1s1_9.jpg"],
        ["1 train image equal to another one of train: train/0001_c1s1_9.jpg"],
    ),
    "train and query, whose numbers may be unrelated": (
        ["bounding_box_train/0001_c1s1_8.jpg", "query/0003_c1s1_8.jpg"],
        ["1 query image also in train as the same file, so that scores are too high: query/0003_c1s1_8.jpg"],
    ),
    "train and gallery": (
        ["bounding_box_train/0001_c1s1_8.jpg", "bounding_box_test/0000_c1s1_8.jpg"],
        [
            "1 gallery image also in train as the same file, so that scores are too high: "
            "gallery/0000_c1s1_8.jpg"
        ],
    ),
    "query and gallery": (
        ["query/0003_c1s1_8.jpg", "bounding_box_test/0003_c1s1_8.jpg"],
        ["1 gallery image also in query as the same file: gallery/0003_c1s1_8.jpg"],
    ),
    "a distractor that is somebody": (
        ["bounding_box_test/0000_c1s1_8.jpg", "bounding_box_test/0003_c2s1_8.jpg"],
        [
            "1 gallery image equal to another one of gallery: gallery/0003_c2s1_8.jpg",
            "1 distractor equal to a file of a known identity, ranked as wrong: gallery/0000_c1s1_8.jpg",
        ],
    ),
    "junk, which is left out": (["bounding_box_test/-1_c1s1_8.jpg", "bounding_box_test/0003_c2s1_8.jpg"], []),
}


@pytest.mark.parametrize("junk", ["drop", "keep"])
@pytest.mark.parametrize("kind", COPIES)
def test_copies_inside_and_across_splits_are_counted_and_named(tmp_path, kind, junk):
    names, lines = COPIES[kind]
    indexed = build(tmp_path / "a.zip", names, junk=junk)
    assert copy_warnings(indexed.index) == lines and contradictions(indexed.index) == []
    assert all(line in describe(indexed) for line in lines)


def test_many_copies_are_counted_and_the_first_named(tmp_path):
    names = [f"bounding_box_train/0001_c1s1_{n}.jpg" for n in range(10, 20)]
    (line,) = copy_warnings(build(tmp_path / "a.zip", names).index)
    assert line.startswith("9 train images equal to another one of train: train/0001_c1s1_11.jpg, ")
    assert line.endswith("train/0001_c1s1_15.jpg, and 4 more")
