"""Labels made elsewhere: matched by name, checked before anything is computed, converted to parsing maps."""

import dataclasses
import io
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from pipeline.core import params, resumable
from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.labels import parsing
from pipeline.labels.external import adapter, confidences, label_maps
from pipeline.labels.external.confidences import InvalidLabel
from stages import adopt
from stages import label as label_stage
from stages.index import main
from tests.indexing.test_archive import zipped_in
from tests.indexing.test_build import people, zipped

MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
RULE = dataclasses.replace(params.read("params.yaml", "parse", parsing.Parse), grid=(16, 8))
G, HEAD, TORSO, ARMS, LEGS, FEET = 0, 1, 4, 9, 10, 11  # codes of a table of classes


def settings(
    path="labels", source="bpbreid", folders=MARKET, missing="refuse", **more
) -> adapter.ExternalLabels:
    return adapter.ExternalLabels(source, str(path), adapter.SplitFolders(**folders), missing, **more)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array, mode=None) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(np.asarray(array, np.uint8))
    if mode == "P":
        picture.putpalette([9, 9, 9] * 256)
    picture.save(file, "PNG")
    return file.getvalue()


def body(**cells) -> np.ndarray:
    """Confidences on the grid of a 128 x 64 picture: c13=np.s_[3, 1] is a left knee in row 3, column 1."""
    confidence = np.zeros((36, 17, 9), np.float32)
    for name, cell in cells.items():
        confidence[int(name[1:])][cell] = 1
    return confidence


def table(*keys) -> pd.DataFrame:
    return pd.DataFrame({"key": keys, "height": 128, "width": 64})


