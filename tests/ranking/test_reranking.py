"""k-reciprocal re-ranking: the published formula where its matrices fit, and the shortlist."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.ranking import (
    Embedded,
    Rerank,
    Stored,
    comparison,
    distances,
    neighbours,
    rank,
    rerank,
    rerank_distances,
    reranking,
    task,
)

OPTIONS = Rerank(depth=40, k1=5, k2=3, original=0.3)


def crowd(count, seed):
    """Images whose distances are exact whatever the tiles, so that no rounding decides who is near."""
    rng = np.random.default_rng(seed)
    parts = torch.from_numpy(rng.choice([-1.0, 1.0], (count, 3, 16)).astype(np.float32))  # of length 4
    visibility = torch.from_numpy(rng.choice([0, 0.5, 1], (count, 3)).astype(np.float32))
    camid = np.append(0, rng.integers(-1, 3, count))[:count]
    pid = np.append(1, rng.integers(0, 5, count))[:count]  # the first camera of person 1 is known
    return Embedded(parts, visibility, pid, camid)


def together(query, gallery):
    return Embedded(
        torch.cat([query.parts, gallery.parts]),
        torch.cat([query.visibility, gallery.visibility]),
        np.concatenate([query.pid, gallery.pid]),
        np.concatenate([query.camid, gallery.camid]),
    )


def slow(table, queries, k1, k2, original):
    """The final distances of Zhong et al., in full matrices, set by set."""
    images = range(len(table))
    farthest = [max((value for value in row if value < np.inf), default=0) for row in table]

    def share(value, most):
        return value if value == np.inf or most == 0 else (value / most) ** 2

    scaled = np.array(
        [[share(value, most) for value in row] for row, most in zip(table, farthest, strict=True)]
    )
    nearest = [sorted(images, key=lambda j, i=i: (table[i][j], j)) for i in images]

    def reciprocal(i, k):  # R(i, k), Eq. 3; an image is its own nearest
        return {j for j in nearest[i][: k + 1] if i in nearest[j][: k + 1]}

    described = np.zeros((len(table), len(table)))
    for i in images:
        extended = weighted = reciprocal(i, k1)
        for j in weighted:  # R*, Eq. 5
            more = reciprocal(j, round(k1 / 2))
            if len(more & weighted) > 2 / 3 * len(more):
                extended = extended | more
        for j in extended:  # Eq. 7
            described[i, j] = np.exp(-scaled[i, j])
        described[i] /= described[i].sum() or 1
    averaged = np.array([described[nearest[i][:k2]].mean(0) for i in images])  # Eq. 11
    final = np.empty((queries, len(table) - queries))
    for i in range(queries):
        for j in range(queries, len(table)):
            common = np.minimum(averaged[i], averaged[j]).sum()  # Eq. 10
            weighted = original * scaled[i, j] if original else 0
            final[i, j - queries] = (1 - original) * (1 - common / (2 - common)) + weighted
    return final  # Eq. 12


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(1, 6),
    st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_with_a_shortlist_as_long_as_the_gallery_it_is_the_published_formula(seed, q, g, k1, k2, original):
    query, gallery = crowd(q, seed), crowd(g, seed + 1)
    options = Rerank(g, k1, k2, original)
    plain = rank(query, gallery, "squared", top=g)
    reranked = rerank(query, gallery, plain, options, "squared")
    everyone = together(query, gallery)
    table = distances(everyone, everyone, "squared").numpy()
    final = slow(table.tolist(), q, k1, k2, original)
    for i in range(q):
        listed = reranked.top[i][reranked.top[i] >= 0]
        np.testing.assert_allclose(reranked.top_distance[i][: len(listed)], final[i, listed], atol=1e-6)
        assert sorted(listed) == sorted(image for image in plain.top[i] if image >= 0)
    matrices = table[:q, q:], table[:q, :q], table[q:, q:]
    same(rerank_distances(*matrices, plain, options), reranked)


def same(one, other):
    for name in ("ap", "inp", "first_match", "num_matches", "top"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_rerank_scores_the_order_that_it_gives():
    query, gallery = crowd(6, 0), crowd(40, 1)
    reranked = rerank(query, gallery, rank(query, gallery, "squared", top=40), OPTIONS, "squared")
    for i in range(6):
        walk = [image for image in reranked.top[i] if image >= 0]
        right = [k for k, image in enumerate(walk, 1) if gallery.pid[image] == query.pid[i] > 0]
        assert reranked.num_matches[i] == len(right) and reranked.first_match[i] == (right[0] if right else 0)
        if right:
            np.testing.assert_allclose(reranked.ap[i], np.mean([n / k for n, k in enumerate(right, 1)]))


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_what_lies_behind_the_shortlist_keeps_its_place(depth):
    query, gallery = crowd(6, 0), crowd(40, 1)
    plain = rank(query, gallery, "squared", top=12)
    reranked = rerank(query, gallery, plain, replace(OPTIONS, depth=depth), "squared")
    np.testing.assert_array_equal(reranked.top[:, depth:], plain.top[:, depth:])
    np.testing.assert_array_equal(np.sort(reranked.top[:, :depth]), np.sort(plain.top[:, :depth]))
    behind = [
        sorted(r.matches.rank[(r.matches.query == 2) & (r.matches.rank > depth)]) for r in (plain, reranked)
    ]
    assert behind[0] == behind[1] and len(behind[0])


def test_junk_is_nobodys_neighbour():
    query, gallery = crowd(6, 0), crowd(40, 1)
    gallery.pid[::3] = -1
    left = gallery.pid >= 0
    clean = Embedded(gallery.parts[left], gallery.visibility[left], gallery.pid[left], gallery.camid[left])
    reranked, wanted = (
        rerank(query, images, rank(query, images, "squared", top=40), OPTIONS, "squared")
        for images in (gallery, clean)
    )
    np.testing.assert_array_equal(reranked.top, np.append(np.flatnonzero(left), -1)[wanted.top])
    np.testing.assert_array_equal(reranked.ap, wanted.ap)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 40), st.integers(1, 9), st.integers(1, 6),
    st.integers(1, 3),
)  # fmt: skip
def test_neighbours_are_those_of_the_matrix_whatever_the_tiles(seed, q, g, tile, k, workers):
    query, gallery = crowd(q, seed), crowd(g, seed + 1)
    sizes = (
        mock.patch.dict(comparison.GALLERY_BLOCK, cpu=tile),
        mock.patch.dict(comparison.QUERY_BLOCK, cpu=5),
    )
    units = mock.patch.object(task, "MB", 2**10), mock.patch.object(neighbours, "MB", 2**10)
    with sizes[0], sizes[1], units[0], units[1]:
        lists = neighbours.neighbours(query, gallery, k, "squared", memory=30, workers=workers)
    everyone = together(query, gallery)
    table = distances(everyone, everyone, "squared").numpy()
    for row, who, near, most in zip(table, lists.image, lists.distance, lists.farthest, strict=True):
        nearest = sorted((value, j) for j, value in enumerate(row)) + [(np.inf, -1)] * k
        assert list(zip(near, who, strict=True)) == nearest[:k]
        assert most == max((value for value in row if value < np.inf), default=0)


def test_the_distance_of_a_pair_is_computed_once(monkeypatch):
    monkeypatch.setitem(comparison.GALLERY_BLOCK, "cpu", 4)
    monkeypatch.setitem(comparison.QUERY_BLOCK, "cpu", 4)
    compare, pairs = comparison.block_distances, []

    def counted(panel, tile, metric, desk):
        pairs.append(len(panel.visibility) * len(tile.rows))
        return compare(panel, tile, metric, desk)

    monkeypatch.setattr(task, "block_distances", counted)
    neighbours.neighbours(crowd(8, 0), crowd(40, 1), 5, workers=1)
    panels = 48 // 4
    assert sum(pairs) == 4 * 4 * panels * (panels + 1) / 2  # twice only within a panel


@pytest.mark.parametrize("metric", ["euclidean", "squared", "cosine"])
def test_pairs_are_as_far_apart_as_in_the_matrix(metric):
    query, gallery = crowd(4, 0), crowd(5, 1)
    pairs = reranking.pair_distances(query, gallery, np.arange(5), metric)
    everyone = together(query, gallery)
    one, other = np.array([0, 3, 8, 8, 4]), np.array([1, 3, 2, 8, 7])
    wanted = distances(everyone, everyone, metric)[one, other]
    torch.testing.assert_close(torch.from_numpy(pairs(one, other)), wanted)


def test_files_blocks_and_workers_change_nothing(tmp_path, monkeypatch):
    query, gallery = crowd(20, 0), crowd(90, 1)
    plain = rank(query, gallery, "squared", top=40)
    whole = rerank(query, gallery, plain, OPTIONS, "squared")
    arrays = {"part": gallery.parts.numpy(), "seen": gallery.visibility.numpy()}
    write_label_file(tmp_path / "gallery.h5", "features", arrays, {"index": "x"})
    rows = LabelFile(tmp_path / "gallery.h5")
    filed = replace(
        gallery, **{n: Stored(rows[c], 0, 90) for n, c in {"parts": "part", "visibility": "seen"}.items()}
    )
    same(rerank(query, filed, plain, OPTIONS, "squared"), whole)
    monkeypatch.setitem(comparison.GALLERY_BLOCK, "cpu", 7)
    monkeypatch.setitem(comparison.QUERY_BLOCK, "cpu", 3)
    for module in (task, neighbours):
        monkeypatch.setattr(module, "MB", 2**10)
    monkeypatch.setattr(reranking, "PAIRS", 3)
    monkeypatch.setattr(reranking, "ROWS", 8)
    same(rerank(query, gallery, plain, OPTIONS, "squared", memory=30, workers=3), whole)


def test_what_cannot_be_reranked_is_refused():
    query, gallery = crowd(6, 0), crowd(40, 1)
    plain = rank(query, gallery, "squared", top=12)
    with pytest.raises(BadInput, match="nearest 12: re-ranking 40"):
        rerank(query, gallery, plain, OPTIONS, "squared")
    shallow = replace(OPTIONS, depth=5)
    with pytest.raises(BadInput, match=r"a ranking of 6 queries .* but 5 queries and 40 images"):
        rerank(query[:5], gallery, plain, shallow, "squared")
    with pytest.raises(BadInput, match="but 6 queries and 9 images"):
        rerank(query, gallery[:9], plain, shallow, "squared")
    with pytest.raises(BadInput, match="other matches than those given"):
        rerank(replace(query, pid=query.pid[::-1].copy()), gallery, plain, shallow, "squared")
    with pytest.raises(BadInput, match="metric = 'manhattan'"):
        rerank(query, gallery, plain, shallow, "manhattan")
    tables = (distances(*pair, "squared").numpy() for pair in ((query, gallery), (query, query)))
    with pytest.raises(BadInput, match=r"a ranking of 6 queries .* but 5 queries"):
        rerank_distances(next(tables)[:5], next(tables)[:5, :5], np.eye(40, dtype="f"), plain, shallow)
    gated = replace(query, gate=torch.ones(6, 3, 16))
    with pytest.raises(BadInput, match="not mutual"):
        rerank(gated, gallery, plain, replace(OPTIONS, depth=5), "squared")
    big = Embedded.of(torch.ones(2, 9, 768), [1, 1])
    with pytest.raises(BadInput, match=r"memory = 1: too little .* at least \d+ MB"):
        rerank(big, big, rank(big, big, top=2), OPTIONS, memory=1)
