"""Obstacles: cut, scaled, positioned and pasted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.core.params import BadInput, validate
from pipeline.data import obstacles
from pipeline.data.obstacles import Obstacle, Obstacles
from tests import toy

PARAMS = toy.schedule().obstacles
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


@given(st.integers(0, 10**6))
def test_a_rectangle_keeps_to_the_area_and_the_image(seed):
    obstacle = obstacles.cut_rectangle(GREY, (0.1, 0.3), (0.5, 2.0), RNG(seed))
    share = obstacle.solid.sum() / (64 * 32)
    assert obstacle.solid.shape[0] <= 64 and obstacle.solid.shape[1] <= 32 and 0.08 < share < 0.33


def test_a_person_is_cut_out_along_the_parsing_map():
    parsing = np.zeros((64, 32), np.uint8)
    parsing[8:20, 4:10] = 4
    obstacle = obstacles.cut_person(GREY, parsing)
    assert obstacle.solid.shape == (12, 6) and obstacle.solid.all()
    assert obstacles.cut_person(GREY, np.zeros_like(parsing)) is None


def test_scaling_keeps_the_shape():
    obstacle = obstacles.scale(solid(20, 10), 50.0)
    assert obstacle.solid.shape == (10, 5) and obstacle.pixels.shape == (10, 5, 3)


@pytest.mark.parametrize("source", ["rectangle", "person", "cutout"])
def test_every_source_gives_obstacles_of_the_wanted_area(source):
    people = toy.people()
    params = replace(PARAMS, sources=[source], cutouts="poles", area=(0.2, 0.2))
    shares = [
        obstacles.sample_obstacle(
            params, people.image[0], people.parsing[0], [solid(5, 5)], RNG(seed)
        ).solid.mean(dtype=float)
        for seed in range(5)
    ]
    assert min(shares) > 0.5
    areas = [
        obstacles.sample_obstacle(
            params, people.image[0], people.parsing[0], [solid(5, 5)], RNG(seed)
        ).solid.sum()
        for seed in range(5)
    ]
    assert all(0.12 < area / (64 * 32) < 0.28 for area in areas)


def test_half_of_the_cutouts_are_flipped_with_their_solid_pixels():
    params = replace(PARAMS, sources=["cutout"], cutouts="poles")
    pole = solid(20, 10)
    pole.solid[:, 5:], pole.pixels[:, 5:] = False, 0  # solid on the left
    poles = [obstacles.sample_obstacle(params, GREY, GREY[..., 0], [pole], RNG(seed)) for seed in range(200)]
    sides = [(p.solid[0, [0, -1]].tolist(), p.pixels[0, [0, -1], 0].tolist()) for p in poles]
    original, flipped = ([True, False], [200, 0]), ([False, True], [0, 200])
    assert all(side in (original, flipped) for side in sides) and 80 <= sides.count(flipped) <= 120


def test_a_rectangle_replaces_a_person_where_the_image_shows_none():
    params = replace(PARAMS, sources=["person"])
    assert obstacles.sample_obstacle(params, GREY, np.zeros((64, 32), np.uint8), [], RNG(0)).solid.all()


def test_at_least_half_of_each_side_lies_inside():
    for seed in range(50):
        top, left = obstacles.sample_position(solid(20, 10), 64, 32, RNG(seed))
        assert -10 <= top <= 54 and -5 <= left <= 27


def test_cutouts_are_read_with_their_alpha(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).save(tmp_path / "pole.png")
    (obstacle,) = obstacles.read_cutouts(str(tmp_path))
    assert obstacle.solid[:2].all() and not obstacle.solid[2:].any()
    assert obstacles.read_cutouts("") == []


VALID = {"probability": 1, "sources": ["cutout"], "cutouts": "poles", "area": [0.1, 0.1], "aspect": None}
FAULTS = {  # change to valid params: the message
    "a source without its folder": ({"cutouts": ""}, "obstacles.cutouts = '': the source `cutout` needs"),
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


@pytest.mark.parametrize("content", ["nothing", "no alpha", "text"])
def test_unusable_cutouts_are_named(tmp_path, content):
    if content == "no alpha":
        Image.fromarray(GREY).save(tmp_path / "pole.png")
    if content == "text":
        (tmp_path / "pole.png").write_text("hello")
    with pytest.raises(BadInput, match=r"no PNG files|pole\.png: "):
        obstacles.read_cutouts(str(tmp_path))
