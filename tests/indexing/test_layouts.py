"""Layouts: split, identity and camera of every image in every dataset, and its published counts."""

import io
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from pipeline import ranking
from pipeline.batches.views import resize_image
from pipeline.core.params import BadInput
from pipeline.data.index import Images, index_hash, read_index
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index, describe, load_layout
from pipeline.indexing.layout import ImageEntry, PublishedCount
from pipeline.indexing.query_checks import count_differences, dataset_warnings, has_match, self_matches
from stages import index as stage
from tests.indexing.test_build import CONFIG, options, picture, tarred, zipped

BOXES = {  # Market-1501's folders, with the names of DukeMTMC
    "bounding_box_train/0001_c2_f0046182.jpg": ("train", 1, 1),
    "query/0005_c1_f0051230.jpg": ("query", 5, 0),
    "bounding_box_test/0005_c1_f0051230.jpg": ("gallery", 5, 0),  # the query itself, as in Occluded-Duke
    "bounding_box_test/0005_c8_f0000001.jpg": ("gallery", 5, 7),
}
LISTS = {
    "list_train.txt": b"0000/0000_000_01_0303morning_0015_0.jpg 0\n",
    "list_val.txt": b"0000/0000_001_02_0303morning_0015_0.jpg 0\n",
    "list_query.txt": b"0000/0000_000_14_0303morning_0015_0.jpg 0\n",
    "list_gallery.txt": b"0000/0000_001_15_0303morning_0015_0.jpg 0\n\n",
}


def msmt17(train, test):
    return {
        f"{train}/0000/0000_000_01_0303morning_0015_0.jpg": ("train", 1, 0),
        f"{train}/0000/0000_001_02_0303morning_0015_0.jpg": ("train", 1, 1),
        f"{test}/0000/0000_000_14_0303morning_0015_0.jpg": ("query", 1042, 13),
        f"{test}/0000/0000_001_15_0303morning_0015_0.jpg": ("gallery", 1042, 14),
    }


TREES = {  # layout and, if it matters, version: images with split, identity and camera; other files
    "folders": (BOXES, {"gt_query/0005_c1_f0051230.jpg": b"x"}),
    "market1501": (
        {
            "Market/bounding_box_train/0002_c1s1_000451_03.jpg": ("train", 2, 0),
            "Market/query/0001_c6s1_000451_00.jpg": ("query", 1, 5),
            "Market/bounding_box_test/0001_c3s1_000451_03.jpg": ("gallery", 1, 2),
            "Market/bounding_box_test/0000_c3s1_000451_04.jpg": ("gallery", 0, 2),
        },
        {"Market/query/Thumbs.db": b"x"},
    ),
    "dukemtmc_reid": (BOXES, {"CITATION.txt": b"x"}),
    "occluded_duke": ({f"Occluded_Duke/{name}": row for name, row in BOXES.items()}, {}),
    "occluded_reid": (
        {
            "Occluded_REID/occluded_body_images/001/001_01.tif": ("query", 1, -1),
            "Occluded_REID/whole_body_images/001/001_01.tif": ("gallery", 1, -1),
        },
        {"Occluded_REID/Readme.txt": b"x"},
    ),
    "p_dukemtmc_reid": (
        {
            "P/train/whole_body_images/1/0001_c2_f0046182.jpg": ("train", 1, -1),
            "P/train/occluded_body_images/1/0001_c2_f0046182.jpg": ("train", 1, -1),
            "P/test/occluded_body_images/5/0005_c1_f0051230.jpg": ("query", 5, -1),
            "P/test/whole_body_images/5/0005_c1_f0051231.jpg": ("gallery", 5, -1),
        },
        {},
    ),
    "partial_reid": (
        {
            "Partial-REID_Dataset/partial_body_images/001_001.jpg": ("query", 1, -1),
            "Partial-REID_Dataset/whole_body_images/001_001.jpg": ("gallery", 1, -1),
        },
        {"Partial-REID_Dataset/occluded_body_images/001_001.jpg": b"x"},
    ),
    "partial_ilids": (
        {
            "Partial_iLIDS/Probe/0.jpg": ("query", 1, -1),
            "Partial_iLIDS/Probe/118.jpg": ("query", 119, -1),
            "Partial_iLIDS/Gallery/0.jpg": ("gallery", 1, -1),
            "Partial_iLIDS/Gallery/118.jpg": ("gallery", 119, -1),
        },
        {"Partial_iLIDS/Probe.txt": b"Probe/0.jpg"},
    ),
    "msmt17 V1": (msmt17("train", "test"), LISTS),
    "msmt17 V2": (
        msmt17("MSMT17_V2/mask_train_v2", "MSMT17_V2/mask_test_v2"),
        {f"MSMT17_V2/{name}": text for name, text in LISTS.items()},
    ),
    "table": (
        {
            "mine/monday/door 1.jpg": ("train", 1, 0),
            "mine/monday/тётя.jpg": ("query", 2, -1),
            "mine/a.png": ("gallery", 2, 3),
        },
        {
            "mine/people.csv": "\ufeffpath,pid,camid,split,note\nmonday/door 1.jpg,1,0,train,x\n"
            "monday\\тётя.jpg,2,,query,\na.png,2,3,gallery,\n".encode(),
            "mine/not named.jpg": b"x",
            "__MACOSX/mine/._people.csv": b"x",
        },
    ),
}
PUBLISHED = [name for name in TREES if name not in ("folders", "table")]


