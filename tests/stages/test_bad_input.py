"""Bad input, as a user meets it: one message that names file, value and remedy, and nothing left behind.

Each row breaks one thing in a folder where the stage would work, and says what the user reads.  The modules'
own tests cover each fault more closely; `-S lamda=10`, which DVC itself refuses, is in `test_pipeline.py`.
"""

import io
import pickle
import re
import resource
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.core.cli import run_stage
from pipeline.core.label_file import write_label_file
from stages import index, label, parse, pose, segment
from tests.indexing.test_build import people, picture, zipped
from tests.indexing.test_layouts import files_of

PARAMS = (Path(__file__).parents[2] / "params.yaml").read_text()
WEIGHTS = Path(__file__).parents[2] / "models" / "embedded"
QUERY = "set/query/0001_c1s1_000001_00.jpg"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which `index`, `segment`, `pose`, `parse` and `label` work."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS.replace("workers: 0 ", "workers: 1 "))
    zipped(tmp_path / "raw.zip", people())
    return tmp_path


INDEX = index.main, ["folders", "raw.zip", "out/index.parquet", "out/images.h5", "out/truth.h5"]
MARKET = index.main, ["market1501", *INDEX[1][1:]]
SEGMENT = segment.main, ["index.parquet", "images.h5", "weights.safetensors", "out/instances.h5"]
POSE = pose.main, ["index.parquet", "images.h5", "weights.safetensors", "out/fields.h5"]
PARSE = parse.main, ["index.parquet", "instances.h5", "fields.h5", "out/parsing.h5"]
LABEL = label.main, ["parsing.h5", "out/occlusion.h5"]


def images(**changes):
    """Another archive: files by name, None to leave one out."""

    def breaks():
        files = people() | {name.replace("__", "/"): content for name, content in changes.items()}
        zipped(Path("raw.zip"), {name: content for name, content in files.items() if content is not None})

    return breaks


def setting(old, new):
    """Another line in params.yaml, with all that the stage reads."""

    def breaks():
        indexed(), parsed()
        text = Path("params.yaml").read_text()
        assert old in text
        Path("params.yaml").write_text(text.replace(old, new))

    return breaks


def indexed():
    run_stage(index.main, ["folders", "raw.zip", "index.parquet", "images.h5", "truth.h5"])


def parsed(rows=5):
    maps = np.random.default_rng(0).integers(0, 9, (rows, 32, 32)).astype(np.uint8)
    write_label_file("parsing.h5", "parsing", {"map": maps}, {"index": "a"})


def weights(write):
    """Weights that are not the stage's, beside an index and images that are."""

    def breaks():
        indexed()
        write("weights.safetensors")

    return breaks


def of_another_index():
    indexed()
    for name, kind in (("instances.h5", "instances"), ("fields.h5", "fields")):
        write_label_file(name, kind, {"found": np.zeros(5, np.int64)}, {"index": "0123456789"})


def corrupted():
    parsed()
    with h5py.File("parsing.h5") as file:
        place = file["map"].id.get_chunk_info(2).byte_offset
    with open("parsing.h5", "r+b") as file:
        file.seek(place + 20)
        file.write(b"\xff" * 40)


def an_empty_dataset():
    zipped(Path("raw.zip"), {"set/readme.txt": b"nothing here"})


def a_folder():
    Path("raw.zip").unlink()
    Path("raw.zip").mkdir()


def two_of_a_key():
    files = people()
    zipped(Path("raw.zip"), files | {"other/" + QUERY.removeprefix("set/"): files[QUERY]})


def no_query():
    zipped(Path("raw.zip"), {name: content for name, content in people().items() if "/query/" not in name})


def another_set(tree):
    def breaks():
        zipped(Path("raw.zip"), files_of(tree))

    return breaks


def half_unpacked():
    zipped(Path("raw.zip"), {"data/Market-1501-v15.09.15.zip": b"PK", "data/readme.txt": b"x"})


def a_rar():
    Path("raw.zip").write_bytes(b"Rar!\x1a\x07")


def names_in_latin_1():
    with tarfile.open("raw.zip", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as target:
        for name, content in (people() | {QUERY[:-4] + " été.jpg": picture(9)}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))


def one_camera():
    files = {name.replace("_c3s2_", "_c1s2_"): content for name, content in people().items()}
    zipped(Path("raw.zip"), files)


def other_people():
    files = {name.replace("test/0001", "test/0008"): content for name, content in people().items()}
    zipped(Path("raw.zip"), files)


