"""Pack a folder into the one file that DVC watches, or unpack a dataset's images.  Run by hand.

Takes:
    command    which of the two
Reads:
    source     pack: folder of images; unpack: folder of the indexed dataset, such as data/market1501
Writes:
    target     pack: .zip archive; unpack: folder of the images, named by their keys

Hidden files are packed as well.  Links to folders, broken links and what is no file are not, and are named.

    python -m pipeline.indexing pack market1501 data/raw/market1501.zip
    python -m pipeline.indexing unpack data/market1501 images
"""

import sys
from pathlib import Path
from typing import Literal

from pipeline.core.cli import run_stage
from pipeline.core.params import plural


def main(command: Literal["pack", "unpack"], source: str, target: str) -> None:
    """Pack or unpack, and print how many files."""
    from pipeline.indexing import archive, kinds, unpacking  # slow; `run_stage` handles Ctrl-C by now

    if command == "pack":
        count, others = archive.pack(source, target)
        print(f"{target}: {plural(count, 'file')} of {source}, {Path(target).stat().st_size / 1e6:.1f} MB")
        if others:
            left_out = [kinds.LeftOut(name, reason) for name, reason in others.items()]
            print("\n".join(["not packed:", *kinds.summarise(left_out)]))
    else:
        print(f"{target}: {plural(unpacking.unpack(source, target), 'image')} of {source}")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
