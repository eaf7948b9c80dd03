"""Stage `pose`: crops -> PifPaf's confidences, 17 keypoints and 19 limbs, on the network's own grid.

`pose.processes` of params.yaml share the images, or as many as `torchrun` is told to start:

    torchrun --nproc-per-node=4 -m stages.pose INDEX IMAGES WEIGHTS OUT
"""

import sys

from pipeline.core import distributed, params
from pipeline.core.cli import run_stage
from pipeline.core.resumable import compute_rows
from pipeline.core.weights import fingerprint
from pipeline.data.index import Images, index_hash, read_index
from pipeline.labels import pose


def main(index: str, images: str, weights: str, out: str, config: str = "params.yaml") -> None:
    settings = params.read(config, "pose", pose.Pose)
    words = (index, images, weights, out, config)
    if distributed.run_torchrun(settings.processes, "stages.pose", words, settings.device):
        return  # they have done it
    settings = pose.on(settings, params.read(config, "parsers", str))
    workers = params.read(config, "workers", params.Count)
    table = read_index(index)
    own = index_hash(table)
    work = pose.Over(settings, weights, Images(images, own))
    network = fingerprint(pose.file(settings, weights))
    attrs = {
        "index": own,
        "weights": network,
        "params": params.result_params(settings),
        **work.grid()._asdict(),
    }
    with distributed.shard_group() as group:
        compute_rows(
            out, "fields", len(table), settings.batch, work, attrs, workers, {}, pose.LIBRARIES, group
        )


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
