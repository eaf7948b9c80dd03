"""The server of a gallery: what it answers."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from pipeline import inference
from pipeline.command_line import serve
from pipeline.core.params import BadInput
from pipeline.drawing.pictures import COLOURS
from pipeline.search.embedder import Embedder
from pipeline.search.gallery import Gallery
from pipeline.search.web import server, service, upload
from tests import toy
from tests.search import served

# ------------------------------------------------------------------ what is found


def test_a_picture_that_is_dropped_in_finds_its_person_first(world, ask):
    _, gallery = world
    name = served.dropped(ask, (gallery.root / gallery.names[5]).read_bytes())
    hits = ask.get("/api/nearest", params={"query": name}).json()["hits"]
    assert [os.path.basename(hit["name"])[0] for hit in hits[:1]] == [os.path.basename(gallery.names[5])[0]]
    assert [hits[0]["rank"], hits[0]["distance"]] == [1, pytest.approx(0, abs=1e-2)]


@pytest.mark.parametrize("parts", [None, ["torso"], ["left leg", "right leg"]])
@pytest.mark.parametrize("rerank", [False, True])
def test_the_answer_is_that_of_the_library(tmp_path, model, parts, rerank):
    gallery = served.written_gallery(tmp_path / "g.h5", [f"{n:02d}.jpg" for n in range(16)], tmp_path, model)
    ask = served.client(Embedder(inference.load(model)), gallery)
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
    gallery = served.written_gallery(tmp_path / "g.h5", ["a.jpg", "b.jpg"], tmp_path, model)
    gallery._visibility[:, gallery.part_names.index("torso")] = 0
    ask = served.client(Embedder(inference.load(model)), gallery)
    hits = ask.get("/api/nearest", params={"row": 0, "part": "torso"}).json()["hits"]
    assert [hit["distance"] for hit in hits] == [None]


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
    gallery = served.written_gallery(tmp_path / "g.h5", ["a", "b"], tmp_path, model, gate=True)
    ask = served.client(Embedder(inference.load(model)), gallery)
    assert "nearest neighbours are not mutual" in ask.get("/api/gallery").json()["no_rerank"]
    answer = ask.get("/api/nearest", params={"row": 0, "rerank": True})
    assert (answer.status_code, "without re-ranking" in answer.json()["error"]) == (400, True)


def test_a_label_map_is_drawn_in_the_colours_of_the_parts():
    labels = np.array([[0, 1], [4, 8]], np.uint8)
    image = np.asarray(Image.open(io.BytesIO(service.map_png(labels))).convert("RGBA"))
    assert image[..., 3].tolist() == [[0, 255], [255, 255]]
    assert image[1, 0, :3] == pytest.approx(COLOURS[4], abs=1)


def test_an_upload_is_forgotten_after_others(world, ask, monkeypatch):
    monkeypatch.setattr(service, "REMEMBERED", 2)
    _, gallery = world
    data = (gallery.root / gallery.names[0]).read_bytes()
    first, *others = (served.dropped(ask, data) for _ in range(3))
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


# ------------------------------------------------------------------ many at a time


def test_200_requests_at_once_are_answered_right(world):
    embedder, gallery = world
    data = [(gallery.root / name).read_bytes() for name in gallery.names]
    queries = [embedder.embed([upload.decode_upload(picture)])[0] for picture in data]
    first = [gallery.nearest(query, 1)[1][0].tolist() for query in queries]
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

    with served.running(embedder, gallery) as port, ThreadPoolExecutor(200) as pool:
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
                assert answer.status == 404 or [hit["row"] for hit in hits] == first[row]
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
