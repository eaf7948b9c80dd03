"""Bytes of anybody, read into bounded memory and made a picture, or refused in words; no file is written."""

import asyncio
import io

from PIL import Image
from starlette.requests import Request

from pipeline.data.index import DECODE_ERRORS, Crop
from pipeline.inference.api import fault_reason, read_picture

MAX_BYTES = 20 << 20
MAX_PIXELS = 25_000_000  # decoding takes some 12 bytes each
MAX_SECONDS = 30  # until all bytes are there
# not all that Pillow reads: EPS runs Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Refused(Exception):
    """A request that is answered by a status and words alone."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


async def read_body(request: Request) -> bytes:
    """The body of a request.  Raises `Refused` beyond `MAX_BYTES` or `MAX_SECONDS`."""
    data = bytearray()
    try:
        async with asyncio.timeout(MAX_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise Refused(413, f"The picture has over {MAX_BYTES >> 20} MB. Save it smaller.")
    except TimeoutError:
        raise Refused(408, f"The picture did not arrive in {MAX_SECONDS} seconds. Send it again.") from None
    return bytes(data)


def decode_upload(data: bytes) -> Crop:
    """The pixels of a picture file, upright.

    Raises `Refused` for what is no picture or not a whole one, and above `MAX_PIXELS` before decoding any.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                large = f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
                raise Refused(413, f"The picture has {large}. Save it smaller.")
            return read_picture(image)
    except Image.DecompressionBombError:
        raise Refused(413, "The picture has far too many pixels. Save it smaller.") from None
    except DECODE_ERRORS as error:
        remedy = f"Give a whole picture: {', '.join(FORMATS)}."
        raise Refused(415, f"The file cannot be used ({fault_reason(error)}). {remedy}") from None
