"""What a folder and a pattern stand for, and which files are pictures."""

import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.pictures import expand, is_picture


def blob(kind):
    file = io.BytesIO()
    Image.new("RGB", (4, 8)).save(file, kind)
    return file.getvalue()


PICTURES = {  # name, bytes: whether it is a picture
    "a.png": (b"", True),  # by its name: that it is broken is said when it is read
    "a.WEBP": (b"", True),
    "a.jfif": (b"", True),
    "a.dat": (blob("JPEG"), True),  # by its content
    "a": (blob("PNG"), True),
    "a.txt": (b"text", False),
    "a.csv": (b"", False),
    "a.dng": (blob("TIFF"), False),  # a camera's raw file, of which Pillow would read the thumbnail
    "a.ico": (blob("ICO"), False),
    "a.heic": (b"", False),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_one_by_its_name_or_else_by_its_content(tmp_path, name):
    content, wanted = PICTURES[name]
    (tmp_path / name).write_bytes(content)
    assert is_picture(str(tmp_path / name)) == wanted


FILES = ["b.png", "a/z.png", "a/b/y.png", "a/[x].png", "a/.hidden", ".git/x.png", "__MACOSX/x.png"]
BELOW = ["a/[x].png", "a/b/y.png", "a/z.png"]
PATTERNS = {
    "": [*BELOW, "b.png"],
    "a": BELOW,
    "a/": BELOW,
    "*": [*BELOW, "b.png"],  # the folder, and the file beside it
    "**": [*BELOW, "b.png"],
    "**/*.png": [*BELOW, "b.png"],
    "a/?.png": ["a/z.png"],
    "a/*.png": ["a/[x].png", "a/z.png"],
    "*.jpg": [],
    "b.png": None,
    "a/[x].png": None,  # a file of this name
    "gone.png": None,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_folder_and_a_pattern_stand_for_files_in_the_order_of_their_names(tmp_path, monkeypatch, pattern):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    place = expand(pattern or ".")
    assert place is PATTERNS[pattern] or [file.removeprefix("./") for file in place[0]] == PATTERNS[pattern]


def test_a_folder_of_any_name_is_no_pattern(tmp_path):
    folder = tmp_path / "people [2024]*"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    assert expand(str(folder)) == ([str(folder / "a.png")], [])


def test_a_link_is_followed_to_a_file_or_where_it_is_named_and_else_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("elsewhere/a.png", "folder/c/d.png"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"")
    Path("folder/linked").symlink_to(tmp_path / "elsewhere")
    Path("folder/broken.png").symlink_to("gone.png")
    Path("folder/b.png").symlink_to("c/d.png")
    files = ["folder/b.png", "folder/broken.png", "folder/c/d.png"]
    assert expand("folder") == (files, ["folder/linked"])
    assert expand("folder/linked") == expand("folder/link*") == (["folder/linked/a.png"], [])


@pytest.mark.parametrize("place", ["loop", "loop/**", "loop/**/*.png", "lo*"])
def test_a_link_to_a_folder_above_multiplies_no_file(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("loop/deeper").mkdir(parents=True)
    Path("loop/deeper/a.png").write_bytes(b"")
    Path("loop/again").symlink_to(".")
    assert expand(place)[0] == ["loop/deeper/a.png"]


def test_hidden_files_and_folders_below_a_folder_are_named_for_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    assert expand(".")[1] == ["./.git", "./__MACOSX", "./a/.hidden"]
