"""Train an embedded network on rendered pedestrians.  Run by hand; no stage of the DAG.

Takes:
    network    the network to train
Writes:
    weights    .safetensors file, and beside it a .json record

Params: pretrain.
"""

import sys
from importlib import import_module
from typing import Literal

from pipeline.core import params
from pipeline.core.cli import run_stage

MODULES = {"segmentation": "mask_rcnn", "pose": "pifpaf", "vit": "garments_vit", "text": "text"}


def main(
    network: Literal["segmentation", "pose", "vit", "text"], weights: str, config: str = "params.yaml"
) -> None:
    module = import_module(f"pipeline.pretraining.{MODULES[network]}")
    values = params.read(config, "pretrain", dict)
    settings = params.validate(values.get(network), module.Pretrain, f"{config}: ", f"pretrain.{network}")
    module.train(settings, weights)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
