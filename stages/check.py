"""Stage `check`: params.yaml -> nothing but its faults, all together, before a stage costs anything.

Takes:
    data       folder of the datasets, of which those that are indexed are checked too
    trained    folder that the training writes, from which none can start
Writes:
    out        a file that says so; always the same bytes, so that nothing else runs again

Params: all but pretrain.  By hand, `python -m stages.check` also says what DVC trips over before any stage.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural
from pipeline.indexing import build, datasets
from pipeline.inference.extract import Embed
from pipeline.labels import occlusion, parsing, pose_params, segmentation
from pipeline.labels.external.adapter import ExternalLabels
from pipeline.labels.quality.metrics import Score
from pipeline.methods.base import load_method
from pipeline.ranking.figures import Draw
from pipeline.ranking.report import Evaluate
from pipeline.studies.tables import METHODS
from pipeline.studies.unused import unused_params
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


def main(data: str = "", trained: str = "", out: str = "", config: str = "params.yaml") -> None:
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
    if "train" not in by_section:
        faults += start_faults(values["train"]["start_from"], trained)
    faults = faults or role_faults(config, data)
    if faults:
        listed = "\n".join(f"{config}: {fault}" for fault in faults)
        raise BadInput(f"{listed}\n{plural(len(faults), 'fault')}; nothing was run.")
    if out:
        with atomic_write(out) as path:
            path.write_text("params.yaml was checked\n", encoding="utf-8")
    print(f"{config}: {plural(len(values['datasets']), 'dataset')}, every name and value is known")
    print(f"{config}: without effect: {', '.join(unused_params(values)) or 'none'}")


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


def start_faults(folder: str, trained: str) -> list[str]:
    """What is wrong with the trained model that the training starts from."""
    try:
        if folder and trained:
            check_start(folder, trained)
    except BadInput as error:
        return [str(error).removeprefix("params.yaml: ")]
    return []


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


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
