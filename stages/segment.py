"""Stage `segment`: crops -> every person instance of Mask R-CNN.

Reads:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    weights    weights of Mask R-CNN
Writes:
    out        instances.h5, the person instances of each image

Params: parsers, segment, workers, processes.segment.  torchrun may start the processes instead:

    torchrun --nproc-per-node=4 -m stages.segment INDEX IMAGES WEIGHTS OUT
"""

import sys
from dataclasses import replace

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.labels import segmentation
from pipeline.labels.parsers import run_parser


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "segment", segmentation.Segment)
    settings = segmentation.select_network(settings, params.read(config, "parsers", str))
    settings = replace(settings, weights=weights)  # the path that `out` records
    workers = params.read(config, "workers", params.Count)
    processes = params.read(config, "processes", distributed.Processes).segment
    words = (index, images, weights, out, "--config", config)
    if not distributed.run_torchrun(processes, "stages.segment", words, settings.device):
        run_parser(segmentation, settings, index, images, weights, out, workers)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
