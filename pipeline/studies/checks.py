"""All faults of params.yaml, whatever stage would meet them: values, names, files, params that contradict.

What can be known only from a dataset's images is left to `index`, unless the dataset is indexed already.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import Field

from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.data import obstacles
from pipeline.indexing import build, datasets
from pipeline.inference.extract import Embed
from pipeline.labels import occlusion, parsing, pose_params, segmentation
from pipeline.labels.external.adapter import ExternalLabels
from pipeline.labels.quality.metrics import Score
from pipeline.methods.base import load_method
from pipeline.ranking.figures import Draw
from pipeline.ranking.report import Evaluate
from pipeline.studies.tables import METHODS
from pipeline.synthetic.dataset import Render
from pipeline.training.schedule import Schedule
from pipeline.training.start import check_start

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


def params_faults(config: str, data: str = "", trained: str = "") -> list[str]:
    """The faults of a parameter file, a line each.

    `data` is the folder of the datasets, `trained` the one that the training writes; "" leaves out what needs
    them.
    """
    values = params.load(config)
    methods = {name: load_method(name).Params for name in METHODS}
    by_section = params.section_faults(values, SECTIONS | methods)
    if isinstance(values.get("datasets"), dict) and (lines := datasets.name_faults(values["datasets"])):
        by_section.setdefault("datasets", []).extend(lines)
    faults = [fault for lines in by_section.values() for fault in lines]
    if not by_section.keys() & datasets.SECTIONS:
        faults += [*datasets.reference_faults(values), *layout_faults(values)]
    if not by_section.keys() & {"segment", "pose", "parsers"}:
        faults += weights_faults(config, values["parsers"])
    if not by_section.keys() & {"method", "train", "processes", "index", *METHODS}:
        faults += training_faults(values, trained)
    return faults or role_faults(config, data)


def layout_faults(values: dict[str, Any]) -> list[str]:
    """Datasets of an unknown layout, and their paths that no shell can be given."""
    faults = datasets.path_faults(
        {f"datasets.{name}.archive": dataset["archive"] for name, dataset in values["datasets"].items()}
        | {f"labels_from.{name}.path": labels["path"] for name, labels in values["labels_from"].items()}
    )
    for dataset in values["datasets"].values():
        try:
            build.load_layout(dataset["layout"])
        except BadInput as error:
            faults.append(str(error).removeprefix("params.yaml: "))
    return faults


def weights_faults(config: str, parsers: str) -> list[str]:
    """Parsers without published weights whose own are named by no path below models/embedded/."""
    segment = params.read(config, "segment", segmentation.Segment)
    pose = params.read(config, "pose", pose_params.Pose)
    networks = {
        "segment.weights": (segment.weights, segmentation.select_network(segment, parsers).network),
        "pose.weights": (pose.weights, pose_params.select_network(pose, parsers).network),
    }
    own = {name: path for name, (path, network) in networks.items() if ":" not in network}
    return datasets.path_faults(own) + [
        f"{name} = {path!r}: the path starts at models/embedded/. Write ../mine.safetensors for "
        "models/mine.safetensors."
        for name, path in own.items()
        if path.startswith(("/", "models/"))
    ]


def training_faults(values: dict[str, Any], trained: str) -> list[str]:
    """What a training would stop for at its start: missing files, and a batch that it cannot share."""
    name, train, processes = values["method"], values["train"], values["processes"]["train"]
    vit, weights = values[name]["vit"], values[name]["weights"]
    faults = []
    if vit != "embedded" and not timm.is_model(vit.split(".")[0]):
        faults.append(f"{name}.vit = {vit}: timm knows no such model.")
    if weights and not Path(weights).is_file():
        faults.append(f"{name}.weights = {weights}: no such file.")
    if train["identities"] % processes:
        faults.append(
            f"train.identities = {train['identities']} is no multiple of processes.train = {processes}. "
            "Let it be one."
        )
    occlude = values["index"]["occlude"]
    folders = [train["obstacles"]["cutouts"], occlude["cutouts"] if occlude["datasets"] else ""]
    checks: list[Callable[[], object]] = [
        partial(obstacles.cutout_files, folder) for folder in folders if folder
    ]
    if train["start_from"] and trained:
        checks.append(partial(check_start, train["start_from"], trained))
    for check in checks:
        try:
            check()
        except BadInput as error:
            faults.append(str(error).removeprefix("params.yaml: "))
    return faults


def role_faults(config: str, data: str) -> list[str]:
    """What the datasets lack that are indexed already; the others are checked when they are indexed."""
    roles = datasets.read_roles(config)
    faults = []
    for name in dict.fromkeys([roles.train_on, *roles.test_on]):
        table = datasets.read_splits(Path(data, name, "index.parquet")) if data else None
        lacks = [] if table is None else datasets.role_faults(table, name, roles)
        remedy = f"If its archive has changed, run `dvc repro --single-item index@{name}` first."
        faults += [f"{fault} {remedy}" for fault in lacks]
    return faults
