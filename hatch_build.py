"""The wheel's one package: `pipeline/` under the name `occluded_reid`, which no user's own folder hides.

In the copy every mention of `pipeline` as a package is renamed: imports, and commands that messages name.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PACKAGE = "occluded_reid"
COPIED = (".py", ".yaml", ".html", ".js", ".css")  # code, the tables that it reads, and a page


class RenamedPackage(BuildHookInterface):
    """A copy of the library with its new name, which the wheel holds in place of it."""

    copy: str = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the copy.  Raises `ValueError` for an editable install, which would install a copy, too."""
        if version == "editable":
            raise ValueError("No editable install: the package is a renamed copy. `uv run` needs none.")
        library, self.copy = Path(self.root, "pipeline"), tempfile.mkdtemp()
        for source in library.rglob("*"):
            if source.suffix in COPIED:
                target = self.copy / source.relative_to(library)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(renamed(source.read_text("utf-8")), "utf-8")
        build_data["force_include"][self.copy] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy."""
        shutil.rmtree(self.copy)


class Command(MetadataHookInterface):
    """The console command."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add it."""
        metadata["scripts"] = {"occluded-reid": f"{PACKAGE}.__main__:main"}


def renamed(text: str) -> str:
    """Code with `occluded_reid` in place of the package `pipeline`, but not of the folder `pipeline/`."""
    package = r"(?<![\w./-])pipeline(?=\.\w)|(?<=from )pipeline(?= import)|(?<=-m )pipeline\b"
    return re.sub(package, PACKAGE, text)
