"""The params of the stage `pose`, readable where openpifpaf is not installed."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core import weights
from pipeline.core.params import STRICT

COCO_NETWORK = "shufflenetv2k16:cocokp"  # what `parsers: coco` means


@dataclass(frozen=True, config=STRICT)
class Pose:
    """Which network, and how crops reach it."""

    # `small` (ours), or one of openpifpaf's base networks, with its published weights as in
    # shufflenetv2k16:cocokp
    network: str
    weights: str  # a file below models/embedded/; not read if the network names published weights
    device: Literal["cpu", "cuda"]
    size: tuple[int, int]  # height, width in pixels to which every crop is resized
    batch: int = Field(ge=1)  # crops


def check_network(params: Pose) -> None:
    """Raise `BadInput` for a network that openpifpaf lacks, where openpifpaf is installed."""
    if params.network != "small" and find_spec("openpifpaf"):
        from pipeline.labels import pose

        pose.check_network(params.network)


def select_network(params: Pose, parsers: str) -> Pose:
    """`params` with COCO's network if the param `parsers` is `coco`."""
    return replace(params, network=weights.choose_network(params.network, parsers, COCO_NETWORK))
