"""Stage `train`: images and their cached labels -> a trained model, its log and its record."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from pipeline import arithmetic, batches, datasets, method, params, store, training, vit


def main(
    index: str, images: str, parsing: str, labels: str, embedded: str, out: str, log: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    name = params.read(config, "method", str)
    module = method.load(name)
    settings = params.read(config, name, module.Params)
    schedule = params.read(config, "train", training.Schedule)
    schedule = method.resolve(schedule, module.PRESETS, settings.preset, "train")
    settings = method.resolve(settings, module.PRESETS, settings.preset, name)
    seed = params.read(config, "seed", int)

    table = datasets.read_index(index)
    key = datasets.index_hash(table)
    maps, flags = store.Rows(parsing, "parsing", key), store.Rows(labels, "occlusion", key)
    pictures = batches.training(table, datasets.Images(images, key), maps, flags, schedule.size)
    start = vit.start(settings.vit, settings.weights, embedded)
    world = method.world(pictures)
    training.seed(seed)
    model = module.build(settings, world, start)
    with arithmetic.products(schedule.products) as library:
        steps = training.train(model, pictures, schedule, seed)

    record = method.describe(name, settings, world, start.architecture)
    record |= training.record(schedule, seed, {p: store.sha256(p) for p in (index, images, parsing, labels)})
    record["products"] = library
    with store.replace(out) as folder:
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        Path(folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    with store.replace(log) as path:
        steps.to_csv(path, index=False)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
