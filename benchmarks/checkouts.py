"""Checkouts of the repositories that benchmarks compare with, as arguments of a command line."""

import argparse
from collections.abc import Callable
from pathlib import Path


def checkout(repository: str, *files: str) -> Callable[[str], Path]:
    """A type for `add_argument`: a folder that holds these files of `repository`."""

    def parse(text: str) -> Path:
        missing = [file for file in files if not (Path(text) / file).is_file()]
        if missing:
            raise argparse.ArgumentTypeError(
                f"{text}: no {missing[0]}; give the folder of a checkout of {repository}"
            )
        return Path(text).resolve()

    return parse
