"""`python -m pipeline.datasets pack FOLDER ARCHIVE.zip`: a loose folder becomes the one file DVC watches."""

import sys
from pathlib import Path

from pipeline import store
from pipeline.datasets import archive
from pipeline.params import BadInput


def main(command: str, folder: str, path: str) -> None:
    if command != "pack":
        raise BadInput(f"{command}: no such command. The only one is: pack FOLDER ARCHIVE.zip")
    count = archive.pack(folder, path)
    print(f"{path}: {count} files of {folder}, {Path(path).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
