"""Datasets by hand: files in, files out.

python -m pipeline.indexing pack FOLDER ARCHIVE.zip    a loose folder becomes the one file DVC watches
python -m pipeline.indexing unpack DATASET FOLDER      the indexed images as files, for a parser elsewhere
"""

import sys
from pathlib import Path

from pipeline.core.cli import run_stage
from pipeline.core.params import BadInput, plural
from pipeline.indexing import archive, unpacking


def main(command: str, source: str, target: str) -> None:
    """Do what `command` says and tell how much it was."""
    if command == "pack":
        count = archive.pack(source, target)
        print(f"{target}: {plural(count, 'file')} of {source}, {Path(target).stat().st_size / 1e6:.1f} MB")
    elif command == "unpack":
        print(f"{target}: {plural(unpacking.unpack(source, target), 'image')} of {source}")
    else:
        raise BadInput(
            f"{command}: no such command. There are: pack FOLDER ARCHIVE.zip, and unpack DATASET FOLDER, "
            "such as unpack data/market1501 /tmp/market1501"
        )


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
