"""Search over pictures of one's own.  Run by hand; no stage of the DAG.

python -m stages.search index FOLDER --out gallery.h5         embed a folder, or what is new in it
python -m stages.search query gallery.h5 PICTURE...           rank it for each picture
python -m stages.search serve gallery.h5                      search it in the browser

Each verb has `--help`.  They are the commands of the installed package (pipeline/command_line).
"""

import argparse
import sys
from importlib import import_module

from pipeline.core.cli import command_line, run_stage


def main(words: list[str]) -> None:
    """Run the verb on the words that follow it."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=["index", "query", "serve"], help="what to do, as above")
    verb = parser.parse_args(words[:1]).verb
    with command_line():  # Ctrl-C may come during imports, too
        module = import_module(f"pipeline.command_line.{verb}")
        run_stage(module.main, words[1:], f"python -m stages.search {verb}")


if __name__ == "__main__":
    main(sys.argv[1:])
