"""Colour jitter: torchvision's changes, rounded, in integers."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as theirs

from pipeline.batches.jitter import Jitter, apply_jitter, sample_jitter

RNG = np.random.default_rng
NOISE = torch.from_numpy(RNG(0).integers(0, 256, (3, 8, 6, 3), np.uint8))
NONE = Jitter(1, 1, 1, 0)
FACTORS = st.floats(0, 2)


def colours(*rows):
    return torch.tensor(rows, dtype=torch.uint8).view(1, 1, len(rows), 3)


def changed(image, **change):
    return apply_jitter(image, [NONE._replace(**change)] * len(image))


def test_each_change_gives_two_colours_their_values_by_hand():
    two = colours([100, 200, 0], [0, 0, 0])
    assert changed(two, brightness=1.5).tolist() == colours([150, 255, 0], [0, 0, 0]).tolist()
    # greys 147 and 0, mean 74 (rounded): 74 + 1.5 * (colour - 74)
    assert changed(two, contrast=1.5).tolist() == colours([113, 255, 0], [0, 0, 0]).tolist()
    # the grey is 147: 147 + 0.5 * (colour - 147)
    assert changed(two, saturation=0.5).tolist() == colours([124, 174, 74], [0, 0, 0]).tolist()
    # a third of the circle: red is green, green is blue, blue is red
    assert changed(two, hue=1 / 3).tolist() == colours([0, 100, 200], [0, 0, 0]).tolist()


def slow(image, jitter):
    """Each pixel by itself, in plain floats; the mean grey and every result rounded."""

    def byte(value):
        return min(max(int(np.floor(value + 0.5)), 0), 255)

    def grey(pixel):
        return byte(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])

    pixels = [[byte(jitter.brightness * c) for c in p] for p in image.reshape(-1, 3).tolist()]
    mean = byte(sum(map(grey, pixels)) / len(pixels))
    pixels = [[byte(mean + jitter.contrast * (c - mean)) for c in p] for p in pixels]
    pixels = [[byte(grey(p) + jitter.saturation * (c - grey(p))) for c in p] for p in pixels]
    return torch.tensor(pixels, dtype=torch.uint8).view(image.shape)


@settings(max_examples=20)
@given(FACTORS, FACTORS, FACTORS)
def test_factors_change_every_pixel_as_a_loop_does(brightness, contrast, saturation):
    jitter = Jitter(*(round(f * 256) / 256 for f in (brightness, contrast, saturation)), 0)
    fast = apply_jitter(NOISE, [jitter] * 3)
    for image, result in zip(NOISE, fast, strict=True):
        assert (result.int() - slow(image, jitter).int()).abs().max() <= 1  # where a half is rounded


@settings(max_examples=20)
@given(FACTORS, FACTORS, FACTORS, st.floats(-0.5, 0.5))
def test_each_change_is_torchvisions_which_cuts_off_greys_and_results(brightness, contrast, saturation, hue):
    for change, factor, adjust in [
        ("brightness", brightness, theirs.adjust_brightness),
        ("contrast", contrast, theirs.adjust_contrast),
        ("saturation", saturation, theirs.adjust_saturation),
        ("hue", hue, theirs.adjust_hue),
    ]:
        wanted = torch.stack([adjust(image.permute(2, 0, 1), factor).permute(1, 2, 0) for image in NOISE])
        assert (changed(NOISE, **{change: factor}).int() - wanted.int()).abs().max() <= 2, change


@given(FACTORS, FACTORS, FACTORS, st.floats(-0.5, 0.5), st.integers(0, 255))
def test_greys_stay_grey_and_the_order_of_brightness_is_kept(brightness, contrast, saturation, hue, level):
    greys = torch.tensor([level, 0, 90, 255], dtype=torch.uint8).view(1, 4, 1, 1).expand(-1, -1, -1, 3)
    result = apply_jitter(greys, [Jitter(brightness, contrast, saturation, hue)])
    assert (result == result[..., :1]).all()
    assert (result[0, greys[0, :, 0, 0].argsort(), 0, 0].int().diff() >= 0).all()


def test_a_change_of_nothing_changes_no_byte():
    assert torch.equal(apply_jitter(NOISE, [NONE] * 3), NOISE)
    forced = apply_jitter(NOISE, [NONE, Jitter(1.5, 1.5, 1.5, 0.3), NONE])  # every change is computed for all
    assert torch.equal(forced[::2], NOISE[::2]) and not torch.equal(forced[1], NOISE[1])


def test_an_image_is_changed_alike_alone_and_in_a_batch():
    jitters = [sample_jitter((0.5, 0.5, 0.5, 0.5), RNG(seed)) for seed in range(3)]
    alone = [apply_jitter(NOISE[n : n + 1], jitters[n : n + 1])[0] for n in range(3)]
    assert torch.equal(apply_jitter(NOISE, jitters), torch.stack(alone))


def test_factors_are_uniform_around_one_and_a_strength_of_zero_changes_nothing():
    rng = RNG(0)
    jitters = np.array([sample_jitter((0.1, 0.0, 0.5, 0.2), rng) for _ in range(2000)])
    assert (jitters[:, 1] == 1).all()
    for column, centre, strength in ((0, 1, 0.1), (2, 1, 0.5), (3, 0, 0.2)):
        offsets = (jitters[:, column] - centre) / strength
        assert abs(offsets.mean()) < 0.05 and abs(offsets.std() - 3**-0.5) < 0.02
        assert -1 <= offsets.min() < -0.99 and 0.99 < offsets.max() <= 1