def written(folder, files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# ------------------------------------------------------------------ which file is whose

NAMES = {
    "BPBReID's download": "Market/masks/pifpaf_maskrcnn_filtering/query/0001_c1s1_000001_00.npy",
    "Occluded-Duke's": "masks/pifpaf_maskrcnn_filtering/query/0001_c1s1_000001_00.jpg.confidence_fields.npy",
    "its script's": "masks/pifpaf_maskrcnn_filtering/query/0001_c1s1_000001_00.jpg.npy",
    "a folder of the splits alone": "query/0001_c1s1_000001_00.npy",
}


@pytest.mark.parametrize("style", NAMES)
def test_a_label_is_found_by_every_style_of_names(style):
    matches = adapter.match_files(table("query/0001_c1s1_000001_00.jpg"), [NAMES[style]], settings())
    assert matches == ([[NAMES[style]]], [[]], [])


@pytest.mark.parametrize("label", ["x.npy", "x.jpg.npy", "x.jpg.jpg.npy", "x.jpg.jpg.confidence_fields.npy"])
def test_a_name_with_two_endings_as_some_of_market1501s_is_found_too(label):
    assert adapter.match_files(table("query/x.jpg.jpg"), [f"query/{label}"], settings())[0] == [
        [f"query/{label}"]
    ]


def test_a_label_of_another_split_is_not_taken():
    names = ["bounding_box_test/a.npy", "query/a.txt", "query/.a.npy", "elsewhere/a.npy"]
    assert adapter.match_files(table("query/a.jpg"), names, settings()) == ([[]], [[]], names)


def test_folders_inside_a_split_may_be_left_out_of_the_labels_path_but_not_added():
    # Occluded-REID: pictures lie in a folder an identity, BPBReID's labels of them do not
    folders = {"train": "none", "query": "occluded_body_images", "gallery": "whole_body_images"}
    names = ["masks/occluded_body_images/001_01.npy", "masks/whole_body_images/001_01.npy"]
    index = table("query/001/001_01.tif", "gallery/001/001_01.tif")
    assert adapter.match_files(index, names, settings(folders=folders))[0] == [[names[0]], [names[1]]]
    more = ["query/b/x.npy"]
    assert adapter.match_files(table("query/a/x.jpg"), more, settings())[0] == [[]]


def test_the_label_that_shares_most_folders_is_meant():
    names = ["query/x.npy", "query/a/x.npy", "query/b/x.npy"]
    index = table("query/a/x.jpg", "query/b/x.jpg", "query/c/x.jpg")
    assert adapter.match_files(index, names, settings())[0] == [[names[1]], [names[2]], [names[0]]]


def test_an_occluded_copy_never_takes_the_label_of_the_query_it_was_made_of():
    names, copy = ["query/x.npy", "query/occluded/x.npy"], table("query/occluded/x.jpg")
    assert adapter.match_files(copy, names, settings())[0] == [[names[1]]]
    assert adapter.match_files(copy, names[:1], settings()) == ([[]], [[]], names[:1])
    assert adapter.match_files(table("query/other/x.jpg"), names[:1], settings())[0] == [names[:1]]


def test_a_folder_of_a_split_may_be_the_end_of_a_longer_path():
    names = ["masks/pifpaf/query/x.npy", "masks/filtered/query/x.npy"]
    both = settings(folders=MARKET | {"query": "filtered/query"})
    assert adapter.match_files(table("query/x.jpg"), names, both)[0] == [[names[1]]]
    assert adapter.match_files(table("query/x.jpg"), names, settings())[0] == [sorted(names)]


# ------------------------------------------------------------------ every image accounted for


def account(folder, keys, files, **changes):
    written(folder, files)
    return adapter.check_labels(table(*keys), settings(folder, **changes), RULE, "labels_from.set")


def test_what_is_missing_doubled_or_unusable_is_listed_and_the_rest_counted(tmp_path):
    keys = [f"query/{i}.jpg" for i in range(10)]
    files = {
        "query/7.npy": npy(np.zeros((35, 17, 9), np.float32)),
        "query/8.npy": npy(body()),
        "query/8.jpg.npy": npy(body()),
        "query/9.npy": npy(body()),
    }
    with pytest.raises(BadInput) as error:
        account(tmp_path, keys, files)
    said = str(error.value)
    assert "no usable label for 9 of 10 images; nothing was written" in said
    assert "7 missing:\n    query/0.jpg\n" in said and "and 2 more" in said and "query/5.jpg" not in said
    assert "query/8.jpg: query/8.jpg.npy and query/8.npy" in said
    assert "query/7.npy: shape (35, 17, 9), not (36, h, w)" in said
    assert "labels_from.set.missing: nobody" in said


def test_the_case_of_a_suffix_and_the_form_of_unicode_do_not_matter(tmp_path):
    files = {unicodedata.normalize("NFD", "query/été.PNG"): png(np.zeros((2, 1))), "query/1.NPY": npy_map()}
    done = account(tmp_path, ["query/été.jpg", "query/1.webp"], files, source="lip")
    assert done.missing == 0 and not done.left_out


def npy_map() -> bytes:
    return npy(np.zeros((2, 1), np.uint8))


ENDINGS = {"query/0.png": png(np.zeros((2, 1))), "query/1.tif": b"", "query/2.npz": b"", "query/3.jpg": b""}


def test_a_label_of_another_ending_is_a_fault_where_none_may_be_missing(tmp_path):
    with pytest.raises(BadInput) as error:
        account(tmp_path, [f"query/{n}.jpg" for n in range(4)], ENDINGS, source="lip")
    text = str(error.value)
    assert "2 of another ending:\n    query/1.jpg: query/1.tif\n    query/2.jpg: query/2.npz\n" in text
    assert "Save labels as .png or .npy." in text
    assert "1 missing:\n    query/3.jpg" in text  # 3.jpg is the image itself


def test_a_picture_beside_the_labels_is_named_where_a_label_may_be_missing(tmp_path):
    # crops are .tif, labels .png, and the crops as .jpg lie beside them
    files = {f"query/{n}.png": png(np.zeros((2, 1))) for n in range(2)}
    files |= {f"query/{n}.jpg": b"" for n in range(3)}
    keys = [f"query/{n}.tif" for n in range(3)]
    done = account(tmp_path, keys, files, source="lip", missing="nobody")
    assert done.names == ["query/0.png", "query/1.png", ""]
    first, *_, last = adapter.describe(done).splitlines()
    assert first == "3 images: 2 labels, 1 missing; 3 other files left out:"
    assert last == (
        "1 of those missing may have a label of another ending, which is not read: query/2.tif: query/2.jpg"
    )


def test_labels_that_all_have_another_ending_are_a_fault_in_either_case(tmp_path):
    with pytest.raises(BadInput, match=r"1 of another ending:\n    query/1\.jpg: query/1\.tif"):
        account(tmp_path, ["query/1.jpg"], {"query/1.tif": b""}, source="lip", missing="nobody")


def test_a_label_that_two_images_of_a_split_would_share_is_refused(tmp_path):
    keys = ["query/a/0.jpg", "query/b/0.jpg", "query/1.jpg", "query/1.png", "train/1.jpg"]
    files = {"query/0.npy": npy(body()), "query/1.npy": npy(body()), "bounding_box_train/1.npy": npy(body())}
    with pytest.raises(BadInput) as error:
        account(tmp_path, keys, files)
    lines = "2 one label for several:\n    query/0.npy: query/a/0.jpg and query/b/0.jpg\n    query/1.npy: "
    assert lines + "query/1.jpg and query/1.png\n" in str(error.value)


def test_what_is_no_label_is_listed_by_its_ending(tmp_path):
    files = {"query/0.npy": npy(body()), "query/0.jpg": b"", "notes.txt": b""}
    written(tmp_path, files)
    (tmp_path / "more").symlink_to(tmp_path.parent)
    assert adapter.describe(account(tmp_path, ["query/0.jpg"], {})).splitlines() == [
        "1 image: 1 label, 0 missing; 3 other files left out:",
        "  no label of any image: 1 .txt, 1 .jpg (notes.txt, query/0.jpg)",
        "  a link or device: 1 without ending (more)",
    ]


def test_labels_in_a_zip_of_another_encoding_say_so_and_are_read_when_it_is_stated(tmp_path):
    path = zipped_in("gbk", tmp_path / "labels.zip", {"query/张三.npy": npy(body())})
    with pytest.raises(BadInput, match=r"does not record the encoding of 1 name in it.*names: gbk"):
        adapter.check_labels(table("query/张三.jpg"), settings(path), RULE, "labels_from.set")
    stated = settings(path, names="gbk")
    assert adapter.check_labels(table("query/张三.jpg"), stated, RULE, "labels_from.set").missing == 0


def test_a_label_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "query").mkdir()
    (tmp_path / "query/0.npy").symlink_to("/proc/self/mem")  # not even by root
    with pytest.raises(BadInput, match=r"query/0\.npy: cannot be read \("):
        account(tmp_path, ["query/0.jpg"], {})


