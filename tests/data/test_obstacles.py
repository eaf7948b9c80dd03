"""Obstacles: cut, scaled, positioned and pasted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.params import BadInput, validate
from pipeline.data import obstacles
from pipeline.data.obstacles import Obstacle, Obstacles

RNG = np.random.default_rng
GREY = np.full((64, 32, 3), 99, np.uint8)


def solid(height, width, value=200):
    return Obstacle(np.full((height, width, 3), value, np.uint8), np.ones((height, width), bool))


def test_pasting_changes_exactly_the_pixels_it_reports_and_leaves_the_original():
    image, covered = obstacles.paste(GREY, solid(4, 6), 10, 20)
    assert covered.sum() == 24 and covered[10:14, 20:26].all()
    assert (image[covered] == 200).all() and (image[~covered] == 99).all() and (GREY == 99).all()


@given(st.integers(-40, 80), st.integers(-40, 80))
def test_what_reaches_beyond_the_image_is_cut_off(top, left):
    image, covered = obstacles.paste(GREY, solid(20, 10), top, left)
    rows = max(0, min(64, top + 20) - max(0, top))
    columns = max(0, min(32, left + 10) - max(0, left))
    assert covered.sum() == rows * columns and ((image == 200).all(2) == covered).all()


def test_holes_of_an_obstacle_show_the_person():
    ring = Obstacle(np.full((3, 3, 3), 7, np.uint8), np.ones((3, 3), bool))
    ring.solid[1, 1] = False
    image, covered = obstacles.paste(GREY, ring, 0, 0)
    assert covered.sum() == 8 and (image[1, 1] == 99).all()


@given(st.floats(0.1, 1.0), st.floats(0.05, 20.0), st.integers(16, 80), st.integers(16, 80))
def test_a_rectangle_of_any_aspect_has_the_area_that_was_drawn_and_fits(share, ratio, height, width):
    h, w = obstacles.sample_sides(height, width, (share, share), (ratio, ratio), RNG(0))
    assert 1 <= h <= height and 1 <= w <= width
    assert abs(h * w - share * height * width) <= max(h, w) / 2 + 1e-9  # sides are whole pixels


def test_a_rectangle_that_would_be_wider_than_the_image_is_made_higher():
    # 0.5 of 64 x 32 pixels, a quarter as high as wide: 16 x 64 as drawn
    assert obstacles.sample_sides(64, 32, (0.5, 0.5), (0.25, 0.25), RNG(0)) == (32, 32)
    # 0.5, eight times as high as wide: 90.5 x 11.3 as drawn
    assert obstacles.sample_sides(64, 32, (0.5, 0.5), (8.0, 8.0), RNG(0)) == (64, 16)


@given(st.integers(0, 10**6))
def test_a_rectangle_shows_a_part_of_the_image_with_area_and_aspect_between_their_ends(seed):
    image = RNG(1).integers(0, 256, (64, 32, 3), np.uint8)
    obstacle = obstacles.cut_rectangle(image, (0.1, 0.3), (0.5, 2.0), RNG(seed))
    h, w = obstacle.solid.shape
    assert obstacle.solid.all() and 0.09 < h * w / (64 * 32) < 0.32 and 0.45 < h / w < 2.2
    windows = np.lib.stride_tricks.sliding_window_view(image, (h, w, 3))
    assert (windows == obstacle.pixels).all((-1, -2, -3)).any()


def test_a_person_is_cut_out_along_the_parsing_map():
    parsing = np.zeros((64, 32), np.uint8)
    parsing[8:20, 4:10] = 4
    obstacle = obstacles.cut_person(GREY, parsing)
    assert obstacle.solid.shape == (12, 6) and obstacle.solid.all()
    assert obstacles.cut_person(GREY, np.zeros_like(parsing)) is None


def test_scaling_keeps_the_shape():
    obstacle = obstacles.scale(solid(20, 10), 50.0)
    assert obstacle.solid.shape == (10, 5) and obstacle.pixels.shape == (10, 5, 3)


def test_at_least_half_of_each_side_lies_inside():
    for seed in range(50):
        top, left = obstacles.sample_position(solid(20, 10), 64, 32, RNG(seed))
        assert -10 <= top <= 54 and -5 <= left <= 27


class End(np.random.Generator):
    """Draws the same end of every range: 0 the lower, 1 the upper."""

    def __new__(cls, end):
        return super().__new__(cls, np.random.PCG64())

    def __init__(self, end):
        super().__init__(np.random.PCG64())
        self.end = end

    def uniform(self, low, high):
        return low + (high - low) * self.end


def ends(length, image, inside):
    """The first and the last position of an obstacle of `length` along a side of an image."""
    return [obstacles.sample_position(solid(length, 1), image, 1, End(end), inside)[0] for end in (0, 1)]


ENDS = {  # length, the image's, share inside: first and last position
    "half inside": ((20, 64, 0.5), [-10, 54]),
    "longer than the image": ((100, 64, 0.5), [-50, 14]),
    "over twice as long: over both edges": ((192, 64, 0.5), [-128, 0]),
    "all inside": ((20, 64, 1.0), [0, 44]),
    "all inside, but longer: over both edges": ((100, 64, 1.0), [-36, 0]),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_obstacle_may_lie_between_these_positions(case):
    arguments, positions = ENDS[case]
    assert ends(*arguments) == positions


@given(st.integers(1, 400), st.integers(1, 100), st.sampled_from([0.5, 1.0]))
def test_both_ends_of_an_obstacle_are_cut_off_alike(length, image, inside):
    first, last = ends(length, image, inside)
    assert abs(first + last - (image - length)) <= 1  # rounded
    for top in (first, last):
        shown = min(top + length, image) - max(top, 0)
        assert shown >= min(length * inside, image) - 1


# ------------------------------------------------------------------ obstacles that cover what was drawn


def cover(obstacle, share, seed, size=(64, 32)):
    """What an obstacle covers of an image of which it is to cover `share`."""
    fitted, top, left = obstacles.fit(obstacle, share * size[0] * size[1], *size, RNG(seed))
    return fitted, top, left, obstacles.paste(np.zeros((*size, 3), np.uint8), fitted, top, left)[1]


def test_a_pole_that_is_longer_than_the_image_is_made_wider():
    fitted, top, _, covered = cover(solid(200, 10), 0.25, seed=0)
    # 512 of 64 x 32 pixels: 101 x 5 as drawn, of which 320 would show; 158 x 8 shows 64 x 8
    assert fitted.solid.shape == (158, 8) and -94 < top < 0 and covered.sum() == 512


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 0.4), st.integers(0, 99))
def test_a_rectangle_of_any_aspect_covers_what_was_drawn(height, width, share, seed):
    fitted, top, left, covered = cover(solid(height, width), share, seed)
    rows, columns = (int(covered.any(axis).sum()) for axis in (1, 0))
    assert abs(covered.sum() - share * 64 * 32) <= (rows + columns) / 2 + 1  # sides are whole pixels
    for position, length, image in zip((top, left), fitted.solid.shape, (64, 32), strict=True):
        assert 0 <= position <= image - length or image - length <= position <= 0


def test_cut_outs_of_all_aspects_cover_what_was_drawn_in_the_mean():
    cone = solid(90, 9)
    cone.solid[:] = np.arange(9) * 10 < np.arange(90)[:, None]
    cutouts = [solid(60, 60), solid(400, 20), solid(20, 400), cone]
    shares = RNG(0).uniform(0.1, 0.4, 400)
    covers = [cover(cutouts[n % 4], share, n, (128, 64))[-1].mean() for n, share in enumerate(shares)]
    assert abs(np.mean(covers) - shares.mean()) < 0.005


def test_a_ring_that_cannot_cover_enough_grows_no_larger_than_the_image():
    ring = solid(20, 20)
    ring.solid[2:-2, 2:-2] = False
    for seed in range(20):
        fitted, *_ = cover(ring, 0.35, seed)
        assert max(fitted.solid.shape) <= 64


VALID = {
    "probability": 1, "sources": ["cutout"], "cutouts": "poles", "patches": "", "area": [0.1, 0.1],
    "aspect": None, "placement": None,
}  # fmt: skip
FAULTS = {  # change to valid params: the message
    "a source without its folder": ({"cutouts": ""}, "obstacles.cutouts = '': the source `cutout` needs"),
    "patches without their folder": (
        {"sources": ["patch"]},
        "obstacles.patches = '': the source `patch` needs a folder of opaque pictures",
    ),
    "the most before the least": ({"area": [0.4, 0.1]}, "obstacles.area = [0.4, 0.1]: the least comes first"),
    "more than all": (
        {"area": [0.4, 1.1]},
        "obstacles.area.1 = 1.1: input should be less than or equal to 1",
    ),
    "less than nothing": ({"area": [-0.4, 0.1]}, "obstacles.area.0 = -0.4: input should be greater than 0"),
    "no ratio": ({"aspect": [0, 2]}, "obstacles.aspect.0 = 0: input should be greater than 0"),
    "another order": ({"aspect": [3.3, 0.3]}, "obstacles.aspect = [3.3, 0.3]: the least comes first"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_params_are_named(fault):
    change, message = FAULTS[fault]
    assert validate(VALID, Obstacles, "").area == (0.1, 0.1)
    with pytest.raises(BadInput) as error:
        validate(VALID | change, Obstacles, "params.yaml: ", "obstacles")
    assert str(error.value).startswith(f"params.yaml: {message}")


def test_the_presets_sources_need_no_folder():
    assert validate(VALID | {"sources": None, "cutouts": ""}, Obstacles, "").cutouts == ""
