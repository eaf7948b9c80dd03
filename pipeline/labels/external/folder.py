"""The files of a folder or of an archive, by name."""

from pathlib import Path

from pipeline.core.params import BadInput
from pipeline.indexing.archive import Archive


class Folder:
    """The files below a folder, by their path in it; the interface is that of `Archive`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.names = sorted(p.relative_to(path).as_posix() for p in self.path.rglob("*") if p.is_file())

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return (self.path / name).read_bytes()

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def open_files(path: str) -> Folder | Archive:
    """The files of a folder, zip, tar or tar.gz.  Raises `BadInput` if it is missing or damaged."""
    if not Path(path).exists():
        raise BadInput(
            f"{path}: no such folder or archive. Put the labels there, packed or unpacked, or correct the "
            "path in labels_from of params.yaml."
        )
    return Folder(path) if Path(path).is_dir() else Archive(path)