def test_missing_labels_of_occluded_copies_name_the_command_that_writes_their_images(tmp_path):
    with pytest.raises(
        BadInput, match=r"indexing unpack DATASET FOLDER` writes the pictures of query/occluded/"
    ):
        account(tmp_path, ["query/0.jpg", "query/occluded/0.jpg"], {"query/0.npy": npy(body())})


def test_missing_labels_may_be_allowed_and_nothing_else(tmp_path):
    done = account(tmp_path, ["query/0.jpg", "query/1.jpg"], {"query/1.npy": npy(body())}, missing="nobody")
    assert done.names == ["", "query/1.npy"] and done.missing == 1
    assert adapter.describe(done) == "2 images: 1 label, 1 missing; 0 other files left out"
    with pytest.raises(BadInput, match=r"1 of 1 image;(?s:.*)1 unusable"):
        account(tmp_path / "b", ["query/0.jpg"], {"query/0.npy": b"nothing"}, missing="nobody")


@pytest.mark.parametrize("missing", ["nobody", "refuse"])
def test_a_split_without_any_label_is_refused_with_the_patterns_searched(tmp_path, missing):
    keys, files = ["train/0.jpg", "query/0.jpg", "query/1.jpg"], {"box_train/0.npy": npy(body())}
    with pytest.raises(BadInput) as error:
        account(tmp_path / "a", keys, files | {"query/0.npy": npy(body())}, missing=missing)
    said = str(error.value)
    assert ("train/0.jpg" in said, "query/1.jpg" in said) == (True, missing == "refuse")
    assert "Looked for NAME.npy in bounding_box_train/ for train" in said
    assert "a holds 2 files (2 .npy), such as box_train/0.npy, query/0.npy." in said
    assert ("missing: nobody is for single images" in said) == (missing == "nobody")


