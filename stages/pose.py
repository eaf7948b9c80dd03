"""Stage `pose`: crops -> PifPaf's confidences, 17 keypoints and 19 limbs, on the network's own grid.

`pose.processes` of params.yaml share the images, or as many as `torchrun` is told to start:

    torchrun --nproc-per-node=4 -m stages.pose INDEX IMAGES WEIGHTS OUT
"""

import sys

from pipeline import datasets, params, pose, processes, store
from pipeline.weights import fingerprint


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "pose", pose.Pose)
    words = (index, images, weights, out, config)
    if processes.launch(settings.processes, "stages.pose", words, settings.device):
        return  # they have done it
    settings = pose.on(settings, params.read(config, "parsers", str))
    workers = params.read(config, "workers", params.Count)
    table = datasets.read_index(index)
    own = datasets.index_hash(table)
    work = pose.Over(settings, weights, datasets.Images(images, own))
    network = fingerprint(pose.file(settings, weights))
    attrs = {"index": own, "weights": network, "params": params.decisive(settings), **work.grid()._asdict()}
    with processes.team() as team:
        store.compute(
            out, "fields", len(table), settings.batch, work, attrs, workers, {}, pose.LIBRARIES, team
        )


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
