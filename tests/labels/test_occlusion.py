"""Occlusion labels of a map: pixels of each part (Eq. 1), flags (Eq. 2), occlusion types."""

import json

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.labels import occlusion
from stages.label import main

WALKER = torch.tensor([[1, 1, 0, 0], [2, 4, 4, 3], [0, 5, 6, 6], [0, 7, 0, 8]])  # K = 8, a pixel or two each
COUNTS = {  # C -> y(c) of the walker, by hand
    1: [11],
    2: [6, 5],
    3: [2, 4, 5],
    4: [2, 2, 2, 5],
    5: [2, 2, 2, 3, 2],
    6: [2, 1, 1, 2, 3, 2],
    7: [2, 1, 1, 2, 1, 2, 2],
    8: [2, 1, 1, 2, 1, 2, 1, 1],
}
MAPS = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).integers(0, 9, (3, 6, 4), np.uint8))
PARTS = st.integers(1, 8)


@pytest.mark.parametrize("count", COUNTS)
def test_pixels_are_counted_by_coarse_part(count):
    assert occlusion.count_pixels(WALKER[None], count).tolist() == [COUNTS[count]]


def test_feet_belong_to_the_legs_of_the_paper():
    assert parts.COARSE[4]["legs"] == (parts.LEFT_LEG, parts.RIGHT_LEG, parts.LEFT_FOOT, parts.RIGHT_FOOT)


@pytest.mark.parametrize(
    "count, threshold, strict, want",
    [
        (4, 5.0, True, True),
        (5, 5.0, True, False),  # lambda itself is not below lambda
        (5, 5.0, False, True),
        (0, 0.0, True, False),  # as printed, lambda = 0 hides nothing
        (0, 0.0, False, True),
        (5, 5.5, True, True),
    ],
)
def test_a_part_is_hidden_below_lambda(count, threshold, strict, want):
    assert occlusion.hidden_parts(torch.tensor([[count]]), threshold, strict).item() is want


def test_the_number_of_a_type_is_its_binary_code_with_the_first_part_lowest():
    flags = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    assert occlusion.pattern_index(flags).tolist() == [0, 1, 8, 13]


@given(MAPS, PARTS)
def test_merging_preserves_the_number_of_pixels(maps, count):
    counts = occlusion.count_pixels(torch.from_numpy(maps), count)
    assert counts.sum(1).tolist() == (maps > 0).sum((1, 2)).tolist()


@given(PARTS)
def test_every_fine_part_is_in_exactly_one_coarse_part(count):
    merged = [label for group in parts.COARSE[count].values() for label in group]
    assert sorted(merged) == list(range(1, 9)) and len(parts.COARSE[count]) == count


@given(MAPS, PARTS)
def test_counting_equals_the_slow_version(maps, count):
    slow = [[sum(int((m == k).sum()) for k in group) for group in parts.COARSE[count].values()] for m in maps]
    assert occlusion.count_pixels(torch.from_numpy(maps), count).tolist() == slow


@given(MAPS, PARTS, st.integers(0, 2**32 - 1), st.floats(0, 10), st.booleans())
def test_hiding_pixels_never_reveals_a_part(maps, count, seed, threshold, strict):
    covered = np.where(np.random.default_rng(seed).random(maps.shape) < 0.5, 0, maps).astype(np.uint8)

    def z(m):
        return occlusion.hidden_parts(occlusion.count_pixels(torch.from_numpy(m), count), threshold, strict)

    assert (z(covered) >= z(maps)).all()


@given(MAPS)
def test_a_flip_moves_pixels_between_the_sides_only(maps):
    before = occlusion.count_pixels(torch.from_numpy(maps), 8)
    after = occlusion.count_pixels(torch.from_numpy(parts.flip(maps)), 8)
    assert (after == before[:, np.array(parts.SWAPPED[1:]) - 1]).all()
    merged = [occlusion.count_pixels(torch.from_numpy(m), 4) for m in (maps, parts.flip(maps))]
    assert (merged[0] == merged[1]).all()


def test_a_map_with_unknown_parts_is_refused():
    with pytest.raises(BadInput, match="label 9, but the parts end at 8"):
        occlusion.count_pixels(torch.full((1, 2, 2), 9), 4)


# ------------------------------------------------------------------ the stage


def run(folder, threshold, count=4):
    (folder / "params.yaml").write_text(
        json.dumps({"lambda": threshold, "label": {"parts": count, "strict": True}})
    )
    out = folder / f"{threshold}.h5"
    main(str(folder / "parsing.h5"), str(out), str(folder / "params.yaml"))
    return out


@pytest.fixture
def world(tmp_path):
    maps = np.stack([WALKER.numpy(), np.zeros((4, 4))]).astype(np.uint8)
    write_label_file(tmp_path / "parsing.h5", "parsing", {"map": maps}, {"index": "abc"})
    return tmp_path


def test_the_stage_writes_pixels_and_flags_under_the_names_of_the_parts(world):
    rows = LabelFile(run(world, 5), "occlusion", "abc")
    assert rows["pixels"][:].tolist() == [[2, 2, 2, 5], [0, 0, 0, 0]]
    assert rows["occluded"][:].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.attrs["parts"] == ["head", "arms", "torso", "legs"]


def test_equal_labels_are_equal_bytes_whatever_lambda(world):
    assert run(world, 3).read_bytes() == run(world, 4.5).read_bytes()  # so that nothing after them runs
    assert run(world, 3).read_bytes() != run(world, 1).read_bytes()


def test_the_labels_do_not_record_lambda(world):
    with h5py.File(run(world, 3)) as file:
        assert not {"lambda", "threshold"} & set(file.attrs) and "params" not in file.attrs


def test_a_grouping_that_does_not_exist_is_refused(world):
    with pytest.raises(BadInput, match=r"label\.parts = 9"):
        run(world, 5, count=9)