def test_the_suffixes_present_are_listed_where_none_is_a_labels(tmp_path):
    with pytest.raises(
        BadInput, match=r"Looked for NAME\.png or NAME\.npy in query/ for query\..*\(2 \.npz, 1 no e"
    ):
        account(tmp_path, ["query/0.jpg"], {"query/0.npz": b"", "1.npz": b"", "LICENCE": b""}, source="lip")


SHAPES = {  # of a label of an image of 128 x 64: whether it is taken
    (256, 128): True,
    (17, 9): True,
    (473, 473): True,
    (100, 110): True,
    (64, 128): False,
    (48, 64): False,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_label_that_lies_across_its_image_is_refused(tmp_path, shape):
    files = {"query/0.npy": npy(np.zeros(shape, np.uint8))}
    if SHAPES[shape]:
        assert account(tmp_path, ["query/0.jpg"], files, source="lip").missing == 0
    else:
        with pytest.raises(
            BadInput, match=rf"0\.npy: {shape[0]} x {shape[1]} .* its image is 128 x 64: transposed"
        ):
            account(tmp_path, ["query/0.jpg"], files, source="lip")


def test_other_bytes_or_another_place_are_other_content(tmp_path):
    keys = ["query/0.jpg", "query/1.jpg"]
    one = account(tmp_path / "a", keys, {"query/0.npy": npy(body())}, missing="nobody").content
    moved = account(tmp_path / "b", keys, {"query/1.npy": npy(body())}, missing="nobody").content
    changed = account(
        tmp_path / "c", keys, {"query/0.npy": npy(body(c0=np.s_[0, 0]))}, missing="nobody"
    ).content
    assert len({one, moved, changed}) == 3


UNUSABLE = {
    "35 channels": (np.zeros((35, 17, 9), np.float32), r"shape \(35, 17, 9\)"),
    "a flat array": (np.zeros((36, 17), np.float32), r"shape \(36, 17\)"),
    "no cells": (np.zeros((36, 0, 9), np.float32), r"shape \(36, 0, 9\)"),
    "whole numbers": (np.zeros((36, 17, 9), int), "int64"),
    "no confidences": (np.full((36, 17, 9), 2.0), "values from 2 to 2"),
    "not a number": (np.full((36, 17, 9), np.nan), "values from nan"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_array_of_confidences_is_refused(kind):
    array, message = UNUSABLE[kind]
    with pytest.raises(InvalidLabel, match=message):
        confidences.read_confidences(npy(array))


def test_a_pickle_is_refused():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InvalidLabel, match="no complete"):
        confidences.read_confidences(file.getvalue())


NO_MAP = {
    "a coloured picture": (png(np.zeros((4, 2, 3))), "x.png", r"shape \(4, 2, 3\)"),
    "scores": (npy(np.zeros((4, 2), np.float32)), "x.npy", "float32"),
    "a class too many": (png([[0, 20]]), "x.png", "class 20, but the source has 0 to 19"),
    "a class below 0": (npy(np.array([[-1, 0]])), "x.npy", "class -1"),
    "no picture": (b"text", "x.png", "no complete picture$"),
    "half a picture": (png(np.zeros((99, 99)))[:60], "x.png", "no complete picture"),
}


@pytest.mark.parametrize("kind", NO_MAP)
def test_what_is_no_label_map_is_refused(kind):
    blob, name, message = NO_MAP[kind]
    with pytest.raises(InvalidLabel, match=message):
        label_maps.read_map(blob, name, 20)


def test_a_map_is_read_from_gray_palette_and_array_alike():
    classes = np.array([[0, 13], [5, 9]], np.uint8)
    for blob, name in ((png(classes), "a.png"), (png(classes, "P"), "a.png"), (npy(classes), "a.npy")):
        assert label_maps.read_map(blob, name, 20).tolist() == classes.tolist()


# ------------------------------------------------------------------ BPBReID's confidences


@pytest.mark.parametrize(
    "size, cells, pad", [((128, 64), (17, 9), (0, 0, 1, 1)), ((150, 61), (21, 9), (2, 5, 2, 6))]
)
def test_a_grid_as_openpifpaf_makes_it_has_its_pad_undone(size, cells, pad):
    assert confidences.grid_frame(cells, size) == parsing.Frame(cells, 8, size, pad)


def test_any_other_grid_covers_the_image():
    rows, columns = parsing.field_sampling(confidences.grid_frame((2, 2), (128, 64)), (4, 2))
    cell = np.array([[1, 0], [0, 0]], np.float32)
    assert (rows @ cell @ columns.T)[:, 0].tolist() == [1, 0.75, 0.25, 0]


def test_confidences_become_the_map_that_the_stage_parse_would_make_of_them():
    confidence = body(c0=np.s_[2:4, 4:6], c13=np.s_[12:14, 5:7])
    label = confidences.fuse(confidence, (128, 64), RULE)
    frame = parsing.Frame((17, 9), 8, (128, 64), (0, 0, 1, 1))
    grouped = parsing.part_confidences((confidence * 255).astype(np.uint8), RULE.grouping)
    assert (label == parsing.fuse(grouped, np.ones(RULE.grid, np.float32), frame, RULE)).all()
    assert set(np.unique(label)) == {0, parts.HEAD, parts.LEFT_LEG}
    assert label[:6].max() == parts.HEAD and label[8:].max() == parts.LEFT_LEG


def test_filling_needs_a_mask_and_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"parse\.fill = true needs the person's mask"):
        adapter.check_labels(
            table("query/0.jpg"), settings(tmp_path), dataclasses.replace(RULE, fill=True), ""
        )


# ------------------------------------------------------------------ label maps and their classes


def test_every_source_has_a_part_for_each_of_its_classes():
    assert {name: len(classes) for name, classes in label_maps.CLASSES.items()} == {
        "lip": 20, "cihp": 20, "atr": 18, "pascal": 7, "bodypix": 25,
    }  # fmt: skip
    for source in label_maps.CLASSES:
        codes = label_maps.class_codes(source, None)
        assert codes[0] == 0 and codes.max() <= max(label_maps.SIDES)
        merged = label_maps.assign_sides(np.tile(codes, (4, 1)))
        assert {HEAD, TORSO} <= set(np.unique(merged).tolist()) and merged.max() <= len(parts.FINE)


@pytest.mark.parametrize("source, number", [("lip", 14), ("cihp", 14), ("atr", 9)])
def test_the_sides_that_a_source_knows_are_kept(source, number):
    sided = label_maps.class_codes(source, None)[number : number + 6]
    names = ["left arm", "right arm", "left leg", "right leg", "left foot", "right foot"]
    if source == "atr":  # shoes, face, legs, arms
        names = ["left foot", "right foot", "head", "left leg", "right leg", "left arm"]
    assert [parts.FINE[code - 1] for code in sided] == names


def test_bodypix_knows_the_side_of_all_its_limbs():
    # its parts by number: 1 right face, 10 left hand, 11 right hand, 13 back, 14 left thigh, 23 right foot
    codes = label_maps.class_codes("bodypix", None)[1:][[1, 10, 11, 13, 14, 23]]
    names = ["head", "left arm", "right arm", "torso", "left leg", "right foot"]
    assert [parts.FINE[code - 1] for code in codes] == names


def test_a_users_own_classes_name_parts_and_pairs():
    codes = label_maps.class_codes("classes", ["background", "head", "legs", "background"])
    assert codes.tolist() == [0, 1, 10, 0]
    with pytest.raises(BadInput, match=r"tail is no part\. Name background, head"):
        label_maps.class_codes("classes", ["background", "tail"])
    for source, classes in (("lip", ["background"]), ("bpbreid", ["background"]), ("classes", None)):
        with pytest.raises(ValueError, match="for `source: classes`, and for that alone"):
            settings(source=source, classes=classes)


def test_trousers_take_the_side_of_the_nearest_shoe():
    # seen from behind: the left shoe is on the picture's left
    codes = np.array([[LEGS] * 4, [LEGS] * 4, [7, G, G, 8]], np.uint8)
    assert label_maps.assign_sides(codes).tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [7, 0, 0, 8]]


