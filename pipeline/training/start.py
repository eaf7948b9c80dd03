"""Going on from a trained model: all of its weights but those that belong to its people and cameras.

Every tensor is accounted for: taken over, or new since it belongs to a training set (`Method.TRAINING_SET`)
or is not kept after a training (`Method.LEAVES_OUT`).
The other model must be of the same method, encoder, image size and coarse parts.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.core import weights
from pipeline.core.files import sha256
from pipeline.core.params import BadInput, shorten
from pipeline.methods.base import Method, read_record, read_weights


def check_start(folder: str, out: str) -> None:
    """Raise `BadInput` if a folder holds no trained model, or if the training will write to `out` there."""
    path, target = Path(folder).resolve(), Path(out).resolve()
    if target in (path, *path.parents):
        raise BadInput(
            f"params.yaml: train.start_from = {folder}: the training writes to {out}, and DVC empties that "
            f"first. Copy it (`cp -r {out} models/start`; `dvc checkout` brings it back) and name the copy."
        )
    try:
        record = read_record(folder)
    except BadInput as error:
        raise BadInput(f"params.yaml: train.start_from: {error}") from None
    if "data" not in record:
        raise BadInput(
            f"params.yaml: train.start_from: {folder}/record.json: has no data. Name a folder that `train` "
            "wrote."
        )


def load_start(model: Method, folder: str, description: dict[str, Any]) -> dict[str, Any]:
    """Take over the weights of the trained model in a folder; returns what was, for the record.

    `description` is that of `model` (`methods.base.describe`).  What belongs to a training set stays new.
    Raises `BadInput` that names the values of both models if they differ in more than that.
    """
    record, file = read_record(folder), Path(folder) / "model.safetensors"
    description = json.loads(json.dumps(description))  # as `record` is: without tuples
    theirs, ours = _identity(record), _identity(description)
    differing = [
        f"{name} = {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]
    ]
    if differing:
        raise BadInput(
            f"params.yaml: train.start_from = {folder}: another model: {'; '.join(differing)}. Set params "
            "as there, or start from another model."
        )
    params = {
        name: [record["params"].get(name), value]
        for name, value in description["params"].items()
        if record["params"].get(name) != value
    }
    words = [f"{name} = {there} there, {here} here" for name, (there, here) in params.items()]
    tensors, expected = read_weights(folder), model.state_dict()
    is_new = lambda name: name in model.TRAINING_SET or name.startswith(model.LEAVES_OUT)  # noqa: E731
    taken = {name: tensor for name, tensor in tensors.items() if not is_new(name)}
    kept = {name: tensor for name, tensor in expected.items() if not is_new(name)}
    remedy = f"Params that differ: {', '.join(shorten(words)) or 'none'}. Set them as there."
    weights.check_shapes(kept, taken, file, remedy)
    model.load_state_dict(taken, strict=False)  # the rest is new
    new = [name for name in expected if is_new(name)]
    return {
        "folder": folder, "sha256": sha256(file), "taken": len(taken), "new": new, "params": params,
        "data": record["data"],
    }  # fmt: skip


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    # what two models must share; the tag of a timm ViT names weights alone
    vit = {name: value for name, value in record["vit"].items() if name != "weights"}
    vit["name"] = vit["name"].split(".")[0]
    return {
        "method": record["method"],
        "vit": " ".join(map(str, vit.values())),
        "train.size": record["data_spec"]["size"],
        "label.parts": record["data_spec"]["coarse"],
    }


def describe_start(start: dict[str, Any]) -> str:
    """One line about what `load_start` did."""
    differing = ", ".join(start["params"])
    return (
        f"starts from {start['folder']} ({start['sha256'][:8]}): {start['taken']} tensors taken, "
        f"new are {', '.join(start['new'])}" + (f"; its params differ in {differing}" if differing else "")
    )
