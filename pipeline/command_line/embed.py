"""Embed pictures with a trained model.

Reads:
    model       folder of the trained model
    pictures    files, folders (all pictures below) and patterns such as 'people/**/*.jpg'
Writes:
    out         HDF5 file of the pictures' names and embeddings
Takes:
    guess       guess which parts each picture hides, and embed it again with them
    device      cpu or cuda
    batch       pictures at a time

Pictures below a folder or of a pattern that cannot be used are left out, listed and kept in the file with the
reason.  Left out and counted are other files, hidden files and folders, and links to folders.
"""

from pathlib import Path, PurePath

from pipeline import inference
from pipeline.core.files import check_file_path
from pipeline.core.params import BadInput, plural, shorten, tally
from pipeline.data.pictures import is_hidden

MOST_LISTED = 20


def main(
    model: str,
    pictures: list[str],
    out: str = "embeddings.h5",
    guess: bool = False,
    device: str = "cpu",
    batch: int = 64,
) -> None:
    """Write the file, and print how many pictures it holds and what was left out."""
    check_file_path(out)
    found, others = inference.find_pictures(pictures)
    files = list(dict.fromkeys(found))
    missing = [name for name in pictures if name in files and not Path(name).exists()]
    if missing:
        raise BadInput(f"{', '.join(shorten(missing))}: no such file. Name files, folders or patterns.")
    left_out = inference.load(model, device, batch).embed_to_file(files, out, guess=guess)
    print(f"{out}: {plural(len(files) - len(left_out), 'picture')}")
    if left_out:
        print(f"{plural(len(left_out), 'picture')} left out:")
        print(*shorten([f"  {name}: {reason}" for name, reason in left_out], MOST_LISTED), sep="\n")
    if others:
        print(f"{plural(len(others), 'other file')} left out ({tally(map(_kind, others))})")


def _kind(path: str) -> str:
    if is_hidden(path):
        return "hidden"
    return "link to a folder" if Path(path).is_dir() else PurePath(path).suffix or "without ending"
