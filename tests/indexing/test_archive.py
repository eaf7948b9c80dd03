"""Archives: every file is read, or left out with the reason; names in any encoding; packing a folder."""

import io
import json
import os
import socket
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.params import BadInput
from pipeline.data.index import read_index
from pipeline.data.pictures import picture_suffixes
from pipeline.indexing.__main__ import main as command
from pipeline.indexing.archive import Archive, pack, walk
from pipeline.indexing.build import build_index, describe, load_layout
from pipeline.indexing.datasets import read_encoding
from pipeline.indexing.kinds import why_left_out
from pipeline.indexing.layout import parse_market_name, parse_numbered_name
from stages import index as stage
from tests.indexing.test_build import CONFIG, options, people, picture, tarred, unpack, zipped
from tests.indexing.test_layouts import files_of

QUERY = "set/query/0001_c1s1_000001_00"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def build(path, layout="folders", encoding=None, **changes):
    with Archive(path, encoding) as archive:
        return build_index(archive, layout, options(**changes), 1)


def complaint(path, layout="folders", encoding=None, **changes):
    with pytest.raises(BadInput) as error:
        build(path, layout, encoding, **changes)
    return str(error.value)


def with_links(path, files, links):
    """A tar of files and of symbolic links."""
    tarred(path, files)
    with tarfile.open(path, "a") as target:
        for name, link in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            target.addfile(entry)
    return str(path)


# ------------------------------------------------------------------ what is a picture

