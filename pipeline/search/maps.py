"""Label maps of pictures, by the networks and the rule of the stages `segment`, `pose` and `parse`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.core.weights import fingerprint
from pipeline.data.index import Crop
from pipeline.labels import pose_params, segmentation
from pipeline.labels.occlusion import Label
from pipeline.labels.parsing import Frame, ImageInstances, Parse, parse
from pipeline.labels.pose_params import Pose
from pipeline.labels.segmentation import Segment

NO_RESULT = ("device", "batch", "weights")  # settings that change no map, or whose file's hash counts


@dataclass(frozen=True)
class MapSettings:
    """How maps are made, and what is hidden by them: sections of params.yaml."""

    segment: Segment  # its network chosen by `parsers`, its weights a path
    pose: Pose
    parse: Parse
    threshold: float  # `lambda`
    strict: bool  # `label.strict`


def read_settings(config: str, networks: str) -> MapSettings:
    """The settings of a file of parameters, with the weights of the folder `networks`."""
    parsers, label = params.read(config, "parsers", str), params.read(config, "label", Label)
    segment = segmentation.select_network(params.read(config, "segment", Segment), parsers)
    pose = pose_params.select_network(params.read(config, "pose", Pose), parsers)
    return MapSettings(
        replace(segment, weights=str(Path(networks, segment.weights))),
        replace(pose, weights=str(Path(networks, pose.weights))),
        params.read(config, "parse", Parse),
        params.read(config, "lambda", params.Amount),
        label.strict,
    )


class MapMaker:
    """Mask R-CNN, PifPaf and the fusion of what they see: RGB crops of any sizes -> their label maps.

    The maps are those of the stages; that of a crop depends on it alone.  Raises `BadInput` if PifPaf is not
    installed, or if weights are missing or do not fit.
    """

    def __init__(self, settings: MapSettings):
        if find_spec("openpifpaf") is None:
            raise BadInput("maps: openpifpaf is not installed. Run `uv sync`, or do without maps.")
        pose = import_module("pipeline.labels.pose")
        self.settings = settings
        self._instances = segmentation.load(settings.segment, settings.segment.weights)
        self._fields = pose.load(settings.pose, settings.pose.weights)
        self._weights = {
            "segment": fingerprint(segmentation.weights_file(settings.segment, settings.segment.weights)),
            "pose": fingerprint(pose.weights_file(settings.pose, settings.pose.weights)),
        }

    @property
    def attrs(self) -> dict[str, Any]:
        """What the maps depend on."""
        values = asdict(self.settings)
        for section in ("segment", "pose", "parse"):
            values[section] = {k: v for k, v in values[section].items() if k not in NO_RESULT}
        return {**values, "weights": self._weights}

    def __call__(self, crops: Sequence[Crop]) -> list[UInt8[np.ndarray, "H W"]]:
        instances, fields = self._instances(crops), self._fields(crops)
        grid = self._fields.grid
        frame = Frame(fields.shape[2:], grid.stride, grid.size, grid.pad)
        maps = []
        for i, crop in enumerate(crops):
            persons = ImageInstances(
                *(getattr(instances, name)[i][: instances.found[i]] for name in ImageInstances._fields)
            )
            maps.append(parse(persons, fields[i], crop.shape[:2], frame, self.settings.parse).map)
        return maps
