"""Stage `train`: images and their cached labels -> a trained model, its record, log and curves.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    parsing    parsing.h5, one parsing map per image
    labels     occlusion.h5, the occlusion labels of each image
    embedded   embedded ViT, for methods whose encoder is `embedded`
    text       embedded text tower, for methods that learn from texts
Writes:
    out        folder of the trained model and its record
    log        log.csv, one row per training step; times.csv, beside it, has the seconds of each step
    curves     folder of the log's curves for `dvc plots`, a CSV file for each quantity

Params: seed, method, the method's own, train, checkpoint, tensorboard, processes.train.  torchrun may start
the processes:

    torchrun --nproc-per-node=4 -m stages.train INDEX IMAGES PARSING LABELS EMBEDDED TEXT OUT LOG CURVES
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
from pipeline.data import obstacle_pictures
from pipeline.data.index import Images, index_hash, read_index
from pipeline.methods.base import Method, data_spec, describe, load_method
from pipeline.methods.presets import resolve
from pipeline.model.backbones import architecture, check_vit, pretrained_encoder
from pipeline.model.layers import set_drop_path
from pipeline.training import selection, tensorboard
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.curves import training_curves
from pipeline.training.loop import TIMES
from pipeline.training.record import LIBRARIES, run_record
from pipeline.training.remarks import remarks, say, without_effect
from pipeline.training.run import seed_generators, train_model
from pipeline.training.schedule import Schedule
from pipeline.training.start import check_start, describe_start, load_start


def main(
    index: str, images: str, parsing: str, labels: str, embedded: str, text: str, out: str, log: str,
    curves: str, config: str = "params.yaml",
) -> None:  # fmt: skip
    wanted = params.read(config, "processes", distributed.Processes).train
    paths = (index, images, parsing, labels, embedded, text, out, log, curves)
    if not distributed.run_torchrun(wanted, "stages.train", (*paths, "--config", config)):
        with distributed.process_group():
            train(*paths, config)


def train(
    index: str, images: str, parsing: str, labels: str, embedded: str, text: str, out: str, log: str,
    curves: str, config: str,
) -> None:  # fmt: skip
    """Train the method of params.yaml, as one of the processes that share each batch."""
    name = params.read(config, "method", str)
    module = load_method(name)
    settings = params.read(config, name, module.Params)
    schedule = params.read(config, "train", Schedule)
    schedule = resolve(schedule, module.PRESETS, settings.preset, "train")
    settings = resolve(settings, module.PRESETS, settings.preset, name)
    seed, every = params.read(config, "seed", params.Count), params.read(config, "checkpoint", params.Amount)
    events_folder = params.read(config, "tensorboard", str)

    tensorboard.check_installed(events_folder)
    check_vit(settings.vit, settings.weights, settings.colours)
    if schedule.start_from:
        check_start(schedule.start_from, out)
    table = read_index(index)
    key = index_hash(table)
    maps, flags = LabelFile(parsing, "parsing", key), LabelFile(labels, "occlusion", key)
    image_set = training_set(table, Images(images, key), maps, flags, schedule.size)
    names = table["key"][training_rows(table)].tolist()
    image_set, names, held_out = selection.hold_out(image_set, names, schedule.held_out, seed)

    seed_generators(seed)
    vit = pretrained_encoder(settings.vit, settings.weights, embedded, schedule.size, settings.colours)
    set_drop_path(vit.blocks, schedule.drop_path)
    spec = data_spec(image_set)
    torch.manual_seed(seed)
    model = module.build(settings, spec, vit)
    read = model.read_text(text)
    start = embedded if settings.vit == "embedded" else settings.weights
    files = {path: sha256(path) for path in (index, images, parsing, labels, start, read) if path}
    pictures = obstacle_pictures.folders(schedule.obstacles)
    files |= {folder: obstacle_pictures.digest(source, folder) for source, folder in pictures.items()}
    unused = without_effect(name, module, settings, schedule)
    lines = [f"without effect: {', '.join(unused)}"] * bool(unused) + remarks(schedule, image_set)
    say(lines + [line for folder in pictures.items() for line in obstacle_pictures.describe_folder(*folder)])
    record = describe(name, settings, spec, architecture(vit)) | {"without_effect": unused}
    if schedule.start_from:
        record["start_from"] = load_start(model, schedule.start_from, record)
        say([describe_start(record["start_from"])])
    record |= run_record(model, schedule, seed, files)
    rank_0 = distributed.rank() == 0
    with resumable_folder("train", [record], LIBRARIES) if rank_0 else nullcontext() as folder:
        scratch = distributed.broadcast_object(folder)
        with tensorboard.open_events(events_folder, scratch.name) as events:
            checkpoints = Checkpoints(scratch, every)
            steps = train_model(model, image_set, schedule, seed, names, held_out, checkpoints, events)
        if rank_0:
            save(out, log, curves, model, record, steps)


def save(out: str, log: str, curves: str, model: Method, record: dict[str, Any], steps: pd.DataFrame) -> None:
    """Write the model's folder, the log's curves, the log and, beside it, each step's time (`times.csv`)."""
    with atomic_write(out) as folder:
        folder.mkdir()
        left_out = model.left_out()
        tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
        record = {**record, "sha256": sha256(folder / "model.safetensors")}
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    with atomic_write(curves) as folder:
        folder.mkdir()
        for name, curve in training_curves(steps).items():
            curve.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    with atomic_write(Path(log).with_name("times.csv")) as path:
        steps[["step", *TIMES]].to_csv(path, index=False)
    with atomic_write(log) as path:
        steps.drop(columns=[*TIMES]).to_csv(path, index=False)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
