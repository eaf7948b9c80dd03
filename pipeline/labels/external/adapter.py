"""Labels made elsewhere: a folder or an archive of files, one per image, as parsing maps.

Unusual here:
- Every file is read and checked before anything is computed; all faults are reported together.
- A label is matched by its name and its folders, so that an archive is read as it was downloaded.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Integer, UInt8
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core.params import STRICT, BadInput, QuotedPath, plural, shorten, tally
from pipeline.core.workers import progress_bar
from pipeline.data.index import SPLITS
from pipeline.data.pictures import picture_suffixes
from pipeline.indexing import kinds
from pipeline.indexing.archive import Archive, Encoding, Folder
from pipeline.indexing.layout import OCCLUDED_PREFIX
from pipeline.labels import parsing
from pipeline.labels.external import confidences, label_maps

# ratio of the aspects of a label and its image; beyond it the label is transposed or turned
MAX_STRETCH = 1.2
SUFFIXES = {"bpbreid": (".npy",)}  # of a label's name, by source; of all other sources:
MAP_SUFFIXES = (".png", ".npy")
ARRAY_SUFFIXES = {".npy", ".npz", ".mat", ".h5"}  # of files that may be labels in a form that is not read


@dataclass(frozen=True, config=STRICT)
class SplitFolders:
    """The folder of each split's labels: the end of a path, such as `query` or `pifpaf/query`."""

    train: str
    query: str
    gallery: str


@dataclass(frozen=True, config=STRICT)
class ExternalLabels:
    """Where a dataset's labels come from."""

    # bpbreid: confidences of 17 keypoints and 19 limbs.  All others: label maps, named by their classes
    source: Literal["bpbreid", "lip", "cihp", "atr", "pascal", "bodypix", "classes"]
    path: QuotedPath  # a folder, zip, tar or tar.gz; the file that dvc.yaml hands to the stage
    folders: SplitFolders
    missing: Literal["refuse", "nobody"]  # nobody: images without a label count as images without a person
    # source `classes`: the part, pair or `background` of class 0, 1, ...
    classes: list[str] | None = Field(default=None, min_length=1)
    names: Encoding | None = None  # of an archive's names whose encoding it does not record

    @model_validator(mode="after")
    def _check_classes(self) -> "ExternalLabels":
        self.class_parts()
        return self

    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the labels' names."""
        return SUFFIXES.get(self.source, MAP_SUFFIXES)

    def class_parts(self) -> list[str]:
        """The part of each class of the label maps; empty for confidences, which have no classes."""
        if self.source == "bpbreid" and self.classes is None:
            return []
        return label_maps.class_parts(self.source, self.classes)

    def read(self, blob: bytes, name: str) -> np.ndarray:
        """The array in a label's bytes.  Raises `InvalidLabel` that says what is wrong with them."""
        if self.source == "bpbreid":
            return confidences.read_confidences(blob)
        return label_maps.read_map(blob, name, len(self.class_parts()))


class MatchedLabels(NamedTuple):
    """The label of every image."""

    names: list[str]  # of the label's file, one per image; empty for a missing label
    content: str  # hash of all labels, in the order of the images
    left_out: list[kinds.LeftOut]  # files that are no label of any image
    similar: list[str]  # missing ones, each with the file of another ending that may be meant

    @property
    def missing(self) -> int:
        """Images without a label."""
        return sum(not name for name in self.names)


# ------------------------------------------------------------------ matching files and images


class Matches(NamedTuple):
    """The files of each image."""

    labels: list[list[str]]  # that fit it best
    similar: list[
        list[str]
    ]  # pictures and arrays that would fit it but for their suffix, where no label does
    left_out: list[str]  # files that are no label of any image


