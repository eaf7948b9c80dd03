"""Pictures that sheets and pages share."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data import parts
from pipeline.drawing import pictures


def test_every_part_has_a_colour_of_its_own():
    assert len(np.unique(pictures.COLOURS, axis=0)) == len(parts.FINE) + 1


def test_parts_are_tinted_and_background_is_darkened():
    image = np.full((4, 4, 3), 90, np.uint8)
    tinted = pictures.overlay(image, np.array([[0, 4], [0, 4]], np.uint8))
    assert (tinted[:, :2] == 30).all() and (tinted[:, 2:] == 45 + pictures.COLOURS[4] // 2).all()


def test_a_resized_picture_has_the_mean_of_the_pixels_that_fall_together():
    image = np.array([[0, 100], [50, 150]], np.uint8)[..., None].repeat(3, 2)
    assert pictures.resize_picture(image, (1, 1)).tolist() == [[[75] * 3]]
    assert pictures.resize_picture(image, (1, 2)).tolist() == [[[25] * 3, [125] * 3]]


def test_an_encoded_picture_has_the_same_colours():
    red = np.full((2, 3, 3), [200, 10, 20], np.uint8)
    decoded = Image.open(io.BytesIO(pictures.encode_image(red, ".png")))
    assert decoded.format == "PNG" and np.array_equal(decoded, red)
    assert Image.open(io.BytesIO(pictures.encode_image(red, ".jpg"))).format == "JPEG"


NAMES = {
    "query/a.jpg": "a.jpg",
    "query/Ann/b.jpg": "Ann/b.jpg",
    "query/123456789": "123456789",
    "query/1234567890": "…34567890",
}


@pytest.mark.parametrize("key", NAMES)
def test_a_long_name_keeps_its_end(key):
    assert pictures.shorten_name(key, 9) == NAMES[key]