BAD = {
    "another set in the same folders": (
        another_set("dukemtmc_reid"),
        MARKET,
        r"raw\.zip: 3 faults.*train: 1 image \(published: 12936\), .*gallery: 2 images \(published: 15913"
        r"\), 1 identity \(published: 750\), 2 cameras \(published: 6\)\. `index\.counts: warn`",
    ),
    "another set in other folders": (
        another_set("occluded_reid"),
        MARKET,
        r"no folder bounding_box_train/.*The archive holds Occluded_REID/Readme\.txt, .*whole_body_images",
    ),
    "a folder packed before it was unpacked": (
        half_unpacked,
        MARKET,
        r"no folder query/.*The archive holds data/Market-1501-v15\.09\.15\.zip, data/readme\.txt",
    ),
    "a RAR archive": (a_rar, INDEX, r"raw\.zip: a RAR archive.*Unpack it.*pipeline\.indexing pack"),
    "names in an old encoding": (
        names_in_latin_1,
        INDEX,
        r"0001_c1s1_000001_00 .*jpg': the name is not UTF-8",
    ),
    "one camera for all": (one_camera, INDEX, r"by its query's own camera.*leave cameras unknown"),
    "a gallery of other people": (other_people, INDEX, r"no identity of query is in gallery"),
    "a truncated image": (images(**{QUERY: picture(3)[:-200]}), INDEX, r"0001_c1s1_000001_00\.jpg"),
    "a zero-byte image": (images(**{QUERY: b""}), INDEX, r"0001_c1s1_000001_00\.jpg"),
    "a text named .jpg": (images(**{QUERY: b"hello"}), INDEX, r"0001_c1s1_000001_00\.jpg"),
    "two images with one key": (
        two_of_a_key,
        INDEX,
        r"query/0001_c1s1_000001_00\.jpg: 2 images of a split have this name \(other/query/.*, set/query/",
    ),
    "an empty dataset": (an_empty_dataset, INDEX, r"bounding_box_train"),
    "no query folder": (no_query, INDEX, r"query"),
    "a name that does not parse": (images(**{"set/query/me.jpg": picture(8)}), INDEX, r"query/me\.jpg"),
    "a folder for an archive": (a_folder, INDEX, r"raw\.zip.*pipeline\.indexing pack"),
    "labels of another index": (
        of_another_index,
        PARSE,
        r"instances\.h5: made for another index.*dvc checkout",
    ),
    "a corrupted chunk": (corrupted, LABEL, r"parsing\.h5: 'map', rows from 0: .*dvc checkout"),
    "a missing file": (lambda: None, LABEL, r"parsing\.h5: no such file.*dvc pull"),
    "a batch of more people than are trained on": (
        setting("train_on: embedded", "train_on: out"),
        INDEX,
        r"params\.yaml: train\.identities = 16, but out has \d training identities\. Set it to \d or less",
    ),
    "a detector of another architecture": (
        weights(lambda name: save_file({"fc.weight": torch.zeros(2, 2)}, name)),
        SEGMENT,
        r"weights\.safetensors: made for another network: .* segment\.weights",
    ),
    "PifPaf's weights for Mask R-CNN": (
        weights(lambda name: Path(name).write_bytes((WEIGHTS / "pose.safetensors").read_bytes())),
        SEGMENT,
        r"weights\.safetensors: made for another network: .* segment\.weights",
    ),
    "Mask R-CNN's weights for PifPaf": (
        weights(lambda name: Path(name).write_bytes((WEIGHTS / "segmentation.safetensors").read_bytes())),
        POSE,
        r"weights\.safetensors: made for another network: .* pose\.weights",
    ),
    "a pickle that is no checkpoint": (
        weights(lambda name: Path(name).write_bytes(pickle.dumps({"a": print}))),
        SEGMENT,
        r"weights\.safetensors",
    ),
    "a misspelt parameter": (
        setting("  strict: true", "  strickt: true"),
        LABEL,
        r"params\.yaml: label\.strickt is not a parameter; did you mean 'strict'",
    ),
    "a parameter of the wrong type": (
        setting("  strict: true", "  strict: 3"),
        LABEL,
        r"params\.yaml: label\.strict = 3",
    ),
    "a parameter out of range": (setting("  parts: 4", "  parts: 9"), LABEL, r"label\.parts = 9"),
    "a threshold that is no number": (setting("lambda: 5", "lambda: five"), LABEL, r"lambda = 'five'"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_stage_names_what_is_wrong_and_leaves_nothing(folder, fault):
    breaks, (main, words), message = BAD[fault]
    breaks()
    with pytest.raises(SystemExit) as end:
        run_stage(main, words)
    assert isinstance(end.value.code, str)  # exit status 1, the message on stderr
    assert re.search(message, end.value.code, re.DOTALL), end.value.code
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize("stage", [INDEX, LABEL], ids=["index", "label"])
def test_a_full_disk_leaves_nothing_either(folder, stage):
    parsed(64)
    main, words = stage
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(SystemExit, match=r"disk is full or over quota\. Free some space and run again"):
            run_stage(main, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize("stage", [INDEX, LABEL], ids=["index", "label"])
def test_what_works_leaves_its_files(folder, stage):
    parsed()
    main, words = stage
    run_stage(main, words)
    assert sorted(f"out/{path.name}" for path in Path("out").iterdir()) == sorted(
        words[2 if main is index.main else 1 :]
    )
