"""What does OGFR cost at the paper's size?  Multiply-adds and parameters, beside Table 9.

Multiply-adds are those of every matrix product and convolution that the method itself runs, forward and
backward, as PyTorch counts them.  The networks are on the device `meta`, where tensors have shapes and no
values, so no weights are needed.  Table 9's 26.5 G are the student's branch at stride 11.  The paper does not
say what its 121.7 M parameters include: `heads` shows how many classifiers would make them up.

Reads the section `ogfr` of params.yaml, with the preset `paper`.  Prints one JSON object.
"""

import argparse
import json

from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    return benchmark_parser("complexity", __doc__)


def main() -> None:
    """Count and print."""
    build_parser().parse_args()
    from benchmarks.complexity.counts import OCCLUDED_DUKE, count, paper_params

    print(json.dumps(count(paper_params(), OCCLUDED_DUKE), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
