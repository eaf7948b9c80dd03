"""Occluded copies of real queries: what is pasted, what it covers, and that nothing else changes."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.data.index import decode, index_hash, read_index
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index, describe
from pipeline.ranking import report
from stages import index as stage
from tests.indexing.test_build import CONFIG, OCCLUDE, options, with_truth, zipped

SIZE = (40, 20)  # height, width
COLOURS = {"0001": (200, 0, 0), "0002": (0, 200, 0), "0003": (0, 0, 200), "0004": (200, 200, 0)}


def plain_png(colour, size=SIZE):
    out = io.BytesIO()
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(out, "PNG")
    return out.getvalue()


def dataset(queries=("0003", "0004")):
    """One colour per identity: two in training, the queries and their gallery."""
    files = {f"bounding_box_train/{pid}_c1s1.png": plain_png(COLOURS[pid]) for pid in ("0001", "0002")}
    files |= {f"query/{pid}_c1s1.png": plain_png(COLOURS[pid]) for pid in queries}
    return files | {f"bounding_box_test/{pid}_c2s1.png": plain_png(COLOURS[pid]) for pid in queries}


def build(path, files, layout="folders", **changes):
    params = options(counts="warn", occlude=OCCLUDE | changes)
    with Archive(zipped(path, files)) as archive:
        indexed = build_index(archive, layout, params, 1, occlude=True)
        return indexed, dict(zip(indexed.index["key"], indexed.blobs(), strict=True))


def pasted(indexed, key):
    """What is pasted into an image: occluder, covered, box."""
    row = indexed.index["key"].tolist().index(key)
    return tuple(indexed.pasted[name][row] for name in ("occluder", "covered", "box"))


def test_every_query_has_an_occluded_copy_and_nothing_else_changes(tmp_path):
    indexed, blobs = build(tmp_path / "a.zip", dataset())
    copies = indexed.index[indexed.index["key"].str.startswith("query/occluded/")]
    assert copies[["key", "pid", "camid"]].values.tolist() == [
        ["query/occluded/0003_c1s1.png", 3, 0],
        ["query/occluded/0004_c1s1.png", 4, 0],
    ]
    rest = {key: blob for key, blob in blobs.items() if "occluded" not in key}
    assert sorted(rest.values()) == sorted(dataset().values())
    assert indexed.pasted["occluder"].sum() == 2 and "2 queries copied" in describe(indexed)
    assert pasted(indexed, "query/0003_c1s1.png")[1:2] == (0.0,)


def test_a_copy_differs_exactly_where_it_says_that_it_is_covered(tmp_path):
    indexed, blobs = build(tmp_path / "a.zip", dataset())
    for pid in ("0003", "0004"):
        occluder, share, (top, left, bottom, right) = pasted(indexed, f"query/occluded/{pid}_c1s1.png")
        image = decode(blobs[f"query/occluded/{pid}_c1s1.png"])
        changed = (image != COLOURS[pid]).any(2)
        inside = np.zeros(SIZE, bool)
        inside[top:bottom, left:right] = True
        assert occluder == 1 and (changed == inside).all() and share == pytest.approx(inside.mean())
        assert 0.07 < share < 0.43  # area, rounded to whole pixels
        assert {tuple(pixel) for pixel in image[changed]} <= {COLOURS["0001"], COLOURS["0002"]}


def test_a_copy_depends_on_the_seed_and_on_no_other_query(tmp_path):
    key = "query/occluded/0004_c1s1.png"
    blob = build(tmp_path / "a.zip", dataset())[1][key]
    assert build(tmp_path / "b.zip", dataset(["0004"]))[1][key] == blob
    assert build(tmp_path / "c.zip", dataset(), seed=2)[1][key] != blob


def test_an_obstacle_is_never_cut_from_the_same_person(tmp_path):
    files = dataset() | {"bounding_box_train/0004_c9s1.png": plain_png(COLOURS["0004"])}
    for seed in range(6):
        indexed, _ = build(tmp_path / f"{seed}.zip", files, seed=seed)
        assert indexed.pasted["occluder"].sum() == 2
        image = decode(build(tmp_path / f"{seed}.zip", files, seed=seed)[1]["query/occluded/0004_c1s1.png"])
        assert (image != COLOURS["0004"]).any()


def cutout(folder):
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[1:5, 2:4] = 255  # solid there, transparent elsewhere
    folder.mkdir()
    Image.fromarray(pixels, "RGBA").save(folder / "post.png")
    return str(folder)


def test_cut_outs_cover_where_they_are_solid(tmp_path):
    folder = cutout(tmp_path / "cutouts")
    test_only = {f"{body}_body_images/001/001_01.png": plain_png((9, 9, 9)) for body in ("occluded", "whole")}
    indexed, blobs = build(tmp_path / "a.zip", test_only, "occluded_reid", cutouts=folder)
    image = decode(blobs["query/occluded/001/001_01.png"])
    share = pasted(indexed, "query/occluded/001/001_01.png")[1]
    assert share == pytest.approx((image != 9).any(2).mean()) and share > 0
    with pytest.raises(BadInput, match=r"cutouts is empty, and the set has no training images"):
        build(tmp_path / "b.zip", test_only, "occluded_reid")


def test_a_cut_out_that_is_longer_than_the_picture_covers_what_was_drawn_and_shows_either_end(tmp_path):
    pole = np.zeros((200, 8, 4), np.uint8)
    pole[:100], pole[100:] = (250, 0, 0, 255), (0, 0, 250, 255)
    pole[[0, -1], 0] = 0  # transparent: WebP drops the alpha of an opaque picture
    (tmp_path / "cutouts/poles").mkdir(parents=True)
    Image.fromarray(pole, "RGBA").save(tmp_path / "cutouts/poles/pole.webp", lossless=True)
    ends = set()
    for seed in range(12):
        changes = {"cutouts": str(tmp_path / "cutouts"), "area": [0.25, 0.25], "seed": seed}
        indexed, blobs = build(tmp_path / f"{seed}.zip", dataset(), **changes)
        _, share, (top, _, bottom, _) = pasted(indexed, "query/occluded/0003_c1s1.png")
        assert share == pytest.approx(0.25, abs=0.005) and (top, bottom) == (0, 40)  # 5 of 20 columns
        image = decode(blobs["query/occluded/0003_c1s1.png"])
        ends |= {end for end, colour in (("upper", 0), ("lower", 2)) if (image[..., colour] == 250).any()}
    assert ends == {"upper", "lower"}


def test_a_damaged_query_or_donor_is_named_once_for_each(tmp_path):
    files = dataset()
    for name in ("query/0003_c1s1.png", "bounding_box_train/0001_c1s1.png"):
        with pytest.raises(BadInput, match=rf"{name}: cut off or damaged"):
            build(tmp_path / "a.zip", files | {name: files[name][:60]})


def test_a_set_with_its_own_truth_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"truth\.h5: a set that brings its truth needs no index\.occlude"):
        build(tmp_path / "a.zip", with_truth(["query/x.jpg"]))


@pytest.mark.parametrize("occlude", [True, False])
def test_the_stage_occludes_the_datasets_that_params_name(tmp_path, occlude):
    config = tmp_path / "params.yaml"
    config.write_text(CONFIG.replace('"datasets": []', '"datasets": ["mine"]') if occlude else CONFIG)
    outs = [str(tmp_path / "mine" / name) for name in ("index.parquet", "images.h5", "truth.h5")]
    stage.main("folders", zipped(tmp_path / "a.zip", dataset()), *outs, config=str(config))
    index = read_index(outs[0])
    truth = LabelFile(outs[2], "truth", index_hash(index))
    assert len(index) == (8 if occlude else 6) and truth.attrs["truth"] == 0
    assert truth.names() == (["box", "covered", "occluder"] if occlude else [])
    hidden = np.zeros((len(index), 4), np.uint8)
    attrs = {"index": index_hash(index), "parts": ["head", "arms", "torso", "legs"]}
    write_label_file(tmp_path / "occlusion.h5", "occlusion", {"occluded": hidden}, attrs)
    grouped = report.query_groups(index, LabelFile(tmp_path / "occlusion.h5"), truth, 5.0)
    assert grouped.occluded.tolist() == ([False, False, True, True] if occlude else [False, False])
    assert ("pasted upon" in grouped.source) == occlude and grouped.copies == occlude
