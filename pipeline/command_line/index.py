"""Embed a folder of pictures into a gallery file, to be searched; or bring such a file up to date.

Takes:
    pattern     regular expression whose group finds the camera in a path, as 'cam(\\d+)'
    maps        have the parsers make label maps, which say what a picture hides; else the model guesses it
    networks    with --maps: folder of the parsers' weights
    device      cpu or cuda, of the model; that of the parsers is in params.yaml
    batch       pictures at a time
Reads:
    folder      pictures at any depth, of any size
    model       folder of the trained model
Writes:
    out         HDF5 file of the gallery

A second run embeds what is new or changed, and drops what is gone.  A run that was killed continues where it
was if it is started again.

Params, with --maps: parsers, segment, pose, parse, lambda, label.
"""

from pathlib import Path, PurePath

from pipeline import inference
from pipeline.core.params import plural, shorten, tally
from pipeline.data.pictures import is_hidden
from pipeline.search.embedder import Embedder
from pipeline.search.folder import index
from pipeline.search.maps import MapMaker, read_settings
from pipeline.search.page import printable

MOST_LISTED = 20
GUESSED = (
    "Without parsing maps the model guesses what a picture hides: 43.9 mAP, not 46.2, of the "
    "embedded dataset's occluded queries; 87.7, not 87.6, of its holistic ones. --maps makes maps."
)


def main(
    folder: str,
    model: str = "models/trained",
    out: str = "gallery.h5",
    pattern: str = "",
    maps: bool = False,
    networks: str = "models/embedded",
    device: str = "cpu",
    batch: int = 64,
    config: str = "params.yaml",
) -> None:
    """Write the file, and print how many pictures it holds, what changed and what was left out."""
    maker = MapMaker(read_settings(config, networks)) if maps else None
    done = index(folder, Embedder(inference.load(model, device, batch), maker), out, model, pattern)
    print(
        f"{out}: {plural(done.count, 'picture')}, {done.added} embedded now, {plural(done.removed, 'row')} "
        "dropped of pictures that are gone or changed"
    )
    if not maps:
        print(GUESSED)
    if done.left_out:
        print(f"{plural(len(done.left_out), 'picture')} left out:")
        lines = [f"  {printable(name)}: {printable(reason)}" for name, reason in done.left_out]
        print(*shorten(lines, MOST_LISTED), sep="\n")
    if done.others:
        print(f"{plural(len(done.others), 'other file')} left out ({tally(map(_kind, done.others))})")


def _kind(path: str) -> str:
    if is_hidden(path):
        return "hidden"
    return "link to a folder" if Path(path).is_dir() else printable(PurePath(path).suffix) or "without ending"