FORMATS = {
    ".webp": "WEBP",
    ".jfif": "JPEG",
    ".JPE": "JPEG",
    ".avif": "AVIF",
    ".gif": "GIF",
    ".jp2": "JPEG2000",
    ".ppm": "PPM",
    ".TGA": "TGA",
    ".qoi": "QOI",
    ".pcx": "PCX",
    "": "JPEG",
    ".dat": "PNG",
    ".txt": "WEBP",
    ".jpg ": "JPEG",
    ".001": "BMP",
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_whatever_pillow_reads_is_a_picture_by_its_suffix_or_its_content(tmp_path, suffix):
    files = people() | {f"{QUERY[:-2]}01{suffix}": picture(7, form=FORMATS[suffix])}
    indexed = build(zipped(tmp_path / "a.zip", files))
    assert f"query/0001_c1s1_000001_01{suffix}" in indexed.index["key"].tolist()
    assert len(indexed.left_out) == 3 and len(indexed.index) == 6


def test_suffixes_of_data_films_and_icons_are_no_pictures():
    assert not {".h5", ".hdf", ".grib", ".pdf", ".ps", ".mpg", ".ico", ".wmf"} & picture_suffixes()
    assert {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"} <= picture_suffixes()


NO_PICTURES = {  # name: content, and why it is none
    "a.txt": (b"BMW of person 1", "no picture"),
    "a.ppm.md": (b"P6 is a format", "no picture"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "no picture"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99, "no picture"),
    "empty": (b"", "no picture"),
    ".DS_Store": (b"\0\0\0\1Bud1", "hidden"),
    "a/._x.jpg": (b"\0\5\x16\7\0\2\0\0", "hidden"),
    "__MACOSX/x.jpg": (b"\0\5\x16\7\0\2\0\0", "hidden"),
    "a/@eaDir/x.jpg": (picture(), "hidden"),  # a thumbnail
    ".git/x": (b"x", "hidden"),
    "a/.x.jpg": (picture(), "a hidden picture"),
    "a/.ipynb_checkpoints/x-checkpoint": (picture(), "a hidden picture"),
    "a.HEIC": (b"x", "a picture of a format that Pillow lacks"),
    "b.dat": (HEIC, "a picture of a format that Pillow lacks"),
    "a.dng": (picture(form="TIFF"), "a picture of a format that Pillow lacks"),
    "a.ZIP": (b"PK", "an archive in the archive"),
    "a.tar.gz": (b"", "an archive in the archive"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_has_a_reason(tmp_path, name):
    content, reason = NO_PICTURES[name]
    for path in (zipped(tmp_path / "a.zip", {name: content}), tarred(tmp_path / "a.tar", {name: content})):
        with Archive(path) as archive:
            assert why_left_out(archive, name) == reason


def test_a_damaged_file_beside_the_images_is_listed_and_in_a_splits_folder_a_fault(tmp_path):
    files = people() | {"set/notes.txt": b"12345678", "set/query/0001_c1s1_000001_09": b"abcdefgh"}
    path = zipped(tmp_path / "a.zip", files)
    raw = (
        (tmp_path / "a.zip").read_bytes().replace(b"12345678", b"12345679").replace(b"abcdefgh", b"abcdefgg")
    )
    (tmp_path / "a.zip").write_bytes(raw)
    assert "_09: a file that cannot be read from the archive, which is not read; pack" in complaint(path)
    assert "cannot be read from the archive: 1 .txt, 1 without" in describe(build(path, others="warn"))


# ------------------------------------------------------------------ what is left out


def test_what_is_left_out_is_listed_by_reason_with_counts_and_first_names(tmp_path):
    files = {f"set/notes/{n}.txt": b"x" for n in range(4)} | {
        "set/query/.DS_Store": b"x",
        "set/gt_bbox/0001_c1s1_000001_00.jpg": picture(),
        "set/gt_bbox/0001_c1s1_000002_00.jpg": picture(),
        "set/raw.zip": b"PK",
        "set/truth.md": b"x",
    }
    text = describe(build(zipped(tmp_path / "a.zip", people() | files)))
    start = text.index("5 images; 1 image of junk")
    assert text[start:].splitlines()[:5] == [
        "5 images; 1 image of junk or validation dropped, 12 other files left out:",
        "  outside bounding_box_train/, query/, bounding_box_test/: 3 .jpg (set/gt_bbox/0001_c1s1_000001_00"
        ".jpg, set/gt_bbox/0001_c1s1_000002_00.jpg, set/gt_query/0001_c1s1_000001_00.jpg)",
        "  no picture: 5 .txt, 1 .db, 1 .md (set/notes/0.txt, set/notes/1.txt, set/notes/2.txt, and 4 more)",
        "  hidden: 1 without ending (set/query/.DS_Store)",
        "  an archive in the archive: 1 .zip (set/raw.zip)",
    ]


MISSED = {  # a file in a split's folder: the remedy
    "set/query/.0009_c1s1_000001_00.jpg": (picture(), "a hidden picture, which is not read; rename it"),
    "set/query/0009_c1s1_000001_00.heic": (HEIC, "that Pillow lacks, which is not read; save it as PNG"),
    "set/query/more.zip": (b"PK", "an archive in the archive, which is not read; unpack it before you pack"),
}


@pytest.mark.parametrize("name", MISSED)
def test_a_picture_of_a_split_that_is_not_read_is_a_fault_unless_a_param_says_so(tmp_path, name):
    content, message = MISSED[name]
    path = zipped(tmp_path / "a.zip", people() | {name: content})
    text = complaint(path)
    assert "1 fault among 6 images" in text and f"  {name}: " in text and message in text
    assert "`index.others: warn` leaves it out\n" in text
    assert text.endswith(". Or set what is named above in params.yaml.")
    indexed = build(path, others="warn")
    assert len(indexed.index) == 5 and name in [item.name for item in indexed.left_out]
    assert f"({name})" in describe(indexed)


@pytest.mark.parametrize("name", [f"{QUERY}.png", "set/query"])
def test_a_link_where_a_splits_images_lie_is_a_fault(tmp_path, name):
    files = {n: c for n, c in people().items() if name != "set/query" or "/query/" not in n}
    text = complaint(with_links(tmp_path / "a.tar", files, {name: "../elsewhere"}))
    assert f"{name}: a link or device, which is not read; put the file itself there" in text
    indexed = build(with_links(tmp_path / "b.tar", people(), {"set/latest": "query"}))
    assert ("set/latest", "a link or device", False) in indexed.left_out


def test_a_link_in_a_zip_is_no_file_either(tmp_path):
    path = zipped(tmp_path / "a.zip", people())
    with zipfile.ZipFile(path, "a") as target:
        entry = zipfile.ZipInfo("set/query/0009_c1s1_000001_00.jpg")
        entry.external_attr = 0o120777 << 16
        target.writestr(entry, "../elsewhere.jpg")
    assert "0009_c1s1_000001_00.jpg: a link or device, which is not read" in complaint(path)


names = st.lists(
    st.sampled_from(["query", "bounding_box_train", ".a", "b", "__MACOSX", "0001_c1s1_1.jpg", "me.png"]),
    min_size=1,
    max_size=3,
)
contents = st.sampled_from([b"", b"text", HEIC, picture()])
endings = st.sampled_from(["", ".jpg", ".webp", ".txt", ".zip", ".heic"])


@given(st.dictionaries(st.builds(lambda parts, end: "/".join(parts) + end, names, endings), contents))
def test_every_file_is_an_image_or_left_out_or_at_fault(tmp_path_factory, files):
    files = {n: c for n, c in files.items() if not any(other.startswith(f"{n}/") for other in files)}
    with Archive(zipped(tmp_path_factory.mktemp("law") / "a.zip", files)) as archive:
        listing = load_layout("folders").list_images(archive)
    places = [image.name for image in listing.images] + [item.name for item in listing.left_out]
    places += [problem.place for problem in listing.problems if problem.place]
    assert sorted(places) == sorted(files)


def test_a_picture_that_no_list_of_msmt17_names_is_a_fault(tmp_path):
    extra = {"train/0000/0000_009_01_0303morning_0015_0.jpg": picture(9), "train/x.txt": b"x"}
    path = zipped(tmp_path / "a.zip", files_of("msmt17 V1") | extra)
    text = complaint(path, "msmt17", counts="warn")
    assert "1 fault among 4 images" in text and "a picture that no list names, which is not read; add" in text
    assert len(build(path, "msmt17", counts="warn", others="warn").left_out) == 2


def test_without_any_image_the_folders_and_archives_there_are_named(tmp_path):
    files = {"set/Query/0001_c1s1_1.jpg": picture(), "set/train.tar.gz": b"x"}
    text = complaint(zipped(tmp_path / "a.zip", files))
    assert "no folder query/ (there is set/Query/; rename it)" in text
    assert (
        "2 other files left out:\n" in text and "an archive in the archive: 1 .gz (set/train.tar.gz)" in text
    )


def test_two_files_of_truth_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", people() | {"set/truth.h5": b"x", "truth.h5": b"x"})
    assert complaint(path) == f"{path}: set/truth.h5 and truth.h5: more than one truth. Keep one."


# ------------------------------------------------------------------ a table

TABLE = "path,pid,camid,split\na.jpg,1,0,query\nb.jpg,1,1,gallery\n"


def test_pictures_that_a_table_does_not_name_are_counted_and_no_fault(tmp_path):
    files = {name: picture(n) for n, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "d/e.webp"))}
    text = describe(build(zipped(tmp_path / "a.zip", files | {"t.csv": TABLE.encode()}), "table"))
    assert "2 other files left out:\n  not named in t.csv: 1 .jpg, 1 .webp (c.jpg, d/e.webp)\n" in text


NEAR = {  # the file that there is for a.jpg
    "a.png": "a.jpg (row 2; there is a.png)",
    "A.jpg": "a.jpg (row 2; there is A.jpg)",
    "a.jpg ": "a.jpg (row 2; there is a.jpg )",
    "x/A.JPG": "a.jpg (row 2; there is x/A.JPG)",
    "z.jpg": "lacks: a.jpg (row 2)",
}


@pytest.mark.parametrize("name", NEAR)
def test_a_path_that_is_nearly_right_is_hinted_at(tmp_path, name):
    files = {"t.csv": TABLE.encode(), name: picture(), "b.jpg": picture(1)}
    assert NEAR[name] in complaint(zipped(tmp_path / "a.zip", files), "table")


def test_a_path_that_is_a_link_is_said_to_be_one(tmp_path):
    path = with_links(tmp_path / "a.tar", {"t.csv": TABLE.encode(), "b.jpg": picture()}, {"a.jpg": "b.jpg"})
    assert "a.jpg (row 2; it is a link: put the file itself there)" in complaint(path, "table")


def test_another_kind_of_table_is_named(tmp_path):
    assert "found: none; save s.xlsx as CSV" in complaint(
        zipped(tmp_path / "a.zip", {"s.xlsx": b""}), "table"
    )
    tables = {"t.csv": b"", "u.csv": b"", ".v.csv": b""}
    assert "found: t.csv, u.csv; keep one" in complaint(zipped(tmp_path / "b.zip", tables), "table")


# ------------------------------------------------------------------ names


def zipped_in(encoding, path, files):
    """A zip whose names are bytes of an encoding that it does not record."""
    codes = {name: f"{n:Q>{len(name.encode(encoding))}}" for n, name in enumerate(files)}
    zipped(path, {codes[name]: content for name, content in files.items()})
    raw = path.read_bytes()
    for name, code in codes.items():
        raw = raw.replace(code.encode(), name.encode(encoding))
    path.write_bytes(raw)
    return str(path)


def named(one="张三", two="表李四"):
    rows = f"path,pid,camid,split\n{one}/a.jpg,1,0,query\n{two}.jpg,1,1,gallery\n"
    return {"t.csv": rows.encode(), f"{one}/a.jpg": picture(1), f"{two}.jpg": picture(2)}


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "big5"])
def test_names_of_an_encoding_that_a_zip_does_not_record_are_read_when_stated(tmp_path, encoding):
    files = named("山", "表日本")  # a byte of 表 is a backslash in Shift JIS
    path = zipped_in(encoding, tmp_path / "a.zip", files)
    text = complaint(path, "table")
    assert "lists 2 images that the archive lacks" in text
    assert "does not record the encoding of 2 names in it, such as " in text
    assert f"as `names: {encoding}`, which finds 2 of them\n" in text
    assert text.endswith(". Or set what is named above in params.yaml.")
    assert build(path, "table", encoding).index["key"].tolist() == ["query/山/a.jpg", "gallery/表日本.jpg"]


