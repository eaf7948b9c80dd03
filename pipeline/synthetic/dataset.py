"""The embedded dataset, rendered in parallel into one archive in Market-1501 layout.

A picture depends only on its seed, person, camera and shot, not on the number of workers or the size of the
dataset.
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.core.files import atomic_write
from pipeline.core.label_file import write_label_file
from pipeline.core.params import STRICT, BadInput
from pipeline.core.workers import WorkerPool, num_cores, progress_bar
from pipeline.synthetic.cameras import Camera, spread_cameras
from pipeline.synthetic.contamination import Contamination, sample_contamination
from pipeline.synthetic.people import Person, attribute_classes, sample_person
from pipeline.synthetic.pictures import Picture, compose

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DATE = (2000, 1, 1, 0, 0, 0)  # of every file in the archive, so that its bytes repeat
CHUNK = 16  # pictures in one task of a worker

Truth = dict[str, np.ndarray | np.generic]
"""The truth of one picture: its row of every array of `truth.h5`."""


@dataclass(frozen=True, config=STRICT)
class Render:
    """Size and difficulty of the embedded dataset."""

    seed: int = Field(ge=0)
    train_identities: int = Field(ge=1, le=2000)
    test_identities: int = Field(ge=1, le=2000)
    distractors: int = Field(ge=0, le=4000)  # gallery pictures of people who are in no query
    cameras: int = Field(ge=2, le=8)
    train_shots: int = Field(ge=1, le=20)  # pictures per identity and camera
    gallery_shots: int = Field(ge=1, le=20)  # pictures per identity and camera
    occluded_queries: int = Field(ge=0, le=40)  # pictures per identity
    holistic_queries: int = Field(ge=0, le=40)  # pictures per identity
    train_occluded: float = Field(ge=0, le=1)  # share of the pictures
    gallery_occluded: float = Field(ge=0, le=1)  # share of the pictures
    train_contaminated: float = Field(ge=0, le=1)  # share of the holistic pictures


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture to render."""

    split: str
    pid: int  # 0 for a distractor
    person: int  # number of the person in the population
    camera: int
    number: int  # among the person's pictures by this camera
    occluded: bool

    @property
    def name(self) -> str:
        """Market-1501's file name: identity, camera and sequence, frame, detection."""
        return f"{self.pid:04d}_c{self.camera + 1}s1_{100 * self.person + self.number:06d}_01.jpg"

    @property
    def path(self) -> str:
        """Path in the archive."""
        return f"{FOLDERS[self.split]}/{self.name}"

    @property
    def key(self) -> str:
        """`<split>/<file name>`."""
        return f"{self.split}/{self.name}"


@cache
def population(render: Render) -> tuple[Person, ...]:
    """All people in the order train, test, distractors; any two differ in at least one attribute."""
    rng = np.random.default_rng([render.seed, 1])
    people: dict[tuple[int, ...], Person] = {}
    while len(people) < render.train_identities + render.test_identities + render.distractors:
        person = sample_person(rng)
        people.setdefault(tuple(attribute_classes(person).values()), person)
    return tuple(people.values())


@cache
def _cameras(render: Render) -> tuple[Camera, ...]:
    return tuple(spread_cameras(render.seed, render.cameras))


def shots(render: Render) -> list[Shot]:
    """All pictures of the dataset, sorted by their path in the archive."""
    return sorted([*_train(render), *_queries(render), *_gallery(render)], key=lambda shot: shot.path)


def _is_occluded(render: Render, person: int, camera: int, number: int, share: float) -> bool:
    return bool(np.random.default_rng([render.seed, 2, person, camera, number]).random() < share)


def _train(render: Render) -> Iterator[Shot]:
    for person in range(render.train_identities):
        for camera in range(render.cameras):
            for number in range(render.train_shots):
                occluded = _is_occluded(render, person, camera, number, render.train_occluded)
                yield Shot("train", person + 1, person, camera, number, occluded)


def _test_people(render: Render) -> range:
    return range(render.train_identities, render.train_identities + render.test_identities)


