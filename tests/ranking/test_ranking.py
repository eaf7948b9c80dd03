"""Ranking: the distance of Eq. 25, Market-1501's protocol, and scores that can be checked by hand."""

import math
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.ranking import (
    Embedded,
    Rerank,
    Stored,
    cmc,
    comparison,
    distances,
    kernels,
    neighbours,
    rank,
    rank_distances,
    report,
    rerank,
    rerank_distances,
    scores,
    search,
    task,
)
from pipeline.ranking.summary import interval

nan = math.nan


def embedded(parts, pid=None, camid=None, visibility=None, gate=None):
    parts = torch.as_tensor(parts, dtype=torch.float32)
    visibility = torch.ones(parts.shape[:2]) if visibility is None else torch.as_tensor(visibility).float()
    count = len(parts)
    pid = np.ones(count, np.int64) if pid is None else np.asarray(pid, np.int64)
    camid = np.zeros(count, np.int64) if camid is None else np.asarray(camid, np.int64)
    return Embedded(parts, visibility, pid, camid, gate)


def on_an_arc(degrees):
    """One part of two channels: the distance of two images grows with their angle."""
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], -1)[:, None]


def people(text):
    """'2(1) 1(0)' -> identities [2, 1] and cameras [1, 0]."""
    words = [word.rstrip(")").split("(") for word in text.split()]
    return np.array([int(pid) for pid, _ in words]), np.array([int(camid) for _, camid in words])


CASES = {  # gallery nearest first, pid(camera); the query is person 1 on camera 0 -> AP, first match, INP
    "1(1)": (1.0, 1, 1.0),
    "2(1) 1(1)": (1 / 2, 2, 1 / 2),
    "1(1) 2(1) 1(2)": ((1 + 2 / 3) / 2, 1, 2 / 3),
    "1(0) 1(1)": (1.0, 1, 1.0),  # same camera: neither hit nor miss
    "2(0) 1(1)": (1 / 2, 2, 1 / 2),  # another person by the same camera counts
    "-1(1) 1(1)": (1.0, 1, 1.0),  # junk: neither hit nor miss
    "0(1) 1(1)": (1 / 2, 2, 1 / 2),  # a distractor is a miss
    "1(-1) 2(0) 1(1)": ((1 + 2 / 3) / 2, 1, 2 / 3),  # an unknown camera hides nothing
    "2(1) 3(1)": (nan, 0, nan),  # never seen elsewhere
    "1(0) 2(1)": (nan, 0, nan),  # seen by its own camera alone
}


@pytest.mark.parametrize("gallery", CASES)
def test_one_query_is_scored_by_the_protocol(gallery):
    pid, camid = people(gallery)
    ranked = rank(
        embedded(on_an_arc([0]), [1], [0]), embedded(on_an_arc(np.arange(len(pid)) + 1), pid, camid)
    )
    np.testing.assert_allclose([ranked.ap[0], ranked.first_match[0], ranked.inp[0]], CASES[gallery])


def test_a_query_without_camera_is_compared_with_everything():
    query = embedded(on_an_arc([0, 0]), [1, 1], [-1, 0])
    ranked = rank(query, embedded(on_an_arc([1, 2]), [1, 1], [0, -1]))
    assert ranked.num_matches.tolist() == [2, 1]


def test_queries_that_show_nobody_have_no_match():
    gallery = embedded(on_an_arc([1, 2, 3]), [0, -1, 1])
    assert (rank(embedded(on_an_arc([0, 0]), [0, -1], [5, 5]), gallery).num_matches == 0).all()


def test_equal_distances_keep_the_gallerys_order():
    ranked = rank(
        embedded(on_an_arc([0]), [1], [0]), embedded(on_an_arc([9] * 4), [2, 1, 3, 1], [1] * 4), top=4
    )
    assert ranked.first_match[0] == 2 and ranked.ap[0] == (1 / 2 + 2 / 4) / 2
    assert ranked.top.tolist() == [[0, 1, 2, 3]]


def test_the_nearest_are_listed_without_junk_and_own_camera_and_padded():
    gallery = embedded(on_an_arc([4, 3, 2, 1]), [1, -1, 2, 1], [1, 1, 1, 0])
    assert rank(embedded(on_an_arc([0]), [1], [0]), gallery, top=3).top.tolist() == [[2, 0, -1]]


def test_an_empty_gallery_answers_nothing():
    ranked = rank(embedded(on_an_arc([0]), [1], [0]), embedded(torch.zeros(0, 1, 2), [], []), top=2)
    assert ranked.num_matches[0] == 0 and ranked.top.tolist() == [[-1, -1]]


NOT_FINITE = {  # what holds NaN or infinity: what is said of three images
    "features": "gallery features: .* infinite or beyond 1e19 in 2 of 3 images looked at, the first is "
    r"image 1\. Leave these out.* smaller train.lr",
    "visibility": r"gallery visibility: .* not in \[0, 1\] in 2 of 3 images looked at, the first is image 1",
}


