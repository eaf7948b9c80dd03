"""Stage `embed`: the test images -> what the model sees, with and without parsing maps, and what its encoder
before training and a colour histogram do.
"""

import sys

from pipeline import arithmetic, batches, datasets, features, machine, method, params, processes, store
from pipeline.arithmetic import Computing


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
    encoder = features.before_training(trained, weights)

    rows = features.test_rows(table)
    told = features.told(table, method.record(trained), store.sha256(index), options.cameras)
    shown = table.assign(camid=told.camid)
    stream = batches.evaluation(shown, pictures, maps, flags, rows, encoder.size, options.batch)
    device = processes.device()
    how = Computing(options.precision, options.products, options.attention)
    with machine.memory_kept(), arithmetic.computing(model, device, how):
        arrays = features.learned(model, encoder, stream, len(rows), device, options.without_maps)
    arrays |= features.histograms(pictures, rows) | {"row": rows.astype("int32")}
    without = ["z_guessed", "z_unknown"] if options.without_maps else []
    attrs = {"index": key, "systems": ["model", *without, "encoder", "histogram"], "model_cameras": told.why}
    attrs["model_cameras_unknown"] = int((told.camid[rows] < 0).sum())
    store.write(out, "features", arrays, attrs, ("torch", "opencv-python-headless"))


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
