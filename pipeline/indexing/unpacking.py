"""The pictures of an indexed dataset as files again, for parsers that read a folder.

Occluded copies of queries exist nowhere else; labels that lie in folders of these names are found by `adopt`.
"""

from pathlib import Path

from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile
from pipeline.core.params import BadInput
from pipeline.core.workers import progress_bar
from pipeline.data.index import index_hash, read_index
from pipeline.indexing.archive import leads_out


def unpack(dataset: str | Path, folder: str | Path) -> int:
    """Write every image of `dataset` (a folder with index.parquet and images.h5) to `folder`; how many.

    A file is named by its key, as in `query/occluded/x.jpg`, and holds the bytes that were indexed; an
    occluded copy is a PNG, whatever its name.  Raises `BadInput` if `folder` exists, if a key leads out of
    it, or if the dataset is missing or damaged.
    """
    if Path(folder).exists():
        raise BadInput(f"{folder}: exists already. Name a new folder; nothing is written over.")
    table = read_index(Path(dataset) / "index.parquet")
    rows = LabelFile(Path(dataset) / "images.h5", "images", index_hash(table))
    outward = next(filter(leads_out, table["key"]), None)
    if outward is not None:
        raise BadInput(f"{dataset}/index.parquet: {outward} leads out of {folder}. Index the dataset again.")
    offset = rows["offset"][:].tolist()
    with atomic_write(folder) as beside:
        for row, key in enumerate(progress_bar(iterable=table["key"], desc="unpack", unit="img")):
            (beside / key).parent.mkdir(parents=True, exist_ok=True)
            (beside / key).write_bytes(rows["data"][offset[row] : offset[row + 1]].tobytes())
    return len(table)
