"""Indexing: an archive in Market-1501 layout becomes an index and packed images, or one complete error."""

import io
import json
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import LabelFile, write_packed
from pipeline.core.params import BadInput
from pipeline.data.index import (
    DECODE_ERRORS,
    Images,
    _plain_jpeg,
    decode,
    decode_fast,
    index_hash,
    read_index,
)
from pipeline.indexing import probing
from pipeline.indexing.__main__ import main as command
from pipeline.indexing.archive import Archive, pack
from pipeline.indexing.build import Index, build_index, describe, write_index
from pipeline.indexing.layout import Problem
from pipeline.indexing.probing import probe
from stages import index as stage

ROOT = Path(__file__).parents[2]
OCCLUDE = {"datasets": [], "seed": 1, "area": [0.1, 0.4], "aspect": [0.3, 3.3], "cutouts": ""}
INDEX = {"junk": "drop", "validation": "train", "counts": "refuse", "others": "refuse"}
INDEX |= {"contradictions": "refuse", "range": {}, "occlude": OCCLUDE}
CONFIG = (
    f"workers: 1\ndatasets: {{}}\nindex: {json.dumps(INDEX)}\n"
    "train_on: other\ntest_on: [other]\ntrain: {identities: 2, held_out: 0}\n"
)


def options(**changes):
    """The stage's params with changes."""
    return params.validate(INDEX | changes, Index, "")


