"""Search embedded pictures for those nearest to some pictures.

Reads:
    model       folder of the trained model, the one that made the embeddings
    gallery     HDF5 file of `embed`
    pictures    files, folders (all pictures below) and patterns such as 'query/*.jpg'
Takes:
    top         pictures listed for each
    device      cpu or cuda
Writes:
    csv         table of query, rank, distance and picture, instead of the printed one
"""

import csv as tables
import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline import inference
from pipeline.core.files import atomic_write, check_file_path
from pipeline.core.params import BadInput, check_count
from pipeline.inference import embedding_file
from pipeline.inference.embedding_file import EmbeddingFile
from pipeline.methods.base import Embedding

PAIRS = 1 << 22  # distances in memory at a time


def main(
    model: str, gallery: str, pictures: list[str], top: int = 10, device: str = "cpu", csv: str = ""
) -> None:
    """Print or write the table."""
    check_count("--top", top, 1)
    if csv:
        check_file_path(csv)
    file = EmbeddingFile(gallery)
    trained = inference.load(model, device)
    if file.attrs["model"] != trained.weights:
        raise BadInput(f"{gallery}: not made by the model {model}. Embed the gallery with it.")
    queries, _ = inference.find_pictures(pictures)
    distances, rows = nearest(trained.embed(queries, guess=file.attrs["guess"]), file, top)
    names = embedding_file.names(file)
    table = [
        (query, rank, f"{distance:.6g}", names[row])
        for query, *lists in zip(queries, distances.tolist(), rows.tolist(), strict=True)
        for rank, (distance, row) in enumerate(zip(*lists, strict=True), 1)
    ]
    if csv:
        with (
            atomic_write(csv) as path,
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out,
        ):
            tables.writer(out).writerows([("query", "rank", "distance", "picture"), *table])
    else:
        tables.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerows(table)


def nearest(
    query: Embedding, gallery: EmbeddingFile, top: int
) -> tuple[Float[Tensor, "Q top"], Int[Tensor, "Q top"]]:
    """Distances and rows of the nearest pictures to each query; equal ones keep the gallery's order."""
    count, total = len(query.parts), len(gallery["part"])
    block = max(1, PAIRS // count)
    distances, rows = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64)
    for start in range(0, total, block):
        part = embedding_file.rows(gallery, slice(start, start + block))
        numbers = torch.arange(start, min(start + block, total)).expand(count, -1)
        distances = torch.cat([distances, inference.distances(query, part)], 1)
        distances, order = (values[:, :top] for values in distances.sort(dim=1, stable=True))
        rows = torch.cat([rows, numbers], 1).gather(1, order)
    return distances, rows
