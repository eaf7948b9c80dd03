"""A trained model as one ONNX graph, for runtimes without torch.

Inputs, for N images (any number):

    image    (N, H, W, 3) uint8, RGB, resized to the model's size bicubically as Pillow does, with
             antialiasing; the graph scales the colours
    hidden   (N, C) bool, z: which coarse parts are hidden; all false if nothing is known
    camera   (N,) int64, from 0; -1 unknown, also for cameras that the record's `trained_cameras` lack.  The
             runtime refuses a camera greater than all of these

Outputs, float32:

    global       (N, D), of length 1
    parts        (N, P, D), each of length 1; P = K, or 0 for a method without parts
    visibility   (N, 1 + P) in [0, 1]: of the global feature, then of the parts
    gate         (N, 1 + P, D), of methods that have one
"""

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
from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput
from pipeline.methods.base import Method, load_trained, trained_data_spec

INPUTS, OUTPUTS = ("image", "hidden", "camera"), ("global", "parts", "visibility", "gate")
EXAMPLES = 2  # images that the graph is traced with; 1 would be taken for a constant


class Graph(nn.Module):
    """A method's `embed`, tensors in and tensors out."""

    def __init__(self, model: Method):
        super().__init__()
        self.model = model

    def forward(
        self, image: UInt8[Tensor, "N H W 3"], hidden: Bool[Tensor, "N C"], camera: Int[Tensor, "N"]
    ) -> tuple[Tensor, ...]:
        """What `OUTPUTS` names."""
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
        raise BadInput(f"{path}: writing ONNX needs {' and '.join(missing)}. Run `uv sync --group onnx`.")
    model, spec = load_trained(folder), trained_data_spec(folder)
    if model.needs_parsing:
        raise BadInput(f"{folder}: erases by parsing maps when it embeds, and ONNX inputs have none.")
    graph = Graph(model).eval()
    image = torch.zeros(EXAMPLES, *spec.size, 3, dtype=torch.uint8)
    example = (image, torch.zeros(EXAMPLES, spec.coarse, dtype=torch.bool), torch.full((EXAMPLES,), -1))
    outputs = OUTPUTS[: len(graph(*example))]
    with _quiet():
        program = _program(graph, example, outputs)
    with atomic_write(path) as beside:
        program.save(beside, external_data=False)
    return outputs


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