@pytest.mark.parametrize("what", NOT_FINITE)
def test_values_that_are_not_finite_are_counted_and_refused_with_a_remedy_for_anybodys(what):
    parts, visibility = torch.ones(3, 2, 2), torch.ones(3, 2)
    (parts if what == "features" else visibility)[1:, 0] = torch.tensor([nan, math.inf]).reshape(
        (2, 1) if what == "features" else 2
    )
    gallery = embedded(parts, visibility=visibility)
    for compared in (rank, distances):
        with pytest.raises(BadInput, match=NOT_FINITE[what]):
            compared(embedded(torch.ones(1, 2, 2)), gallery)


GATES = {"values that are NaN": [nan, 1.0], "zeros, or a length below 1e-12, in": [0.0, 0.0]}


@pytest.mark.parametrize("fault", GATES)
def test_a_gate_that_is_not_finite_or_closed_is_refused(fault):
    query = embedded(on_an_arc([0]), gate=torch.tensor([[GATES[fault]]]))
    for compared in (rank, distances):
        with pytest.raises(BadInput, match=f"query gate: {fault}.* in 1 of 1 image"):
            compared(query, embedded(on_an_arc([1])))


# ------------------------------------------------------------------ what would give a wrong number


ZEROS = {  # length of a visible part of the second of three images, and whether it has a direction
    0.0: False,
    1e-13: False,  # below what PyTorch divides by
    1e-11: True,
    1e18: True,
}


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize("length", ZEROS)
def test_a_visible_part_of_zeros_has_no_distance_and_is_refused(length, side):
    parts = torch.ones(3, 2, 1)
    parts[1, 1] = length
    faulty, sound = embedded(parts), embedded(torch.ones(3, 2, 1))
    sides = (faulty, sound) if side == "query" else (sound, faulty)
    for compared in (rank, distances, partial(neighbours.neighbours, k=2)):
        if ZEROS[length]:
            compared(*sides)
            continue
        with pytest.raises(
            BadInput, match=f"{side} features: .* below 1e-12, in a visible part in 1 of 3 .* image 1"
        ):
            compared(*sides)


def test_a_hidden_part_of_zeros_is_no_fault():
    parts, visibility = torch.ones(3, 2, 1), torch.ones(3, 2)
    parts[1, 1] = visibility[1, 1] = 0
    hides = embedded(parts, visibility=visibility)
    assert distances(hides, hides).tolist() == [[0.0] * 3] * 3 == blockwise(hides, hides).tolist()


def test_features_too_long_to_be_scaled_are_refused_as_infinite_ones():
    for compared in (rank, distances):
        with pytest.raises(BadInput, match="beyond 1e19 in 1 of 2"):
            compared(embedded(on_an_arc([0])), embedded(torch.tensor([[[1e20, 0]], [[1, 0]]])))


def test_a_faulty_image_is_named_if_it_has_a_name():
    gallery = replace(embedded(torch.zeros(7, 1, 2)), keys=[f"gallery/{n}.jpg" for n in range(7)])
    named = r"in 5 of 5 images looked at: gallery/2\.jpg, .*, gallery/6\.jpg\. Leave these out"
    with pytest.raises(BadInput, match=named):
        rank(embedded(on_an_arc([0])), gallery[2:])


def cameras(query, gallery):
    """Two queries of person 1 and three gallery images of hers, nearest first."""
    return embedded(on_an_arc([0, 0]), [1, 1], query), embedded(on_an_arc([1, 2, 3]), [1, 1, 1], gallery)


ONE_SIDED = {  # cameras of the queries and the gallery: which side alone knows its
    "queries": ([0, 1], [-1, -1, -1]),
    "gallery": ([-1, -1], [0, 1, -1]),
}


@pytest.mark.parametrize("side", ONE_SIDED)
def test_cameras_that_one_side_alone_knows_are_refused(side):
    query, gallery = cameras(*ONE_SIDED[side])
    unknown = replace(query, camid=np.full(2, -1)), replace(gallery, camid=np.full(3, -1))
    plain = rank(*unknown, top=3)  # neither side
    table, who = distances(query, gallery).numpy(), (query.pid, query.camid, gallery.pid, gallery.camid)
    calls = (
        lambda: rank(query, gallery),
        lambda: rank_distances(table, *who),
        lambda: rerank(query, gallery, plain, Rerank(3, 2, 1, 0.3)),
    )
    for call in calls:
        with pytest.raises(BadInput, match=f"camid: known of the {side} alone, .* Give both .* or neither"):
            call()


def test_cameras_that_one_side_alone_knows_do_not_matter_to_queries_of_nobody():
    query, gallery = cameras([-1, -1], [0, 1, 2])
    assert rank(replace(query, pid=np.array([0, 2])), gallery, top=1).top.tolist() == [[0], [0]]


