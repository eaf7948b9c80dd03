"""The faults of params.yaml that cost nothing to find, whatever stage would meet them.

Left to the stages are archives and labels, which DVC names where they are missing, what is known only from
images (unless the dataset is indexed already), and whether weights fit their network.

Unusual here: the chosen method is built, without weights, on the device `meta`.  So whatever a method refuses
when a training builds it is named here, in its own words.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer

from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.core.weights import read as read_weights
from pipeline.data import obstacle_pictures
from pipeline.indexing import build, datasets
from pipeline.inference.extract import Embed
from pipeline.labels import occlusion, parsing, pose_params, segmentation
from pipeline.labels.external.adapter import ExternalLabels
from pipeline.labels.quality.metrics import Score
from pipeline.methods.base import DataSpec, load_method
from pipeline.methods.presets import resolve
from pipeline.model.backbones import check_vit, load_vit, untrained_vit
from pipeline.ranking.figures import Draw
from pipeline.ranking.neighbours import GATED
from pipeline.ranking.report import Evaluate
from pipeline.studies.tables import METHODS
from pipeline.synthetic.dataset import Render
from pipeline.training import tensorboard
from pipeline.training.schedule import Schedule, check_batch_size
from pipeline.training.start import check_start

EMBEDDED = Path("models/embedded")  # where the parsers' weights start, and our encoder and text tower lie
PEOPLE = 10_000  # of a training set, as long as nobody has counted them

SECTIONS: dict[str, Any] = {
    "lambda": params.Amount,
    "method": Literal[*sorted(METHODS)],
    "seed": params.Count,
    "datasets": Annotated[dict[str, datasets.Dataset], Field(min_length=1)],
    "parse_on": list[str],
    "labels_from": dict[str, ExternalLabels],
    "train_on": str,
    "test_on": Annotated[list[str], Field(min_length=1)],
    "parsers": Literal["", "coco"],
    "workers": params.Count,
    "processes": distributed.Processes,
    "checkpoint": params.Amount,
    "tensorboard": str,
    "render": Render,
    "index": build.Index,
    "segment": segmentation.Segment,
    "pose": pose_params.Pose,
    "parse": parsing.Parse,
    "label": occlusion.Label,
    "score": Score,
    "train": Schedule,
    "embed": Embed,
    "evaluate": Evaluate,
    "draw": Draw,
    "pretrain": dict,  # no stage of the DAG reads it
}


def params_faults(values: dict[str, Any], data: str, trained: str) -> list[str]:
    """The faults of a parameter file's values, a line each.

    `data` is the folder of the datasets, `trained` the one that the training writes.  What several sections
    say together is checked if each of them is right.
    """
    schemas = SECTIONS | {name: load_method(name).Params for name in METHODS}
    by_section = params.section_faults(values, schemas)
    right = schemas.keys() - by_section.keys()
    if isinstance(values.get("datasets"), dict):
        by_section.setdefault("datasets", []).extend(datasets.name_faults(values["datasets"]))
    faults = [fault for lines in by_section.values() for fault in lines]
    naming = {section: values[section] for section in datasets.NAMING if section in values}
    if not params.section_faults(naming, datasets.NAMING):
        faults += datasets.reference_faults(values)
    if right >= {"segment", "pose", "parsers", "parse_on"} and values["parse_on"]:
        faults += parser_faults(values)
    if right >= {"method", "train", "processes", "index", "label", "evaluate", "tensorboard", *METHODS}:
        faults += training_faults(values, trained)
    if right >= {"train", "train_on", "test_on", "datasets"}:
        faults += role_faults(values, data)
    return faults


def parser_faults(values: dict[str, Any]) -> list[str]:
    """Networks that are not known, and those without published weights whose own are not there."""
    segment = params.validate(values["segment"], segmentation.Segment, "", "segment")
    pose = params.validate(values["pose"], pose_params.Pose, "", "pose")
    segment = segmentation.select_network(segment, values["parsers"])
    pose = pose_params.select_network(pose, values["parsers"])
    faults = _said_by(partial(segmentation.check_network, segment), partial(pose_params.check_network, pose))
    for section, parser in (("segment", segment), ("pose", pose)):
        if ":" not in parser.network:
            faults += _weights_faults(f"{section}.weights", parser.weights)
    return faults


def _weights_faults(name: str, path: str) -> list[str]:
    if lines := _said_by(partial(params.validate, path, params.QuotedPath, "", name)):
        return lines
    if path.startswith(("/", "models/")):
        relative = os.path.relpath(path, EMBEDDED)
        return [f"{name} = {path!r}: the path starts at {EMBEDDED}/. Write {relative} for {path}."]
    file = EMBEDDED / path
    if not (file.exists() or Path(f"{file}.dvc").exists()):  # `dvc pull` may bring it
        return [f"{name} = {path!r}: there is no file {os.path.normpath(file)}."]
    return []


def training_faults(values: dict[str, Any], trained: str) -> list[str]:
    """What a training, or its evaluation, would stop for: what the method refuses, an odd batch, files."""
    name, train, processes = values["method"], values["train"], values["processes"]["train"]
    vit, weights, colours = (values[name][param] for param in ("vit", "weights", "colours"))
    faults = [f"{name}.{line}" for line in _said_by(partial(check_vit, vit, weights, colours))]
    faults = faults or method_faults(values)
    if vit != "embedded" and weights and not Path(weights).is_file():
        faults.append(f"{name}.weights = {weights}: no such file.")
    elif vit != "embedded" and weights:
        faults += [f"{name}.weights = {line}" for line in _said_by(partial(read_weights, weights))]
    occlude, schedule = values["index"]["occlude"], params.validate(train, Schedule, "", "train")
    pictures = [
        *obstacle_pictures.folders(schedule.obstacles).items(),
        ("cutout", occlude["cutouts"] if occlude["datasets"] else ""),
    ]
    checks: list[Callable[[], object]] = [
        partial(check_batch_size, schedule, processes),
        partial(tensorboard.check_installed, values["tensorboard"]),
        *(partial(obstacle_pictures.picture_files, source, folder) for source, folder in pictures if folder),
    ]
    if train["start_from"]:
        checks.append(partial(check_start, train["start_from"], trained))
    return faults + _said_by(*checks)


def method_faults(values: dict[str, Any]) -> list[str]:
    """What the chosen method refuses, with its presets, when it is built, of its texts, and of re-ranking."""
    name, depth = values["method"], values["evaluate"]["rerank"]["depth"]
    module = load_method(name)
    settings = params.validate(values[name], module.Params, "", name)
    settings = resolve(settings, module.PRESETS, settings.preset, name)
    size, coarse = tuple(values["train"]["size"]), values["label"]["parts"]
    spec = DataSpec(size, PEOPLE, cameras=1, coarse=coarse, trained_cameras=(0,))
    try:
        vit = _encoder(settings.vit)
        with torch.device("meta"):
            model = module.build(settings, spec, vit)
    except BadInput as error:
        return [str(error).removeprefix("params.yaml: ")]
    gated = [f"evaluate.rerank.depth = {depth}: {GATED}"] if depth and model.gated else []
    return _said_by(partial(model.check_text, str(EMBEDDED / "text.safetensors"))) + gated


def _encoder(name: str) -> VisionTransformer:
    """The encoder of a method, without weights."""
    if name == "embedded":
        return load_vit(EMBEDDED / "vit.safetensors").to("meta")
    with torch.device("meta"):
        return untrained_vit({"name": name})


def _said_by(*checks: Callable[[], object]) -> list[str]:
    faults = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            faults.append(str(error).removeprefix("params.yaml: "))
    return faults


def role_faults(values: dict[str, Any], data: str) -> list[str]:
    """What the datasets lack that are indexed already; the others are checked when they are indexed."""
    roles = params.validate(values, datasets.Roles, "")
    faults = []
    for name in dict.fromkeys([roles.train_on, *roles.test_on]):
        if name not in values["datasets"]:
            continue
        path, archive = Path(data, name, "index.parquet"), Path(values["datasets"][name]["archive"])
        table = datasets.read_splits(path)
        if table is None or (archive.exists() and archive.stat().st_mtime > path.stat().st_mtime):
            continue  # `index` will make it anew
        remedy = f"If the dataset or `index` has changed, delete {path} first, and `dvc repro` makes it anew."
        faults += [f"{fault} {remedy}" for fault in datasets.role_faults(table, name, roles)]
    return faults
