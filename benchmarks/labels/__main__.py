"""What the labels cost: images per second, memory, share of the networks, reading, bytes.

Reads data/embedded/raw.zip, or renders images if it does not exist, and runs the stages `segment`, `pose`,
`parse` and `label` on them in a temporary folder.  Prints one JSON object.

CPU time is that of one process with one thread, without imports and without what a worker sets up once.
The least of several rounds counts.  The cost of an image is the difference between a long and a short run, so
that costs which do not grow with the number of images are separate.  "Inside networks" is the time of torch
modules with weights.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.command_line import benchmark_parser, checkout
from pipeline.core.cli import command_line

MIN_IMAGES = 64  # fewer cannot be told from noise


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("labels", __doc__)
    parser.add_argument(
        "--images", type=_num_images, default=256, help="number of images (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="repetitions of every measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--bpbreid",
        type=checkout("VlSomers/bpbreid", "torchreid/scripts/get_labels.py"),
        metavar="FOLDER",
        help="checkout of VlSomers/bpbreid, whose label script is then run beside ours (default: none)",
    )
    parser.add_argument(
        "--detectron2",
        default="",
        help="folders with detectron2 and its requirements, joined by ':', for --bpbreid (default: none)",
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=[],
        help="input sizes HEIGHTxWIDTH joined by ',', for label quality against cost (default: none)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=128,
        help="number of rendered images for --sizes (default: %(default)s)",
    )
    return parser


def _num_images(text: str) -> int:
    if int(text) < MIN_IMAGES:
        raise argparse.ArgumentTypeError(
            f"{text} is too few to tell an image's cost from noise; give {MIN_IMAGES} or more"
        )
    return int(text)


def _sizes(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(height), int(width)) for height, width in (size.split("x") for size in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 192x96,256x128") from None


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.labels.costs import measure

    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
