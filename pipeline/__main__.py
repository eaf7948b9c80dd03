"""Use a trained model from the command line.

index     a folder of pictures -> a gallery: one HDF5 file of their embeddings
query     pictures -> the pictures of a gallery that are nearest to them
serve     a gallery -> its search in the browser
export    a trained model -> ONNX
convert   a checkpoint to start a training from -> plain tensors, without running what it holds
draw      what a trained model attends to, what its agent erases, its rankings beside another's -> a figure
pack      a folder of pictures -> the archive of a dataset
unpack    an indexed dataset -> a folder of its pictures
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from pipeline.core.cli import command_line, run_stage

COMMANDS = ("index", "query", "serve", "export", "convert", "draw", "pack", "unpack")


def main() -> None:
    """Run a command, whose own words follow its name."""
    name = Path(sys.argv[0]).name
    program = name if name != "__main__.py" else f"python -m {__package__}"
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, help="`COMMAND --help` describes its words")
    rest = parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    rest.required = False  # else a call without words asks for it
    words = parser.parse_args()
    with command_line():  # Ctrl-C may come during imports, too
        if words.command in ("pack", "unpack"):
            module = import_module(f"{__package__}.indexing.__main__")
            run_stage(module.main, [words.command, *words.words], program)
        else:  # imported only now, as PyTorch takes seconds
            module = import_module(f"{__package__}.command_line.{words.command}")
            run_stage(module.main, words.words, f"{program} {words.command}")


if __name__ == "__main__":
    main()