def open_files(path: str, encoding: str | None = None) -> Folder | Archive:
    """The files of a folder, zip, tar or tar.gz.  Raises `BadInput` if it is missing or damaged.

    `encoding` is that of an archive's names whose encoding it does not record.
    """
    if not Path(path).exists():
        raise BadInput(
            f"{path}: no such folder or archive. Put the labels there, packed or unpacked, or correct the "
            "path in labels_from of params.yaml."
        )
    return Folder(Path(path)) if Path(path).is_dir() else Archive(path, encoding)


def match_files(index: pd.DataFrame, names: list[str], settings: ExternalLabels) -> Matches:
    """The labels that fit each image best, and the files that fit no image.

    A label fits an image if it lies in the folder of the image's split, has the image's name (`x.npy`,
    `x.jpg.npy` and `x.jpg.confidence_fields.npy` are labels of x.jpg), and lies in no folder that the image
    does not lie in.  The best label shares most folders.  The label of a query's occluded copy must lie in
    the folder of the copies, as the copy is another picture than the query.  The case of suffixes and the
    form of Unicode do not matter.
    """
    labels: Places = {}
    others: Places = {}
    similar_suffixes = picture_suffixes() | ARRAY_SUFFIXES
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        places = labels if suffix in settings.suffixes() else others if suffix in similar_suffixes else {}
        for split, inner, stem in _split_folders(name, settings):
            places.setdefault((split, stem), []).append((inner, name))
    matches = [_best(key, labels) for key in index["key"]]
    similar = [
        [] if match else [name for name in _best(key, others) if not _is_image(name, key)]
        for key, match in zip(index["key"], matches, strict=True)
    ]
    used = {name for match in matches for name in match}
    return Matches(matches, similar, [name for name in names if name not in used])


# folders inside the split's and the file's name, by split and stem
Places = dict[tuple[str, str], list[tuple[tuple[str, ...], str]]]


def _best(key: str, places: Places) -> list[str]:
    split, *folders, last = PurePosixPath(unicodedata.normalize("NFC", key)).parts
    required = set(PurePosixPath(OCCLUDED_PREFIX).parts[1:]) if key.startswith(OCCLUDED_PREFIX) else set()
    candidates = [
        (len(inner), name)
        for inner, name in places.get((split, _stem(last)), [])
        if required <= set(inner) <= set(folders)
    ]
    most = max((shared for shared, _ in candidates), default=0)
    return sorted(name for shared, name in candidates if shared == most)


def _is_image(name: str, key: str) -> bool:
    # whether a file beside the labels is the image itself
    return PurePosixPath(name).name == PurePosixPath(key).name


def _split_folders(name: str, settings: ExternalLabels) -> list[tuple[str, tuple[str, ...], str]]:
    # a/query/b/x.jpg.npy -> [(query, (b,), x)] if `query` is the folder of the split `query`
    *folders, last = PurePosixPath(unicodedata.normalize("NFC", name)).parts
    if kinds.is_hidden(last):
        return []
    stem = _stem(PurePosixPath(last).stem.removesuffix(".confidence_fields"))
    places = []
    for split in SPLITS:
        path = list(PurePosixPath(getattr(settings.folders, split)).parts)
        ends = [i + len(path) for i in range(len(folders)) if folders[i : i + len(path)] == path]
        if ends:
            places.append((split, tuple(folders[ends[-1] :]), stem))
    return places


def _stem(name: str) -> str:
    # x of x.jpg and of x.jpg.jpg, the form of 14 names in Market-1501
    while (path := PurePosixPath(name)).suffix.lower() in picture_suffixes():
        name = path.stem
    return name


# ------------------------------------------------------------------ checking every label


