"""Rank the pictures of a gallery by their distance from each of some pictures, nearest first.

Takes:
    top         pictures listed for each
    parts       names of the parts that count, with commas between, as 'torso,left leg'; all if empty
    json        print JSON instead of a table of query, rank, distance, picture and visible parts
    networks    of a gallery with maps: folder of the parsers' weights
    device      cpu or cuda, of the model
Reads:
    gallery     HDF5 file of `index`
    pictures    files, folders (all pictures below) and patterns such as 'query/*.jpg'
    model       folder of the model that made the gallery; if empty, where it lay then
Writes:
    html        page with the pictures in it, instead of the printed table

Queries are embedded as the gallery was: with maps by the parsers, or with what they hide guessed.

Params, of a gallery with maps: parsers, segment, pose, parse, lambda, label.
"""

import dataclasses
from json import dumps

from pipeline import inference
from pipeline.core.files import atomic_write, check_file_path
from pipeline.core.params import check_count
from pipeline.search import Gallery, page
from pipeline.search.embedder import Embedder
from pipeline.search.maps import MapMaker, read_settings
from pipeline.search.query import search


def main(
    gallery: str,
    pictures: list[str],
    top: int = 20,
    parts: str = "",
    html: str = "",
    json: bool = False,
    model: str = "",
    networks: str = "models/embedded",
    device: str = "cpu",
    config: str = "params.yaml",
) -> None:
    """Print the table or JSON, or write the page."""
    check_count("--top", top, 1)
    if html:
        check_file_path(html)
    opened = Gallery(gallery)
    maker = MapMaker(read_settings(config, networks)) if opened.has_maps else None
    embedder = Embedder(inference.load(model or opened.model_folder, device), maker)
    files, _ = inference.find_pictures(pictures)
    names = [name.strip() for name in parts.split(",")] if parts else None
    results = search(opened, embedder, [str(file) for file in files], top, names)
    if html:
        with atomic_write(html) as path:
            path.write_text(page.render(opened, results), encoding="utf-8")
    if json:
        print(dumps([dataclasses.asdict(result) for result in results], indent=1))
    elif not html:
        for result in results:
            for rank, hit in enumerate(result.hits, 1):
                cells = result.picture, rank, f"{hit.distance:.6g}", hit.picture, ", ".join(hit.visible)
                print(*(page.printable(str(cell)) for cell in cells), sep="\t")
