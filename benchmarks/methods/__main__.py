"""What does a training step of each method cost, and an embedding, beside the plain ViT's?

All methods take steps in turn, on the same images and from the embedded ViT, with the preset `recommended` of
params.yaml; then all embed in turn.  A number is the median over rounds of the ratio to `vit_baseline` in the
same round, with the quartiles.  Input is prepared beforehand, and what a method does before an epoch (FED's
centres, the texts of DPM++) is not counted.

Reads params.yaml and models/embedded.  Prints one JSON object.
"""

import argparse
import json

from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("methods", __doc__)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each method (default: 15)")
    return parser


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.methods.steps import measure

    print(json.dumps(measure(options.rounds), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