def test_names_in_utf_8_are_recognised_without_being_recorded(tmp_path):
    path = zipped_in("utf-8", tmp_path / "a.zip", named())
    assert build(path, "table").index["key"].tolist() == ["query/张三/a.jpg", "gallery/表李四.jpg"]


def test_names_of_an_unknown_encoding_are_reported_where_no_table_needs_them(tmp_path):
    files = people() | {"set/query/0001_c2s1_000001_张三.jpg": picture(9)}
    path = zipped_in("gbk", tmp_path / "a.zip", files)
    text = describe(build(path))
    assert "the zip does not record the encoding of 1 name in it, such as " in text and "`names: gbk`" in text
    assert "does not record" not in describe(build(path, encoding="gbk"))


def test_an_old_tar_is_read_in_the_stated_encoding(tmp_path):
    files = people() | {"set/query/0001_c2s1_000001_张三.jpg": picture(9)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="gbk") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    assert "the name is not UTF-8; state its encoding in params.yaml" in complaint(tmp_path / "a.tar")
    assert (
        "query/0001_c2s1_000001_张三.jpg" in build(tmp_path / "a.tar", encoding="gbk").index["key"].tolist()
    )


MINE = {"layout": "table", "archive": "a.zip"}


@pytest.mark.parametrize("encoding", ["gkb", "hex", "a\0b"])
def test_an_encoding_that_does_not_exist_is_refused(tmp_path, encoding):
    (tmp_path / "params.yaml").write_text(json.dumps({"datasets": {"mine": MINE | {"names": encoding}}}))
    with pytest.raises(BadInput, match=r"yaml: datasets\.mine\.names = .*: no such encoding\. .*such as gbk"):
        read_encoding(tmp_path / "params.yaml", "mine")