def _queries(render: Render) -> Iterator[Shot]:
    for person in _test_people(render):
        for query in range(render.occluded_queries + render.holistic_queries):
            camera, number = (person + query) % render.cameras, render.gallery_shots + query // render.cameras
            yield Shot("query", person + 1, person, camera, number, query < render.occluded_queries)


def _gallery(render: Render) -> Iterator[Shot]:
    for person in _test_people(render):
        for camera in range(render.cameras):
            for number in range(render.gallery_shots):
                occluded = _is_occluded(render, person, camera, number, render.gallery_occluded)
                yield Shot("gallery", person + 1, person, camera, number, occluded)
    first = render.train_identities + render.test_identities
    for person in range(first, first + render.distractors):
        camera = person % render.cameras
        occluded = _is_occluded(render, person, camera, 0, render.gallery_occluded)
        yield Shot("gallery", 0, person, camera, 0, occluded)


def picture(render: Render, shot: Shot) -> Picture:
    """The picture of a shot; it does not depend on what was rendered before."""
    rng = np.random.default_rng([render.seed, 3, shot.person, shot.camera, shot.number])
    person, camera = population(render)[shot.person], _cameras(render)[shot.camera]
    return compose(rng, person, camera, shot.occluded, contamination(render, shot))


def contamination(render: Render, shot: Shot) -> Contamination | None:
    """What contaminates the picture of a shot; None if it is none of training, or occluded."""
    if shot.split != "train" or shot.occluded:
        return None
    rng = np.random.default_rng([render.seed, 4, shot.person, shot.camera, shot.number])
    return sample_contamination(rng) if rng.random() < render.train_contaminated else None


def _row(work: tuple[Render, Shot]) -> tuple[bytes, Truth]:
    render, shot = work
    rendered = picture(render, shot)
    truth: Truth = {
        "key": np.bytes_(shot.key.encode()),
        "map": rendered.map,
        "person": rendered.person,
        "keypoints": rendered.keypoints,
        "visible": rendered.visible,
        "whole": rendered.whole,
        "occluder": np.uint8(rendered.occluder),
    }
    if render.train_contaminated:
        truth["contaminating"] = rendered.contaminating
    return rendered.jpeg, truth


def _one_thread() -> None:
    cv2.setNumThreads(1)


def rows(render: Render, workers: int) -> Iterator[tuple[bytes, Truth]]:
    """JPEG file and truth of every shot, in the order of `shots`; `workers` 0 means one per core."""
    work = [(render, shot) for shot in shots(render)]
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar(total=len(work), desc="render"))
        for row in _parallel(work, workers or num_cores(), stack):
            progress.update()
            yield row


def _parallel(work: list[tuple[Render, Shot]], workers: int, stack: ExitStack) -> Iterator:
    if workers == 1:
        yield from map(_row, work)
        return
    pool = stack.enter_context(WorkerPool(workers, _one_thread))
    try:
        yield from pool.map(_row, work, chunksize=CHUNK)
    except BrokenProcessPool:
        raise BadInput(
            "render: a worker was killed, most likely for lack of memory. "
            "Lower `workers` in params.yaml and run again."
        ) from None


def write(path: str | Path, render: Render, workers: int) -> None:
    """Render everything into one archive: pictures in Market-1501 layout, and `truth.h5`."""
    truths = []
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for shot, (jpeg, truth) in zip(shots(render), rows(render, workers), strict=True):
            _add(archive, shot.path, jpeg)
            truths.append(truth)
        _add(archive, "truth.h5", _truth_file(truths, render))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, DATE)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _truth_file(truths: list[Truth], render: Render) -> bytes:
    arrays = {name: np.stack([truth[name] for truth in truths]) for name in truths[0]}
    attrs = {"index": keys_hash(arrays["key"].tolist()), "render": dataclasses.asdict(render), "truth": 1}
    with TemporaryDirectory() as folder:
        write_label_file(Path(folder) / "truth.h5", "truth", arrays, attrs, ["opencv-python-headless"])
        return (Path(folder) / "truth.h5").read_bytes()


def keys_hash(keys: Iterable[bytes]) -> str:
    """Hex digest of the keys of the pictures that the truth describes."""
    return sha256(b"\n".join(keys)).hexdigest()
