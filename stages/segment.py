"""Stage `segment`: crops -> every person instance of Mask R-CNN.

`segment.processes` of params.yaml share the images, or as many as `torchrun` is told to start:

    torchrun --nproc-per-node=4 -m stages.segment INDEX IMAGES WEIGHTS OUT
"""

import sys

from pipeline import datasets, params, processes, segmentation, store
from pipeline.weights import fingerprint


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "segment", segmentation.Segment)
    words = (index, images, weights, out, config)
    if processes.launch(settings.processes, "stages.segment", words, settings.device):
        return  # they have done it
    settings = segmentation.on(settings, params.read(config, "parsers", str))
    workers = params.read(config, "workers", params.Count)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    work = segmentation.Over(settings, weights, datasets.Images(images, own))
    network = fingerprint(segmentation.file(settings, weights))
    attrs = {"index": own, "weights": network, "params": params.decisive(settings)}
    libraries = segmentation.libraries(settings)
    with processes.team() as team:
        store.compute(out, "instances", len(table), settings.batch, work, attrs, workers, {}, libraries, team)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
