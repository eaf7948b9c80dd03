"""Stage `embed`: the test images -> what the model, its encoder before training, and a histogram see."""

import sys

import torch

from pipeline import arithmetic, batches, datasets, features, method, params, store


def main(
    index: str, images: str, parsing: str, labels: str, trained: str, weights: str, out: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    options = params.read(config, "embed", features.Embed)
    table = datasets.read_index(index)
    key = datasets.index_hash(table)
    pictures = datasets.Images(images, key)
    maps, flags = store.Rows(parsing, "parsing", key), store.Rows(labels, "occlusion", key)
    model = method.load_trained(trained)
    encoder, size = features.before_training(trained, weights)

    rows = features.test_rows(table)
    stream = batches.evaluation(table, pictures, maps, flags, rows, size, options.batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = arithmetic.precision(options.precision, device)
    with arithmetic.products(options.products):
        arrays = features.learned(model, encoder, stream, len(rows), device, precision)
    arrays |= features.histograms(pictures, rows) | {"row": rows.astype("int32")}
    attrs = {"index": key, "systems": ["model", "encoder", "histogram"]}
    store.write(out, "features", arrays, attrs, ("torch", "opencv-python-headless"))


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