@pytest.mark.parametrize("below", [G, 7])
def test_trousers_without_both_shoes_have_sides_as_from_the_front(below):
    codes = np.array([[LEGS] * 4, [G, G, below, below]], np.uint8)
    assert label_maps.assign_sides(codes).tolist()[0] == [6, 6, 5, 5]


def test_the_side_of_an_arm_does_not_depend_on_the_legs():
    codes = np.array([[ARMS, G, G, ARMS], [5, 5, 6, 6]], np.uint8)
    assert label_maps.assign_sides(codes).tolist()[0] == [3, 0, 0, 2]


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_a_pixel_keeps_its_limb_and_a_known_side(seed, rows):
    codes = np.random.default_rng(seed).integers(0, 12, (rows, 5), np.uint8)
    label = label_maps.assign_sides(codes)
    assert (label[codes <= 8] == codes[codes <= 8]).all()
    for pair, sides in ((ARMS, (2, 3)), (LEGS, (5, 6)), (FEET, (7, 8))):
        assert np.isin(label[codes == pair], sides).all()


@given(st.integers(0, 2**32 - 1))
def test_the_mirrored_map_has_the_mirrored_sides(seed):
    rng = np.random.default_rng(seed)
    half = rng.choice(np.array([G, HEAD, TORSO, LEGS], np.uint8), (4, 3))
    codes = np.concatenate([half, half[:, ::-1]], 1)  # symmetric: no pixel is in the middle
    assert (label_maps.assign_sides(codes[:, ::-1]) == parts.flip(label_maps.assign_sides(codes))).all()


