"""Indexing deep and odd pictures: what is refused, what is stored, and what is reported by name."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.data.index import Images, decode, index_hash, read_index
from pipeline.indexing import datasets
from pipeline.indexing.archive import Archive
from pipeline.indexing.build import build_index, describe
from pipeline.indexing.probing import probe
from stages import index as stage
from tests.data.test_index import tiff_pixel
from tests.indexing.test_build import CONFIG, OCCLUDE, people, picture, unpack, zipped
from tests.indexing.test_build import options as index_options

QUERY = "set/query/0001_c1s1_000001_00.jpg"
WARM = (7000 + np.random.default_rng(0).integers(0, 1500, (16, 8))).astype(np.uint16)  # of 14 bits
RANGE = (7000.0, 8500.0)


def saved(pixels, form="PNG", mode=None, **options):
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, form, **options)
    return out.getvalue()


def build(path, files, occlude=False, value_range=None, options=()):
    with Archive(zipped(path, files)) as archive:
        return build_index(archive, "folders", index_options(**dict(options)), 1, occlude, value_range)


def thermal():
    """Every picture has 14 bits but one, which has 8."""
    names = [name for name in people() if name.endswith(".jpg") and "gt_" not in name]
    return {name: saved(np.roll(WARM, n)) for n, name in enumerate(names)} | {QUERY: picture(3)}


# ------------------------------------------------------------------ deep pictures


def test_deep_pictures_without_a_range_are_refused_with_their_values(tmp_path):
    with pytest.raises(BadInput) as error:
        build(tmp_path / "a.zip", thermal())
    name = "set/bounding_box_train/0002_c1s1_000001_00.jpg"
    fault = "more than 8 bits a sample; state in `index.range` which values are black and white"
    assert f"{name}: {fault} (values {WARM.min()} to {WARM.max()})" in str(error.value)
    assert "4 faults" in str(error.value) and "Or set what is named above in params.yaml" in str(error.value)


def test_a_deep_query_and_its_occluded_copy_are_one_fault(tmp_path):
    with pytest.raises(BadInput, match="1 fault among") as error:
        build(tmp_path / "a.zip", people() | {QUERY: saved(WARM)}, occlude=True)
    assert str(error.value).count(QUERY) == 1


def test_the_stage_stores_deep_pictures_with_eight_bits_and_the_index_follows_the_range(tmp_path):
    hashes, outs = [], [str(tmp_path / "mine" / name) for name in ("index.parquet", "images.h5", "truth.h5")]
    for white in (8500, 9000):
        config = tmp_path / "params.yaml"
        config.write_text(CONFIG.replace('"range": {}', f'"range": {{"mine": [7000, {white}]}}'))
        stage.main("folders", zipped(tmp_path / "a.zip", thermal()), *outs, config=str(config))
        index = read_index(outs[0])
        images = Images(outs[1], index_hash(index))
        levels = np.rint((WARM - 7000.0) * 255 / (white - 7000))
        assert (images[0] == levels[..., None]).all() and (images[2] == decode(picture(3))).all()
        stored = LabelFile(outs[1], "images")
        blob = stored["data"][: stored["offset"][1]].tobytes()
        assert blob.startswith(b"\x89PNG") and probe(blob).sha256 == index["sha256"][0]
        hashes.append(index_hash(index))
    assert hashes[0] != hashes[1]


def test_an_occluded_copy_of_a_deep_query_is_made_of_its_bytes(tmp_path):
    files = thermal() | {QUERY: saved(WARM)}
    with Archive(zipped(tmp_path / "a.zip", files)) as archive:
        indexed = build_index(archive, "folders", index_options(), 1, True, RANGE)
        blobs = dict(zip(indexed.index["key"], indexed.blobs(), strict=True))
    query, copy = (decode(blobs[f"query/{folder}0001_c1s1_000001_00.jpg"]) for folder in ("", "occluded/"))
    row = indexed.index["key"].tolist().index("query/occluded/0001_c1s1_000001_00.jpg")
    assert (query == decode(saved(WARM), RANGE)).all()
    assert 0 < (query != copy).any(2).mean() <= indexed.pasted["covered"][row] < 0.5


def test_a_range_that_nothing_needs_is_reported(tmp_path):
    text = describe(build(tmp_path / "a.zip", people(), value_range=RANGE))
    assert "`index.range` has no effect: no picture has more than 8 bits a sample" in text
    assert "index.range" not in describe(build(tmp_path / "a.zip", people()))


def test_a_range_of_nothing_is_refused():
    with pytest.raises(BadInput, match=r"range = .*: black and white must differ"):
        index_options(range={"mine": [5, 5]})
    assert index_options(range={"mine": [16383, 0]}).range == {"mine": (16383, 0)}


def test_a_range_of_an_unknown_dataset_is_named():
    values = {"datasets": {"mine": {}}, "parse_on": ["mine"], "labels_from": {}, "train_on": "mine"}
    values |= {"test_on": ["mine"], "index": {"occlude": {"datasets": []}, "range": {"mime": [0, 1]}}}
    assert datasets.reference_faults(values) == [
        "index.range = 'mime': no such dataset; did you mean 'mine'? There are: mine."
    ]


# ------------------------------------------------------------------ odd pictures

NOISE = np.random.default_rng(1).integers(1, 255, (16, 8, 4), np.uint8)
NOISE[..., 3] = 255
SEE_THROUGH = NOISE.copy()
SEE_THROUGH[:2, :, 3] = 0
FRAMES = [Image.fromarray(np.roll(NOISE[..., :3], n)) for n in range(2)]
LOSSLESS = {"form": "WEBP", "lossless": True}

ODD = {  # a picture's bytes, and what is said of it
    "in seven levels": (saved((WARM >> 8).astype(np.uint8)), ["of 32 levels or fewer"]),
    "a plane": (saved(np.full((16, 8, 3), 99, np.uint8)), ["of 32 levels or fewer"]),
    "overexposed": (saved(cv2.add(NOISE[..., 0], 140)), ["in which most samples are 0 or 255"]),
    "black and white": (
        picture(mode="1", form="PNG"),
        ["of 32 levels or fewer", "in which most samples are 0 or 255"],
    ),
    "see-through": (saved(SEE_THROUGH), ["with transparent pixels"]),
    "see-through, WebP": (saved(SEE_THROUGH, **LOSSLESS), ["with transparent pixels"]),
    "opaque": (saved(NOISE), []),
    "CMYK": (picture(mode="CMYK"), ["in CMYK, converted without a colour profile"]),
    "frames": (
        saved(np.asarray(FRAMES[0]), "TIFF", save_all=True, append_images=FRAMES[1:]),
        ["of several frames, of which the first is taken"],
    ),
    "a photograph": (picture(), []),
    "grey": (picture(mode="L"), []),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_about_a_picture_is_said(kind):
    blob, words = ODD[kind]
    oddities = probe(blob).oddities
    assert len(oddities) == len(words)
    assert all(oddity.startswith(word) for oddity, word in zip(oddities, words, strict=True))


def test_a_file_that_pillow_does_not_identify_is_not_called_cut_off_alone():
    ten_bits = tiff_pixel([1], 10)
    assert probe(ten_bits) == "cut off or damaged, or of a kind that Pillow does not read"
    assert probe(b"text") == "no image"


def test_odd_pictures_are_counted_and_the_first_named_without_their_copies(tmp_path):
    files = people() | {f"set/query/0001_c1s1_00001{n}_00.jpg": ODD["a plane"][0] for n in range(7)}
    text = describe(build(tmp_path / "a.zip", files, occlude=True))
    names = ", ".join(f"set/query/0001_c1s1_00001{n}_00.jpg" for n in range(5))
    assert f"7 pictures of 32 levels or fewer: {names}, and 2 more" in text


def test_pictures_read_by_content_are_named_without_their_copies(tmp_path):
    names = [f"set/query/0001_c1s1_00001{n}_00.jpg{end}" for n, end in enumerate([".bak", "~", ".JPG"])]
    files = people() | {name: picture(90 + n) for n, name in enumerate(names)}
    text = describe(build(tmp_path / "a.zip", files, occlude=True))
    assert f"2 pictures without a picture's ending, read by content: {names[0]}, {names[1]}\n" in f"{text}\n"
    assert "read by content" not in describe(build(tmp_path / "b.zip", people()))


# ------------------------------------------------------------------ cut-outs and cameras


def test_cut_outs_are_counted_and_the_other_files_of_their_folder_named(tmp_path):
    files = {"trees/oak.webp": saved(SEE_THROUGH, **LOSSLESS), "read me.txt": b"x"}
    folder = unpack(tmp_path / "cut-outs", files)
    occlude = OCCLUDE | {"cutouts": str(folder)}
    text = describe(build(tmp_path / "a.zip", people(), occlude=True, options={"occlude": occlude}))
    assert f"{folder}: 1 cut-out; 1 other file left out: read me.txt" in text


def with_cameras(cameras):
    """One person, seen by these cameras in the gallery and by camera 1 as a query."""
    files = {f"bounding_box_test/0001_c{c}s1_{n}.jpg": picture(n) for n, c in enumerate(cameras)}
    train = {f"bounding_box_train/000{n}_c1s1_1.jpg": picture(90 + n) for n in range(2, 4)}
    return files | train | {"query/0001_c1s1_9.jpg": picture(99)}


CAMERAS = {  # of the gallery: what is said
    "a camera an image": (
        [2, 3, 4, 5, 6],
        "6 cameras for 8 images, and 5 of them took one: do",
    ),
    "two cameras": ([2, 2, 2], ""),
    "few images": ([2, 3, 4, 5], ""),
    "few of many": ([*range(2, 9), *range(2, 9), *range(9, 14)], ""),
}


@pytest.mark.parametrize("kind", CAMERAS)
def test_cameras_that_took_one_image_are_doubted(tmp_path, kind):
    cameras, line = CAMERAS[kind]
    text = describe(build(tmp_path / "a.zip", with_cameras(cameras)))
    assert line in text and ("do these numbers" in text) == bool(line)


def test_a_camera_for_every_image_is_said_with_and_without_occluded_copies(tmp_path):
    files = {
        "bounding_box_train/0002_c1s1_1.jpg": picture(1),
        "query/0001_c2s1_1.jpg": picture(2),
    } | {f"bounding_box_test/0001_c{c}s1_1.jpg": picture(c) for c in (3, 4, 5)}
    for occlude in (False, True):
        text = describe(build(tmp_path / "a.zip", files, occlude))
        assert "5 cameras for 5 images, and each took one: do these numbers name cameras?" in text
