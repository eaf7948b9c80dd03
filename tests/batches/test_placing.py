"""Obstacles of every source, and where they lie."""

import math
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batches import placing
from pipeline.batches.placing import Donor, cut_background, free_of_body, sample_obstacle
from pipeline.data import obstacles
from pipeline.data.obstacles import Obstacle
from tests import toy

PARAMS = replace(toy.schedule().obstacles, cutouts="poles", patches="walls")
RNG = np.random.default_rng
HEIGHT, WIDTH = 64, 32
GREY = np.full((HEIGHT, WIDTH, 3), 99, np.uint8)
EMPTY = np.zeros((HEIGHT, WIDTH), np.uint8)
SEEDS = st.integers(0, 2**32 - 1)


def picture(height, width, value=200):
    return Obstacle(np.full((height, width, 3), value, np.uint8), np.ones((height, width), bool))


def noise(height=HEIGHT, width=WIDTH):
    """Every byte differs from its neighbours, so that a mirrored picture is another one."""
    return RNG(0).integers(1, 256, (height, width, 3), np.uint8)


def sample(source, seed=0, donor=None, pictures=(), **changes):
    params = replace(PARAMS, sources=[source], **changes)
    donor = donor or Donor(GREY, toy.people().parsing[0])
    return sample_obstacle(params, repeat(donor), {source: pictures}, RNG(seed))


def covered(placed):
    """The pixels that a placed obstacle covers of an image."""
    return obstacles.paste(GREY, placed.obstacle, *placed.position)[1]


# ------------------------------------------------------------------ anywhere


@pytest.mark.parametrize("source", ["rectangle", "person", "cutout", "patch", "background"])
def test_an_obstacle_has_the_area_that_was_drawn(source):
    donor = Donor(toy.people().image[0], toy.people().parsing[0])
    for seed in range(5):
        solid = sample(source, seed, donor, [picture(5, 5)], area=(0.2, 0.2)).obstacle.solid
        assert solid.mean(dtype=float) > 0.5 and 0.12 < solid.sum() / (HEIGHT * WIDTH) < 0.28


@pytest.mark.parametrize("source", ["cutout", "patch"])
def test_half_of_the_pictures_are_flipped_with_their_solid_pixels(source):
    pole = picture(20, 10)
    pole.solid[:, 5:], pole.pixels[:, 5:] = False, 0  # solid on the left
    poles = [sample(source, seed, pictures=[pole]).obstacle for seed in range(200)]
    sides = [(p.solid[0, [0, -1]].tolist(), p.pixels[0, [0, -1], 0].tolist()) for p in poles]
    original, flipped = ([True, False], [200, 0]), ([False, True], [0, 200])
    assert all(side in (original, flipped) for side in sides) and 80 <= sides.count(flipped) <= 120


@pytest.mark.parametrize("placement", ["anywhere", "border"])
def test_a_rectangle_replaces_a_person_where_the_image_shows_none(placement):
    square = {"area": (0.1, 0.1), "aspect": (1.0, 1.0)}
    placed = sample("person", donor=Donor(GREY, EMPTY), placement=placement, **square)
    assert placed.obstacle.solid.all()
    shape = placed.obstacle.solid.shape
    assert (HEIGHT in shape[:1] or WIDTH in shape[1:]) == (placement == "border")


# ------------------------------------------------------------------ noise


def slow_box(params, rng):
    """Sides and attempts of timm's random erasing, from the same draws."""
    for attempt in range(10):
        target = rng.uniform(params.area[0], params.area[1]) * HEIGHT * WIDTH
        ratio = math.exp(rng.uniform(math.log(params.aspect[0]), math.log(params.aspect[1])))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if h < HEIGHT and w < WIDTH:
            return h, w, attempt
    return None