def picture(seed=0, size=(8, 16), form="JPEG", mode="RGB", **options):
    """A noisy picture of (width, height) as a file's bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert(mode).save(out, form, **options)
    return out.getvalue()


def people():
    """Two people in training, one query, a gallery with a distractor and junk, and files that are neither."""
    files = {
        "set/bounding_box_train/0002_c1s1_000001_00.jpg": picture(1),
        "set/bounding_box_train/0007_c2s1_000001_00.jpg": picture(2),
        "set/query/0001_c1s1_000001_00.jpg": picture(3, (10, 20)),
        "set/bounding_box_test/0001_c3s2_000001_00.jpg": picture(4),
        "set/bounding_box_test/0000_c3s2_000001_00.jpg": picture(5),
        "set/bounding_box_test/-1_c3s2_000001_00.jpg": picture(6),
    }
    return files | {
        "set/query/Thumbs.db": b"x",
        "set/readme.txt": b"x",
        "set/gt_query/0001_c1s1_000001_00.jpg": b"x",
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return str(path)


def tarred(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo("./" + name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return str(path)


def build(path, junk="drop", workers=1):
    with Archive(path) as archive:
        return build_index(archive, "folders", options(junk=junk), workers)


def complaint(tmp_path, files):
    with pytest.raises(BadInput) as error:
        build(zipped(tmp_path / "bad.zip", files))
    return str(error.value)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(CONFIG)
    return str(path)


def run(tmp_path, config, archive, name="a"):
    outs = [str(tmp_path / name / out) for out in ("index.parquet", "images.h5", "truth.h5")]
    stage.main("folders", str(archive), *outs, config=config)
    return outs


# ------------------------------------------------------------------ what an index is


def test_a_row_holds_identity_camera_split_and_size(tmp_path, config):
    index = read_index(run(tmp_path, config, zipped(tmp_path / "a.zip", people()))[0])
    rows = index[["row", "key", "pid", "camid", "split", "width", "height"]].values.tolist()
    assert rows == [
        [0, "train/0002_c1s1_000001_00.jpg", 2, 0, "train", 8, 16],
        [1, "train/0007_c2s1_000001_00.jpg", 7, 1, "train", 8, 16],
        [2, "query/0001_c1s1_000001_00.jpg", 1, 0, "query", 10, 20],
        [3, "gallery/0000_c3s2_000001_00.jpg", 0, 2, "gallery", 8, 16],
        [4, "gallery/0001_c3s2_000001_00.jpg", 1, 2, "gallery", 8, 16],
    ]


def test_junk_is_dropped_or_kept_as_asked_and_other_files_are_counted(tmp_path):
    path = zipped(tmp_path / "a.zip", people())
    dropped, kept = build(path, "drop"), build(path, "keep")
    assert (dropped.dropped, len(dropped.left_out), len(dropped.index)) == (1, 3, 5)
    assert (kept.dropped, len(kept.index), kept.index["pid"].min()) == (0, 6, -1)


def test_the_summary_counts_images_identities_and_cameras(tmp_path):
    text = describe(build(zipped(tmp_path / "a.zip", people()), "keep"))
    rows = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in text.splitlines()[1:4]}
    assert rows == {"train": [2, 2, 2, 0, 0], "query": [1, 1, 1, 0, 0], "gallery": [3, 1, 1, 1, 1]}


def test_identities_both_in_train_and_test_are_reported(tmp_path):
    files = people() | {"set/bounding_box_train/0001_c2s1_000001_00.jpg": picture(9)}
    assert "1 identity both in train and" in describe(build(zipped(tmp_path / "a.zip", files)))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_zip_and_tar_give_the_same_files(tmp_path, config, name):
    from_zip = run(tmp_path, config, zipped(tmp_path / "a.zip", people()), "one/a")
    from_tar = run(tmp_path, config, tarred(tmp_path / name, people()), "two/a")
    for one, two in zip(from_zip, from_tar, strict=True):
        assert Path(one).read_bytes() == Path(two).read_bytes()


def test_the_order_inside_an_archive_does_not_matter(tmp_path):
    one = build(zipped(tmp_path / "a.zip", people()))
    two = build(zipped(tmp_path / "b.zip", dict(reversed(people().items()))))
    assert one.index.equals(two.index) and one.names == two.names


def test_workers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "PROBE_BATCH", 2)
    path = zipped(tmp_path / "a.zip", people())
    assert build(path, workers=2).index.equals(build(path, workers=1).index)


def test_the_hash_follows_every_identity_and_every_byte(tmp_path):
    index = build(zipped(tmp_path / "a.zip", people())).index
    for column in ("key", "pid", "camid", "sha256"):
        other = index.copy()
        other.loc[1, column] = other.loc[2, column]
        assert index_hash(other) != index_hash(index)


# ------------------------------------------------------------------ truth


def with_truth(keys, **arrays):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["key"] = np.array(keys, "S")
        for name, array in arrays.items():
            file[name] = array
    return people() | {"set/truth.h5": out.getvalue()}


def test_truth_is_put_in_the_indexs_order(tmp_path, config):
    keys = [
        "gallery/-1_c3s2_000001_00.jpg",
        *reversed(build(zipped(tmp_path / "a.zip", people())).index["key"]),
    ]
    files = with_truth(keys, occluder=np.arange(6, dtype=np.uint8))
    truth = LabelFile(run(tmp_path, config, zipped(tmp_path / "t.zip", files))[2], "truth")
    assert truth["occluder"][:].tolist() == [5, 4, 3, 2, 1] and truth.attrs["truth"] == 1


def test_without_truth_the_file_says_so(tmp_path, config):
    truth = LabelFile(run(tmp_path, config, zipped(tmp_path / "a.zip", people()))[2], "truth")
    assert truth.names() == [] and truth.attrs["truth"] == 0


def test_truth_about_other_images_is_refused(tmp_path):
    assert "says nothing about train/0002_c1s1" in complaint(tmp_path, with_truth(["query/x.jpg"]))


def test_truth_that_is_no_truth_is_refused(tmp_path):
    assert "truth.h5: not readable" in complaint(tmp_path, people() | {"set/truth.h5": b"text"})


# ------------------------------------------------------------------ all problems are reported at once


def test_every_bad_image_is_listed_and_nothing_is_written(tmp_path, config):
    good = picture(1)
    bad = {
        "set/query/0001_c1s1_000002_00.jpg": b"",
        "set/query/0001_c1s1_000003_00.jpg": b"just text",
        "set/query/0001_c1s1_000004_00.jpg": good[:-2],
        "set/query/0001_c1s1_000005_00.jpg": good[: len(good) // 2],
        "set/query/0001_c1s1_000006_00.png": picture(1, form="PNG")[:90],
        "set/query/holiday.jpg": good,
        "set/query/0001_c0s1_000001_00.jpg": good,
        "set/query/-1_c1s1_000001_00.jpg": good,
        "set/bounding_box_train/0000_c1s1_000001_00.jpg": good,
    }
    path = zipped(tmp_path / "a.zip", people() | bad)
    with pytest.raises(BadInput) as error:
        run(tmp_path, config, path)
    text = str(error.value)
    assert "9 faults among" in text and path in text and "pipeline.indexing pack" in text
    lines = {name: next(line for line in text.splitlines() if f"{name}:" in line) for name in bad}
    words = ["an empty file", "no image", "cut off", "cut off", "cut off", "does not parse", "does not parse"]
    words += ["means junk", "means a distractor"]
    assert all(word in line for word, line in zip(words, lines.values(), strict=True))
    assert not (tmp_path / "a").exists()


def test_many_problems_of_a_kind_are_counted_and_the_first_named(tmp_path):
    faulty = {f"set/query/0001_c1s1_00000{n}_00.jpg": picture(1)[:-n] for n in range(2, 9)}
    faulty |= {f"set/query/{name}.jpg": picture(1) for name in "abcdefg"}
    text = complaint(tmp_path, people() | faulty | {"set/query/0001_c1s1_000009_00.jpg": b""})
    lines = [line.split(":")[0].strip() for line in text.splitlines()]
    names = [*(f"set/query/{name}.jpg" for name in "abcde"), "and 2 more"]
    names += [*(f"set/query/0001_c1s1_00000{n}_00.jpg" for n in range(2, 7)), "and 2 more"]
    assert lines[1:-1] == [*names, "set/query/0001_c1s1_000009_00.jpg"] and "15 faults among" in text


def test_problems_of_a_kind_differ_in_their_place_and_in_brackets():
    one, two = (
        Problem(f"{n}.jpg", f"raw.zip: {n}.jpg cannot be read from the archive ({n} bytes)") for n in "ab"
    )
    assert one.kind == two.kind != Problem("a.jpg", "an empty file").kind
    assert str(Problem("", "no folder query/")) == Problem("", "no folder query/").kind == "no folder query/"


def test_no_message_names_an_object_in_memory(tmp_path):
    name = "set/query/0001_c1s1_000002_00.jpg"
    text = complaint(tmp_path, people() | {name: b"text"})
    assert f"1 fault among 7 images; nothing was written.\n  {name}: no image\n" in text
    write_packed(tmp_path / "images.h5", "images", [b"text"], np.array([4]), {"index": "x"})
    with pytest.raises(BadInput, match=r"row 0 cannot be decoded\. Run"):
        Images(tmp_path / "images.h5")[0]


def test_a_key_that_occurs_twice_is_named(tmp_path):
    path = tmp_path / "twice.zip"
    zipped(path, people())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as target:
        target.writestr("set/query/0001_c1s1_000001_00.jpg", picture(8))
    match = r"holds 1 name for several files, .*: set/query/0001_c1s1_000001_00\.jpg\."
    with pytest.raises(BadInput, match=match):
        build(path)


def test_a_split_in_two_places_is_named(tmp_path):
    text = complaint(tmp_path, people() | {"copy/query/0009_c1s1_000001_00.jpg": picture(8)})
    assert "query/ is there more than once: copy/query, set/query" in text


def test_missing_and_empty_folders_are_told_apart(tmp_path):
    files = {name: content for name, content in people().items() if "query/0" not in name}
    assert "query/ holds no image" in complaint(tmp_path, files)
    files = {name: content for name, content in people().items() if "box" not in name}
    text = complaint(tmp_path, files)
    assert "no folder bounding_box_train/" in text and "no folder bounding_box_test/" in text


def test_an_empty_dataset_has_none_of_its_folders(tmp_path):
    assert "bad.zip: 3 faults; nothing was written" in complaint(tmp_path, {})


def test_macos_side_files_are_no_images(tmp_path):
    files = people() | {"__MACOSX/set/query/._0001_c1s1_000001_00.jpg": b"x", "set/query/._a.jpg": b"x"}
    assert len(build(zipped(tmp_path / "a.zip", files)).left_out) == 5


def test_a_member_with_a_wrong_checksum_is_named(tmp_path):
    path = tmp_path / "a.zip"
    zipped(path, people())
    content = people()["set/query/0001_c1s1_000001_00.jpg"]
    raw = bytearray(path.read_bytes())
    raw[raw.index(content) + 100] ^= 255
    path.write_bytes(raw)
    message = r"\n  set/query/0001_c1s1_000001_00\.jpg: cannot be read from the archive \(Bad CRC-32\)\.\n"
    with pytest.raises(BadInput, match=message):
        build(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_cut_off_anywhere_is_refused(tmp_path, name):
    path = tmp_path / name
    (zipped if name == "a.zip" else tarred)(path, people())
    whole = path.read_bytes()
    content = len(whole.rstrip(b"\0"))
    for size in [*range(512, content, 512), content - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"damaged|cannot be read"):
            build(path)


def test_a_text_file_is_no_archive(tmp_path):
    (tmp_path / "a.zip").write_text("hello")
    with pytest.raises(BadInput, match="no zip, tar"):
        build(tmp_path / "a.zip")


PACKED = {  # an archive's path: what follows `pack FOLDER`
    "a/v15.09.zip": "a/v15.09.zip`",
    "a/v15.09": "a/v15.09.zip` and name a/v15.09.zip in params.yaml",
    "a.tar.gz": "a.zip` and name a.zip in params.yaml",
    "A.TGZ": "A.zip` and name A.zip in params.yaml",
    "a.7z": "a.zip` and name a.zip in params.yaml",
    "my sets/a.zip": "'my sets/a.zip'`",
    "my sets/a.rar": "'my sets/a.zip'` and name my sets/a.zip in params.yaml",
}


@pytest.mark.parametrize("path", PACKED)
def test_a_missing_archive_says_how_to_make_one(path):
    command = "`python -m pipeline.indexing pack FOLDER "
    with pytest.raises(BadInput) as error:
        Archive(path)
    remedy = f"Put the dataset's archive there, or pack its folder: {command}{PACKED[path]}."
    assert str(error.value) == f"{path}: no such file. {remedy}"


@pytest.mark.parametrize("name", ["set", "my set", "set.zip"])
def test_a_folder_is_refused_with_the_command_that_packs_it(tmp_path, name):
    folder = unpack(tmp_path / name, people())
    with pytest.raises(BadInput) as error:
        build(folder)
    words = shlex.split(str(error.value).split("`")[1])
    assert words == ["python", "-m", "pipeline.indexing", "pack", str(folder), f"{folder}.zip"]
    command(*words[3:])
    assert str(error.value).endswith(f"and name {folder}.zip in params.yaml.") and build(words[-1])


@pytest.mark.parametrize("layout", ["duke", "__init__"])
def test_an_unknown_layout_names_those_there_are(tmp_path, layout):
    with (
        Archive(zipped(tmp_path / "a.zip", people())) as archive,
        pytest.raises(BadInput, match="folders"),
    ):
        build_index(archive, layout, options(), 1)


# ------------------------------------------------------------------ packing a folder


def unpack(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_packing_gives_equal_bytes_for_equal_folders(tmp_path):
    one, two = unpack(tmp_path / "one", people()), unpack(tmp_path / "two", dict(reversed(people().items())))
    assert pack(one, tmp_path / "a.zip") == pack(two, tmp_path / "b.zip") == (len(people()), {})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_command_packs_what_the_stage_reads(tmp_path, capsys):
    folder, path = unpack(tmp_path / "one", people()), tmp_path / "a.zip"
    command("pack", str(folder), str(path))
    assert f"{path}: 9 files" in capsys.readouterr().out and len(build(path).index) == 5
    with pytest.raises(SystemExit):
        run_stage(command, ["extract", str(folder), str(path)])
    assert "argument command: invalid choice: 'extract'" in capsys.readouterr().err


def test_the_command_unpacks_the_indexed_bytes_under_their_keys(tmp_path, config, capsys):
    index, _, _ = run(tmp_path, config, zipped(tmp_path / "a.zip", people()))
    command("unpack", str(Path(index).parent), str(tmp_path / "out"))
    assert "out: 5 images of" in capsys.readouterr().out
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == sorted(read_index(index)["key"])
    query = tmp_path / "out/query/0001_c1s1_000001_00.jpg"
    assert query.read_bytes() == people()["set/query/0001_c1s1_000001_00.jpg"]


def test_the_stage_index_loads_no_torch_even_to_paste_cut_outs():
    """It would triple the memory of the reader and of each of its workers."""
    script = (
        "import sys, numpy, stages.index; from pipeline.data import obstacles; "
        "square = obstacles.Obstacle(numpy.zeros((9, 9, 3), 'uint8'), numpy.ones((9, 9), bool)); "
        "obstacles.fit(square, 50.0, 20, 10, numpy.random.default_rng(0)); print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == "False\n"


def test_unpacking_overwrites_no_file(tmp_path, config):
    index, _, _ = run(tmp_path, config, zipped(tmp_path / "a.zip", people()))
    with pytest.raises(BadInput, match="exists already"):
        command("unpack", str(Path(index).parent), str(tmp_path))


TRAVERSALS = [
    "set/query/../../../../0009_c1s1_1.jpg",
    "/0009_c1s1_1.jpg",
    "set\\..\\..\\query\\0009_c1s1_1.jpg",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_an_archive_whose_names_lead_out_of_it_is_refused(tmp_path, name):
    text = complaint(tmp_path, people() | {name: picture(9)})
    assert "1 name in it would lead out of the folder" in text and name.replace("\\", "/") in text


def test_an_index_whose_keys_lead_out_of_the_folder_is_not_unpacked(tmp_path):
    index = build(zipped(tmp_path / "a.zip", people())).index
    index.loc[2, "key"] = "query/../../0001_c1s1_000001_00.jpg"
    write_index(tmp_path / "b/index.parquet", index, "b", "folders")
    attrs = {"index": index_hash(index)}
    write_packed(tmp_path / "b/images.h5", "images", [b"x"] * 5, np.ones(5, np.int64), attrs)
    with pytest.raises(
        BadInput, match=r"b/index\.parquet: query/\.\./\.\./0001_c1s1_000001_00\.jpg leads out"
    ):
        command("unpack", str(tmp_path / "b"), str(tmp_path / "out/pictures"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("make", "match"), [(False, "no such folder"), (True, "holds no file")])
def test_packing_nothing_is_refused(tmp_path, make, match):
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(BadInput, match=match):
        pack(tmp_path / "x", tmp_path / "x.zip")


# ------------------------------------------------------------------ pictures


def test_images_are_the_archives_pictures_in_the_indexs_order(tmp_path, config):
    index, images, _ = run(tmp_path, config, zipped(tmp_path / "a.zip", people()))
    pictures = Images(images, index_hash(read_index(index)))
    assert len(pictures) == 5
    pixels = np.asarray(Image.open(io.BytesIO(people()["set/query/0001_c1s1_000001_00.jpg"])))
    assert pictures[2].shape == (20, 10, 3) and (pictures[2] == pixels).all()
    with pytest.raises(IndexError):
        pictures[5]


def test_images_travel_to_workers(tmp_path, config):
    pictures = Images(run(tmp_path, config, zipped(tmp_path / "a.zip", people()))[1])
    assert (pickle.loads(pickle.dumps(pictures))[1] == pictures[1]).all()


def test_images_of_another_index_are_refused(tmp_path, config):
    with pytest.raises(BadInput, match="another index"):
        Images(run(tmp_path, config, zipped(tmp_path / "a.zip", people()))[1], "0" * 64)


def test_an_image_that_cannot_be_decoded_is_named_by_its_row(tmp_path):
    write_packed(tmp_path / "images.h5", "images", [b"text"], np.array([4]), {"index": "x"})
    with pytest.raises(BadInput, match="row 0 cannot be decoded"):
        Images(tmp_path / "images.h5")[0]


IMAGE_FILES = {
    "gray": picture(mode="L"),
    "cmyk": picture(mode="CMYK"),
    "palette": picture(mode="P", form="PNG"),
    "transparent": picture(mode="RGBA", form="PNG"),
    "black and white": picture(mode="1", form="PNG"),
    "tiff": picture(form="TIFF"),
    "bmp": picture(form="BMP"),
}


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_every_kind_of_picture_becomes_rgb(kind):
    pixels = decode(IMAGE_FILES[kind])
    assert pixels.shape == (16, 8, 3) and pixels.dtype == np.uint8 and len(np.unique(pixels)) > 1


JPEG = st.fixed_dictionaries(
    {"quality": st.integers(1, 100), "progressive": st.booleans(), "restart_marker_blocks": st.integers(0, 3)}
)


@settings(max_examples=100)
@given(
    JPEG,
    st.sampled_from([0, 1, 2, "rgb", "gray"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_a_jpeg_file_has_the_same_pixels_by_the_fast_decoder(options, colours, width, height, seed):
    kinds = {"rgb": {"keep_rgb": True}, "gray": {"mode": "L"}}
    blob = picture(seed, (width, height), **options, **kinds.get(colours, {"subsampling": colours}))
    assert _plain_jpeg(blob)
    assert (decode_fast(blob) == decode(blob)).all()


def rotated(tag):
    """A JPEG of a camera held sideways, by its EXIF or XMP tag."""
    if tag == "xmp":
        return picture(size=(16, 8), xmp=b'<x tiff:Orientation="6"/>')
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(size=(16, 8), exif=exif)


OTHER_FILES = IMAGE_FILES | {
    "exif": rotated("exif"),
    "xmp": rotated("xmp"),
    "fill bytes": picture()[:2] + b"\xff" + picture()[2:],
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_every_other_image_has_the_same_pixels_by_the_fast_decoder(kind):
    assert (decode_fast(OTHER_FILES[kind]) == decode(OTHER_FILES[kind])).all()


@pytest.mark.parametrize("blob", [b"", b"text", b"\xff\xd8", picture()[:-99], picture()[:99]])
def test_both_decoders_refuse_what_is_no_whole_image(blob):
    for decoder in (decode, decode_fast):
        with pytest.raises(DECODE_ERRORS):
            decoder(blob)


def test_the_exif_tag_turns_a_picture_upright_in_the_index_too(tmp_path):
    blob = rotated("exif")
    assert decode(blob).shape == (16, 8, 3)
    info = probe(blob)
    assert (info.width, info.height) == (8, 16)


def test_an_index_must_be_one(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_index(tmp_path / "index.parquet")
    (tmp_path / "index.parquet").write_text("text")
    with pytest.raises(BadInput, match="no readable index"):
        read_index(tmp_path / "index.parquet")
