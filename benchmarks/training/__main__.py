"""What a training step and an embedding cost beside TransReID.

TransReID's model, losses, optimiser, transforms and the lines of its loop are its own, at its Occluded-Duke
settings: ViT-B, 256 x 128, JPM.  Ours is `ogfr` with the recommended preset around timm's ViT-B.  Both have
random weights and 702 identities, and take turns.  Replaced in TransReID's: what torch no longer has, its
configuration's reader (yacs), and a loss that it builds on a GPU and never uses.

Reads a checkout of damo-cv/TransReID and the sections `ogfr` and `train` of params.yaml.  Prints one JSON
object.

Times are CPU time with one thread, on a GPU wall time; the least of all rounds counts.  Both sides keep
freed memory, as our training does, which also spares TransReID's step a little.  An image of ours in training
is a pair: the image and its occluded view.  `products_alone` is the ratio to TransReID as it is if both took
no more time than their multiply-adds need at the speed of a large product, which is measured too.
"""

import argparse
import contextlib
import json
import sys

from benchmarks.command_line import benchmark_parser, checkout
from pipeline.core.cli import command_line

SETTINGS = "configs/OCC_Duke/vit_transreid_stride.yml"
MIN_IMAGES = 4  # TransReID's triplets need two identities


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("training", __doc__)
    parser.add_argument(
        "--transreid",
        type=checkout("damo-cv/TransReID", SETTINGS),
        required=True,
        metavar="FOLDER",
        help="checkout of damo-cv/TransReID (required)",
    )
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[11, 16], help="strides of the ViT (default: 11 16)"
    )
    parser.add_argument(
        "--images",
        type=_num_images,
        help="images per batch, two of each identity (default: 4 on a CPU, 64 on a GPU)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides (default: %(default)s)")
    return parser


def _num_images(text: str) -> int:
    if int(text) < MIN_IMAGES:
        raise argparse.ArgumentTypeError(f"{text}: TransReID's triplets need two identities; give 4 or more")
    return int(text)


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.training.side_by_side import measure

    with contextlib.redirect_stdout(sys.stderr):  # TransReID prints
        result = measure(options.transreid, options.strides, options.images, options.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    with command_line():
        main()
