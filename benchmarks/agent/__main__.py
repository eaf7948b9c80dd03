"""Does the erasing agent learn?  It gets a constructed task whose answer is known.

Half of an image's patches show parts of a person, the others show noise.  A reader (an encoder without
blocks, decoder, heads) has learnt to tell identities apart on images whose noise the labels erased, so noise
misleads it.  From there only the agent learns, by the method's own actions, rewards and steps.  It should
keep the patches that show the person and erase the noise.  The reader stays fixed: a decoder that goes on
learning soon ignores noise by itself, and no mask gains anything.

Reads the sections `ogfr` and `train` of params.yaml.  Prints one JSON object: for each variant the
probability of keeping either kind of patch, the reader's probability of the true identity under several
masks, and the reward; mean and all seeds.
"""

import argparse
import json

from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line

VARIANTS = {  # preset, and the agent's parameters that are as the paper prints them
    "recommended": ("recommended", ()),
    "printed_baseline": ("recommended", ("baseline",)),
    "printed_reward": ("recommended", ("baseline", "reward_floor", "reward_clip")),
    "printed_agent": (
        "recommended",
        ("baseline", "reward_floor", "reward_clip", "agent_bias", "agent_optimiser", "agent_lr"),
    ),
    "paper": ("paper", ()),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("agent", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="steps of the agent (default: %(default)s)")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=list(VARIANTS),
        metavar="NAME",
        help=f"which of {', '.join(VARIANTS)} (default: all)",
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[],
        metavar="LR",
        help="further learning rates of the recommended agent (default: none)",
    )
    return parser


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.agent.learning import measure

    variants = {name: VARIANTS[name] for name in options.variants}
    print(json.dumps(measure(variants, options.rates, options.seeds, options.steps), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
