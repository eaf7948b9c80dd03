"""Unpacking: the images of an indexed dataset as files, for parsers that read a folder.

These are the only files of the queries' occluded copies.  Stage `adopt` finds labels by the same names.
"""

from pathlib import Path

from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.core.workers import progress_bar
from pipeline.data.index import index_hash, read_index
from pipeline.indexing.archive import is_path_traversal


def unpack(dataset: str | Path, folder: str | Path) -> int:
    """Write every image of `dataset` (a folder with index.parquet and images.h5) below `folder`.

    Returns the number of images.  A file is named by its key, as in `query/occluded/x.jpg`, and holds the
    bytes that were indexed.  An occluded copy, or a picture that had more than 8 bits a sample, is a PNG
    file, whatever its suffix.  Raises `BadInput` if `folder` exists, if a key leads out of it, or if the
    dataset is missing or damaged.
    """
    if Path(folder).exists():
        raise BadInput(f"{folder}: exists already. Name a new folder; no file is overwritten.")
    index = read_index(Path(dataset) / "index.parquet")
    images = LabelFile(Path(dataset) / "images.h5", "images", index_hash(index))
    traversal = next(filter(is_path_traversal, index["key"]), None)
    if traversal is not None:
        raise BadInput(
            f"{dataset}/index.parquet: {traversal} leads out of {folder}. Index the dataset again."
        )
    offset = images["offset"][:].tolist()
    with atomic_write(folder) as temporary:
        for row, key in enumerate(progress_bar(iterable=index["key"], desc="unpack", unit="img")):
            (temporary / key).parent.mkdir(parents=True, exist_ok=True)
            (temporary / key).write_bytes(images["data"][offset[row] : offset[row + 1]].tobytes())
    return len(index)