def files_of(tree):
    images, others = TREES[tree]
    forms = {"tif": "TIFF", "png": "PNG"}
    files = {n: picture(i, form=forms.get(n[-3:], "JPEG")) for i, n in enumerate(sorted(images))}
    return files | others


def build(path, tree, **changes):
    with Archive(path) as archive:
        return build_index(archive, tree.split()[0], options(**{"counts": "warn", **changes}), 1)


# ------------------------------------------------------------------ identity and camera


@pytest.mark.parametrize("pack", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("tree", TREES)
def test_every_image_is_in_its_split_with_identity_and_camera(tmp_path, tree, pack):
    images, others = TREES[tree]
    indexed = build((zipped if pack == "a.zip" else tarred)(tmp_path / pack, files_of(tree)), tree)
    rows = zip(indexed.names, indexed.index[["split", "pid", "camid"]].itertuples(index=False), strict=True)
    assert {name: tuple(row) for name, row in rows} == images
    lists = (*LISTS, "people.csv")
    left_out = sorted(name for name in others if name.split("/")[-1] not in lists)
    assert [item.name for item in indexed.left_out] == left_out
    assert indexed.index["key"].is_unique
    starts = indexed.index["split"] + "/"
    assert all(key.startswith(start) for key, start in zip(indexed.index["key"], starts, strict=True))


def test_a_query_that_is_in_the_gallery_too_has_a_key_of_its_own(tmp_path):
    indexed = build(zipped(tmp_path / "a.zip", files_of("occluded_duke")), "occluded_duke")
    same = indexed.index[indexed.index["key"].str.endswith("/0005_c1_f0051230.jpg")]
    assert same["key"].tolist() == ["query/0005_c1_f0051230.jpg", "gallery/0005_c1_f0051230.jpg"]


def test_whole_and_occluded_training_images_of_one_name_have_keys_of_their_own(tmp_path):
    indexed = build(zipped(tmp_path / "a.zip", files_of("p_dukemtmc_reid")), "p_dukemtmc_reid")
    assert indexed.index["key"].tolist()[:2] == [
        "train/occluded_body_images/1/0001_c2_f0046182.jpg",
        "train/whole_body_images/1/0001_c2_f0046182.jpg",
    ]


@pytest.mark.parametrize(("validation", "images"), [("train", 2), ("drop", 1)])
def test_msmt17s_validation_images_join_training_or_are_dropped(tmp_path, validation, images):
    indexed = build(zipped(tmp_path / "a.zip", files_of("msmt17 V1")), "msmt17", validation=validation)
    assert (indexed.index["split"] == "train").sum() == images and indexed.dropped == 2 - images


def test_msmt17s_people_of_training_and_test_are_not_confused(tmp_path):
    indexed = build(zipped(tmp_path / "a.zip", files_of("msmt17 V2")), "msmt17")
    assert "both in train and" not in describe(indexed)


# ------------------------------------------------------------------ as published or not


@pytest.mark.parametrize("tree", PUBLISHED)
def test_a_dataset_that_is_not_as_published_is_refused_or_reported(tmp_path, tree):
    path = zipped(tmp_path / "a.zip", files_of(tree))
    published = load_layout(tree.split()[0]).COUNTS
    with pytest.raises(BadInput) as error:
        build(path, tree, counts="refuse")
    text = describe(build(path, tree, counts="warn"))
    for split, count in published.items():
        line = next(line for line in str(error.value).splitlines() if line.strip().startswith(f"{split}:"))
        assert re.search(rf"\d images? \(published: {count.images}\)", line)
        assert "`index.counts: warn`" in line
        assert f"not as published: {split}: " in text


PICTURES = [
    *(ImageEntry("", "train", str(n), n // 2 + 1, n % 3) for n in range(6)),
    ImageEntry("", "gallery", "a", 0, 4),
    ImageEntry("", "gallery", "b", -1, 5),
    ImageEntry("", "gallery", "c", 7, -1),
]
COUNTED = {
    "all as published": ({"train": PublishedCount(6, 3, 3), "gallery": PublishedCount(2, 1, 1)}, []),
    "junk and distractors are no identities": ({"gallery": PublishedCount(2, 1, None)}, []),
    "an image too few": ({"train": PublishedCount(7, 3, 3)}, ["train: 6 images (published: 7)"]),
    "all three": (
        {"train": PublishedCount(1, 2, 0)},
        ["train: 6 images (published: 1), 3 identities (published: 2), 3 cameras (published: 0)"],
    ),
    "not published": ({"train": PublishedCount(6, None, None)}, []),
    "a missing split": (
        {"query": PublishedCount(1, 1, 0)},
        ["query: 0 images (published: 1), 0 identities (published: 1)"],
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_images_identities_and_cameras_are_compared_with_the_published_counts(case):
    published, lines = COUNTED[case]
    assert count_differences(PICTURES, published) == lines


# ------------------------------------------------------------------ lists


def complaint(tmp_path, tree, files):
    with pytest.raises(BadInput) as error:
        build(zipped(tmp_path / "bad.zip", files), tree)
    return str(error.value)


def test_msmt17s_problems_name_list_line_and_folder(tmp_path):
    files = files_of("msmt17 V1")
    lines = b"0000/0000_000_01_0303morning_0015_0.jpg 0\nhello\n0000/x.jpg 1\n"
    wrong = {**files, "list_train.txt": lines}
    del wrong["list_query.txt"], wrong["train/0000/0000_001_02_0303morning_0015_0.jpg"]
    text = complaint(tmp_path, "msmt17", wrong)
    assert "list_train.txt, line 2, 'hello': not like `0000" in text and "line 3, '0000/x.jpg 1'" in text
    assert "no list_query.txt beside train/" in text
    assert "list_val.txt: lists 1 image that the archive lacks: train/0000/0000_001_02" in text
    moved = {name.replace("train/", "images/"): content for name, content in files.items()}
    assert "no folder train/ or mask_train_v2/ beside list_train.txt" in complaint(tmp_path, "msmt17", moved)


def test_a_parquet_table_is_read_like_a_csv(tmp_path):
    files = files_of("table")
    text = files.pop("mine/people.csv").decode("utf-8-sig")
    table = pd.read_csv(io.StringIO(text.replace("\\", "/")))
    from_csv = build(zipped(tmp_path / "b.zip", files_of("table")), "table").index
    for kind in ("float64", "Int16"):  # an unknown camera is NaN in one, NA in the other
        out = io.BytesIO()
        table.astype({"camid": kind}).to_parquet(out)
        path = zipped(tmp_path / "a.zip", files | {"mine/people.parquet": out.getvalue()})
        assert table["camid"].isna().any() and build(path, "table").index.equals(from_csv)


def test_without_a_column_of_cameras_all_are_unknown(tmp_path):
    text = b"path,pid,split\na.jpg,1,query\nb.jpg,1,gallery\n"
    files = {"t.csv": text, "a.jpg": picture(1), "b.jpg": picture(2)}
    assert build(zipped(tmp_path / "a.zip", files), "table").index["camid"].tolist() == [-1, -1]


ROWS = {
    "a.jpg,1,0,test": "row 3, split = 'test': none of train, query, gallery\n",
    "a.jpg,1,0,Query ": "row 3, split = 'Query ': none of train, query, gallery; write query\n",
    "a.jpg,anna,0,query": "row 3, pid = 'anna': no whole number",
    "a.jpg,1.5,0,query": "row 3, pid = '1.5': no whole number",
    "a.jpg,-2,0,gallery": "row 3, pid = '-2': no whole number from -1",
    "a.jpg,1,c1,query": "row 3, camid = 'c1': no whole number from -1 to 32767; number the cameras 0, 1, "
    "...; empty is unknown",
    "a.jpg,1,40000,query": "row 3, camid = '40000': no whole number from -1 to 32767",
    "a.jpg,0,0,train": "row 3, pid = 0: means a distractor (0) or junk (-1), which only the gallery holds",
    "c.jpg,1,0,query": "t.csv: lists 1 image that the archive lacks: c.jpg (row 3)",
    "A.JPG,1,0,query": "t.csv: lists 1 image that the archive lacks: A.JPG (row 3; there is a.jpg)",
    "\nc.jpg,1,0,query": "c.jpg (row 4)",
    "./a.jpg,1,0,train": "t.csv, rows 2, 3, a.jpg: more than once in train",
    " ,1,0,train": "t.csv, row 3, path is empty: name the image",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row):
    files = {"t.csv": f"path,pid,camid,split\na.jpg,1,0,train\n{row}\n".encode(), "a.jpg": picture(1)}
    text = complaint(tmp_path, "table", files)
    assert ROWS[row] in text and "bad.zip: 1 fault" in text


def test_a_column_that_is_wrong_throughout_is_reported_in_few_lines(tmp_path):
    rows = "".join(f"a.jpg,1,c{n},query\n" for n in range(40))
    files = {"t.csv": f"path,pid,camid,split\n{rows}".encode(), "a.jpg": picture(1)}
    text = complaint(tmp_path, "table", files)
    assert "bad.zip: 40 faults; nothing was written" in text and "\n  and 35 more\n" in text
    assert "row 6, camid = 'c4'" in text and "'c5'" not in text


def test_a_picture_may_stand_in_two_splits_and_commas_may_end_the_lines(tmp_path):
    text = b"path,pid,split\r\na.jpg,1,query,\r\n\r\na.jpg,1,gallery,\r\n,,\r\n"
    path = zipped(tmp_path / "a.zip", {"t.csv": text, "a.jpg": picture(1)})
    assert build(path, "table").index["key"].tolist() == ["query/a.jpg", "gallery/a.jpg"]


@pytest.mark.parametrize("separator", ";\t")
def test_semicolons_or_tabs_may_separate_the_columns(tmp_path, separator):
    text = "path,pid,split\n1.jpg,1,query\n2.jpg,1,gallery\n".replace(",", separator)
    files = {"t.csv": text.encode(), "1.jpg": picture(1), "2.jpg": picture(2)}
    assert build(zipped(tmp_path / "a.zip", files), "table").index["pid"].tolist() == [1, 1]


TABLES = {
    "none": ({}, "found: none"),
    "two": ({"a.csv": b"", "b.parquet": b""}, "found: a.csv, b.parquet"),
    "empty": ({"a.csv": b""}, "a.csv: has columns [], but needs"),
    "an open quote": ({"a.csv": b'path,pid,split\n"a.jpg,1,train\n'}, "a.csv: no readable table (unexpected"),
    "no parquet": ({"a.parquet": b"text"}, "a.parquet: no readable table"),
    "a column twice": (
        {"a.csv": b"path,pid,split,pid\na.jpg,1,train,2\n"},
        "a.csv: no readable table (has more than one column pid: rename or remove the others)",
    ),
    "a column too few": ({"a.csv": b"path,pid\n"}, "a.csv: has columns ['path', 'pid'], but needs ['path',"),
    "names nearly right": (
        {"a.csv": b"Path,pid,split \n"},
        "needs ['path', 'pid', 'split']; rename 'Path' to path; rename 'split ' to split\n",
    ),
    "a header alone": ({"a.csv": b"path,pid,split\n"}, "not one image to use"),
    "latin-1": (
        {"a.csv": "path,pid,split\né.jpg,1,train".encode("latin-1")},
        "not in UTF-8: save it as CSV in UTF-8",
    ),
    "utf-16": ({"a.csv": "path,pid,split\n".encode("utf-16")}, "not in UTF-8: save it as CSV in UTF-8"),
    "utf-16 without its mark": ({"a.csv": "path,pid,split\n".encode("utf-16-le")}, "save it as CSV in UTF-8"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_read_is_named(tmp_path, case):
    files, message = TABLES[case]
    assert message in complaint(tmp_path, "table", files)


def test_names_that_do_not_parse_are_listed_in_every_layout(tmp_path):
    bad = {
        "occluded_reid": "Occluded_REID/whole_body_images/001/me.tif",
        "market1501": "Market/query/me.jpg",
        "partial_ilids": "Partial_iLIDS/Probe/me.jpg",
    }
    for tree, name in bad.items():
        assert f"{name}: the name does not parse" in complaint(
            tmp_path, tree, files_of(tree) | {name: picture(9)}
        )


# ------------------------------------------------------------------ warnings


def boxes(*names):
    return {f"{name}.jpg": picture(n) for n, name in enumerate(names)}


TRAIN, QUERY, GALLERY = "bounding_box_train/", "query/", "bounding_box_test/"
COMPLETE = (TRAIN + "0001_c1s1", TRAIN + "0001_c2s1", QUERY + "0002_c1s1", GALLERY + "0002_c2s1")
WARNINGS = {
    "nothing": ((), []),
    "one image alone": ((TRAIN + "0003_c1s1",), ["1 training identity with one image alone"]),
    "one camera": (
        (QUERY + "0004_c1s1", GALLERY + "0004_c1s2"),
        ["1 query without a match by another"],
    ),
    "one camera among several": ((QUERY + "0004_c1s1", GALLERY + "0004_c1s2", GALLERY + "0004_c3s1"), []),
    "nobody": ((QUERY + "0005_c1s1",), ["1 query without a match by another camera"]),
    "both": ((GALLERY + "0001_c1s1",), ["1 identity both in train and in"]),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_limitations_of_a_dataset_are_reported(tmp_path, case):
    names, lines = WARNINGS[case]
    text = describe(build(zipped(tmp_path / "a.zip", boxes(*COMPLETE, *names)), "folders"))
    warnings = text.splitlines()[5:]
    assert len(warnings) == len(lines)
    assert all(warning.startswith(line) for warning, line in zip(warnings, lines, strict=True))


PEOPLE = "path,pid,camid,split\n"
SETS = {  # rows of a table; each letter is an image
    "test alone": ("a,1,0,query\nb,1,1,gallery", ["no training image: the set can test, not train"]),
    "training alone": (
        "a,1,0,train\nb,1,1,train",
        ["no query: nothing can be measured on the set", "no gallery: nothing can be measured on the set"],
    ),
    "a query in the gallery": (
        "a,1,0,train\nb,1,1,train\nc,2,,query\nc,2,,gallery",
        ["1 query in gallery as the same file, which no camera leaves out, so each finds itself and Rank-1 "
         "is too high: query/c", "1 gallery image also in query as the same file: gallery/c"],
    ),
    "of a known camera": (
        "a,1,0,train\nb,1,1,train\nc,2,0,query\nc,2,0,gallery\nd,2,1,gallery",
        ["1 gallery image also in query as the same file: gallery/c"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETS)
def test_a_missing_split_and_queries_that_match_themselves_are_reported(tmp_path, case):
    rows, lines = SETS[case]
    files = {row[0]: picture(ord(row[0])) for row in rows.splitlines()}
    text = describe(build(zipped(tmp_path / "a.zip", files | {"t.csv": (PEOPLE + rows).encode()}), "table"))
    assert text.splitlines()[5:] == lines


def test_queries_without_any_gallery_are_refused(tmp_path):
    files = {"t.csv": (PEOPLE + "a,1,0,query").encode(), "a": picture(1)}
    assert "there are queries, but no gallery to find them in" in complaint(tmp_path, "table", files)


image_rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2), st.integers(-1, 1)), max_size=6)


@given(image_rows, image_rows)
def test_a_query_matches_itself_exactly_if_the_ranking_keeps_its_file(query, gallery):
    tables = [pd.DataFrame(rows, columns=["sha256", "pid", "camid"]) for rows in (query, gallery)]
    for table in tables:
        table["key"] = [f"{row}" for row in range(len(table))]
    ranked = [
        str(row)
        for row, (file, pid, camid) in enumerate(query)
        if any(image[:2] == (file, pid) and (camid < 0 or camid != image[2]) for image in gallery)
    ]
    assert self_matches(*tables) == ranked


identities = st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 2)), min_size=1, max_size=6)


@given(identities, identities)
def test_a_query_has_a_match_exactly_if_the_ranking_finds_one(query, gallery):
    # the ranking refuses cameras that one side alone knows of the identities that both have
    both = {pid for pid, _ in query} & {pid for pid, _ in gallery}
    known = [any(camid >= 0 for pid, camid in rows if pid in both) for rows in (query, gallery)]
    assume(known[0] == known[1])
    tables = [pd.DataFrame(rows, columns=["pid", "camid"]) for rows in (query, gallery)]
    embedded = [
        ranking.Embedded(
            torch.ones(len(t), 1, 1), torch.ones(len(t), 1), t["pid"].to_numpy(), t["camid"].to_numpy()
        )
        for t in tables
    ]
    assert has_match(*tables).tolist() == ranking.rank(*embedded).valid.tolist()


KNOWN = {  # cameras of a query and of two gallery images of its identity: what is said of them
    "both": (0, (0, 1), ""),
    "neither": (-1, (-1, -1), ""),
    "the query alone": (0, (-1, -1), "cameras known in query alone"),
    "the gallery alone": (-1, (-1, 1), "cameras known in gallery alone"),
}


@pytest.mark.parametrize("side", KNOWN)
def test_cameras_that_one_side_alone_knows_are_said(side):
    camera, others, line = KNOWN[side]
    rows = [("train", 9, 0), ("train", 9, 1), ("query", 1, camera), *(("gallery", 1, c) for c in others)]
    index = pd.DataFrame(rows, columns=["split", "pid", "camid"])
    text = "\n".join(dataset_warnings(index.assign(key=index.index.map(str), sha256=index.index.map(str))))
    assert line in text and ("alone: no image is left out" in text) == bool(line)


# ------------------------------------------------------------------ pictures of every kind


def deep(form, colour):
    noise = np.random.default_rng(0).integers(0, 65536, (16, 8, 3) if colour else (16, 8), np.uint16)
    return cv2.imencode(form, noise)[1].tobytes(), noise


SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
KINDS = {
    "gray": picture(mode="L"),
    "CMYK": picture(mode="CMYK"),
    "16 bits": deep(".png", False)[0],
    "16 bits in colour": deep(".tiff", True)[0],
    "4 megapixels": picture(size=(1600, 2500)),
    "sideways": picture(size=(16, 8), exif=SIDEWAYS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_indexed_and_shown_upright_in_colour(tmp_path, kind):
    files = boxes(*COMPLETE) | {f"query/0002_c1s1 {kind} тётя.jpg": KINDS[kind]}
    value_range = f'"range": {{"{tmp_path.name}": [0, 65535]}}'
    (tmp_path / "params.yaml").write_text(CONFIG.replace('"range": {}', value_range))
    outs = [str(tmp_path / out) for out in ("index.parquet", "images.h5", "truth.h5")]
    stage.main("folders", zipped(tmp_path / "a.zip", files), *outs, config=str(tmp_path / "params.yaml"))
    index = read_index(outs[0])
    row = index.index[index["key"] == f"query/0002_c1s1 {kind} тётя.jpg"].item()
    pixels = Images(outs[1], index_hash(index))[row]
    size = (2500, 1600) if kind == "4 megapixels" else (16, 8)
    assert pixels.shape == (*size, 3) and tuple(index.loc[row, ["height", "width"]]) == size
    assert resize_image(pixels, (256, 128)).shape == (256, 128, 3)
    if kind.startswith("16 bits"):
        scaled = np.rint(deep(".png", kind.endswith("colour"))[1] / 257)
        assert (pixels[..., ::-1] == (scaled if scaled.ndim == 3 else scaled[..., None])).all()


@pytest.mark.parametrize("pack", ["a.zip", "a.tar"])
def test_names_may_hold_spaces_and_any_letters(tmp_path, pack):
    files = boxes(*COMPLETE, "query/0002_c1s1 été 東京", "my crops/no 1")
    path = (zipped if pack == "a.zip" else tarred)(tmp_path / pack, files)
    assert "query/0002_c1s1 été 東京.jpg" in build(path, "folders").index["key"].tolist()
