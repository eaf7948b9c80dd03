"""The server of a gallery: what it refuses, and to whom."""

import csv
import io
import json
import os
import struct
import sys
import zlib
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from pipeline import inference
from pipeline.search.embedder import Embedder
from pipeline.search.web import app, service, upload
from tests.search import served

# ------------------------------------------------------------------ no other file, no other asker

SECRET = np.full((8, 4, 3), 255, np.uint8)


@pytest.fixture
def hostile(tmp_path, model):
    """Rows whose names lead out of the folder, by every way."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root, outside):
        place.mkdir()
    (outside / "secret.jpg").write_bytes(served.jpeg(SECRET))
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "linked").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe.jpg")
    (root / "words.txt").write_text("not a picture")
    names = [
        "../outside/secret.jpg", str(outside / "secret.jpg"), "link.jpg", "linked/secret.jpg", "loop",
        "pipe.jpg", ".", "nul\0.jpg", "words.txt", "gone.jpg", "x/../../outside/secret.jpg", "a" * 5000,
    ]  # fmt: skip
    gallery = served.written_gallery(tmp_path / "g.h5", names, root, model)
    return served.client(Embedder(inference.load(model)), gallery)


def test_no_name_of_a_gallery_leads_to_a_file_outside_its_folder(hostile):
    for row in range(12):
        answer = hostile.get(f"/api/rows/{row}/picture")
        assert answer.status_code in (400, 403), (row, answer.content)
        assert answer.headers["Content-Type"] == "application/json" and answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/page/../app.py", "/%2e%2e/app.py", "/app.py", "/..%2fapp.py", "//etc/passwd",
     "/page.js/../../app.py", "/api/rows/..%2f..%2fetc/picture", "/api/rows/0%2f../picture"],
)  # fmt: skip
def test_no_address_leads_to_another_file(ask, path):
    answer = ask.get(path)
    assert answer.status_code in (400, 403, 404) and answer.json()["error"]


NAMES = ["<img src=x onerror=alert(1)>.jpg", "=1+2.jpg", "\udcff.jpg", 'a"b\nc.jpg', "‮gpj.exe"]


def test_hostile_names_arrive_as_they_are(tmp_path, model):
    gallery = served.written_gallery(tmp_path / "g.h5", NAMES, tmp_path, model)
    ask = served.client(Embedder(inference.load(model)), gallery)
    answer = ask.get("/api/rows")
    assert answer.headers["Content-Type"] == "application/json"
    assert [hit["name"] for hit in json.loads(answer.content)["hits"]] == NAMES
    table = ask.get("/api/nearest", params={"row": 0, "form": "csv"}).content
    lines = list(csv.DictReader(io.StringIO(table.decode("utf-8", "surrogateescape"), newline="")))
    assert {line["name"] for line in lines} == {"'=1+2.jpg", *NAMES[2:]}  # the apostrophe: no formula


def test_the_page_sets_no_html_and_loads_nothing_of_others():
    for name in ("index.html", "page.js", "page.css"):
        text = (app.FOLDER / name).read_text()
        assert not [word for word in ("innerHTML", "http:", "https:", "@import", "eval(") if word in text]


@pytest.mark.parametrize("address", ["/", "/page.js", "/api/gallery", "/api/rows/0/picture", "/nowhere"])
def test_every_answer_says_what_a_browser_may_do(ask, address):
    headers = ask.get(address, headers={"Origin": served.URL}).headers
    assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_failure_of_ours_is_answered_in_words_with_the_same_headers(world, ask, monkeypatch):
    monkeypatch.setattr(service.Service, "describe", lambda self: 1 / 0)
    answer = ask.get("/api/gallery")
    assert (answer.status_code, answer.json()["error"][:18]) == (500, "The server failed;")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


HOSTS = {
    "127.0.0.1:8000": 200,
    "localhost:8000": 200,
    "LOCALHOST": 200,
    "[::1]:8000": 200,
    "192.168.1.5:8000": 200,  # an address in digits is nobody's name
    "evil.example": 403,
    "evil.example:8000": 403,
    "127.0.0.1.evil.example": 403,
    "localhost.evil.example:8000": 403,
    "": 403,
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_is_not_the_servers_is_refused(ask, host):
    assert ask.get("/api/gallery", headers={"Host": host}).status_code == HOSTS[host]


ASKERS = {  # headers: status of an upload
    (): 415,
    (("Origin", served.URL),): 415,
    (("Origin", "http://evil.example"),): 403,
    (("Origin", "http://127.0.0.1:9000"),): 403,
    (("Origin", "null"),): 403,
    (("Sec-Fetch-Site", "same-origin"),): 415,
    (("Sec-Fetch-Site", "cross-site"),): 403,
    (("Sec-Fetch-Site", "same-site"),): 403,
}


@pytest.mark.parametrize("headers", ASKERS)
def test_a_page_of_another_site_may_not_ask(ask, headers):
    answer = ask.post("/api/queries", content=b"no picture", headers=dict(headers))
    assert answer.status_code == ASKERS[headers]
    assert answer.json()["error"]


def test_a_link_of_another_site_opens_the_page(ask):
    assert ask.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


# ------------------------------------------------------------------ uploads

NOISE = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
DEEP = np.arange(32, dtype=np.uint16).reshape(8, 4)


def png_of(width, height):
    """A PNG file that says it has so many pixels, and is some hundred bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 99))]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


