"""Stage `segment`: crops -> every person instance of Mask R-CNN."""

import sys
from dataclasses import asdict

from pipeline import datasets, params, segmentation, store
from pipeline.weights import fingerprint


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "segment", segmentation.Segment)
    settings = segmentation.on(settings, params.read(config, "parsers", str))
    workers = params.read(config, "workers", int)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    work = segmentation.Over(settings, weights, datasets.Images(images, own))
    attrs = {
        "index": own,
        "weights": fingerprint(segmentation.file(settings, weights)),
        "params": asdict(settings),
    }
    libraries = segmentation.libraries(settings)
    store.compute(out, "instances", len(table), settings.batch, work, attrs, workers, {}, libraries)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
