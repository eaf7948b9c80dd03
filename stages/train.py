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
import torch

from pipeline.batches.views import training_rows, training_set
from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write, sha256
from pipeline.core.label_file import LabelFile
from pipeline.core.resumable import resumable_folder
from pipeline.data import obstacles
from pipeline.data.index import Images, index_hash, read_index
from pipeline.methods.base import Method, data_spec, describe, load_method, resolve
from pipeline.model.backbones import pretrained_encoder
from pipeline.training import checkpoint, selection
from pipeline.training.run import LIBRARIES, run_record, train_model
from pipeline.training.schedule import Schedule


def main(
    index: str, images: str, parsing: str, labels: str, embedded: str, out: str, log: str,
    config: str = "params.yaml",
) -> None:  # fmt: skip
    wanted = params.read(config, "train", Schedule).processes
    words = (index, images, parsing, labels, embedded, out, log, config)
    if not distributed.run_torchrun(wanted, "stages.train", words):
        with distributed.process_group():
            train(*words)


def train(
    index: str, images: str, parsing: str, labels: str, embedded: str, out: str, log: str, config: str
) -> None:
    name = params.read(config, "method", str)
    module = load_method(name)
    settings = params.read(config, name, module.Params)
    schedule = params.read(config, "train", Schedule)
    schedule = resolve(schedule, module.PRESETS, settings.preset, "train")
    settings = resolve(settings, module.PRESETS, settings.preset, name)
    seed, every = params.read(config, "seed", params.Count), params.read(config, "checkpoint", params.Amount)

    table = read_index(index)
    key = index_hash(table)
    maps, flags = LabelFile(parsing, "parsing", key), LabelFile(labels, "occlusion", key)
    pictures = training_set(table, Images(images, key), maps, flags, schedule.size)
    names = table["key"][training_rows(table)].tolist()
    pictures, names, held_out = selection.hold_out(pictures, names, schedule.held_out, seed)

    start = pretrained_encoder(settings.vit, settings.weights, embedded)
    world = data_spec(pictures)
    torch.manual_seed(seed)
    model = module.build(settings, world, start)
    files = {path: sha256(path) for path in (index, images, parsing, labels)}
    if cutouts := schedule.obstacles.cutouts:
        files[cutouts] = obstacles.digest(cutouts)
    record = describe(name, settings, world, start.architecture)
    record |= run_record(model, schedule, seed, files)
    first = distributed.rank() == 0
    with resumable_folder("train", [record], LIBRARIES) if first else nullcontext() as scratch:
        saves = checkpoint.Checkpoints(distributed.broadcast_object(scratch), every)
        steps = train_model(model, pictures, schedule, seed, names, held_out, saves)
        if first:
            save(out, log, model, record, steps)


def save(out: str, log: str, model: Method, record: dict[str, Any], steps: pd.DataFrame) -> None:
    with atomic_write(out) as folder:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
        Path(folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    with atomic_write(log) as path:
        steps.to_csv(path, index=False)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
