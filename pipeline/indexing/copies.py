"""Equal files of a dataset: one picture under two names.

Files are compared by their hashes.  The same pixels in other bytes, as after saving a JPEG again, are not
recognised.
"""

from itertools import combinations_with_replacement

import pandas as pd

from pipeline.core.params import plural, shorten
from pipeline.data.index import SPLITS


def contradictions(index: pd.DataFrame) -> list[str]:
    """Identities and keys of each file that stands under several, in train, or in query and gallery.

    Identities of train and of the test splits may be numbered apart, so they are not compared.  A distractor
    or a junk image has no identity.
    """
    known = index[index["pid"] > 0].assign(trained=index["split"] == "train")
    equal = known[known.duplicated(["sha256", "trained"], keep=False)]
    lines = []
    for _, copies in equal.groupby(["trained", "sha256"], sort=False):
        if copies["pid"].nunique() > 1:
            names = [f"{pid}: {key}" for pid, key in zip(copies["pid"], copies["key"], strict=True)]
            lines.append(", ".join(shorten(names)))
    return lines


def copy_warnings(index: pd.DataFrame) -> list[str]:
    """One line for each pair of splits that share files, and for distractors whose identity is known."""
    parts = {split: index[(index["split"] == split) & (index["pid"] >= 0)] for split in SPLITS}
    lines = []
    for one, other in combinations_with_replacement(SPLITS, 2):
        if one == other:
            copies = parts[one][parts[one].duplicated("sha256")]
            text = f"{plural(len(copies), f'{one} image')} equal to another one of {one}"
        else:
            copies = parts[other][parts[other]["sha256"].isin(parts[one]["sha256"])]
            text = f"{plural(len(copies), f'{other} image')} also in {one} as the same file"
        leak = ", so that scores are too high" if one == "train" != other else ""
        lines += [f"{text}{leak}: {', '.join(shorten(copies['key'].tolist()))}"] if len(copies) else []
    test = pd.concat([parts["query"], parts["gallery"]])
    people, distractors = test[test["pid"] > 0], test[test["pid"] == 0]
    known = distractors.loc[distractors["sha256"].isin(people["sha256"]), "key"].tolist()
    if known:
        lines.append(
            f"{plural(len(known), 'distractor')} equal to a file of a known identity, ranked as wrong: "
            f"{', '.join(shorten(known))}"
        )
    return lines
