"""Labels made elsewhere: from a folder or an archive of files, one an image, to parsing maps.

Unusual here:
- Every file is looked at before anything is computed; what is missing or unusable is reported together.
- A label is found by its name and by folders, so that an archive is read as it was downloaded.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT, BadInput, plural, shorten
from pipeline.core.workers import progress_bar
from pipeline.data.index import SPLITS
from pipeline.indexing.layout import COPIES, IMAGES
from pipeline.labels import parsing
from pipeline.labels.external import confidences, label_maps
from pipeline.labels.external.folder import open_files

MAX_STRETCH = 1.2  # least ratio of the sides by which a label and its image lie across each other
SUFFIXES = {"bpbreid": (".npy",)}  # of a label's name, by source; all others' are:
MAP_SUFFIXES = (".png", ".npy")


@dataclass(frozen=True, config=STRICT)
class SplitFolders:
    """Where the labels of each split lie: the last folders of a path, as in `query` or `pifpaf/query`."""

    train: str
    query: str
    gallery: str


@dataclass(frozen=True, config=STRICT)
class ExternalLabels:
    """Where a dataset's labels come from."""

    # bpbreid: confidences of 17 keypoints and 19 limbs.  Otherwise label maps, by their classes
    source: Literal["bpbreid", "lip", "cihp", "atr", "pascal", "bodypix", "classes"]
    path: str  # a folder, zip, tar or tar.gz; the file that dvc.yaml hands to the stage
    folders: SplitFolders
    missing: Literal["refuse", "nobody"]  # nobody: images without a label count as those without a person
    # source `classes`: the part, pair or `background` of class 0, 1, ...
    classes: list[str] | None = Field(default=None, min_length=1)

    def endings(self) -> tuple[str, ...]:
        """How the name of a label ends."""
        return SUFFIXES.get(self.source, MAP_SUFFIXES)

    def named(self) -> list[str]:
        """What each class of the label maps shows; empty for confidences, which have no classes."""
        if self.source == "bpbreid" and self.classes is None:
            return []
        return label_maps.class_parts(self.source, self.classes)

    def reader(self) -> Callable[[bytes, str], np.ndarray]:
        """Bytes of a label and its name -> an array; `Unusable` says what is wrong with them."""
        if self.source == "bpbreid":
            return confidences.read_confidences
        return partial(label_maps.read_map, classes=len(self.named()))


class MatchedLabels(NamedTuple):
    """Every image accounted for."""

    names: list[str]  # of its label, an image a row; empty where it is missing
    content: str  # hash of all labels, in the order of the images
    ignored: int  # files that are no label of any image

    @property
    def missing(self) -> int:
        return sum(not name for name in self.names)


# ------------------------------------------------------------------ which file is whose


def match_files(
    index: pd.DataFrame, names: list[str], settings: ExternalLabels
) -> tuple[list[list[str]], int]:
    """The labels that fit each image best, and how many files fit none.

    A label fits an image if it lies in the folder of its split, has its name (`x.npy`, `x.jpg.npy`,
    `x.jpg.confidence_fields.npy` are labels of x.jpg), and lies in no folder that the image does not; the
    label that shares most folders is the best.  A query's occluded copy is another picture than the query:
    its label must lie in the copies' own folder.
    """
    by_image: dict[tuple[str, str], list[tuple[tuple[str, ...], str]]] = {}
    for name in names:
        for split, inside, stem in _split_folders(name, settings):
            by_image.setdefault((split, stem), []).append((inside, name))
    fitting = []
    for key in index["key"]:
        split, *folders, last = PurePosixPath(key).parts
        found = by_image.get((split, _stem(last)), [])
        own = set(PurePosixPath(COPIES).parts[1:]) if key.startswith(COPIES) else set()
        near = [(len(inside), name) for inside, name in found if own <= set(inside) <= set(folders)]
        most = max((shared for shared, _ in near), default=0)
        fitting.append(sorted(name for shared, name in near if shared == most))
    used = {name for fit in fitting for name in fit}
    return fitting, len(names) - len(used)


def _split_folders(name: str, settings: ExternalLabels) -> list[tuple[str, tuple[str, ...], str]]:
    # a/query/b/x.jpg.npy -> [(query, (b,), x)], if `query` is the folder of the split `query`
    *folders, last = PurePosixPath(name).parts
    if not last.endswith(settings.endings()) or last.startswith("."):
        return []
    stem = _stem(PurePosixPath(last).stem.removesuffix(".confidence_fields"))
    found = []
    for split in SPLITS:
        wanted = list(PurePosixPath(getattr(settings.folders, split)).parts)
        ends = [i + len(wanted) for i in range(len(folders)) if folders[i : i + len(wanted)] == wanted]
        if ends:
            found.append((split, tuple(folders[ends[-1] :]), stem))
    return found


def _stem(name: str) -> str:
    # x of x.jpg, and of x.jpg.jpg, as 14 queries of Market-1501 are called
    while (path := PurePosixPath(name)).suffix.lower() in IMAGES:
        name = path.stem
    return name


# ------------------------------------------------------------------ every image accounted for