@given(SEEDS)
def test_noise_fills_a_box_of_random_erasing_wholly_inside(seed):
    params = replace(PARAMS, sources=["noise"], area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
    placed = sample("noise", seed, area=params.area, aspect=params.aspect)
    rng = RNG(seed)
    rng.integers(1)  # the source
    h, w, _ = slow_box(params, rng)
    assert placed.obstacle.solid.shape == (h, w) and placed.obstacle.solid.all()
    assert covered(placed).sum() == h * w


def test_a_box_is_drawn_again_until_it_is_smaller_than_the_image_and_given_up_after_ten_times():
    wide = replace(PARAMS, sources=["noise"], area=(0.3, 0.6), aspect=(0.2, 1.0))
    attempts = []
    for seed in range(60):
        rng = RNG(seed)
        rng.integers(1)
        box = slow_box(wide, rng)
        placed = sample("noise", seed, area=wide.area, aspect=wide.aspect)
        assert (None if placed.obstacle is None else placed.obstacle.solid.shape) == (box and box[:2])
        attempts.append(box and box[2])
    assert {0, 1, None} <= set(attempts)
    assert sample("noise", area=(1.0, 1.0), aspect=(0.5, 2.0)) == placing.NOTHING


def test_noise_is_normal_in_normalised_colours_and_clipped_to_bytes():
    draws = [sample("noise", seed, area=(0.3, 0.3), aspect=(1.0, 2.0)).obstacle for seed in range(30)]
    pixels = np.concatenate([o.pixels.reshape(-1) for o in draws])
    normal = lambda x: (1 + math.erf(x / 2**0.5)) / 2  # noqa: E731
    for level in (0, 64, 127, 190, 254):
        below = normal((level + 0.5 - 127.5) / 127.5)  # rounded
        assert abs((pixels <= level).mean() - below) < 0.01
    corners = [sample("noise", seed, area=(0.1, 0.1)).position for seed in range(300)]
    tops, lefts = np.transpose(corners)
    assert tops.min() == 0 and lefts.min() == 0 and abs(tops.mean() - 25) < 4 and abs(lefts.mean() - 9) < 2


@pytest.mark.parametrize("source", ["noise", "cutout", "person"])
def test_the_border_changes_nothing_for_sources_that_are_not_opaque(source):
    for seed in range(5):
        here, there = (
            sample(source, seed, pictures=[picture(9, 5)], placement=place)
            for place in ("anywhere", "border")
        )
        assert here.position == there.position and (here.obstacle.pixels == there.obstacle.pixels).all()


# ------------------------------------------------------------------ borders


BANDS = {  # a patch's height, width -> whether its band is vertical
    (60, 20): True,
    (41, 20): True,
    (40, 20): False,  # height / width is 2, not above it
    (10, 90): False,
}


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(sorted(BANDS)))
def test_a_patch_becomes_a_band_of_a_quarter_to_a_half_in_a_corner(seed, shape):
    placed = sample("patch", seed, pictures=[picture(*shape)], placement="border")
    (h, w), (top, left) = placed.obstacle.solid.shape, placed.position
    assert placed.obstacle.solid.all() and placed.obstacle.pixels.shape == (h, w, 3)
    if BANDS[shape]:
        assert h == HEIGHT and WIDTH // 4 <= w <= WIDTH // 2
    else:
        assert w == WIDTH and HEIGHT // 4 <= h <= HEIGHT // 2
    assert top in (0, HEIGHT - h) and left in (0, WIDTH - w)
    assert covered(placed).sum() == h * w


@pytest.mark.parametrize("shape", [(90, 30), (30, 90)])
def test_lengths_and_corners_are_uniform_and_half_of_the_bands_are_mirrored(shape):
    half = picture(*shape, value=0)
    half.pixels[:, : shape[1] // 2] = 255  # bright on the left
    draws = [sample("patch", seed, pictures=[half], placement="border") for seed in range(400)]
    axis = int(shape[0] > shape[1])  # along which the band has a share of the image
    lengths = [p.obstacle.solid.shape[axis] for p in draws]
    length = (HEIGHT, WIDTH)[axis]
    assert min(lengths) == length // 4 and max(lengths) == length // 2
    assert abs(np.mean(lengths) - 3 / 8 * length) < 0.02 * length
    assert 160 < sum(p.position[axis] == 0 for p in draws) < 240
    mirrored = [p.obstacle.pixels[:, 0].mean() < p.obstacle.pixels[:, -1].mean() for p in draws]
    assert 160 < sum(mirrored) < 240


def test_colours_of_horizontal_bands_are_jittered_and_those_of_vertical_ones_are_not():
    for shape, values in (((90, 30), 1), ((30, 90), 60)):
        draws = [sample("patch", s, pictures=[picture(*shape)], placement="border") for s in range(200)]
        levels = {int(p.obstacle.pixels.max()) for p in draws}
        assert len(levels) >= values and (values > 1 or levels == {200})
        assert min(levels) >= 100 and all(np.ptp(p.obstacle.pixels) == 0 for p in draws)


def test_a_rectangle_at_the_border_is_cut_in_the_bands_size_and_half_of_them_are_vertical():
    image, vertical = noise(), 0
    for seed in range(200):
        band = sample("rectangle", seed, Donor(image, EMPTY), placement="border").obstacle.pixels
        if band.shape[0] == HEIGHT:
            vertical += 1
            w = band.shape[1]
            windows = [image[:, x : x + w] for x in range(WIDTH - w + 1)]
            assert any((band == o).all() or (band[:, ::-1] == o).all() for o in windows)
    assert 80 < vertical < 120


# ------------------------------------------------------------------ backgrounds


def slow_free(parsing, h, w):
    return [
        [not parsing[y : y + h, x : x + w].any() for x in range(parsing.shape[1] - w + 1)]
        for y in range(parsing.shape[0] - h + 1)
    ]


@given(SEEDS, st.integers(1, 6), st.integers(1, 5))
def test_boxes_without_a_body_are_those_that_a_loop_finds(seed, h, w):
    parsing = (RNG(seed).random((6, 5)) < 0.2).astype(np.uint8) * 3
    assert free_of_body(parsing, h, w).tolist() == slow_free(parsing, h, w)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(4, 40), st.integers(4, 30))
