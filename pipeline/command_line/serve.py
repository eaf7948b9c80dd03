"""Search a gallery in the browser, until Ctrl-C.

Takes:
    host        name or address of this machine to be reached by; only this machine itself can by 127.0.0.1
    port        0: any that is free
    networks    of a gallery with maps: folder of the parsers' weights
    device      cpu or cuda, of the model
Reads:
    gallery     HDF5 file of `index`
    model       folder of the model that made the gallery; if empty, where it lay then

Pictures that are dropped in stay in memory.  Nobody is asked for a password: by another host than 127.0.0.1,
all who reach this machine see all pictures of the gallery.

Params, of a gallery with maps: parsers, segment, pose, parse, lambda, label.
"""

import sys
from importlib.util import find_spec

from pipeline import inference
from pipeline.core.params import BadInput
from pipeline.search import Gallery
from pipeline.search.embedder import Embedder
from pipeline.search.maps import MapMaker, read_settings


def main(
    gallery: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str = "",
    networks: str = "models/embedded",
    device: str = "cpu",
    config: str = "params.yaml",
) -> None:
    """Print the address, and answer there."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"serve: {' and '.join(missing)} not installed. Run `uv sync --group serve` in the checkout, "
            'elsewhere `pip install "<the checkout>[serve]"`.'
        )
    from pipeline.search.web import app, server
    from pipeline.search.web.service import Service

    with server.listen(host, port) as bound:  # before the model takes its time
        opened = Gallery(gallery)
        maker = MapMaker(read_settings(config, networks)) if opened.has_maps else None
        embedder = Embedder(inference.load(model or opened.model_folder, device), maker)
        application = app.create(Service(opened, embedder), server.host_names(host))
        print(f"{server.address(bound)} searches the pictures of {opened.root}; Ctrl-C ends it.", flush=True)
        if not server.is_loopback(bound):
            print("All who reach this machine can see them.", file=sys.stderr)
        server.run(application, bound)
