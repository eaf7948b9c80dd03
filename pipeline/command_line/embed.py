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

Pictures that cannot be used are left out, listed and kept in the file with the reason.
"""

from collections import Counter
from pathlib import PurePath

from pipeline import inference
from pipeline.core.params import plural, shorten

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
    files, others = inference.find_pictures(pictures)
    left_out = inference.load(model, device, batch).embed_to_file(files, out, guess=guess)
    print(f"{out}: {plural(len(files) - len(left_out), 'picture')}")
    if left_out:
        print(f"{plural(len(left_out), 'picture')} left out:")
        print(*shorten([f"  {name}: {reason}" for name, reason in left_out], MOST_LISTED), sep="\n")
    if others:
        kinds = Counter(PurePath(name).suffix or "without ending" for name in others).most_common()
        counts = ", ".join(shorten([f"{count} {kind}" for kind, count in kinds]))
        print(f"{plural(len(others), 'other file')} left out ({counts})")
