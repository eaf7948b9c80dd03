"""Decoding: what becomes of pictures with more than 8 bits a sample, whichever way they are stored."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.index import DECODE_ERRORS, DeepPicture, NoRange, decode, encode_png, is_deep, to_rgb

BYTES = np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8)
GREY = BYTES[..., 0]
SIDEWAYS = 6  # the EXIF tag of a camera that was held so


def saved(pixels, form, orientation=1):
    """A file of Pillow."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(out, form, exif=exif)
    return out.getvalue()


def saved_colours(pixels, suffix, orientation=None):
    """A file of three channels, which Pillow writes with 8 bits alone; a PNG file may have an EXIF tag."""
    blob = cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()
    if orientation is None:
        return blob
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    framed = (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    return blob[:33] + framed + blob[33:]


DEEP_FILES = {  # the file, and its values of black and white
    "14 bits, PNG": (saved(GREY.astype(np.uint16) * 64, "PNG"), (0.0, 255.0 * 64)),
    "14 bits, TIFF": (saved(GREY.astype(np.uint16) * 64, "TIFF"), (0.0, 255.0 * 64)),
    "16 bits": (saved(GREY.astype(np.uint16) * 257, "PNG"), (0.0, 65535.0)),
    "32 bits": (saved(GREY.astype(np.int32) * 1000 - 99, "TIFF"), (-99.0, 255.0 * 1000 - 99)),
    "floats": (saved(GREY.astype(np.float32) / 255, "TIFF"), (0.0, 1.0)),
    "white is low": (saved(65535 - GREY.astype(np.uint16) * 257, "PNG"), (65535.0, 0.0)),
    "held sideways, PNG": (saved(np.rot90(GREY).astype(np.uint16), "PNG", SIDEWAYS), (0.0, 255.0)),
    "held sideways, TIFF": (saved(np.rot90(GREY).astype(np.uint16), "TIFF", SIDEWAYS), (0.0, 255.0)),
}
DEEP_COLOURS = {
    "12 bits, PNG": (saved_colours(BYTES.astype(np.uint16) * 16, ".png"), (0.0, 255.0 * 16)),
    "12 bits, TIFF": (saved_colours(BYTES.astype(np.uint16) * 16, ".tiff"), (0.0, 255.0 * 16)),
    "held sideways": (saved_colours(np.rot90(BYTES).astype(np.uint16), ".png", SIDEWAYS), (0.0, 255.0)),
}


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_a_deep_picture_of_grey_has_the_bytes_that_its_range_states(kind):
    blob, value_range = DEEP_FILES[kind]
    assert (decode(blob, value_range) == GREY[..., None]).all()


@pytest.mark.parametrize("kind", DEEP_COLOURS)
def test_a_deep_picture_in_colour_keeps_what_pillow_would_drop(kind):
    blob, value_range = DEEP_COLOURS[kind]
    assert (decode(blob, value_range) == BYTES).all()


@pytest.mark.parametrize("kind", DEEP_FILES | DEEP_COLOURS)
def test_no_deep_picture_is_read_without_its_range(kind):
    blob, _ = (DEEP_FILES | DEEP_COLOURS)[kind]
    with pytest.raises(NoRange, match=r"more than 8 bits a sample \(values .* to .*\)"):
        decode(blob)
    with pytest.raises(NoRange), Image.open(io.BytesIO(blob)) as image:
        to_rgb(image)


def test_a_deep_picture_says_its_values():
    values = np.array([[7004, 8495]], np.uint16)
    with pytest.raises(NoRange, match=r"\(values 7004 to 8495\)"):
        decode(saved(values, "PNG"))


@given(st.integers(0, 65534), st.integers(1, 65535), st.lists(st.integers(0, 65535), min_size=1))
def test_values_are_rounded_in_their_range_and_clipped_beyond(black, span, values):
    white = black + span
    pixels = decode(saved(np.array([values], np.uint16), "PNG"), (float(black), float(white)))
    expected = [round(255 * (min(max(value, black), white) - black) / span) for value in values]
    assert pixels[0, :, 0].tolist() == expected


def test_values_that_are_no_numbers_are_refused_in_any_range():
    pixels = np.array([[0, np.nan, np.inf]], np.float32)
    for value_range in (None, (0.0, 1.0)):
        with pytest.raises(DeepPicture, match=r"no numbers \(2 of 3\); replace them"):
            decode(saved(pixels, "TIFF"), value_range)


def tiff_pixel(samples, bits=16, photometric=1, planes=False, signed=False):
    """A TIFF file of one pixel, whose channels are stored apart or not."""
    count, size = len(samples), bits // 8
    data = b"".join((sample % 2**bits).to_bytes(size, "little") for sample in samples) + bytes(size % 2)
    strips = count if planes else 1
    arrays = {  # by tag: values of two bytes
        256: [1], 257: [1], 258: [bits] * count, 259: [1], 262: [photometric],
        273: [8 + n * size for n in range(strips)], 277: [count], 278: [1],
        279: [size * count // strips] * strips, 284: [2 if planes else 1], 339: [2 if signed else 1] * count,
    }  # fmt: skip
    entries, body = b"", data
    for tag, array in arrays.items():
        value = struct.pack(f"<{len(array)}H", *array)
        if len(value) > 4:
            entries += struct.pack("<HHII", tag, 3, len(array), 8 + len(body))
            body += value
        else:
            entries += struct.pack("<HHI", tag, 3, len(array)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(arrays)) + entries + bytes(4)


def sgi():
    """A file of Silicon Graphics with 16 bits a sample."""
    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "SGI", bpc=2)
    return out.getvalue()


UNREAD = {
    "four inks": (tiff_pixel([1, 2, 3, 4], photometric=5), "CMYK"),
    "channels stored apart": (tiff_pixel([1, 2, 3], photometric=2, planes=True), "RGB"),
    "8 bits with a sign": (tiff_pixel([-57], 8, signed=True), "L"),
    "SGI": (sgi(), "L"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_samples_that_no_library_reads_whole_are_refused(kind):
    blob, mode = UNREAD[kind]
    with pytest.raises(DeepPicture, match=rf"samples of a form that is not read \({mode}\)"):
        decode(blob, (0.0, 65535.0))


TIFF_PIXELS = {  # a file, its values of black and white, its bytes
    "channels beside each other": (tiff_pixel([0, 2570, 65535], photometric=2), (0.0, 65535.0), [0, 10, 255]),
    "32 bits without a sign": (tiff_pixel([2**31], 32), (0.0, 2.0**32), [128] * 3),
    "32 bits with a sign": (tiff_pixel([-(2**30)], 32, signed=True), (-(2.0**31), 2.0**31), [64] * 3),
    "16 bits with a sign": (tiff_pixel([-30], signed=True), (-100.0, 155.0), [70] * 3),
    "8 bits": (tiff_pixel([199], 8), None, [199] * 3),
}


@pytest.mark.parametrize("kind", TIFF_PIXELS)
def test_a_tiff_pixel_has_the_value_that_its_form_states(kind):
    blob, value_range, pixel = TIFF_PIXELS[kind]
    assert decode(blob, value_range).tolist() == [[pixel]]


def test_eight_bits_are_not_deep_and_need_no_range():
    for blob in (saved(BYTES, "PNG"), saved(BYTES, "BMP"), saved(GREY, "TIFF"), saved_colours(BYTES, ".png")):
        with Image.open(io.BytesIO(blob)) as image:
            assert not is_deep(image)
        assert (decode(blob) == decode(blob, (0.0, 1.0))).all()
    assert (decode(encode_png(BYTES)) == BYTES).all()


def test_a_deep_picture_that_is_cut_off_is_refused_as_such():
    blob, value_range = DEEP_FILES["14 bits, PNG"]
    colours, _ = DEEP_COLOURS["12 bits, PNG"]
    for file in (blob[:-40], colours[:-200]):
        with pytest.raises(DECODE_ERRORS) as error:
            decode(file, value_range)
        assert not isinstance(error.value, DeepPicture)
