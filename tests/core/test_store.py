"""Label files: whole or not at all, the same bytes always, damage and mix-ups named."""

import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.core.resumable import compute_rows, resumable_folder
from pipeline.model.backbones import save_vit
from pipeline.pretraining.fit import _keep
from pipeline.training import checkpoint
from pipeline.training.loop import Loop
from stages import train
from tests import toy

ATTRS = {"index": "abc", "parts": ["head", "legs"]}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".scratch"


def drawn(count):
    """`count` images' worth of rows: a map of 2 kB each, features of 1.2 kB, and a number."""
    rng = np.random.default_rng(count)
    return {
        "map": rng.integers(0, 9, (count, 64, 32), np.uint8),
        "number": np.arange(count, dtype=np.int32),
        "part": rng.random((count, 300), np.float32),
    }


def slowly_drawn(count, pause, start, stop):
    time.sleep(pause)
    return {name: array[start:stop] for name, array in drawn(count).items()}


def maker(count, pause=0.0):
    return partial(slowly_drawn, count, pause)


def failing(start, stop):
    raise BadInput("weights.pth: not a checkpoint.")


def compute(path, count=300, batch=8, workers=1, pause=0.0):
    compute_rows(path, "maps", count, batch, partial(maker, count, pause), ATTRS, workers, {"size": 1})
    return Path(path).read_bytes()


def test_what_is_written_is_read_row_by_row(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(5), ATTRS)
    rows = LabelFile(tmp_path / "a.h5", "maps", "abc")
    assert (rows["map"][3] == drawn(5)["map"][3]).all() and (rows["number"][:] == range(5)).all()
    assert rows.attrs["parts"] == ["head", "legs"] and rows.names() == ["map", "number", "part"]
    assert (rows["part"][1:3] == drawn(5)["part"][1:3]).all()


def test_computing_equals_writing_at_once_to_the_byte(tmp_path):
    write_label_file(tmp_path / "once.h5", "maps", drawn(300), ATTRS)
    assert compute(tmp_path / "shards.h5") == (tmp_path / "once.h5").read_bytes()


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    assert compute(tmp_path / "a.h5", workers=1) == compute(tmp_path / "b.h5", workers=2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5))
def test_the_content_hash_is_that_of_the_decoded_rows(count, width):
    arrays = {"a": np.arange(count * width, dtype=np.int16).reshape(count, width)}
    rows = b"".join(hashlib.sha256(row.tobytes()).digest() for row in arrays["a"])
    path = Path(os.environ["DVC_ROOT"]) / "content.h5"
    write_label_file(path, "numbers", arrays, ATTRS)
    assert LabelFile(path).attrs["content"] == hashlib.sha256(rows).hexdigest()


def script(tmp_path, pause):
    text = "import sys; from tests.test_store import compute; compute(sys.argv[1], 640, workers=2, pause=%s)"
    return [sys.executable, "-c", text % pause, str(tmp_path / "killed.h5")]


def test_a_killed_run_leaves_no_file_and_loses_at_most_a_shard_a_worker(tmp_path, scratch):
    run = subprocess.Popen(script(tmp_path, 0.03))
    deadline = time.monotonic() + 300
    while len(list(scratch.glob("*/0*.h5"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = {p: p.stat().st_mtime_ns for p in scratch.glob("*/0*.h5")}
    assert len(kept) >= 2 and not (tmp_path / "killed.h5").exists()
    again = subprocess.Popen(script(tmp_path, 0.03), stderr=subprocess.PIPE, text=True)
    unchanged = True
    while again.poll() is None:
        unchanged &= all(p.stat().st_mtime_ns == t for p, t in kept.items() if p.exists())
        time.sleep(0.05)
    assert again.returncode == 0 and unchanged, again.stderr.read()
    write_label_file(tmp_path / "once.h5", "maps", drawn(640), ATTRS)
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "once.h5").read_bytes()


def test_an_error_keeps_the_finished_shards(tmp_path, scratch):
    with pytest.raises(BadInput):
        compute_rows(tmp_path / "a.h5", "maps", 300, 8, partial(half_failing, 300), ATTRS, 1, {})
    assert len(list(scratch.glob("*/0*.h5"))) == 2


def half_failing(count):
    def run(start, stop):
        if start >= 256:
            raise BadInput("row 256: broken.")
        return maker(count)(start, stop)

    return run


def test_a_fault_in_a_worker_reaches_the_user_as_it_is(tmp_path):
    with pytest.raises(BadInput, match=r"weights\.pth: not a checkpoint"):
        compute_rows(tmp_path / "a.h5", "maps", 9, 3, make_failing, ATTRS, 2, {})
    assert not (tmp_path / "a.h5").exists()


def make_failing():
    return failing


def test_of_many_runs_of_the_same_work_one_is_at_it_at_a_time(scratch):
    inside, most = [], []

    def run(number):
        for _ in range(20):
            with resumable_folder("maps", ["the same"]) as folder:
                inside.append(number)
                most.append(len(inside))
                (folder / "shard").touch()
                time.sleep(0.001)
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert max(most) == 1 and len(most) == 160 and list(scratch.iterdir()) == []


def state_of_a_training(folder):
    running = Loop(toy.model(), toy.schedule(), torch.device("cpu"))
    running.log.append({"step": 0})
    checkpoint.Checkpoints(folder, 0.0).step(running, {}, None)


def table(folder):
    with atomic_write(folder / "a.parquet") as beside:
        pd.DataFrame(drawn(64)["part"]).to_parquet(beside)


WRITERS = {  # what writes more than 20 kB into a folder
    "label file": lambda folder: write_label_file(folder / "a.h5", "maps", drawn(64), ATTRS),
    "weights": lambda folder: save_vit(folder / "vit.safetensors", toy.encoder(), {}),
    "trained model": lambda folder: train.save(
        str(folder / "model"), str(folder / "log.csv"), toy.model(), {}, pd.DataFrame()
    ),
    "state of a training": state_of_a_training,
    "state of a pretraining": lambda folder: _keep(folder / "state.pt", 1, [], *[toy.encoder()] * 3),
    "table": table,
}


@pytest.mark.parametrize("left", [0, 500, 20_000])
@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, what, left):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        with pytest.raises(BadInput, match=f"{tmp_path}/.*: the disk is full or over quota. Free some"):
            WRITERS[what](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["log.jsonl"])


@pytest.mark.parametrize("size", [0, 100, 2_000, 20_000])
def test_a_process_that_met_a_full_disk_ends_in_order(tmp_path, size):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(size), str(tmp_path / "a.h5")], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr == f"{tmp_path / 'a.h5'}: the disk is full or over quota. " + (
        "Free some space and run again; what was finished before is kept.\n"
    )


