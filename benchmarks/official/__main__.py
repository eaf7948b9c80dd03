"""Do our methods compute what the published code does?  Embeddings, losses and gradients of one step.

Each checkout runs in a process of its own, as it is, around ViT-B on the CPU; ours has the preset `paper` and
the same random weights and images.  What the checkout needs and torch no longer has, or is not installed, is
replaced (`theirs.py` says what).  Its drop-path is off.

Takes checkouts of damo-cv/TransReID, ZacharyWang-007/FED-Occluded-ReID and stone96123/DPM, at least one.
Prints one JSON object: for each method the relative differences |ours - theirs| / |theirs|, which parameters
one side alone has, and numbers of theirs that tests keep.
"""

import argparse
import json

from benchmarks.command_line import benchmark_parser, checkout
from pipeline.core.cli import command_line

SETTINGS = {  # method: repository, its settings
    "transreid": ("damo-cv/TransReID", "configs/OCC_Duke/vit_transreid_stride.yml"),
    "fed": ("ZacharyWang-007/FED-Occluded-ReID", "configs/OCC_Duke/vit_base.yml"),
    "dpm": ("stone96123/DPM", "configs/OCC_Duke/dpm.yml"),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("official", __doc__)
    for name, (repository, settings) in SETTINGS.items():
        parser.add_argument(
            f"--{name}",
            type=checkout(repository, settings),
            metavar="FOLDER",
            help=f"checkout of {repository} (default: none)",
        )
    return parser


def main() -> None:
    """Compare and print."""
    parser = build_parser()
    options = parser.parse_args()
    folders = {name: folder for name, folder in vars(options).items() if folder}
    if not folders:
        parser.error("give the folder of at least one checkout")
    from benchmarks.official.side_by_side import compare

    print(json.dumps({name: compare(name, folder) for name, folder in folders.items()}, indent=1))


if __name__ == "__main__":
    with command_line():
        main()