def test_a_map_of_any_size_covers_the_picture():
    small = np.array([[1, 2], [3, 4]], np.uint8)
    assert label_maps.resize_map(small, (4, 4)).tolist() == np.kron(small, np.ones((2, 2), int)).tolist()
    assert label_maps.resize_map(label_maps.resize_map(small, (6, 4)), (2, 2)).tolist() == small.tolist()


# ------------------------------------------------------------------ the stage


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset `set` of five images, indexed; a parameter file; returns the keys."""
    monkeypatch.chdir(tmp_path)
    values = params.load(Path(__file__).parents[2] / "params.yaml")
    values["workers"] = 1
    values["parse"]["grid"] = [16, 8]
    YAML().dump(values, Path("params.yaml"))
    zipped(Path("raw.zip"), people())
    main("folders", "raw.zip", "set/index.parquet", "set/images.h5", "set/truth.h5")
    return pd.read_parquet("set/index.parquet")["key"].tolist()


@pytest.fixture
def in_this_process(monkeypatch):
    """Rows are computed here: a worker process would import everything again first."""

    def run_here(shards, batch, make, *rest):
        monkeypatch.setattr(resumable, "_compute", make())
        for start, stop, path in shards:
            yield resumable._compute_shard(start, stop, batch, path)

    monkeypatch.setattr(resumable, "_run_workers", run_here)


def choose(**entry) -> None:
    values = params.load("params.yaml")
    values["labels_from"] = {"set": {"folders": MARKET, "missing": "refuse", **entry}}
    YAML().dump(values, Path("params.yaml"))


def run(labels) -> dict[str, np.ndarray]:
    adopt.main("set/index.parquet", str(labels), "set/parsing.h5", "set/instances.h5")
    rows = LabelFile("set/parsing.h5", "parsing")
    return {name: rows[name][:] for name in rows.names()}


def label_names(keys, ending) -> list[str]:
    splits = [key.split("/", 1) for key in keys]
    return [f"masks/{MARKET[split]}/{Path(inside).stem}{ending}" for split, inside in splits]


def test_confidences_in_an_archive_become_parsing_maps_and_occlusion_labels(dataset):
    files = dict.fromkeys(label_names(dataset, ".npy"), npy(body(c0=np.s_[2:4, 4:6])))
    files[label_names(dataset, ".npy")[1]] = npy(body())  # nobody
    with zipfile.ZipFile("labels.zip", "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    choose(source="bpbreid", path="labels.zip")
    arrays = run("labels.zip")
    assert arrays["status"].tolist() == [parsing.OK, parsing.NO_PERSON, *[parsing.OK] * (len(dataset) - 2)]
    assert (arrays["instance"] == -1).all() and np.isnan(arrays["margin"]).all()
    assert set(np.unique(arrays["map"][0])) == {0, parts.HEAD} and not arrays["map"][1].any()
    assert LabelFile("set/instances.h5", "instances")["found"][:].tolist() == [0] * len(dataset)
    assert LabelFile("set/parsing.h5", "parsing").attrs["classes"] == []
    label_stage.main("set/parsing.h5", "set/occlusion.h5")
    assert LabelFile("set/occlusion.h5", "occlusion")["occluded"][0].tolist() == [0, 1, 1, 1]


def test_a_folder_of_label_maps_becomes_the_same_maps_again(dataset, in_this_process):
    whole = np.zeros((16, 8), np.uint8)
    whole[:4], whole[4:10], whole[10:, :4], whole[10:, 4:] = 13, 5, 17, 16  # face, clothes, right, left leg
    written(Path("lip"), dict.fromkeys(label_names(dataset, ".png"), png(whole)))
    choose(source="lip", path="lip")
    maps = run("lip")["map"]
    want = np.select([whole == 13, whole == 5, whole == 17], [1, 4, 6], 5)
    assert (maps == want).all()


def test_nothing_is_written_if_one_label_is_missing(dataset, in_this_process):
    names = label_names(dataset, ".npy")
    written(Path("some"), dict.fromkeys(names[:-1], npy(body())))
    choose(source="bpbreid", path="some")
    with pytest.raises(BadInput, match=f"1 missing:\n    {dataset[-1]}"):
        run("some")
    assert not Path("set/parsing.h5").exists() and not Path("set/instances.h5").exists()
    choose(source="bpbreid", path="some", missing="nobody")
    assert run("some")["status"][-1] == parsing.NO_PERSON


def test_a_run_does_not_reuse_a_stopped_runs_maps_of_other_classes(dataset, in_this_process, monkeypatch):
    written(Path("own"), dict.fromkeys(label_names(dataset, ".png"), png(np.ones((16, 8)))))
    choose(source="classes", path="own", classes=["background", "head"])
    with monkeypatch.context() as patch:
        # stopped once all shards are there
        patch.setattr(resumable, "_merge_shards", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("own")
    choose(source="classes", path="own", classes=["background", "torso"])
    assert (run("own")["map"] == TORSO).all()
    assert LabelFile("set/parsing.h5").attrs["classes"] == ["background", "torso"]


def test_a_list_of_no_classes_is_refused(dataset):
    choose(source="classes", path="own", classes=[])
    with pytest.raises(BadInput, match=r"labels_from\.set\.classes = \[\]: .*at least 1 item"):
        run("own")


def test_a_missing_path_and_an_unknown_source_are_named(dataset):
    choose(source="bpbreid", path="none")
    with pytest.raises(BadInput, match=r"none: no such folder or archive\. Put the labels there"):
        run("none")
    choose(source="schp", path="none")
    with pytest.raises(BadInput, match=r"params\.yaml: labels_from\.set\.source = 'schp'"):
        run("none")
