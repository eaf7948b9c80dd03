"""What ranking costs: CPU seconds, memory and share of the limit, beside the field's evaluators.

Takes the size of a real test set and draws random features with its numbers of queries, gallery images,
identities, cameras and visible parts.  Prints one JSON object.

Every evaluator runs in a process of its own on the same files, in turn, and twice in it (`first_cpu_s` is
the first run).  Of several rounds the least CPU time counts.  Memory is the peak above the features.  The
limit is the bare matrix products of the queries' visible parts with the whole gallery, at the speed measured
in the process that ranks.

Peers sort as numpy does, so equal distances may come in any order.  `tied_queries` are those with another
image as far away as a match, on which CMC and mAP may differ; `untied` is the agreement on all others.
torchreid's compiled ranking sums in float32; the one in Python (`torchreid_python`, run once) does not.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.command_line import benchmark_parser, checkout
from benchmarks.ranking.random_features import SIZES
from pipeline.core.cli import command_line

PEERS = {  # option: repository, files of the checkout that are used
    "bpbreid": ("VlSomers/bpbreid", "torchreid/metrics/distance.py", "torchreid/metrics/rank.py"),
    "fastreid": ("JDAI-CV/fast-reid", "fastreid/evaluation/rank_cylib/rank_cy.pyx"),
    "torchreid": ("KaiyangZhou/deep-person-reid", "torchreid/metrics/rank.py", "torchreid/utils/rerank.py"),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("ranking", __doc__)
    parser.add_argument(
        "--size", choices=list(SIZES), default="occluded_duke", help="test set (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of every evaluator (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of ours; peers have one (default: %(default)s)"
    )
    parser.add_argument("--memory", type=int, default=256, help="bound of ours, in MB (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where the features lie meanwhile, up to 2.7 GB (default: the system's)"
    )
    for name, (repository, *files) in PEERS.items():
        parser.add_argument(
            f"--{name}",
            type=checkout(repository, *files),
            metavar="FOLDER",
            help=f"checkout of {repository} to compare with, its Cython built in place (default: none)",
        )
    return parser


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.ranking.random_features import write_features
    from benchmarks.ranking.side_by_side import measure

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_features(Path(folder), SIZES[options.size])
        print(json.dumps(measure(options, Path(folder)), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
