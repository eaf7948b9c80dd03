"""A gallery: its rows, and the nearest of them, as sorting all distances finds them."""

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import inference
from pipeline.core.params import BadInput
from pipeline.data.parts import FINE
from pipeline.methods.base import Embedding
from pipeline.ranking import Embedded, Rerank, rank, rerank
from pipeline.ranking.comparison import GALLERY_BLOCK
from pipeline.search import Gallery
from tests.search.galleries import exact, gallery


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A gallery of five pictures in two folders, of which only some files are there."""
    root = tmp_path_factory.mktemp("five")
    names = ["a/cam1_x.png", "a/cam2_y.png", "b/c/cam1.png", os.fsdecode(b"b/\xff\n.png"), "top.png"]
    (root / "a").mkdir()
    (root / "b").mkdir()
    for name, colour in ((names[0], "red"), (names[3], "blue")):
        Image.new("RGB", (300, 600), colour).save(root / name, "PNG")
    visibility = torch.ones(5, 9)
    visibility[1, [1, 8]] = 0
    embedding = Embedding(torch.randn(5, 9, 4, generator=torch.Generator().manual_seed(0)), visibility)
    return gallery(root / "gallery.h5", embedding, root, r"cam(\d)", names)


def test_a_row_has_a_name_a_folder_a_camera_and_parts(five):
    assert len(five) == 5 and five.names[3] == "b/\udcff\n.png" and list(five.names)[4] == "top.png"
    assert [five.folder(row) for row in range(5)] == ["a", "a", "b/c", "b", ""]
    assert [five.camera(row) for row in range(5)] == ["1", "2", "1", None, None]
    assert five.part_names == ("global", *FINE)
    assert five.visible_parts(1) == [*FINE[1:7]] and five.visible_parts(0) == [*FINE]
    assert five.map(0) is None and not five.has_maps


@pytest.mark.parametrize("ask", ["folder", "camera", "visible_parts", "thumbnail", "embedding"])
@pytest.mark.parametrize("row", [5, 99])
def test_a_row_that_there_is_not_is_an_index_error(five, ask, row):
    with pytest.raises(IndexError):
        getattr(five, ask)([row] if ask == "embedding" else row)


def test_a_thumbnail_is_a_small_upright_jpeg_of_the_file(five):
    with Image.open(io.BytesIO(five.thumbnail(3))) as picture:
        assert picture.format == "JPEG" and picture.size == (96, 192)
        assert picture.getpixel((9, 9))[2] > 200
    with Image.open(io.BytesIO(five.thumbnail(0, (30, 30)))) as picture:
        assert picture.size == (15, 30)
    with pytest.raises(BadInput, match=r"cam2_y\.png: No such file or directory\. Index the folder again"):
        five.thumbnail(1)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../secret.png"])
def test_a_file_from_elsewhere_reads_nothing_outside_its_folder(tmp_path, name):
    opened = gallery(tmp_path / "g.h5", exact(1, 9, torch.Generator()), tmp_path, names=[name])
    with pytest.raises(BadInput, match=r"row 0 names .* not below its folder"):
        opened.thumbnail(0)


def test_an_open_gallery_outlives_its_file(tmp_path):
    old = gallery(tmp_path / "g.h5", exact(4, 2, torch.Generator().manual_seed(1)))
    before = old.embedding([0, 3]).parts.clone()
    gallery(tmp_path / "g.h5", exact(9, 2, torch.Generator().manual_seed(2)))
    assert torch.equal(old.embedding([0, 3]).parts, before) and len(Gallery(tmp_path / "g.h5")) == 9


def test_a_file_that_is_no_gallery_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.h5: no such file\. Name a file that `index` wrote"):
        Gallery(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(BadInput, match="damaged or no HDF5 file"):
        Gallery(tmp_path / "text.h5")


# ------------------------------------------------------------------ the nearest


def test_the_nearest_of_three_on_a_line(tmp_path):
    angle = torch.tensor([0.0, 0.9, 0.3])
    parts = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    opened = gallery(tmp_path / "g.h5", Embedding(parts, torch.ones(3, 1)))
    distance, row = opened.nearest(opened.embedding([0]), top=2)
    assert row.tolist() == [[0, 2]]
    assert distance[0] == pytest.approx([0, 2 * np.sin(0.15)], abs=1e-3)  # the chord of an angle
    assert opened.nearest(opened.embedding([0]), top=9, offset=2)[1].tolist() == [[1]]
    assert opened.nearest(opened.embedding([0]), top=9, offset=3)[1].shape == (1, 0)


cases = {
    "queries": st.integers(1, 4),
    "count": st.integers(1, 12),
    "parts": st.integers(1, 3),
    "top": st.integers(1, 9),
    "offset": st.integers(0, 4),
    "block": st.integers(1, 5),
    "seed": st.integers(0, 999),
    "gated": st.booleans(),
    "masked": st.booleans(),
    "chosen": st.none() | st.sets(st.integers(0, 2), min_size=1),
}


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_it_is_what_sorting_all_distances_gives(
    tmp_path_factory, queries, count, parts, top, offset, block, seed, gated, masked, chosen
):
    generator = torch.Generator().manual_seed(seed)
    query, images = exact(queries, parts, generator, gated), exact(count, parts, generator)
    opened = gallery(tmp_path_factory.mktemp("sorted") / "g.h5", images)
    names = None if chosen is None else [opened.part_names[p] for p in chosen if p < parts]
    allowed = torch.randint(0, 2, (count,), generator=generator).bool().numpy() if masked else None
    if names == []:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GALLERY_BLOCK, "cpu", block)
        distance, row = opened.nearest(query, top, offset, allowed, names)
    shown = query.visibility.clone()
    if names is not None:
        shown[:, [p for p in range(parts) if p not in chosen]] = 0
    table = inference.distances(Embedding(query.parts, shown, query.gate), images).numpy()
    rows = range(count) if allowed is None else np.flatnonzero(allowed).tolist()
    for q in range(queries):
        order = sorted(rows, key=lambda g, q=q: (table[q, g], g))[offset : offset + top]
        assert row[q].tolist() == order and np.array_equal(distance[q], table[q, order])


def test_reranking_all_is_reranking_as_evaluate_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images, query = (Embedding(torch.randn(n, 2, 4, generator=generator), torch.ones(n, 2)) for n in (30, 1))
    opened, options = gallery(tmp_path / "g.h5", images), Rerank(30, 5, 2, 0.3)
    sides = [Embedded.of(e.parts, np.zeros(len(e.parts), int), None, e.visibility) for e in (query, images)]
    ranking = rerank(*sides, rank(*sides, top=30), options)
    distance, row = opened.nearest(query, 30, rerank=options)
    assert row.tolist() == ranking.top.tolist()
    assert np.allclose(distance, ranking.top_distance, atol=1e-4)
    short = opened.nearest(query, 30, rerank=Rerank(4, 2, 1, 0.3))
    plain = opened.nearest(query, 30)
    assert set(short[1][0, :4]) == set(plain[1][0, :4]) and np.array_equal(short[1][:, 4:], plain[1][:, 4:])


REFUSED = {
    "no such part": ({"parts": ["tail"]}, r"parts: tail: no such part\. Name some of global, 1"),
    "no part": ({"parts": []}, "parts: none given"),
    "none at a time": ({"top": 0}, "top = 0: give a whole number, 1 or more"),
    "another model's sizes": ({}, r"queries of \(2, 4\) parts and channels, gallery of \(2, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched_is_refused(tmp_path, case):
    words, message = REFUSED[case]
    opened = gallery(tmp_path / "g.h5", exact(3, 2, torch.Generator().manual_seed(0)))
    query = opened.embedding([0]) if words else Embedding(torch.ones(1, 2, 4), torch.ones(1, 2))
    with pytest.raises(BadInput, match=message):
        opened.nearest(query, **words)


def test_gates_cannot_be_reranked(tmp_path):
    generator = torch.Generator().manual_seed(0)
    opened = gallery(tmp_path / "g.h5", exact(3, 2, generator, gated=True))
    with pytest.raises(BadInput, match="gated features"):
        opened.nearest(opened.embedding([0]), rerank=Rerank(3, 2, 1, 0.3))
    one = exact(3, 2, torch.Generator().manual_seed(0), gated=True)
    assert torch.equal(opened.embedding(slice(1, 3)).gate, one.gate[1:])