def test_names_that_are_not_of_the_stated_encoding_are_refused(tmp_path):
    path = zipped_in("gbk", tmp_path / "a.zip", named())
    with pytest.raises(BadInput, match=r"names = 'utf-8': b'.*' is no name in it\. Choose another"):
        Archive(path, "utf-8")


def test_the_stage_reads_the_encoding_from_params(tmp_path):
    path = zipped_in("gbk", tmp_path / "a.zip", named())
    entry = f"datasets: {{mine: {{layout: table, archive: {path}, names: gbk}}}}"
    (tmp_path / "params.yaml").write_text(CONFIG.replace("datasets: {}", entry))
    outs = [str(tmp_path / "mine" / out) for out in ("index.parquet", "images.h5", "truth.h5")]
    stage.main("table", path, *outs, config=str(tmp_path / "params.yaml"))
    assert read_index(outs[0])["key"].tolist() == ["query/张三/a.jpg", "gallery/表李四.jpg"]


def test_both_forms_of_unicode_are_one_name(tmp_path):
    files = {unicodedata.normalize("NFD", name): content for name, content in named("été", "Škoda").items()}
    indexed = build(zipped(tmp_path / "a.zip", files), "table")
    assert indexed.index["key"].tolist() == ["query/été/a.jpg", "gallery/Škoda.jpg"]