BAD = {
    "nothing": (b"", 415, "Give a whole picture"),
    "text": (b"not a picture", 415, "Give a whole picture"),
    "page": (b"<svg onload=alert(1)>", 415, "Give a whole picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "Give a whole picture"),
    "truncated": (served.jpeg(NOISE)[:-500], 415, "truncated"),
    "cut in its header": (served.jpeg(NOISE)[:30], 415, "Give a whole picture"),
    "many pixels": (png_of(6000, 5000), 413, "6000 x 5000 pixels"),
    "a bomb": (png_of(60000, 50000), 413, "far too many pixels"),
    "many bytes": (b"0" * (upload.MAX_BYTES + 1), 413, "over 20 MB"),
    "16 bits": (served.jpeg(DEEP, format="PNG"), 415, "more than 8 bits"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_upload_that_is_no_picture_is_refused_in_words(ask, kind):
    data, status, words = BAD[kind]
    assert words in served.dropped(ask, data, status)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_read(ask, kind):
    assert served.dropped(ask, served.jpeg(NOISE, format=kind))


def test_huge_exif_is_read_and_turns_the_picture(ask):
    exif = Image.Exif()
    exif[274] = 6  # orientation: turned by a quarter
    exif[270] = "x" * 60_000
    name = served.dropped(ask, served.jpeg(NOISE, exif=exif))
    picture = Image.open(io.BytesIO(ask.get(f"/api/queries/{name}/picture").content))
    assert picture.size == (64, 32)


def test_exif_of_megabytes_is_read(ask):
    assert served.dropped(
        ask, served.jpeg(NOISE, format="PNG", exif=b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 5_000_000)
    )


def test_an_upload_that_does_not_arrive_is_given_up(world, monkeypatch):
    monkeypatch.setattr(upload, "MAX_SECONDS", 0.2)
    with served.running(*world) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", "/api/queries")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"some")
        answer = connection.getresponse()
        assert (answer.status, "did not arrive" in json.loads(answer.read())["error"]) == (408, True)


def test_nothing_of_an_upload_is_written(ask):
    written, watching = [], True

    def watch(event, arguments):  # Python keeps it until its end
        if watching and event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(arguments[0])

    sys.addaudithook(watch)
    served.dropped(ask, served.jpeg(np.tile(NOISE, (20, 20, 1)), quality=100))  # over a megabyte
    watching = False
    assert written == []
