"""Stage `embed`: test images -> the embeddings of the model, of its encoder before training, of a histogram.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    parsing    parsing.h5, one parsing map per image
    labels     occlusion.h5, the occlusion labels of each image
    trained    folder of the trained model
    weights    embedded ViT, for models whose encoder is `embedded`
Writes:
    out        features.h5, one row per query and gallery image

Params: embed.
"""

import sys

from pipeline.batches.views import stream_eval_batches
from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.files import sha256
from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.data.index import Images, index_hash, read_index
from pipeline.inference import histogram
from pipeline.inference.extract import (
    Embed,
    extract_features,
    model_cameras,
    rows_to_embed,
    untrained_encoder,
)
from pipeline.methods.base import load_trained, read_record
from pipeline.model import compute
from pipeline.model.compute import Compute


def main(
    index: str, images: str, parsing: str, labels: str, trained: str, weights: str, out: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "embed", Embed)
    table = read_index(index)
    key = index_hash(table)
    pictures = Images(images, key)
    maps, flags = LabelFile(parsing, "parsing", key), LabelFile(labels, "occlusion", key)
    model = load_trained(trained)
    encoder = untrained_encoder(trained, weights)

    rows = rows_to_embed(table)
    queries = int((table["split"] == "query").sum())
    cameras = model_cameras(table, read_record(trained), sha256(index), options.cameras)
    model_table = table.assign(camid=cameras.camid)
    batches = stream_eval_batches(model_table, pictures, maps, flags, rows, encoder.size, options.batch)
    device = distributed.local_device()
    settings = Compute(options.precision, options.matmul, options.attention)
    with compute.keep_freed_memory(), compute.inference_mode(model, device, settings):
        arrays = extract_features(model, encoder, batches, len(rows), queries, device, options.without_maps)
    arrays |= histogram.histograms(pictures, rows) | {"row": rows.astype("int32")}
    without_maps = ["z_guessed", "z_unknown"] if options.without_maps else []
    attrs = {
        "index": key,
        "systems": ["model", *without_maps, "encoder", "histogram"],
        "model_cameras": cameras.reason,
        "model_cameras_unknown": int((cameras.camid[rows] < 0).sum()),
    }
    write_label_file(out, "features", arrays, attrs, ("torch", "opencv-python-headless"))


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