TWICE = {
    "a backslash": ("set/query/x.txt", "set\\query\\x.txt"),
    "a dot": ("set/query/x.txt", "./set/./query//x.txt"),
    "a file and a folder": ("set/query/x", "set/query/x/y.txt"),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_name_that_stands_for_two_files_is_refused(tmp_path, case):
    path = zipped(tmp_path / "a.zip", people() | dict.fromkeys(TWICE[case], b"x"))
    text = "holds 1 name for several files, of which unpacking would keep the last: "
    assert text + TWICE[case][0] in complaint(path)


def test_names_that_differ_in_case_alone_are_two(tmp_path):
    files = people() | {f"{QUERY}.JPG": picture(9)}
    assert len(build(zipped(tmp_path / "a.zip", files)).index) == 6


MARKET_FAULTS = {
    "0001_c1.jpg": "`s` or `_` must follow the camera ('.jpg' does)",
    "1_c0s1_000001_00.jpg": "a camera is a number from 1 to 9999 without zeros before it ('_c0s1_00",
    "1_c01s1_000001_00.jpg": "a camera is a number from 1 to 9999 without zeros before it",
    "1_c10000s1.jpg": "a camera is a number from 1 to 9999",
    "0001_cam1_01.jpg": "a camera is a number from 1 to 9999",
    "0001_C1s1.jpg": "`_c` and a camera must follow the identity ('_C1s1.jpg' does)",
    "0001-c1s1.jpg": "`_c` and a camera must follow the identity",
    "0001.jpg": "`_c` and a camera must follow the identity",
    "person1_cam1_01.jpg": "it does not begin with an identity",
    "1234567890_c1s1.jpg": "it does not begin with an identity (a number of up to 9 digits, or -1)",
    "-2_c1s1.jpg": "it does not begin with an identity",
}


@pytest.mark.parametrize("name", MARKET_FAULTS)
def test_the_piece_of_a_name_that_does_not_parse_is_said(name):
    error = parse_market_name(f"a/{name}")
    assert error.startswith(f"the name does not parse: {MARKET_FAULTS[name]}")
    assert error.endswith("Rename it, or list the images in a table (`layout: table`)")


def test_a_numbered_name_that_does_not_parse_is_sent_to_a_table():
    assert "it does not begin with a number and `_` or `.`" in parse_numbered_name("a/b-1.jpg")
    assert "`layout: table`" in parse_numbered_name("123456789_1.jpg")


def test_counts_that_may_differ_because_of_bad_names_are_not_excused(tmp_path):
    files = files_of("market1501")
    path = zipped(tmp_path / "a.zip", files | {"Market/query/me.jpg": picture(9)})
    assert "(published: 3368), 1 identity (published: 750), 1 camera (published: 6). Mend the" in (
        complaint(path, "market1501")
    )
    assert "index.counts" not in complaint(path, "market1501")
    assert "`index.counts: warn` takes it" in complaint(zipped(tmp_path / "b.zip", files), "market1501")


# ------------------------------------------------------------------ what is no archive

FOREIGN = {"bzip2": b"BZh91AY", "xz": b"\xfd7zXZ\0", "Zstandard": b"\x28\xb5\x2f\xfd", "RAR": b"Rar!\x1a"}


@pytest.mark.parametrize("form", FOREIGN)
def test_an_archive_of_another_form_is_named(tmp_path, form):
    (tmp_path / "a.tar").write_bytes(FOREIGN[form] + bytes(2000))
    with pytest.raises(BadInput, match=rf"a {form} archive, which is not read here\. Unpack it, then run"):
        Archive(tmp_path / "a.tar")


def test_a_hard_link_is_its_file_and_one_to_nowhere_is_named(tmp_path):
    path = tmp_path / "a.tar"
    for target in (f"{QUERY}.jpg", "nowhere.jpg"):
        tarred(path, people())
        with tarfile.open(path, "a") as archive:
            entry = tarfile.TarInfo("set/query/0001_c1s1_000009_00.jpg")
            entry.type, entry.linkname = tarfile.LNKTYPE, target if target == "nowhere.jpg" else f"./{target}"
            archive.addfile(entry)
        if target == "nowhere.jpg":
            assert "000009_00.jpg: cannot be read from the archive" in complaint(path)
        else:
            assert "query/0001_c1s1_000009_00.jpg" in build(path).index["key"].tolist()


# ------------------------------------------------------------------ packing a folder


def test_packing_names_what_is_no_file(tmp_path, capsys, monkeypatch):
    folder = unpack(tmp_path / "one", people() | {"set/.hidden": b"x"})
    (tmp_path / "other").mkdir()
    (folder / "set/extra").symlink_to(tmp_path / "other")
    (folder / "set/gone.jpg").symlink_to("nowhere")
    (folder / "set/copy.txt").symlink_to("readme.txt")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("pipe")
    command("pack", str(folder), str(tmp_path / "a.zip"))
    output = capsys.readouterr().out
    assert "a.zip: 11 files of" in output
    assert output.splitlines()[1:] == [
        "not packed:",
        "  no regular file: 1 without ending (pipe)",
        "  a link to a folder: 1 without ending (set/extra)",
        "  a broken link: 1 .jpg (set/gone.jpg)",
    ]
    assert {"set/.hidden", "set/copy.txt"} <= set(zipfile.ZipFile(tmp_path / "a.zip").namelist())


def test_packing_never_packs_what_it_writes(tmp_path):
    folder = unpack(tmp_path / "one", people())
    (folder / "set/.a.zip.elsewhere.1.part").write_bytes(b"another machine's")
    target = folder / "set/a.zip"
    count, others = pack(folder, target)
    first = target.read_bytes()
    assert count == len(people()) and list(others) == ["set/.a.zip.elsewhere.1.part"]
    count, others = pack(folder, target)
    assert count == len(people()) and "set/a.zip" in others and target.read_bytes() == first


UNREADABLE = {
    "unreadable.jpg": r"unreadable\.jpg: cannot be read \(",
    "\udce9.jpg": "the name is not UTF-8. Rename",
}


@pytest.mark.parametrize("name", UNREADABLE, ids=ascii)
def test_a_file_that_cannot_be_packed_is_named_and_nothing_is_written(tmp_path, name):
    folder = unpack(tmp_path / "one", people())
    if name == "unreadable.jpg":
        (folder / name).symlink_to("/proc/self/mem")  # not even by root
    else:
        (folder / name).write_bytes(b"x")
    with pytest.raises(BadInput, match=UNREADABLE[name]):
        pack(folder, tmp_path / "out/a.zip")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("owner", "name"), [(os, "scandir"), (Path, "is_file")])
def test_a_folder_that_cannot_be_listed_or_entered_is_named(tmp_path, monkeypatch, owner, name):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    folder = unpack(tmp_path / "one", {"x": b""})
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(BadInput, match=r"one(/x)?: cannot be read \(Permission denied\)\. Allow it"):
        walk(folder)


def test_packing_writes_a_zip_alone(tmp_path):
    with pytest.raises(BadInput, match=r"a\.tar: packing writes a zip\. Choose a name that ends in \.zip"):
        pack(unpack(tmp_path / "one", people()), tmp_path / "a.tar")


def test_an_archive_is_not_packed_as_a_folder(tmp_path):
    path = zipped(tmp_path / "a.zip", people())
    with pytest.raises(BadInput, match=r"a file, no folder\. Name an archive in params\.yaml as it is"):
        pack(path, tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_the_first_bytes_of_a_file_are_read_alone(tmp_path, name):
    path = (zipped if name == "a.zip" else tarred)(tmp_path / name, {"x": b"abcdef"})
    with Archive(path) as archive:
        assert (archive.read("x", 3), archive.read("x")) == (b"abc", b"abcdef")
