"""By hand, no stage of the DAG: `python -m stages.pretrain segmentation|pose|vit <weights>`."""

import sys
from importlib import import_module

from pipeline.core import params
from pipeline.core.cli import run_stage

NETWORKS = ("segmentation", "pose", "vit")


def main(network: str, weights: str, config: str = "params.yaml") -> None:
    if network not in NETWORKS:
        raise params.BadInput(f"{network}: no embedded network. Name one of {', '.join(NETWORKS)}.")
    module = import_module(f"pipeline.pretraining.{network}")
    values = params.read(config, "pretrain", dict)
    settings = params.validate(values.get(network), module.Pretrain, f"{config}: ", f"pretrain.{network}")
    module.train(settings, weights)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
