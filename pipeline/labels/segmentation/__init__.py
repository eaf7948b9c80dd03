"""Mask R-CNN's person instances in every crop, from torchvision's networks or detectron2's.

The stage `segment` runs it once over all images and keeps every instance: which of them is the target, and
what counts as visible, is decided later, from the cached file.

Unusual here:
- Every crop is resized to one size, so that any sizes share a batch and none is padded for another's sake.
- Masks stay as the network gives them, 28 x 28 and soft, inside boxes in pixels of the original crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT
from pipeline.core.weights import choose_network
from pipeline.data.index import Crop, Images, resize_crop

# what `parsers: coco` means
COCO = {
    "torchvision": "maskrcnn_resnet50_fpn_v2:COCO_V1",
    "detectron2": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x:zoo",
}
MASK = 28  # cells a side, of every Mask R-CNN's mask head


@dataclass(frozen=True, config=STRICT)
class Segment:
    """Which network, and how crops reach it."""

    backend: Literal["torchvision", "detectron2"]
    # torchvision: `small` (ours), or one of its own, with its published weights as in
    # maskrcnn_resnet50_fpn_v2:COCO_V1.  detectron2: a config of its model zoo, with its published weights
    # as in COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x:zoo
    network: str
    weights: str  # the file that dvc.yaml hands to the stage; not read if the network names published weights
    device: Literal["cpu", "cuda"]
    size: tuple[int, int]  # height, width in pixels to which every crop is resized
    batch: int = Field(ge=1)
    processes: int = Field(ge=1)  # that share the images, one a GPU; no result depends on it
    proposals: int = Field(ge=1)  # boxes that reach the heads
    instances: int = Field(ge=1)  # kept in each image, the highest scores
    score_floor: float = Field(ge=0, lt=1)  # instances scored lower are not kept


class Instances(NamedTuple):
    """The persons in each of B crops, the highest score first; rows past `found` are 0."""

    found: Int[np.ndarray, "B"]
    score: Float[np.ndarray, "B M"]
    box: Float[np.ndarray, "B M 4"]  # x0, y0, x1, y1 in pixels of the original crop
    mask: UInt8[np.ndarray, "B M 28 28"]  # round(255 probability), inside the box


class Persons(NamedTuple):
    """What a backend finds in one resized crop, the highest score first."""

    score: Float[np.ndarray, "N"]
    box: Float[np.ndarray, "N 4"]  # in pixels of the resized crop
    mask: Float[np.ndarray, "N 28 28"]  # probabilities


Backend = Callable[[UInt8[np.ndarray, "B h w 3"]], list[Persons]]


def on(params: Segment, parsers: str) -> Segment:
    """The same with COCO's network if the param `parsers` is `coco`; the backend stays."""
    return replace(params, network=choose_network(params.network, parsers, COCO[params.backend]))


def file(params: Segment, weights: str) -> Path:
    """The file of weights that the network will read, downloaded if it is a published one.

    Raises `BadInput` that says where to put it if it is out of reach or not the published file.
    """
    return _backend(params).file(params, weights)


def _backend(params: Segment) -> ModuleType:
    if params.backend == "detectron2":
        from pipeline.labels.segmentation import detectron2 as backend  # only then: it need not be installed
    else:
        from pipeline.labels.segmentation import torchvision as backend
    return backend


def load(params: Segment, weights: str) -> Callable[[Sequence[Crop]], Instances]:
    """The network, ready for batches of RGB crops of any sizes; what it finds in one depends on it alone.

    Raises `BadInput` if the weights do not fit the network, or if the backend is not installed.
    """
    network = _backend(params).load(params, weights)

    def segment(crops: Sequence[Crop]) -> Instances:
        return _gather(network(resize_crop(crops, params.size)), crops, params)

    return segment


def libraries(params: Segment) -> tuple[str, ...]:
    """The packages that shape what is found.  Raises `BadInput` if the backend is not installed."""
    if params.backend == "detectron2":
        _backend(params).installed()
    return ("torch", params.backend)


def _gather(persons: list[Persons], crops: Sequence[Crop], params: Segment) -> Instances:
    count, most = len(crops), params.instances
    kept = Instances(
        np.zeros(count, np.int32),
        np.zeros((count, most), np.float32),
        np.zeros((count, most, 4), np.float32),
        np.zeros((count, most, MASK, MASK), np.uint8),
    )
    for i, (found, crop) in enumerate(zip(persons, crops, strict=True)):
        n = kept.found[i] = min(len(found.score), most)
        across, down = crop.shape[1] / params.size[1], crop.shape[0] / params.size[0]
        kept.score[i, :n] = found.score[:n]
        kept.box[i, :n] = found.box[:n] * np.array([across, down, across, down], np.float32)
        kept.mask[i, :n] = np.rint(found.mask[:n] * 255)
    return kept


class Over:
    """The work of the stage, handed to worker processes: (start, stop) -> the arrays of these images."""

    def __init__(self, params: Segment, weights: str, images: Images | Sequence[Crop]):
        self.params, self.weights, self.images = params, weights, images

    def __call__(self) -> Callable[[int, int], dict[str, np.ndarray]]:
        segment = load(self.params, self.weights)
        return lambda start, stop: segment([self.images[i] for i in range(start, stop)])._asdict()
