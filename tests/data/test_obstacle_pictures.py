"""Folders of obstacles: what is read, what is refused, and what tells two folders apart."""

import numpy as np
import pytest
from PIL import Image

from pipeline.core.params import BadInput
from pipeline.data import obstacle_pictures

GREY = np.full((64, 32, 3), 99, np.uint8)


def test_cutouts_are_read_with_their_alpha(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).save(tmp_path / "pole.png")
    (obstacle,) = obstacle_pictures.read_pictures("cutout", str(tmp_path))
    assert obstacle.solid[:2].all() and not obstacle.solid[2:].any()
    assert obstacle_pictures.read_pictures("cutout", "") == []


def pole(path, rows=2, **options):
    """A picture of 4 x 4 whose first rows are solid."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:rows] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_cutouts_are_read_at_any_depth_and_in_any_format_with_alpha(tmp_path):
    pole(tmp_path / "b.png", 1)
    pole(tmp_path / "a/trees/oak.webp", 2, lossless=True)
    pole(tmp_path / "c/POST.TIFF", 3)
    for name in ("licence.txt", "a/Thumbs.db", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [o.solid.sum() for o in obstacle_pictures.read_pictures("cutout", str(tmp_path))] == [8, 4, 12]
    _, others = obstacle_pictures.picture_files("cutout", str(tmp_path))
    assert [file.name for file in others] == ["Thumbs.db", "licence.txt"]
    before = obstacle_pictures.digest("cutout", str(tmp_path))
    pole(tmp_path / "a/trees/oak.webp", 3, lossless=True)
    assert obstacle_pictures.digest("cutout", str(tmp_path)) != before


def test_all_unusable_cutouts_are_named_with_their_faults(tmp_path):
    pole(tmp_path / "empty.png", 0)
    pole(tmp_path / "good.png")
    Image.fromarray(GREY).save(tmp_path / "opaque.png")
    Image.fromarray(GREY[..., 0].astype(np.uint16)).save(tmp_path / "thermal.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(BadInput) as error:
        obstacle_pictures.read_pictures("cutout", str(tmp_path))
    faults = [line.removeprefix(f"{tmp_path}/") for line in str(error.value).splitlines()]
    remedy = "Save it as PNG with transparency."
    assert faults == [
        f"empty.png: no cut-out (no solid pixel). {remedy}",
        f"opaque.png: no cut-out (no alpha channel). {remedy}",
        f"text.png: no cut-out. {remedy}",
        f"thermal.png: no cut-out (more than 8 bits a sample). {remedy}",
    ]


def test_a_folder_without_cutouts_says_what_it_holds(tmp_path):
    with pytest.raises(BadInput, match=r"poles: no such folder\. Put cut-outs there"):
        obstacle_pictures.read_pictures("cutout", str(tmp_path / "poles"))
    with pytest.raises(BadInput, match=r"no picture in it or below it, but no file\. Put"):
        obstacle_pictures.read_pictures("cutout", str(tmp_path))
    (tmp_path / "poles.psb").write_text("x")
    with pytest.raises(BadInput, match=r"no picture in it or below it, but poles\.psb\. Put"):
        obstacle_pictures.digest("cutout", str(tmp_path))


def test_patches_are_opaque_and_solid_throughout(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "wall.jpg", quality=95)
    pole(tmp_path / "all.png", 4)  # it has alpha, and no transparent pixel
    patches = obstacle_pictures.read_pictures("patch", str(tmp_path))
    assert [patch.solid.shape for patch in patches] == [(4, 4), (64, 32)]
    assert all(patch.solid.all() for patch in patches) and abs(patches[1].pixels.mean() - 99) < 2
    assert obstacle_pictures.describe_folder("patch", str(tmp_path)) == [f"{tmp_path}: 2 obstacles"]


def test_a_patch_with_a_transparent_pixel_is_refused(tmp_path):
    pole(tmp_path / "pole.png", 3)
    with pytest.raises(BadInput, match=r"pole\.png: no obstacle \(transparent pixels\)\. Save it as JPEG"):
        obstacle_pictures.read_pictures("patch", str(tmp_path))
    with pytest.raises(BadInput, match=r"bricks: no such folder\. Put obstacles there, opaque pictures"):
        obstacle_pictures.read_pictures("patch", str(tmp_path / "bricks"))
