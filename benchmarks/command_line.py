"""What the benchmarks' command lines share: the form of the help, and checkouts of other repositories."""

import argparse
from collections.abc import Callable
from pathlib import Path


def benchmark_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.<name>`, to which arguments are added."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
