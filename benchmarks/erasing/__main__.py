"""What can any mask change in a trained OGFR?

The teacher's probability of the true identity (p^m of Eq. 10), averaged over the training images without
augmentation, under the agent's mask, the labels' mask, a random one, and the two bounds: nothing and
everything erased.  The distance between the bounds is all that an agent can earn: the class token has read
the patches before the first is erased.

Reads a trained model and, below data/, the dataset that `train_on` of params.yaml names: index.parquet,
images.h5, parsing.h5, occlusion.h5 and truth.h5.  Prints one JSON object: the probability, and the share of
patches that each mask keeps; if training images were contaminated (`render.train_contaminated`), also its
share of the patches that show what contaminates, and of those that show the target.
"""

import argparse
import json
from pathlib import Path

from benchmarks import ROOT
from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("erasing", __doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "models" / "trained",
        metavar="FOLDER",
        help="folder of the trained model (default: models/trained)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data",
        metavar="FOLDER",
        help="folder that holds the dataset's folder (default: data)",
    )
    return parser


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.erasing.masks import measure_folder

    print(json.dumps(measure_folder(options.model, options.data), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
