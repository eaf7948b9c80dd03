"""What does a search cost in a gallery of a given size?

Takes a number of pictures, writes a gallery of random embeddings of the embedded model's sizes (9 x 128,
float32, four body parts in five visible), and searches it.  Prints one JSON object: seconds to open it, and
of each search the wall seconds, CPU seconds and peak of the memory of its own (`RssAnon`: pages of the file,
which the system keeps or drops as it likes, are not in it).  Searches are one probe, a hundred together, one
among a tenth of the rows, and one by two parts.  The first also reads the file and compiles, and stands
apart; of the others the least of several rounds counts.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.command_line import benchmark_parser
from pipeline.core.cli import command_line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser("search", __doc__)
    parser.add_argument(
        "--pictures", type=int, default=100_000, help="rows of the gallery (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each search (default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the gallery lies meanwhile, 4.7 GB a million (default: the system's)",
    )
    return parser


def main() -> None:
    """Measure and print."""
    options = build_parser().parse_args()
    from benchmarks.search.measure import measure, write_gallery

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "gallery.h5"
        write_gallery(path, options.pictures)
        print(json.dumps(measure(path, options.rounds), indent=1))


if __name__ == "__main__":
    with command_line():
        main()
