"""A trained model as one ONNX graph, for runtimes without torch.

Inputs, for N images (any number):

    image    (N, H, W, 3) uint8, RGB, resized to the model's size bicubically as Pillow does, with
             antialiasing; the graph scales the colours
    hidden   (N, C) bool, z: which coarse parts are hidden; all false if nothing is known
    camera   (N,) int64; every number that is not a camera of the training is unknown, as -1 is

Outputs, float32:

    global       (N, D), of length 1
    parts        (N, P, D), each of length 1; P = K, or 0 for a method without parts
    visibility   (N, 1 + P) in [0, 1]: of the global feature, then of the parts
    gate         (N, 1 + P, D), of methods that have one

N may be 0.  The file's metadata says what a runtime needs to know (`metadata`).
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn

from pipeline.batches.views import Batch, View
from pipeline.core.files import atomic_write, check_file_path, sha256
from pipeline.core.params import BadInput
from pipeline.data import parts
from pipeline.methods.base import DataSpec, Method, load_trained, read_record, trained_data_spec

INPUTS, OUTPUTS = ("image", "hidden", "camera"), ("global", "parts", "visibility", "gate")
EXAMPLES = 2  # images that the graph is traced with; 1 would be taken for a constant
PROJECT = "occluded-reid 0.1.0"  # as in pyproject.toml
IMAGE = (
    "uint8, RGB, upright; the whole picture resized to {1} x {0} pixels (width x height) bicubically with "
    "antialiasing, as Pillow's resize(({1}, {0}), BICUBIC) does. Colours stay 0 to 255: the graph scales them"
)
DISTANCE = (
    "Of two images q and g: d = sum_p v_p(q) v_p(g) |f_p(q) - f_p(g)| / sum_p v_p(q) v_p(g). f_0 is "
    "`global`, f_1, f_2, ... are the rows of `parts`, v_0, v_1, ... is `visibility`; |.| is the Euclidean "
    "length. 0 is alike, 2 the opposite; infinite if the lower sum is 0, as no part is visible in both. The "
    "gallery image with the least d is ranked first."
)
GATED = " Before that, multiply f_p(g) by row p of q's `gate`, channel by channel, and scale it to length 1."


class Graph(nn.Module):
    """A method's `embed`, tensors in and tensors out, with the cameras of its training."""

    cameras: Int[Tensor, "trained_1"]  # -1 and those

    def __init__(self, model: Method, cameras: tuple[int, ...]):
        super().__init__()
        self.model = model
        self.register_buffer("cameras", torch.tensor([-1, *cameras]))

    def forward(
        self, image: UInt8[Tensor, "N H W 3"], hidden: Bool[Tensor, "N C"], camera: Int[Tensor, "N"]
    ) -> tuple[Tensor, ...]:
        """What `OUTPUTS` names."""
        # in one table, so that a runtime refuses a row of `hidden` or `camera` for several images
        table = torch.cat([image[:, :1, 0, 0].long(), hidden.long(), camera[:, None]], 1)
        hidden, camera = table[:, 1:-1] > 0, table[:, -1]
        camera = torch.where((camera[:, None] == self.cameras).any(1), camera, -1)
        view = View(image.permute(0, 3, 1, 2), torch.zeros_like(image[..., 0]), hidden)
        embedding = self.model.embed(Batch(view, camera, torch.zeros_like(camera)))
        outputs = (embedding.parts[:, 0], embedding.parts[:, 1:], embedding.visibility)
        return outputs if embedding.gate is None else (*outputs, embedding.gate)


def write(folder: str | Path, path: str | Path) -> tuple[str, ...]:
    """Write the trained model of a folder as ONNX, atomically; returns the names of its outputs.

    Raises `BadInput` if there is no model, if it needs parsing maps, or if ONNX is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        remedy = "Run `uv sync --group onnx` in the checkout, or install the package with its extra `onnx`."
        raise BadInput(f"{path}: writing ONNX needs {' and '.join(missing)}. {remedy}")
    check_file_path(path)
    model, spec = load_trained(folder), trained_data_spec(folder)
    if model.needs_parsing:
        raise BadInput(f"{folder}: erases by parsing maps when it embeds, and ONNX inputs have none.")
    graph = Graph(model, spec.trained_cameras).eval()
    image = torch.zeros(EXAMPLES, *spec.size, 3, dtype=torch.uint8)
    example = (image, torch.zeros(EXAMPLES, spec.coarse, dtype=torch.bool), torch.full((EXAMPLES,), -1))
    embedded = graph(*example)
    outputs = OUTPUTS[: len(embedded)]
    with _quiet():
        program = _program(graph, example, outputs)
    program.model.metadata_props.update(metadata(folder, spec, embedded[1].shape[1], len(outputs) == 4))
    with atomic_write(path) as beside:
        program.save(beside, external_data=False)
    return outputs


def metadata(folder: str | Path, spec: DataSpec, count: int, gated: bool) -> dict[str, str]:
    """What the file says of a trained model with `count` parts, by name; lists are JSON.

    project, method, model_sha256    what wrote the file, of which model
    image     how a picture becomes the input
    hidden    names of the coarse parts, in the input's order
    cameras   those of the training; every other number is unknown
    parts     names of the parts, in the outputs' order, without the global feature
    distance  how two images are compared
    """
    lists = {
        "hidden": list(parts.COARSE[spec.coarse]),
        "cameras": list(spec.trained_cameras),
        "parts": list(parts.FINE) if count == len(parts.FINE) else [str(n) for n in range(1, count + 1)],
    }
    return {
        "project": PROJECT,
        "method": read_record(folder)["method"],
        "model_sha256": sha256(Path(folder) / "model.safetensors"),
        "image": IMAGE.format(*spec.size),
        "distance": DISTANCE + GATED * gated,
        **{name: json.dumps(values) for name, values in lists.items()},
    }


def _program(graph: Graph, example: tuple[Tensor, ...], outputs: tuple[str, ...]) -> torch.onnx.ONNXProgram:
    shape = {0: torch.export.Dim("N", min=1)}
    # traced here, since the ONNX exporter would rather fix N than fail
    traced = torch.export.export(graph, example, dynamic_shapes=dict.fromkeys(INPUTS, shape))
    names = {name: {0: "N"} for name in INPUTS}  # in the file; a trace forgets the name
    return torch.onnx.export(
        traced, dynamo=True, input_names=INPUTS, output_names=outputs, dynamic_shapes=names, verbose=False
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about itself, which no user can act on."""
    optimizer = logging.getLogger("onnxscript.optimizer")
    level = optimizer.level
    optimizer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: N")  # three inputs share it
            yield
    finally:
        optimizer.setLevel(level)
