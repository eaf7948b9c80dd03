"""The files of a folder or of an archive, by name."""

from pathlib import Path

from pipeline.core.params import BadInput
from pipeline.indexing.archive import Archive, read_file, walk


class Folder:
    """The files below a folder, by their path in it; the interface is that of `Archive`."""

    def __init__(self, path: str | Path):
        self._files, others = walk(Path(path))
        self.names, self.links = list(self._files), set(others)

    def read(self, name: str) -> bytes:
        """The bytes of a file.  Raises `BadInput` if it cannot be read."""
        return read_file(self._files[name])

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def open_files(path: str, encoding: str | None = None) -> Folder | Archive:
    """The files of a folder, zip, tar or tar.gz.  Raises `BadInput` if it is missing or damaged.

    `encoding` is that of an archive's names whose encoding it does not record.
    """
    if not Path(path).exists():
        raise BadInput(
            f"{path}: no such folder or archive. Put the labels there, packed or unpacked, or correct the "
            "path in labels_from of params.yaml."
        )
    return Folder(path) if Path(path).is_dir() else Archive(path, encoding)