def check_labels(
    index: pd.DataFrame, settings: ExternalLabels, rule: parsing.Parse, where: str
) -> MatchedLabels:
    """The label of every image, each one looked at.  `where` names the settings in params.yaml.

    Raises `BadInput` that lists the first missing, ambiguous and unusable ones and counts the rest.  With
    `missing: nobody`, labels are missing only where a whole split has none.
    """
    if settings.source == "bpbreid":
        confidences.check_rule(rule)
    read, digest = settings.reader(), hashlib.sha256()
    faults: dict[str, list[str]] = {"missing": [], "more than one label": [], "unusable": []}
    with open_files(settings.path) as files:
        fitting, ignored = match_files(index, files.names, settings)
        rows = index[["key", "height", "width"]].itertuples(index=False)
        shown = progress_bar(iterable=rows, total=len(index), desc="labels")
        for (key, *size), found in zip(shown, fitting, strict=True):
            if len(found) > 1:
                faults["more than one label"].append(f"{key}: {' and '.join(found)}")
            elif not found:
                faults["missing"].append(key)
            else:
                blob = files.read(found[0])
                digest.update(hashlib.sha256(blob).digest())
                try:
                    _check_orientation(read(blob, found[0]).shape[-2:], size)
                except confidences.InvalidLabel as error:
                    faults["unusable"].append(f"{found[0]}: {error}")
    if settings.missing == "nobody":
        bare = _unlabelled_splits(index["key"], fitting)
        faults["missing"] = [key for key in faults["missing"] if key.split("/")[0] in bare]
    if any(faults.values()):
        raise BadInput(
            _fault_report(settings, faults, len(index), where) + _search_report(settings, faults, files.names)
        )
    names = [found[0] if found else "" for found in fitting]
    digest.update("".join("01"[bool(name)] for name in names).encode())
    return MatchedLabels(names, digest.hexdigest(), ignored)


def _check_orientation(label: tuple[int, int], image: Sequence[int]) -> None:
    # a parser may make any picture square, but never lays it across
    (high, wide), (height, width) = label, image
    if min(high / wide, width / height) > MAX_STRETCH or min(wide / high, height / width) > MAX_STRETCH:
        raise confidences.InvalidLabel(
            f"{high} x {wide} (height x width), but its image is {height} x {width}: transposed or turned"
        )


def _unlabelled_splits(keys: Iterable[str], fitting: list[list[str]]) -> set[str]:
    # splits without a single label: a folder that is misspelt, not images without a person
    labelled = {key.split("/")[0] for key, found in zip(keys, fitting, strict=True) if found}
    return {key.split("/")[0] for key in keys} - labelled


def _search_report(settings: ExternalLabels, faults: dict[str, list[str]], names: list[str]) -> str:
    splits = [split for split in SPLITS if any(key.startswith(f"{split}/") for key in faults["missing"])]
    if not splits:
        return ""
    wanted = " or ".join(f"NAME{ending}" for ending in settings.endings())
    places = ", ".join(f"{getattr(settings.folders, split)}/ for {split}" for split in splits)
    kinds = Counter(PurePosixPath(name).suffix or "no ending" for name in names)
    held = shorten([f"{number} {kind}" for kind, number in kinds.most_common()])
    return f"\nLooked for {wanted} in {places}. {settings.path} holds {plural(len(names), 'file')}" + (
        f" ({', '.join(held)}), such as {', '.join(names[:2])}." if names else "."
    )


def _fault_report(settings: ExternalLabels, faults: dict[str, list[str]], images: int, where: str) -> str:
    lines = []
    for kind, found in faults.items():
        if found:
            lines.append(f"  {len(found)} {kind}:\n    " + "\n    ".join(shorten(found)))
    remedy = f"Repair them, or correct {where} in params.yaml (folders: where the labels of a split lie)."
    if faults["missing"] and settings.missing == "nobody":
        remedy += f" {where}.missing: nobody is for single images, not for all of a split."
    elif faults["missing"]:
        remedy += f" {where}.missing: nobody takes missing ones for images without a person."
    if any(key.startswith(COPIES) for key in faults["missing"]):
        remedy += f" `python -m pipeline.indexing unpack DATASET FOLDER` writes the pictures of {COPIES}."
    return (
        f"{settings.path}: no usable label for {sum(map(len, faults.values()))} of "
        f"{plural(images, 'image')}; nothing was written.\n" + "\n".join(lines) + f"\n{remedy}"
    )


def describe(labelled: MatchedLabels) -> str:
    """How many labels were found, for people."""
    images, missing = len(labelled.names), labelled.missing
    return (
        f"{plural(images, 'image')}: {plural(images - missing, 'label')}, {missing} missing; "
        f"{plural(labelled.ignored, 'other file')} left out"
    )


# ------------------------------------------------------------------ labels -> maps


class LabelConverter:
    """Makes the parsing map of any range of rows from their labels; built anew in each worker."""

    def __init__(self, names: list[str], sizes: np.ndarray, settings: ExternalLabels, rule: parsing.Parse):
        self.files = open_files(settings.path)
        self.names, self.sizes, self.settings, self.rule = names, sizes, settings, rule
        self.read = settings.reader()

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of parsing.h5 for rows start..stop: map, status, instance, margin.

        Nobody was chosen here: `instance` is -1 and `margin` is nan.
        """
        found = np.stack([self.map(row) for row in range(start, stop)])
        nobody = ~found.any((1, 2))
        return {
            "map": found,
            "status": np.where(nobody, parsing.NO_PERSON, parsing.OK).astype(np.uint8),
            "instance": np.full(len(found), -1, np.int8),
            "margin": np.full(len(found), np.nan, np.float32),
        }

    def map(self, row: int) -> UInt8[np.ndarray, "H W"]:
        """The parsing map of an image; all background if it has no label."""
        name = self.names[row]
        if not name:
            return np.zeros(self.rule.grid, np.uint8)
        label = self.read(self.files.read(name), name)
        if self.settings.source == "bpbreid":
            height, width = self.sizes[row].tolist()
            return confidences.fuse(label, (height, width), self.rule)
        codes = label_maps.class_codes(self.settings.source, self.settings.classes)[label]
        return label_maps.resize_map(self.rule.grid, label_maps.assign_sides(codes))
