"""The pictures of an indexed dataset as files again, for parsers that read a folder.

Occluded copies of queries exist nowhere else; labels that lie in folders of these names are found by `adopt`.
"""

from pathlib import Path

from pipeline import datasets, store
from pipeline.datasets.archive import leads_out
from pipeline.params import BadInput


def unpack(dataset: str | Path, folder: str | Path) -> int:
    """Write every image of `dataset` (a folder with index.parquet and images.h5) to `folder`; how many.

    A file is named by its key, as in `query/occluded/x.jpg`, and holds the bytes that were indexed; an
    occluded copy is a PNG, whatever its name.  Raises `BadInput` if `folder` exists, if a key leads out of
    it, or if the dataset is missing or damaged.
    """
    if Path(folder).exists():
        raise BadInput(f"{folder}: exists already. Name a new folder; nothing is written over.")
    table = datasets.read_index(Path(dataset) / "index.parquet")
    rows = store.Rows(Path(dataset) / "images.h5", "images", datasets.index_hash(table))
    outward = next(filter(leads_out, table["key"]), None)
    if outward is not None:
        raise BadInput(f"{dataset}/index.parquet: {outward} leads out of {folder}. Index the dataset again.")
    offset = rows["offset"][:].tolist()
    with store.replace(folder) as beside:
        for row, key in enumerate(store.progress(iterable=table["key"], desc="unpack", unit="img")):
            (beside / key).parent.mkdir(parents=True, exist_ok=True)
            (beside / key).write_bytes(rows["data"][offset[row] : offset[row + 1]].tobytes())
    return len(table)
