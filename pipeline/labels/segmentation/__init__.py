"""Mask R-CNN's person instances in every crop, from torchvision's networks or detectron2's.

The stage `segment` runs the network once over all images and keeps every instance.  Later stages decide from
the cached file which instance is the target and what counts as visible.

Unusual here:
- Every crop is resized to one size, so that crops of any sizes share a batch without padding.
- Masks stay as the network gives them, 28 x 28 and soft, inside boxes in pixels of the original crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.core.weights import choose_network
from pipeline.data.index import Crop, resize_crops

KIND = "instances"  # of the label file
# what `parsers: coco` means
COCO_NETWORKS = {
    "torchvision": "maskrcnn_resnet50_fpn_v2:COCO_V1",
    "detectron2": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x:zoo",
}
MASK_SIZE = 28  # height and width in cells of every Mask R-CNN's masks


@dataclass(frozen=True, config=STRICT)
class Segment:
    """Which network, and how crops reach it."""

    backend: Literal["torchvision", "detectron2"]
    # torchvision: `small` (ours), or one of its own, with its published weights as in
    # maskrcnn_resnet50_fpn_v2:COCO_V1.  detectron2: a config of its model zoo, with its published weights
    # as in COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x:zoo
    network: str
    weights: str  # a file below models/embedded/; not read if the network names published weights
    device: Literal["cpu", "cuda"]
    size: tuple[int, int]  # height, width in pixels to which every crop is resized
    batch: int = Field(ge=1)  # crops
    proposals: int = Field(ge=1)  # boxes that reach the heads
    instances: int = Field(ge=1)  # kept in each image, the highest scores
    score_floor: float = Field(ge=0, lt=1)  # instances with lower scores are dropped


class Instances(NamedTuple):
    """The persons in each of B crops, at most M, the highest score first; unused rows are 0."""

    found: Int[np.ndarray, "B"]  # how many persons
    score: Float[np.ndarray, "B M"]  # in [0, 1]
    box: Float[np.ndarray, "B M 4"]  # x0, y0, x1, y1 in pixels of the original crop
    mask: UInt8[np.ndarray, "B M 28 28"]  # round(255 probability), inside the box


class Detections(NamedTuple):
    """The N persons that a backend detects in one resized crop, the highest score first."""

    score: Float[np.ndarray, "N"]  # in [0, 1]
    box: Float[np.ndarray, "N 4"]  # x0, y0, x1, y1 in pixels of the resized crop
    mask: Float[np.ndarray, "N 28 28"]  # probabilities


Backend = Callable[[UInt8[np.ndarray, "B h w 3"]], list[Detections]]


def select_network(params: Segment, parsers: str) -> Segment:
    """`params` with COCO's network of its backend if the param `parsers` is `coco`."""
    return replace(params, network=choose_network(params.network, parsers, COCO_NETWORKS[params.backend]))


def check_network(params: Segment) -> None:
    """Raise `BadInput` for a network that torchvision lacks; detectron2 need not be installed here."""
    if params.backend == "torchvision":
        _backend(params).check_network(params.network)


def weights_file(params: Segment, path: str) -> Path:
    """The file of the network's weights: `path`, or the published file, downloaded on first use.

    Raises `BadInput` that says where to put it if it is out of reach or not the published file.
    """
    return _backend(params).weights_file(params, path)


def _backend(params: Segment) -> ModuleType:
    if params.backend == "detectron2":
        from pipeline.labels.segmentation import detectron2  # only then: it need not be installed

        return detectron2
    from pipeline.labels.segmentation import torchvision

    return torchvision


def load(params: Segment, path: str) -> "InstanceNetwork":
    """The network with its weights, ready for batches of RGB crops of any sizes.

    Raises `BadInput` if the weights do not fit the network, or if the backend is not installed.
    """
    return InstanceNetwork(_backend(params).load(params, path), params)


def libraries(params: Segment) -> tuple[str, ...]:
    """The packages that shape the result.  Raises `BadInput` if the backend is not installed."""
    if params.backend == "detectron2":
        _backend(params).check_installed()
    return ("torch", params.backend)


class InstanceNetwork:
    """RGB crops of any sizes -> their person instances; those of a crop depend on that crop alone."""

    def __init__(self, backend: Backend, params: Segment):
        self.backend, self.params = backend, params
        self.attrs: dict[str, Any] = {}  # readers of the instances need to know nothing more

    def __call__(self, crops: Sequence[Crop]) -> Instances:
        return _to_instances(self.backend(resize_crops(crops, self.params.size)), crops, self.params)

    def arrays(self, crops: Sequence[Crop]) -> dict[str, np.ndarray]:
        """The arrays of instances.h5, one row per crop."""
        return self(crops)._asdict()


def _to_instances(batch: list[Detections], crops: Sequence[Crop], params: Segment) -> Instances:
    shape = len(crops), params.instances
    instances = Instances(
        np.zeros(len(crops), np.int32),
        np.zeros(shape, np.float32),
        np.zeros((*shape, 4), np.float32),
        np.zeros((*shape, MASK_SIZE, MASK_SIZE), np.uint8),
    )
    for i, (detections, crop) in enumerate(zip(batch, crops, strict=True)):
        n = instances.found[i] = min(len(detections.score), params.instances)
        scale_x, scale_y = crop.shape[1] / params.size[1], crop.shape[0] / params.size[0]
        scale = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        instances.score[i, :n] = detections.score[:n]
        instances.box[i, :n] = detections.box[:n] * scale
        instances.mask[i, :n] = np.rint(detections.mask[:n] * 255)
    return instances