def check_labels(
    index: pd.DataFrame, settings: ExternalLabels, rule: parsing.Parse, section: str
) -> MatchedLabels:
    """The label of every image, read and checked.  `section` names the settings in params.yaml.

    Raises `BadInput` that lists the first missing, ambiguous and unusable labels and counts the rest.  With
    `missing: nobody`, a missing label or one of another ending is an error only if its whole split has none.
    """
    if settings.source == "bpbreid":
        confidences.check_rule(rule)
    digest = hashlib.sha256()
    faults: dict[str, list[str]] = {
        "missing": [],
        "of another ending": [],
        "more than one label": [],
        "one label for several": [],
        "unusable": [],
    }
    with open_files(settings.path, settings.names) as files:
        matches, similar, left_out = match_files(index, files.names, settings)
        encoding = files.encoding_hint() if isinstance(files, Archive) else ""
        rows = index[["key", "height", "width"]].itertuples(index=False)
        bar = progress_bar(iterable=rows, total=len(index), desc="labels")
        for (key, *size), match, near in zip(bar, matches, similar, strict=True):
            if len(match) > 1:
                faults["more than one label"].append(f"{key}: {' and '.join(match)}")
            elif near:
                faults["of another ending"].append(f"{key}: {' and '.join(near)}")
            elif not match:
                faults["missing"].append(key)
            else:
                blob = files.read(match[0])
                digest.update(hashlib.sha256(blob).digest())
                try:
                    _check_orientation(settings.read(blob, match[0]).shape[-2:], size)
                except confidences.InvalidLabel as error:
                    faults["unusable"].append(f"{match[0]}: {error}")
    faults["one label for several"] = _shared_labels(index["key"], matches)
    of_another_ending = faults["of another ending"]
    if settings.missing == "nobody":
        unlabelled = _unlabelled_splits(index["key"], matches)
        for kind in ("missing", "of another ending"):
            faults[kind] = [line for line in faults[kind] if line.split("/")[0] in unlabelled]
    if any(faults.values()):
        report = _fault_report(settings, faults, len(index), section)
        raise BadInput(report + _search_report(settings, faults, files.names, encoding))
    names = [match[0] if match else "" for match in matches]
    digest.update("".join("01"[bool(name)] for name in names).encode())
    others = [kinds.LeftOut(name, "no label of any image") for name in left_out]
    others += [kinds.LeftOut(name, kinds.LINK) for name in sorted(files.links)]
    return MatchedLabels(names, digest.hexdigest(), others, of_another_ending)


def _check_orientation(label: tuple[int, int], image: Sequence[int]) -> None:
    # a parser may make any picture square, but no upright one wide
    (label_height, label_width), (height, width) = label, image
    label_aspect, aspect = label_height / label_width, height / width
    if min(label_aspect, 1 / aspect) > MAX_STRETCH or min(1 / label_aspect, aspect) > MAX_STRETCH:
        raise confidences.InvalidLabel(
            f"{label_height} x {label_width} (height x width), but its image is {height} x {width}: "
            "transposed or turned"
        )


def _shared_labels(keys: Iterable[str], matches: list[list[str]]) -> list[str]:
    # x.npy for x.jpg and x.png, or for a/x.jpg and b/x.jpg; two splits may share it, as they may share images
    users: dict[tuple[str, str], list[str]] = {}
    for key, match in zip(keys, matches, strict=True):
        for name in match:
            users.setdefault((name, key.split("/")[0]), []).append(key)
    return [f"{name}: {' and '.join(shorten(keys, 3))}" for (name, _), keys in users.items() if len(keys) > 1]


def _unlabelled_splits(keys: Iterable[str], matches: list[list[str]]) -> set[str]:
    # splits without a single label: their folder is misspelt, rather than all images without a person
    labelled = {key.split("/")[0] for key, match in zip(keys, matches, strict=True) if match}
    return {key.split("/")[0] for key in keys} - labelled