def test_a_background_shows_no_body(seed, h, w):
    parsing = EMPTY.copy()
    top, left = RNG(seed).integers(0, (40, 20))
    parsing[top : top + 20, left : left + 10] = 4
    image = np.where(parsing[..., None] > 0, 255, 50).astype(np.uint8).repeat(3, 2)
    pixels = cut_background(repeat(Donor(image, parsing)), h, w, RNG(seed)).pixels
    assert pixels.shape == (h, w, 3) and (pixels == 50).all()


def test_a_background_has_the_most_eighths_that_fit_beside_the_body():
    parsing = EMPTY.copy()
    parsing[:, 6:] = 1  # 6 columns are left of the body
    image = np.repeat(np.arange(WIDTH, dtype=np.uint8)[None, :, None] * 8, HEIGHT, 0).repeat(3, 2)
    for width in (6, 8, 16):  # of which 8/8, 6/8 and 3/8 fit
        pixels = cut_background(repeat(Donor(image, parsing)), 8, width, RNG(1)).pixels
        assert pixels.shape[:2] == (8, width)
        assert pixels.min() <= 2 and abs(int(pixels.max()) - 8 * 5) <= 2  # all 6 columns, enlarged


def test_every_position_without_a_body_is_equally_likely():
    parsing = EMPTY.copy()
    parsing[10:, :] = 1
    image = np.repeat(np.arange(HEIGHT, dtype=np.uint8)[:, None, None], WIDTH, 1).repeat(3, 2)
    rows = [cut_background(repeat(Donor(image, parsing)), 8, 32, RNG(s)).pixels[0, 0, 0] for s in range(300)]
    assert sorted(set(rows)) == [0, 1, 2] and min(map(rows.count, (0, 1, 2))) > 70


def test_a_donor_without_room_or_without_a_body_is_passed_over():
    full = Donor(np.full_like(GREY, 1), np.full_like(EMPTY, 4))
    nobody = Donor(np.full_like(GREY, 2), EMPTY)
    half = np.where(np.arange(WIDTH) < 16, 4, EMPTY).astype(np.uint8)
    donors = [full, nobody, Donor(np.full_like(GREY, 3), half)]
    assert (cut_background(iter(donors), 16, 16, RNG(0)).pixels == 3).all()


def test_after_twenty_donors_a_rectangle_of_the_last_one_replaces_a_background():
    full = [Donor(np.full_like(GREY, n), np.full_like(EMPTY, 4)) for n in range(99)]
    rest = iter(full)
    rectangle = cut_background(rest, 16, 9, RNG(0))
    assert rectangle.pixels.shape == (16, 9, 3) and (rectangle.pixels == 19).all()
    assert next(rest).image[0, 0, 0] == 20


@pytest.mark.parametrize("placement", ["anywhere", "border"])
def test_backgrounds_come_from_other_images_in_either_placement(placement):
    people = toy.people()
    image = np.where(people.parsing[0][..., None] > 0, 255, people.image[0] // 2).astype(np.uint8)
    for seed in range(10):
        placed = sample("background", seed, Donor(image, people.parsing[0]), placement=placement)
        assert placed.obstacle.pixels.min() > 0 and placed.obstacle.pixels.max() < 255
        if placement == "border":
            h, w = placed.obstacle.solid.shape
            assert h == HEIGHT or w == WIDTH
