"""A small gallery of drawn people for the tests of the server."""

import io
import threading
from contextlib import contextmanager

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import inference
from pipeline.search import gallery_file
from pipeline.search.embedder import Embedder
from pipeline.search.folder import index
from pipeline.search.gallery import Gallery
from pipeline.search.web import app, server, service
from tests import toy

URL = "http://127.0.0.1:8000"
PATTERN = r"cam(\d)"


def jpeg(image, **options):
    """An image as the bytes of a picture file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, options.pop("format", "JPEG"), **options)
    return out.getvalue()


def folder(root):
    """Four people in four pictures each: `hall/` is camera 0, `stairs/up/` camera 1."""
    people = toy.people()
    for n, image in enumerate(people.image):
        place = root / ("hall", "stairs/up")[people.camid[n]]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{people.pid[n]}_cam{people.camid[n]}_{n:02d}.jpg").write_bytes(jpeg(image, quality=95))
    return root


def trained(folder):
    """A model of random weights that pictures matter to by more than rounding."""
    path = toy.trained(folder) / "model.safetensors"
    weights = load_file(path)
    name = "encoder.projection.weight"  # of patches
    save_file(weights | {name: 50 * weights[name]}, path)
    return folder


def gallery(tmp):
    """An embedder, and a gallery that it made."""
    model = trained(tmp / "model")
    embedder = Embedder(inference.load(model))
    index(folder(tmp / "pictures"), embedder, tmp / "gallery.h5", model, PATTERN)
    return embedder, Gallery(tmp / "gallery.h5")


def written_gallery(path, names, root, model, gate=False):
    """A gallery file whose names nobody indexed, of random features that are all visible."""
    rng = np.random.default_rng(0)
    part = rng.normal(size=(len(names), 9, 16)).astype(np.float32)
    part /= np.linalg.norm(part, axis=2, keepdims=True)
    arrays = {"part": part, "visibility": np.ones(part.shape[:2], np.float32)}
    arrays |= {"gate": np.ones_like(part)} if gate else {}
    source = {"root": str(root), "model": str(model), "pattern": ""}
    attrs = {"model": inference.load(model).weights, "z": "guessed", "precision": "float32", "source": source}
    with gallery_file.create(path, len(names), attrs, []) as append:
        append(names, arrays)
    return Gallery(path)


def client(embedder, gallery):
    """A client of the application itself, without a port."""
    application = app.create(service.Service(gallery, embedder), server.host_names("127.0.0.1"))
    return TestClient(application, base_url=URL, raise_server_exceptions=False)


def dropped(ask, data, status=200):
    """The name of an upload, or the words of its refusal."""
    answer = ask.post("/api/queries", content=data)
    assert answer.status_code == status, answer.text
    return answer.json()["query" if status == 200 else "error"]


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