def _search_report(
    settings: ExternalLabels, faults: dict[str, list[str]], names: list[str], encoding: str
) -> str:
    missing = faults["missing"] + faults["of another ending"]
    splits = [split for split in SPLITS if any(key.startswith(f"{split}/") for key in missing)]
    if not splits:
        return ""
    patterns = " or ".join(f"NAME{suffix}" for suffix in settings.suffixes())
    folders = ", ".join(f"{getattr(settings.folders, split)}/ for {split}" for split in splits)
    endings = tally(PurePosixPath(name).suffix or "no ending" for name in names)
    return (
        f"\nLooked for {patterns} in {folders}. {settings.path} holds {plural(len(names), 'file')}"
        + (f" ({endings}), such as {', '.join(names[:2])}." if names else ".")
        + (f"\n{encoding}." if encoding else "")
    )


def _fault_report(settings: ExternalLabels, faults: dict[str, list[str]], images: int, section: str) -> str:
    lines = []
    for kind, items in faults.items():
        if items:
            lines.append(f"  {len(items)} {kind}:\n    " + "\n    ".join(shorten(items)))
    remedy = f"Repair them, or correct {section} in params.yaml (folders: where the labels of a split lie)."
    if faults["missing"] and settings.missing == "nobody":
        remedy += f" {section}.missing: nobody is for single images, not for all of a split."
    elif faults["missing"]:
        remedy += f" {section}.missing: nobody takes missing ones for images without a person."
    if faults["of another ending"]:
        remedy += f" Save labels as {' or '.join(settings.suffixes())}."
    if any(key.startswith(OCCLUDED_PREFIX) for key in faults["missing"]):
        remedy += (
            f" `python -m pipeline.indexing unpack DATASET FOLDER` writes the pictures of {OCCLUDED_PREFIX}."
        )
    return (
        f"{settings.path}: no usable label for {sum(map(len, faults.values()))} of "
        f"{plural(images, 'image')}; nothing was written.\n" + "\n".join(lines) + f"\n{remedy}"
    )


def describe(labels: MatchedLabels) -> str:
    """Lines for the user: how many images, labels, missing labels and other files there are."""
    images, missing = len(labels.names), labels.missing
    left_out, *lines = kinds.left_out_lines(labels.left_out)
    if labels.similar:
        lines.append(
            f"{len(labels.similar)} of those missing may have a label of another ending, which is not read: "
            + ", ".join(shorten(labels.similar))
        )
    counts = f"{plural(images, 'image')}: {plural(images - missing, 'label')}, {missing} missing; {left_out}"
    return "\n".join([counts, *lines])


# ------------------------------------------------------------------ converting labels


class LabelConverter:
    """Converts the labels of any range of rows to parsing maps; each worker has its own.

    `names` are the labels' files, `sizes` are height and width of each image.
    """

    def __init__(
        self,
        names: list[str],
        sizes: Integer[np.ndarray, "N 2"],
        settings: ExternalLabels,
        rule: parsing.Parse,
    ):
        self.files = open_files(settings.path, settings.names)
        self.names, self.sizes, self.settings, self.rule = names, sizes, settings, rule

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of parsing.h5 for rows start..stop: map, status, instance, margin.

        No target was selected here: `instance` is -1 and `margin` is nan.
        """
        maps = np.stack([self.map(row) for row in range(start, stop)])
        empty = ~maps.any((1, 2))
        return {
            "map": maps,
            "status": np.where(empty, parsing.NO_PERSON, parsing.OK).astype(np.uint8),
            "instance": np.full(len(maps), -1, np.int8),
            "margin": np.full(len(maps), np.nan, np.float32),
        }

    def map(self, row: int) -> UInt8[np.ndarray, "H W"]:
        """The parsing map of one image; all background without a label."""
        name = self.names[row]
        if not name:
            return np.zeros(self.rule.grid, np.uint8)
        label = self.settings.read(self.files.read(name), name)
        if self.settings.source == "bpbreid":
            height, width = self.sizes[row].tolist()
            return confidences.fuse(label, (height, width), self.rule)
        codes = label_maps.class_codes(self.settings.source, self.settings.classes)[label]
        return label_maps.resize_map(label_maps.assign_sides(codes), self.rule.grid)
