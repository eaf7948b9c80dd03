"""The server of a gallery: what it answers, and what it refuses."""

import csv
import io
import json
import os
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from pipeline import inference
from pipeline.command_line import serve
from pipeline.core.params import BadInput
from pipeline.ranking.figures import PARTS
from pipeline.search.embedder import Embedder
from pipeline.search.gallery import Gallery
from pipeline.search.web import app, server, service, upload
from tests import toy
from tests.search import served

URL = "http://127.0.0.1:8000"


def client(gallery, embedder):
    application = app.create(service.Service(gallery, embedder), server.host_names("127.0.0.1"))
    return TestClient(application, base_url=URL, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return served.gallery(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ask(world):
    embedder, gallery = world
    return client(gallery, embedder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.trained(tmp_path_factory.mktemp("hostile") / "model")


def person(gallery, row):
    return os.path.basename(gallery.names[row])[0]


def dropped(ask, data, status=200):
    answer = ask.post("/api/queries", content=data)
    assert answer.status_code == status, answer.text
    return answer.json()["query" if status == 200 else "error"]


# ------------------------------------------------------------------ what is found


def test_a_picture_of_the_gallery_that_is_dropped_in_is_the_nearest_to_itself(world, ask):
    _, gallery = world
    name = dropped(ask, (gallery.root / gallery.names[5]).read_bytes())
    hits = ask.get("/api/nearest", params={"query": name}).json()["hits"]
    assert [hits[0]["row"], hits[0]["rank"]] == [5, 1]
    assert hits[0]["distance"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("parts", [None, ["torso"], ["left leg", "right leg"]])
@pytest.mark.parametrize("rerank", [False, True])
def test_the_answer_is_that_of_the_library(world, ask, parts, rerank):
    _, gallery = world
    allowed = np.arange(len(gallery)) != 3
    options = service.RERANK if rerank else None
    distances, rows = gallery.nearest(gallery.embedding([3]), 4, 2, allowed, parts, options)
    query = {"row": 3, "top": 4, "offset": 2, "part": parts, "rerank": rerank}
    hits = ask.get("/api/nearest", params={k: v for k, v in query.items() if v is not None}).json()["hits"]
    assert [hit["row"] for hit in hits] == rows[0].tolist()
    assert [hit["distance"] for hit in hits] == pytest.approx(distances[0].tolist())
    assert [hit["rank"] for hit in hits] == [3, 4, 5, 6]


def test_a_row_does_not_find_itself(world, ask):
    answer = ask.get("/api/nearest", params={"row": 3, "top": 100}).json()
    assert sorted(hit["row"] for hit in answer["hits"]) == [n for n in range(16) if n != 3]
    assert answer["count"] == 15


PLACES = {  # camera, folder: how many of 16 rows
    ("0", ""): 8,
    ("1", ""): 8,
    ("7", ""): 0,
    (None, "hall"): 8,
    (None, "/stairs/"): 8,
    (None, "stairs/up"): 8,
    (None, "stair"): 0,
    ("0", "stairs"): 0,
}


@pytest.mark.parametrize("camera, folder", PLACES)
def test_camera_and_folder_choose_the_rows(ask, camera, folder):
    where = {"folder": folder} | ({} if camera is None else {"camera": camera})
    answer = ask.get("/api/rows", params={**where, "top": 100}).json()
    assert answer["count"] == len(answer["hits"]) == PLACES[camera, folder]
    rows = [hit["row"] for hit in answer["hits"]]
    nearest = ask.get("/api/nearest", params={**where, "row": 0, "top": 100}).json()
    assert sorted(hit["row"] for hit in nearest["hits"]) == [row for row in rows if row != 0]


def test_pages_follow_each_other(ask):
    pages = [ask.get("/api/nearest", params={"row": 0, "top": 5, "offset": n}).json() for n in (0, 5, 10)]
    whole = ask.get("/api/nearest", params={"row": 0, "top": 15}).json()["hits"]
    assert [hit for page in pages for hit in page["hits"]] == whole


def test_a_distance_is_null_where_no_part_is_visible_in_both(tmp_path, model):
    gallery = hidden_parts(tmp_path, model)
    ask = client(gallery, Embedder(inference.load(model)))
    hits = ask.get("/api/nearest", params={"row": 0, "part": "torso"}).json()["hits"]
    assert [hit["distance"] for hit in hits] == [None]


def hidden_parts(tmp_path, model):
    gallery = served.hostile_gallery(tmp_path / "g.h5", ["a.jpg", "b.jpg"], tmp_path, model)
    gallery._visibility[:, 4] = 0  # torso
    return gallery


def test_the_csv_and_json_files_hold_the_answer(ask):
    params = {"row": 0, "top": 3}
    answer = ask.get("/api/nearest", params=params).json()
    as_json, as_csv = (ask.get("/api/nearest", params=params | {"form": form}) for form in ("json", "csv"))
    assert as_json.json() == answer
    assert as_csv.headers["Content-Disposition"] == 'attachment; filename="nearest.csv"'
    table = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert [(int(line["rank"]), line["name"]) for line in table] == [
        (hit["rank"], hit["name"]) for hit in answer["hits"]
    ]
    assert table[0]["parts"].split(" + ") == answer["hits"][0]["parts"]


def test_the_gallery_is_described(ask):
    content = ask.get("/api/gallery").json()
    assert content["parts"][:2] == ["global", "head"]
    assert content["cameras"] == ["0", "1"]
    assert content["folders"] == ["hall", "stairs/up"]
    assert content["presets"]["legs"] == ["left leg", "right leg", "left foot", "right foot"]
    assert not content["maps"] and content["guessed"] and not content["no_rerank"]


def test_a_gate_refuses_re_ranking_in_words(tmp_path, model):
    ask = client(
        served.hostile_gallery(tmp_path / "g.h5", ["a", "b"], tmp_path, model, gate=True),
        Embedder(inference.load(model)),
    )
    assert "nearest neighbours are not mutual" in ask.get("/api/gallery").json()["no_rerank"]
    answer = ask.get("/api/nearest", params={"row": 0, "rerank": True})
    assert (answer.status_code, "without re-ranking" in answer.json()["error"]) == (400, True)


def test_a_label_map_is_drawn_in_the_colours_of_the_parts():
    labels = np.array([[0, 1], [4, 8]], np.uint8)
    image = np.asarray(Image.open(io.BytesIO(service.map_png(labels))).convert("RGBA"))
    assert image[..., 3].tolist() == [[0, 255], [255, 255]]
    assert image[1, 0, :3] == pytest.approx(255 * PARTS[4, :3], abs=1)


def test_an_upload_is_forgotten_after_others(world, ask, monkeypatch):
    monkeypatch.setattr(service, "REMEMBERED", 2)
    _, gallery = world
    data = (gallery.root / gallery.names[0]).read_bytes()
    first, *others = (dropped(ask, data) for _ in range(3))
    answer = ask.get("/api/nearest", params={"query": first})
    assert (answer.status_code, answer.json()["error"][:25]) == (404, "This picture is forgotten")
    assert ask.get(f"/api/queries/{others[1]}/picture").headers["Content-Type"] == "image/jpeg"
    assert ask.get(f"/api/queries/{others[1]}/parts").status_code == 404


REFUSED = {  # address: status, words
    "/api/rows/16/picture": (404, "the gallery has 16"),
    "/api/rows/-1/picture": (404, "the gallery has 16"),
    "/api/rows/-1/parts": (404, "the gallery has 16"),
    "/api/rows/x/picture": (400, "row: "),
    "/api/rows/0/picture?size=huge": (400, "size: "),
    "/api/rows/0/parts": (404, "no label maps"),
    "/api/nearest": (400, "Give row"),
    "/api/nearest?row=0&query=x": (400, "Give row"),
    "/api/nearest?row=99": (404, "the gallery has 16"),
    "/api/nearest?row=0&part=tail": (400, "tail: no such part"),
    "/api/nearest?row=0&top=1001": (400, "top: "),
    "/api/nearest?row=0&offset=-1": (400, "offset: "),
    "/api/nearest?row=99999999999999999999999": (404, "the gallery has 16"),
    "/nowhere": (404, "Not Found"),
    "/api/queries": (405, "Method Not Allowed"),
    "/docs": (404, "Not Found"),
    "/openapi.json": (404, "Not Found"),
}


@pytest.mark.parametrize("address", REFUSED)
def test_a_refusal_is_json_in_words(ask, address):
    status, words = REFUSED[address]
    answer = ask.get(address)
    assert answer.status_code == status
    assert words in answer.json()["error"]


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
    gallery = served.hostile_gallery(tmp_path / "g.h5", names, root, model)
    return client(gallery, Embedder(inference.load(model)))


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
    gallery = served.hostile_gallery(tmp_path / "g.h5", NAMES, tmp_path, model)
    ask = client(gallery, Embedder(inference.load(model)))
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
    headers = ask.get(address, headers={"Origin": URL}).headers
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
    (("Origin", URL),): 415,
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
    assert words in dropped(ask, data, status)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_read(ask, kind):
    assert dropped(ask, served.jpeg(NOISE, format=kind))


def test_huge_exif_is_read_and_turns_the_picture(ask):
    exif = Image.Exif()
    exif[274] = 6  # orientation: turned by a quarter
    exif[270] = "x" * 60_000
    name = dropped(ask, served.jpeg(NOISE, exif=exif))
    picture = Image.open(io.BytesIO(ask.get(f"/api/queries/{name}/picture").content))
    assert picture.size == (64, 32)


def test_exif_of_megabytes_is_read(ask):
    assert dropped(
        ask, served.jpeg(NOISE, format="PNG", exif=b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 5_000_000)
    )


def test_an_upload_that_does_not_arrive_is_given_up(world, monkeypatch):
    monkeypatch.setattr(upload, "MAX_SECONDS", 0.2)
    with running(*world) as port:
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
    dropped(ask, served.jpeg(np.tile(NOISE, (20, 20, 1)), quality=100))  # over a megabyte
    watching = False
    assert written == []


# ------------------------------------------------------------------ many at a time


@contextmanager
def running(embedder, gallery):
    """A real server in a thread; its port."""
    application = app.create(service.Service(gallery, embedder), server.host_names("127.0.0.1"))
    bound = server.listen("127.0.0.1", 0)
    runner = uvicorn.Server(uvicorn.Config(application, log_level="error", ws="none"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        runner.should_exit = True
        thread.join()
        bound.close()


def test_200_requests_at_once_are_answered_right(world):
    embedder, gallery = world
    data = [(gallery.root / name).read_bytes() for name in gallery.names]
    alone = [gallery.nearest(gallery.embedding([row]), 16)[1][0].tolist() for row in range(16)]

    def request(number):
        row = number % 16
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        ways = [
            ("GET", f"/api/nearest?row={row}&top=16", None),
            ("GET", f"/api/rows/{row}/picture", None),
            ("POST", "/api/queries", data[row]),
            ("GET", f"/api/rows?offset={row}&top=1", None),
        ]
        connection.request(*ways[number // 16 % 4])
        answer = connection.getresponse()
        return number // 16 % 4, row, answer.status, answer.read()

    with running(embedder, gallery) as port, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(request, range(200)))
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        for way, row, status, content in answers:
            assert status == 200, content
            if way == 0:
                rows = [hit["row"] for hit in json.loads(content)["hits"]]
                assert rows == [other for other in alone[row] if other != row]
            if way == 1:
                assert content == gallery.thumbnail(row)
            if way == 2:
                connection.request("GET", f"/api/nearest?top=1&query={json.loads(content)['query']}")
                answer = connection.getresponse()
                hits = json.loads(answer.read()).get("hits")
                assert answer.status == 404 or [hit["row"] for hit in hits] == [row]
            if way == 3:
                assert [hit["row"] for hit in json.loads(content)["hits"]] == [row]


# ------------------------------------------------------------------ the command


def test_a_machine_without_the_packages_is_told_how_to_install_them(world, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"fastapi and uvicorn not installed\. Run `uv sync --group serve`"):
        serve.main(world[1].path)


def test_a_port_that_is_taken_is_named():
    with server.listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert server.address(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(BadInput, match=f"--port {port}: .*in use"):
            server.listen("127.0.0.1", port)


def test_only_this_machine_reaches_the_default_host():
    with server.listen("127.0.0.1", 0) as own, server.listen("0.0.0.0", 0) as everybodys:
        assert server.is_loopback(own) and not server.is_loopback(everybodys)


def test_another_model_is_refused(world, tmp_path):
    other = Embedder(inference.load(toy.trained(tmp_path, seed=1)))
    with pytest.raises(BadInput, match="made by another model"):
        service.Service(Gallery(world[1].path), other)
