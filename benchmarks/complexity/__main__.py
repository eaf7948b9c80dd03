"""What do the methods cost at the papers' size?  Multiply-adds and parameters, OGFR's beside its Table 9.

Each method has a row: its parameters, those that embedding an image reads, multiply-adds to embed an image,
and those of a training image with all its views and steps.  `ogfr_by_part` counts OGFR's parts.

Multiply-adds are those of every matrix product and convolution that the method itself runs, forward and
backward, as PyTorch counts them.  The networks are on the device `meta`, where tensors have shapes and no
values, so no weights are needed.  Table 9's 26.5 G are the student's branch at stride 11.  The paper does not
say what its 121.7 M parameters include: `heads` shows how many classifiers would make them up.

Reads the methods' sections of params.yaml, with the preset `paper`.  Prints one JSON object.
"""

import argparse
import json
from typing import Any

from benchmarks import ROOT
from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line

METHODS = sorted(path.parent.name for path in ROOT.glob("pipeline/methods/*/__init__.py"))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("complexity", __doc__)
    parser.add_argument("--method", choices=METHODS, help="the one method to count (default: all)")
    return parser


def main() -> None:
    """Count and print."""
    options = build_parser().parse_args()
    from benchmarks.complexity.counts import OCCLUDED_DUKE, count, paper_params
    from benchmarks.complexity.methods import row

    names = [options.method] if options.method else METHODS
    result: dict[str, Any] = {"methods": {name: row(name, OCCLUDED_DUKE) for name in names}}
    if "ogfr" in names:
        result["ogfr_by_part"] = count(paper_params(), OCCLUDED_DUKE)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    with command_line():
        main()
