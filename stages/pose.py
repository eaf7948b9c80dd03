"""Stage `pose`: crops -> PifPaf's confidences, 17 keypoints and 19 limbs, on the network's own grid.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    weights    weights of PifPaf
Writes:
    out        fields.h5, the confidences of each image

Params: parsers, pose, workers, processes.pose.  torchrun may start the processes instead:

    torchrun --nproc-per-node=4 -m stages.pose INDEX IMAGES WEIGHTS OUT
"""

import sys
from dataclasses import replace

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.labels import pose, pose_params
from pipeline.labels.parsers import run_parser


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "pose", pose_params.Pose)
    settings = pose_params.select_network(settings, params.read(config, "parsers", str))
    settings = replace(settings, weights=weights)  # the path that `out` records
    workers = params.read(config, "workers", params.Count)
    processes = params.read(config, "processes", distributed.Processes).pose
    words = (index, images, weights, out, "--config", config)
    if not distributed.run_torchrun(processes, "stages.pose", words, settings.device):
        run_parser(pose, settings, index, images, weights, out, workers)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
