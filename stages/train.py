"""Stage `train`: images and their cached labels -> a trained model, its log and its record.

`train.processes` of params.yaml share the batches, or as many as `torchrun` is told to start:

    torchrun --nproc-per-node=4 -m stages.train INDEX IMAGES PARSING LABELS EMBEDDED OUT LOG
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch

from pipeline import batches, datasets, method, obstacles, params, processes, store, training, vit
from pipeline.training import selection


def main(
    index: str, images: str, parsing: str, labels: str, embedded: str, out: str, log: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    wanted = params.read(config, "train", training.Schedule).processes
    words = (index, images, parsing, labels, embedded, out, log, config)
    if not processes.launch(wanted, "stages.train", words):
        with processes.joined():
            train(*words)


def train(
    index: str, images: str, parsing: str, labels: str, embedded: str, out: str, log: str, config: str
) -> None:
    name = params.read(config, "method", str)
    module = method.load(name)
    settings = params.read(config, name, module.Params)
    schedule = params.read(config, "train", training.Schedule)
    schedule = method.resolve(schedule, module.PRESETS, settings.preset, "train")
    settings = method.resolve(settings, module.PRESETS, settings.preset, name)
    seed, every = params.read(config, "seed", params.Count), params.read(config, "checkpoint", params.Amount)

    table = datasets.read_index(index)
    key = datasets.index_hash(table)
    maps, flags = store.Rows(parsing, "parsing", key), store.Rows(labels, "occlusion", key)
    pictures = batches.training(table, datasets.Images(images, key), maps, flags, schedule.size)
    names = table["key"][batches.training_rows(table)].tolist()
    pictures, names, held_out = selection.hold_out(pictures, names, schedule.held_out, seed)

    start = vit.start(settings.vit, settings.weights, embedded)
    world = method.world(pictures)
    training.seed(seed)
    model = module.build(settings, world, start)
    files = {path: store.sha256(path) for path in (index, images, parsing, labels)}
    if cutouts := schedule.obstacles.cutouts:
        files[cutouts] = obstacles.digest(cutouts)
    record = method.describe(name, settings, world, start.architecture)
    record |= training.record(model, schedule, seed, files)
    first = processes.number() == 0
    with store.scratch("train", [record], training.LIBRARIES) if first else nullcontext() as scratch:
        saves = training.Saves(processes.from_first(scratch), every)
        steps = training.train(model, pictures, schedule, seed, names, held_out, saves)
        if first:
            save(out, log, model, record, steps)


def save(out: str, log: str, model: method.Method, record: dict[str, Any], steps: pd.DataFrame) -> None:
    with store.replace(out) as folder:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
        Path(folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    with store.replace(log) as path:
        steps.to_csv(path, index=False)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