FULL_DISK = """
import resource, sys
from pipeline import store
from tests.test_store import ATTRS, drawn

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
cli.run_stage(lambda path: label_file.write_label_file(path, "maps", drawn(64), ATTRS), sys.argv[2:])
"""


def test_an_error_leaves_the_old_file_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/kept.txt").touch()
    with (
        pytest.raises(BadInput, match=r"models: is a folder.*Name a file in it"),
        atomic_write(tmp_path / "models") as beside,
    ):
        beside.write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "kept.txt"]


def test_all_that_a_folder_holds_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
    )
    with atomic_write(tmp_path / "model") as beside:
        (beside / "in").mkdir(parents=True)
        (beside / "in/weights").touch()
    assert set(synced[:-2]) == {"in", "weights"} and synced[-1] == tmp_path.name


def test_what_a_killed_run_left_beside_goes_and_what_a_living_one_writes_stays(tmp_path):
    host = socket.gethostname()
    names = [
        f".a.h5.{host}.{2**22 + 1}.part",
        f".a.h5.{host}.1.part",
        ".a.h5.elsewhere.7.part",
        f".b.h5.{host}.7.part",
    ]
    for name in names:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.h5") as beside:
        beside.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5", *names[1:]}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with atomic_write(tmp_path / "model") as beside:
            beside.mkdir()
            (beside / text).write_text(text)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def test_packed_blobs_come_back_byte_for_byte(tmp_path):
    blobs = [b"abc", b"", bytes(range(256)) * 300]
    write_packed(tmp_path / "a.h5", "images", iter(blobs), np.array([len(b) for b in blobs]), ATTRS)
    rows = LabelFile(tmp_path / "a.h5", "images")
    offset = rows["offset"][:]
    assert [rows["data"][a:b].tobytes() for a, b in pairwise(offset)] == blobs


# ------------------------------------------------------------------ bad files


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(BadInput, match=r"a\.h5: no such file.*dvc pull"):
        LabelFile(tmp_path / "a.h5")


def test_a_file_of_another_index_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(2), ATTRS)
    with pytest.raises(BadInput, match=r"made for another index.*dvc checkout"):
        LabelFile(tmp_path / "a.h5", "maps", "xyz")


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(2), ATTRS)
    with pytest.raises(BadInput, match="holds 'maps', not 'fields'"):
        LabelFile(tmp_path / "a.h5", "fields")


def test_a_file_of_another_format_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(2), ATTRS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["format"] = 99
    with pytest.raises(BadInput, match="format 99"):
        LabelFile(tmp_path / "a.h5")


def test_a_text_file_is_no_label_file(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(BadInput, match=r"a\.h5: cannot be read"):
        LabelFile(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["map", "part"])
def test_a_corrupted_chunk_is_named_with_file_and_row(tmp_path, name):
    write_label_file(tmp_path / "a.h5", "maps", drawn(4), ATTRS)
    with h5py.File(tmp_path / "a.h5") as file:
        chunk = file[name].id.get_chunk_info(2)
    with open(tmp_path / "a.h5", "r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(b"\0\1\2\3")
    rows = LabelFile(tmp_path / "a.h5")
    assert (rows[name][1] == drawn(4)[name][1]).all()
    with pytest.raises(BadInput, match=rf"a\.h5: '{name}', row 2: .*dvc checkout"):
        rows[name][2]


def test_a_missing_dataset_is_named_with_those_there_are(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(2), ATTRS)
    with pytest.raises(BadInput, match=r"holds no 'mask', only map, number"):
        LabelFile(tmp_path / "a.h5")["mask"]


# ------------------------------------------------------------------ processes


def first_number(rows):
    return int(rows["number"][1])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_reader_works_in_other_processes(tmp_path, method):
    write_label_file(tmp_path / "a.h5", "maps", drawn(3), ATTRS)
    rows = LabelFile(tmp_path / "a.h5")
    assert first_number(rows) == 1  # the handle is open here before the others start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(first_number, [rows, rows]) == [1, 1]


def test_a_pickled_reader_takes_no_handle_along(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", drawn(3), ATTRS)
    rows = LabelFile(tmp_path / "a.h5")
    first_number(rows)
    assert first_number(pickle.loads(pickle.dumps(rows))) == 1


def test_bad_input_ends_a_stage_with_its_message_and_status_1(capsys):
    def stage(path):
        raise BadInput(f"{path}: empty.")

    with pytest.raises(SystemExit) as error:
        run_stage(stage, ["a.h5"])
    assert error.value.code == "a.h5: empty."
    with pytest.raises(SystemExit, match="usage: path"):
        run_stage(stage, [])
