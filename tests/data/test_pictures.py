"""What a folder and a pattern stand for, and which files are pictures."""

import io

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
    files = expand(pattern or ".")
    assert files is PATTERNS[pattern] or [file.removeprefix("./") for file in files] == PATTERNS[pattern]


def test_a_folder_of_any_name_is_no_pattern(tmp_path):
    folder = tmp_path / "people [2024]*"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    assert expand(str(folder)) == [str(folder / "a.png")]


def test_links_are_followed_and_broken_ones_listed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder" / "b.png").symlink_to("gone.png")
    files = expand(str(tmp_path / "folder"))
    assert [file.removeprefix(f"{tmp_path}/folder/") for file in files] == ["b.png", "linked/a.png"]