BESIDE = {  # a query and an image, pid(camera), that no match is made of: beside known cameras of one side
    "a query of nobody knows its camera": ("1(-1) 0(3)", "1(0) 2(-1)", "gallery"),
    "an unmatched query knows its camera": ("1(-1) 7(3)", "1(0) 2(-1)", "gallery"),
    "a distractor knows its camera": ("1(0) 2(0)", "1(-1) 0(3)", "queries"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_cameras_of_images_that_are_nobodys_match_do_not_hide_that_one_side_alone_knows_its(case):
    *sides, known = BESIDE[case]
    query, gallery = (embedded(on_an_arc([0, 1]), *people(side)) for side in sides)
    with pytest.raises(BadInput, match=f"camid: known of the {known} alone"):
        rank(query, gallery)


@pytest.mark.parametrize("beside", ["0(3)", "-1(3)", "7(3)"])
def test_a_camera_of_nobodys_match_is_no_reason_to_refuse(beside):
    query = embedded(on_an_arc([0, 1]), *people("1(-1) 2(-1)"))
    gallery = embedded(on_an_arc([0, 1, 2]), *people(f"1(-1) 2(-1) {beside}"))
    assert rank(query, gallery).num_matches.tolist() == [1, 1]
    assert rank(gallery, query).num_matches.tolist() == [1, 1, 0]


COUNTED = {  # cameras of two queries and of three images: how many queries might find their own camera's
    "all known": ([0, 1], [0, 1, 2], 0),
    "none known": ([-1, -1], [-1, -1, -1], 2),
    "one of the queries'": ([-1, 1], [0, 1, 2], 1),
    "one of the gallery's": ([0, 1], [0, -1, 2], 2),
}


@pytest.mark.parametrize("case", COUNTED)
def test_queries_with_a_match_by_an_unknown_camera_are_counted(case):
    *known, count = COUNTED[case]
    query, gallery = cameras(*known)
    plain = rank(query, gallery, top=3)
    assert scores(plain)["camera_unknown"] == count
    assert scores(rerank(query, gallery, plain, Rerank(3, 2, 1, 0.3)))["camera_unknown"] == count
    table, who = distances(query, gallery).numpy(), (query.pid, query.camid, gallery.pid, gallery.camid)
    assert scores(rank_distances(table, *who))["camera_unknown"] == count


def test_queries_that_are_skipped_are_counted_by_the_reason():
    query = embedded(on_an_arc([0] * 5), [0, -1, 1, 2, 3], [0] * 5)
    gallery = embedded(on_an_arc([1, 2, 3]), [1, 2, 0], [1, 0, 1])  # person 2 by her own camera, 3 not at all
    counts = {"queries": 1, "without_match": 2, "unidentified": 2}
    assert scores(rank(query, gallery)).items() >= counts.items()
    nobodies = np.array([True, True, False, False, False])
    assert scores(rank(query, gallery), nobodies) == {
        "queries": 0,
        "without_match": 0,
        "unidentified": 2,
        "camera_unknown": 0,
        "infinitely_far": 0,
    }


def test_queries_whose_match_shows_nothing_that_they_show_are_counted():
    query = embedded(torch.ones(3, 2, 1), [1, 1, 2], visibility=[[1, 0], [0, 0], [1, 1]])
    gallery = embedded(torch.ones(2, 2, 1), [1, 2], [1, 1], visibility=[[1, 1], [1, 0]])
    assert scores(rank(query, gallery))["infinitely_far"] == 1


@pytest.mark.parametrize("which", [[0, 1], np.array([0, 1]), [True], np.ones((2, 1), bool)])
def test_scores_of_some_queries_want_one_bool_each(which):
    ranked = rank(embedded(on_an_arc([0, 0]), [1, 2]), embedded(on_an_arc([1, 2]), [1, 2], [1, 1]))
    with pytest.raises(BadInput, match=r"which: .* Give 2 bools"):
        scores(ranked, which)


TABLES = {  # a matrix for two queries and three images: what the user reads
    "whole numbers": (np.ones((2, 3), int), r"int64 of \(2, 3\). Give float32 or float64"),
    "half precision": (np.ones((2, 3), np.float16), "float16 of"),
    "a missing image": (
        np.ones((2, 2), np.float32),
        r"float32 of \(2, 2\). Give .* of \(2, 3\)",
    ),
    "an image too many": (np.ones((2, 4), np.float32), r".* of \(2, 4\). Give .* of \(2, 3\)"),
    "NaN": (np.array([[1, 2, 3], [1, nan, 3]], np.float32), "NaN in row 1"),
    "rows of two lengths": ([[1.0, 2.0, 3.0], [1.0]], "no array of numbers .* Give rows of equal length"),
    "a tensor of half precision": (torch.ones(2, 3, dtype=torch.bfloat16), "no array of numbers .*BFloat16"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_matrix_that_would_rank_wrongly_is_refused(case):
    table, message = TABLES[case]
    with pytest.raises(BadInput, match=f"distances: {message}"):
        rank_distances(table, [1, 2], [0, 0], [1, 2, 2], [1, 1, 1])
    ranked = rank_distances(np.ones((2, 3)), [1, 2], [0, 0], [1, 2, 2], [1, 1, 1], top=1)
    queries, images = np.ones((2, 2)), np.ones((3, 3))
    with pytest.raises(BadInput, match=f"query_gallery: {message}"):
        rerank_distances(table, queries, images, ranked, Rerank(1, 1, 1, 0.3))


LENGTHS = {  # identities and cameras of two queries, then of three images: what the user reads
    "too many cameras of queries": ([0] * 20, [1] * 3, "query_pid: 2, query_camid: 20. Give one per image"),
    "too few cameras of queries": ([0], [1] * 3, "query_pid: 2, query_camid: 1"),
    "too many cameras of images": ([0] * 2, [1] * 40, "gallery_pid: 3, gallery_camid: 40"),
    "too few cameras of images": ([0] * 2, [1], "gallery_pid: 3, gallery_camid: 1"),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_matrix_wants_one_camera_per_image(case):
    query, gallery, message = LENGTHS[case]
    with pytest.raises(BadInput, match=message):
        rank_distances(np.ones((2, 3)), [1, 2], query, [1, 2, 2], gallery)


@pytest.mark.parametrize("of", [np.ndarray.tolist, torch.tensor, pd.DataFrame])
def test_a_matrix_of_any_origin_is_ranked_alike(of):
    table = np.array([[0.3, 0.1, 0.2], [0.1, 0.3, 0.2]])
    ranked = rank_distances(of(table), [1, 2], [0, 0], [1, 2, 2], [1, 1, 1], top=3)
    assert ranked.ap.tolist() == [1 / 3, (1 / 2 + 2 / 3) / 2]
    others = of(np.ones((2, 2))), of(np.ones((3, 3)))
    again = rerank_distances(of(table), *others, ranked, Rerank(2, 1, 1, 1.0))
    assert again.top.tolist() == ranked.top.tolist()


# ------------------------------------------------------------------ the distance


def blockwise(query, gallery, metric="euclidean"):
    """The same distances by the blocks that ranking compares: three queries with four images at a time."""
    table, workspace = torch.empty(len(query), len(gallery)), comparison.Workspace(3, 4, "cpu")
    buffer = comparison.TileBuffer(gallery, 4)
    for rows in np.split(np.arange(len(query)), range(3, len(query), 3)):
        block = comparison.QueryBlock(query, rows, "cpu")
        for columns in np.split(np.arange(len(gallery)), range(4, len(gallery), 4)):
            tile = comparison.GalleryBlock(gallery, columns, "cpu", buffer)
            table[np.ix_(rows, columns)] = comparison.block_distances(block, tile, metric, workspace)
    return table


BY_EITHER = pytest.mark.parametrize("compared", [distances, blockwise])


@BY_EITHER
def test_the_distance_is_the_mean_over_the_parts_that_both_show(compared):
    # right angles: sqrt 2; the same: 0; part 0 is the global one
    query = embedded([[[1, 0], [1, 0], [1, 0]]], visibility=[[1, 1, 0]])
    gallery = embedded([[[0, 2], [3, 0], [1, 0]]] * 2, visibility=[[1, 1, 1], [1, 0, 1]])
    torch.testing.assert_close(compared(query, gallery), torch.tensor([[2**0.5 / 2, 2**0.5]]))
    torch.testing.assert_close(compared(query, gallery, "squared"), torch.tensor([[1.0, 2.0]]))


@BY_EITHER
def test_with_everything_visible_the_distance_is_the_plain_mean(compared):
    torch.manual_seed(0)
    q, g = torch.randn(3, 5, 4), torch.randn(7, 5, 4)
    unit_q, unit_g = q / q.norm(dim=2, keepdim=True), g / g.norm(dim=2, keepdim=True)
    wanted = (unit_q[:, None] - unit_g[None]).norm(dim=3).mean(2)
    torch.testing.assert_close(compared(embedded(q), embedded(g)), wanted)


@BY_EITHER
def test_images_that_show_no_common_part_are_infinitely_far_apart(compared):
    query = embedded(torch.ones(1, 2, 3), visibility=[[1, 0]])
    assert compared(query, embedded(torch.ones(1, 2, 3), visibility=[[0, 1]])).item() == math.inf


@BY_EITHER
def test_what_a_hidden_part_holds_does_not_matter(compared):
    parts = torch.tensor([[[1.0, 0], [nan, 0]]])
    hides, shows = embedded(parts, visibility=[[1, 0]]), embedded(torch.ones(1, 2, 2))
    for pair in ((hides, shows), (shows, hides)):
        assert compared(*pair).item() == pytest.approx((2 - 2**0.5) ** 0.5)


@BY_EITHER
def test_the_length_of_features_does_not_matter(compared):
    torch.manual_seed(0)
    q, g = torch.randn(2, 3, 4), torch.randn(5, 3, 4)
    torch.testing.assert_close(compared(embedded(5 * q), embedded(g / 7)), compared(embedded(q), embedded(g)))


def slow_distance(q, vq, g, vg, gate, metric):
    """Read aloud: over the parts, weights times distances, over weights."""
    total = weight = 0.0
    for p in range(len(q)):
        other = g[p] if gate is None else g[p] * gate[p]
        unit = [x / np.linalg.norm(x) if np.linalg.norm(x) else x for x in (q[p], other)]
        distance = np.linalg.norm(unit[0] - unit[1])
        total += vq[p] * vg[p] * (distance if metric == "euclidean" else distance**2)
        weight += vq[p] * vg[p]
    return total / weight if weight else math.inf


@BY_EITHER
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), gated=st.booleans(), metric=st.sampled_from(["euclidean", "squared"]))
def test_distances_equal_the_formula_in_a_loop(compared, seed, gated, metric):
    rng = np.random.default_rng(seed)
    q, g, gate = rng.normal(size=(3, 4, 5)), rng.normal(size=(6, 4, 5)), rng.random((3, 4, 5))
    vq, vg = (rng.choice([0, 0.5, 1], (n, 4)) for n in (3, 6))
    gates = torch.tensor(gate, dtype=torch.float32) if gated else None
    table = compared(embedded(q, visibility=vq, gate=gates), embedded(g, visibility=vg), metric)
    wanted = [
        [slow_distance(q[i], vq[i], g[j], vg[j], gate[i] if gated else None, metric) for j in range(6)]
        for i in range(3)
    ]
    np.testing.assert_allclose(table, wanted, atol=2e-3)


# ------------------------------------------------------------------ against a slow twin


def slow_rank(query, gallery, top):
    """Read aloud: sort the gallery, strike out what does not count, walk down the list."""
    table = distances(query, gallery, "squared").numpy()
    answers = []
    for i in range(len(query)):
        walk = []
        for j in sorted(range(len(gallery)), key=lambda j: (table[i, j], j)):
            same = gallery.pid[j] == query.pid[i] and gallery.camid[j] == query.camid[i] >= 0
            if gallery.pid[j] >= 0 and not (same and query.pid[i] > 0):
                walk.append(j)
        right = [k for k, j in enumerate(walk, 1) if gallery.pid[j] == query.pid[i] > 0]
        precision = [n / k for n, k in enumerate(right, 1)]
        ap = sum(precision) / len(right) if right else nan
        inp = len(right) / right[-1] if right else nan
        answers.append((ap, inp, right[0] if right else 0, len(right), (walk + [-1] * top)[:top]))
    return answers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 40), st.integers(1, 9), st.integers(0, 6))
def test_ranking_equals_the_protocol_read_aloud_whatever_the_tiles(seed, queries, galleries, tile, top):
    rng = np.random.default_rng(seed)

    def some(count):
        parts = np.eye(3)[
            rng.integers(0, 3, (count, 3))
        ]  # squared distances are 0 or 2: many ties, no rounding
        visibility = rng.integers(0, 2, (count, 3))
        return embedded(parts, rng.integers(-1, 4, count), rng.integers(-1, 3, count), visibility)

    query, gallery = some(queries), some(galleries)
    pairs = [(i, j) for i in range(queries) for j in range(galleries) if query.pid[i] == gallery.pid[j] > 0]
    known = (query.camid[i] >= 0 for i, _ in pairs), (gallery.camid[j] >= 0 for _, j in pairs)
    assume(any(known[0]) == any(known[1]))  # else it is refused
    with (
        mock.patch.dict(comparison.GALLERY_BLOCK, cpu=tile),
        mock.patch.dict(comparison.QUERY_BLOCK, cpu=5),
    ):
        ranked = rank(query, gallery, "squared", top=top)
    for i, (ap, inp, first, matches, nearest) in enumerate(slow_rank(query, gallery, top)):
        np.testing.assert_allclose([ranked.ap[i], ranked.inp[i]], [ap, inp])
        assert (ranked.first_match[i], ranked.num_matches[i], ranked.top[i].tolist()) == (
            first,
            matches,
            nearest,
        )


def test_blocks_tiles_and_workers_change_nothing(monkeypatch):
    small(monkeypatch)
    query, gallery = crowd(20, 0), crowd(90, 1)
    whole = rank(query, gallery, top=5)
    kilobytes(monkeypatch)
    for workers, memory in ((1, 22), (3, 29)):
        same(rank(query, gallery, memory=memory, top=5, workers=workers), whole)


def test_queries_come_in_blocks_that_fit(monkeypatch):
    small(monkeypatch)
    kilobytes(monkeypatch)
    who = np.repeat([1, 2, 3, 4], 5)
    query, gallery = embedded(torch.ones(20, 3, 8), who), embedded(torch.ones(90, 3, 8), np.arange(90) % 5)
    comparing = task.Task(query, gallery, "euclidean", 0, torch.device("cpu"), 1)
    blocks = {memory: list(search.query_batches(comparing, who, memory)) for memory in (16, 19, 99)}
    assert [block.start for block in blocks[16]] == [0, *(block.stop for block in blocks[16][:-1])]
    assert 1 == len(blocks[99]) < len(blocks[19]) < len(blocks[16])


def test_more_workers_than_fit_are_not_asked_for(monkeypatch):
    kilobytes(monkeypatch)
    small(monkeypatch)
    query, gallery = crowd(20, 0), crowd(90, 1)
    comparing = task.Task(query, gallery, "euclidean", 5, torch.device("cpu"), 64)
    hired = {memory: task.fit_workers(comparing, memory) for memory in (20, 40, 999)}
    assert hired[20].workers == 1 < hired[40].workers < 64 == hired[999].workers
    assert hired[40].fixed_bytes < 40 * task.MB < replace(hired[40], workers=64).fixed_bytes
    same(rank(query, gallery, top=5, memory=40, workers=64), rank(query, gallery, top=5, memory=999))


def test_too_little_memory_is_refused_with_what_would_do():
    with pytest.raises(BadInput, match=r"memory = 1: too little .* at least \d+ MB"):
        rank(embedded(torch.ones(9, 9, 768)), embedded(torch.ones(99, 9, 768)), memory=1)


def test_features_in_a_file_rank_as_those_in_memory(tmp_path, monkeypatch):
    small(monkeypatch)
    query, gallery = crowd(6, 0), crowd(40, 1)
    arrays = {"part": gallery.parts.numpy(), "seen": gallery.visibility.numpy()}
    write_label_file(tmp_path / "gallery.h5", "features", arrays, {"index": "x"})
    rows = LabelFile(tmp_path / "gallery.h5")
    part, visibility = (Stored(rows[name], 0, 40) for name in ("part", "seen"))
    filed = Embedded(part, visibility, gallery.pid, gallery.camid)
    for images in (slice(None), slice(5, 33)):
        same(rank(query, filed[images], top=5), rank(query, gallery[images], top=5))


def small(monkeypatch):
    monkeypatch.setitem(comparison.GALLERY_BLOCK, "cpu", 7)
    monkeypatch.setitem(comparison.QUERY_BLOCK, "cpu", 3)


def kilobytes(monkeypatch):
    """Memory is given in KB."""
    for module in (search, task):
        monkeypatch.setattr(module, "MB", 2**10)


def crowd(count, seed):
    """Images in which hardly anything is equal; distances are exact whatever the tiles."""
    rng = np.random.default_rng(seed)
    parts = torch.from_numpy(rng.choice([-1.0, 1.0], (count, 3, 16)))  # of length 4
    visibility = rng.choice([0, 0.5, 1], (count, 3))
    return embedded(parts, rng.integers(-1, 5, count), rng.integers(-1, 3, count), visibility)


def same(one, other):
    for name in ("ap", "inp", "first_match", "num_matches", "top"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_matrix_of_distances_is_ranked_alike_and_left_as_it_is():
    query, gallery = crowd(70, 0), crowd(150, 1)
    table = distances(query, gallery).numpy()
    before, who = table.copy(), (query.pid, query.camid, gallery.pid, gallery.camid)
    for rule in ("rectangular", "trapezoid"):
        same(rank_distances(table, *who, rule, top=5), rank(query, gallery, rule=rule, top=5))
    np.testing.assert_array_equal(table, before)


def test_distances_of_double_precision_are_compared_as_they_are():
    table = np.array([[1 + 1e-12, 1 + 2e-12, 1]])  # all 1 in single precision
    ranked = rank_distances(table, [1], [0], [1, 2, 3], [1, 1, 1], top=3)
    assert ranked.first_match.tolist() == [2] and ranked.top.tolist() == [[2, 0, 1]]


def test_fast_reids_and_torchreids_compiled_evaluators_agree():
    """What both gave for this matrix; `benchmarks.ranking` asks them again, on matrices of real sizes."""
    rng = np.random.default_rng(5)
    table = rng.permutation(8 * 30).reshape(8, 30).astype(np.float32)
    query_pid, gallery_pid = rng.integers(1, 5, 8), rng.integers(0, 5, 30)
    query_camid, gallery_camid = rng.integers(0, 2, 8), rng.integers(0, 3, 30)
    ranking = rank_distances(table, query_pid, query_camid, gallery_pid, gallery_camid)
    np.testing.assert_allclose(cmc(ranking, 5), [0.125, 0.25, 0.25, 0.25, 0.5])
    np.testing.assert_allclose(
        [ranking.ap.mean(), ranking.inp.mean()], [0.1849123836, 0.1483783871], atol=1e-6
    )


def test_the_trapezoid_also_counts_the_precision_before_each_match():
    pid, camid = people("2(1) 1(1) 1(2)")
    query, gallery = embedded(on_an_arc([0]), [1], [0]), embedded(on_an_arc([1, 2, 3]), pid, camid)
    assert rank(query, gallery, rule="trapezoid").ap[0] == ((0 / 1 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    first = embedded(on_an_arc([1]), [1], [1])
    assert rank(query, first, rule="trapezoid").ap[0] == 1  # nothing before: taken as 1


def test_matches_are_listed_nearest_first_with_their_precision():
    gallery = embedded(on_an_arc([3, 1, 2, 9]), [1, -1, 2, 1], [1, 1, 1, 2])
    matches = rank(embedded(on_an_arc([0, 0]), [5, 1], [0, 0]), gallery).matches
    assert matches.query.tolist() == [1, 1] and matches.image.tolist() == [0, 3]
    assert matches.rank.tolist() == [2, 3] and matches.precision.tolist() == [1 / 2, 2 / 3]


def test_anyones_features_are_ranked_in_four_lines():
    query = Embedded.of(np.eye(2), [1, 2])
    gallery = Embedded.of(np.eye(2, dtype=np.float16)[[1, 0]], np.array([1, 2]))
    assert rank(query, gallery).first_match.tolist() == [2, 2]
    with pytest.raises(BadInput, match="'features': 2, 'pid': 3"):
        Embedded.of(np.eye(2), [1, 2, 3])
    with pytest.raises(BadInput, match="embed both"):
        rank(query, Embedded.of(np.eye(3), [1, 2, 3]))


def test_anyones_gate_of_queries_is_multiplied_into_the_gallery():
    """DPM's cosine of q to g under the query's mask m: <q, m g> / (|q| |m g|)."""
    rng = np.random.default_rng(0)
    q, m, g = rng.normal(size=(3, 5)), rng.random((3, 5)), rng.normal(size=(6, 5))
    ranked = rank(Embedded.of(q, [1, 2, 3], gate=m), Embedded.of(g, [1, 2, 3] * 2), metric="cosine", top=6)
    for i in range(3):
        cosines = [q[i] @ (m[i] * x) / np.linalg.norm(q[i]) / np.linalg.norm(m[i] * x) for x in g]
        assert ranked.top[i].tolist() == np.argsort(np.negative(cosines)).tolist()
    with pytest.raises(BadInput, match=r"gate of \(3, 1, 4\), features of \(3, 1, 5\)"):
        Embedded.of(q, [1, 2, 3], gate=m[:, :4])


@pytest.mark.parametrize("gates", [2, 6])
def test_a_files_gates_may_be_those_of_queries_alone_or_of_all_as_once(tmp_path, gates):
    rng = np.random.default_rng(0)
    part, gate = rng.normal(size=(6, 3, 4)).astype(np.float32), rng.random((6, 3, 4)).astype(np.float32)
    arrays = {"model/part": part, "model/visibility": np.ones((6, 3), np.float32)}
    arrays |= {"model/gate": gate[:gates], "row": np.arange(6, dtype=np.int32)}
    write_label_file(tmp_path / "features.h5", "features", arrays, {"index": ""})
    split, pid, camid = ["query"] * 2 + ["gallery"] * 4, [1, 2, 1, 2, 1, 2], [0, 0, 1, 1, 1, 1]
    columns = {"split": split, "pid": pid, "camid": camid, "key": list("abcdef"), "row": range(6)}
    index = pd.DataFrame(columns)
    query, gallery = report.embedded(LabelFile(tmp_path / "features.h5"), index, "model")
    held = Embedded.of(part[:2], pid[:2], camid[:2], gate=gate[:2])
    wanted = rank(held, Embedded.of(part[2:], pid[2:], camid[2:]), top=4)
    assert len(query) == 2 and gallery.gate is None
    assert rank(query, gallery, top=4).top.tolist() == wanted.top.tolist()


IDS, COLUMNS = [1, 2, 3], np.eye(3)
REFUSED = {  # features, pid, camid, visibility: what the user reads
    "text": (COLUMNS, ["a", "b", "c"], None, None, r"pid: <U1 .* Number text by numpy\.unique\(ids"),
    "a column of text": (COLUMNS, np.array(["a", "b", "c"], object), None, None, "pid: object .* text by"),
    "cameras of text": (COLUMNS, IDS, np.array(["c1", "c2", "c1"]), None, "camid: <U2 .* text by"),
    "people in a column": (COLUMNS, [[1], [2], [3]], None, None, r"pid: int64 of \(3, 1\)"),
    "numbers that would turn negative": (
        COLUMNS,
        np.array([1, 2, 2**64 - 1], np.uint64),
        None,
        None,
        "below 2",
    ),
    "complex features": (COLUMNS + 1j, IDS, None, None, "features: complex128. Give real numbers"),
    "a tensor of complex features": (torch.ones(3, 2) + 1j, IDS, None, None, "features: torch.complex64"),
    "features of text": ([["1"], ["2"], ["3"]], IDS, None, None, "features: <U1. Give real numbers"),
    "objects of text": (np.array([["a"], ["b"], ["c"]], object), IDS, None, None, "features: object .*'a'"),
    "rows of two lengths": ([[1, 2], [1, 2], [1]], IDS, None, None, "features: no array of numbers"),
    "fractions": (COLUMNS, IDS, [0.5, 1, nan], None, r"camid: float64 .* below 0 where .* unknown"),
    "one feature": (np.ones(3), IDS, None, None, r"features of \(3,\): give \(images, channels\)"),
    "four dimensions": (np.ones((3, 2, 1, 4)), IDS, None, None, r"features of \(3, 2, 1, 4\)"),
    "no channels": (np.ones((3, 0)), IDS, None, None, r"features of \(3, 0\)"),
    "negative visibility": (COLUMNS, IDS, None, [[1], [-1], [0]], r"\[0, 1\] in 1 of 3 .* image 1"),
    "more than visible": (COLUMNS, IDS, None, [[1], [1], [2]], "first is image 2"),
    "unknown visibility": (COLUMNS, IDS, None, [[nan], [1], [nan]], "visibility: .* 2 of 3 .* image 0"),
    "visibility without parts": (COLUMNS, IDS, None, [1, 1, 1], r"visibility of \(3,\): give \(images, pa"),
    "too few cameras": (COLUMNS, IDS, [1, 2], None, "'camid': 2"),
    "too many visibilities": (COLUMNS, IDS, None, np.ones((3, 2)), r"visibility of \(3, 2\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_features_and_numbers_is_refused_with_a_remedy(case):
    *words, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        Embedded.of(*words)


def test_lists_tensors_columns_and_reversed_arrays_are_taken_alike():
    wanted = Embedded.of(COLUMNS, IDS, IDS)
    column = pd.Series(IDS, index=[7, 8, 9])
    taken = (
        Embedded.of(COLUMNS.tolist(), torch.tensor(IDS), column),
        Embedded.of(COLUMNS[::-1][::-1].astype(np.float16), np.array(IDS, np.uint8), tuple(IDS)),
        Embedded.of(COLUMNS.astype(object), IDS, IDS),
        Embedded.of(torch.from_numpy(COLUMNS).requires_grad_(), IDS, IDS, np.ones((3, 1), bool)),
    )
    for images in taken:
        assert torch.equal(images.parts, wanted.parts) and torch.equal(images.visibility, wanted.visibility)
        assert (images.pid.tolist(), images.camid.tolist()) == (IDS, IDS)
    assert len(Embedded.of(torch.ones(0, 2), [])) == 0


NO_CHOICE = {  # an argument of `rank`: what the user reads
    "metric": ("manhattan", "metric = 'manhattan': .* Choose one of euclidean, squared, cosine"),
    "rule": ("trap", "rule = 'trap': .* Choose one of rectangular, trapezoid"),
    "top": (-1, "top = -1: give a whole number, 0 or more"),
    "workers": (-2, "workers = -2: "),
    "device": ("gpu", "device = 'gpu': .* Choose cpu or cuda"),
}


@pytest.mark.parametrize("name", NO_CHOICE)
def test_an_argument_that_is_none_of_its_choices_is_refused(name):
    value, message = NO_CHOICE[name]
    images = crowd(3, 0)
    with pytest.raises(BadInput, match=message):
        rank(images, images, **{name: value})


def test_distances_and_a_matrix_of_them_are_as_strict():
    images = crowd(3, 0)
    with pytest.raises(BadInput, match="metric = 'l2'"):
        distances(images, images, "l2")
    table, who = distances(images, images).numpy(), (images.pid, images.camid)
    with pytest.raises(BadInput, match="rule = 'trap'"):
        rank_distances(table, *who, *who, "trap")
    with pytest.raises(BadInput, match="top = -1"):
        rank_distances(table, *who, *who, top=-1)


# ------------------------------------------------------------------ how it computes


def test_the_callers_settings_come_back(request, monkeypatch):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    matmul = torch.backends.mkldnn.matmul
    request.addfinalizer(partial(setattr, matmul, "fp32_precision", matmul.fp32_precision))
    matmul.fp32_precision = "bf16"
    with task.worker_threads(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 2
    precisions, compare = [], comparison.block_distances

    def recorded(*words):
        precisions.append(matmul.fp32_precision)
        return compare(*words)

    monkeypatch.setattr(task, "block_distances", recorded)
    rank(crowd(3, 0), crowd(9, 1))
    assert set(precisions) == {"ieee"}  # float32 stays float32, whatever the caller allows
    assert torch.get_num_threads() == 2 and matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("metric", ["euclidean", "squared", "cosine"])
def test_the_compiled_pass_equals_that_of_other_devices(metric, monkeypatch):
    query, gallery = crowd(9, 0), crowd(20, 1)
    table = blockwise(query, gallery, metric)
    torch.testing.assert_close(table, distances(query, gallery, metric), rtol=0, atol=0)  # exact features
    monkeypatch.setattr(kernels, "fold", None)
    every = embedded(query.parts, query.pid, query.camid, query.visibility, torch.ones(9, 3, 16))
    torch.testing.assert_close(blockwise(every, gallery, metric), table)


@BY_EITHER
def test_the_cosine_distance_is_one_minus_the_cosine(compared):
    table = compared(embedded(on_an_arc([0])), embedded(on_an_arc([0, 60, 180])), "cosine")
    torch.testing.assert_close(table, torch.tensor([[0, 0.5, 2.0]]))


# ------------------------------------------------------------------ the scores


def test_an_interval_holds_the_score_and_shrinks_with_the_queries():
    widths = []
    for count in (20, 2000):
        gallery = embedded(on_an_arc([1, 2]), [1, 2], [1, 1])
        ranking = rank(embedded(on_an_arc([0] * count), 1 + np.arange(count) % 2, [0] * count), gallery)
        ends = interval(ranking)["mAP"]
        assert ends["low"] < 75 < ends["high"] and interval(ranking) == interval(ranking)
        widths.append(ends["high"] - ends["low"])
    assert widths[0] > 5 * widths[1]


def test_scores_are_percentages_of_the_queries_that_have_a_match():
    gallery = embedded(on_an_arc([1, 2, 3]), [2, 1, 3], [1, 1, 1])
    ranked = rank(embedded(on_an_arc([0, 0, 0]), [1, 3, 4], [0, 0, 0]), gallery)  # ranks 2, 3, none
    percentages = scores(ranked)
    assert percentages == {
        "queries": 2,
        "without_match": 1,
        "unidentified": 0,
        "camera_unknown": 0,
        "infinitely_far": 0,
        "rank1": 0.0,
        "rank5": 100.0,
        "rank10": 100.0,
        "mAP": 41.67,
        "mINP": 41.67,
    }
    np.testing.assert_allclose(cmc(ranked, 4), [0, 0.5, 1, 1])


def test_scores_of_some_queries_are_theirs_alone():
    gallery = embedded(on_an_arc([1, 2]), [2, 1], [1, 1])
    ranked = rank(embedded(on_an_arc([0, 0]), [1, 2], [0, 0]), gallery)
    assert scores(ranked, np.array([False, True]))["mAP"] == 100.0


def test_a_group_without_a_query_has_no_scores():
    ranked = rank(embedded(on_an_arc([0]), [1], [0]), embedded(on_an_arc([1]), [2]))
    assert scores(ranked)["queries"] == 0 and "mAP" not in scores(ranked)
