"""Rows computed by workers: the bytes of one process; a run after a kill continues from the shards."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from pipeline.core.label_file import write_label_file
from pipeline.core.params import BadInput
from pipeline.core.resumable import compute_rows, resumable_folder
from tests.core.rows import ATTRS, compute_file, make_failing, make_failing_from, random_rows


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".scratch"


def test_computing_equals_writing_at_once_to_the_byte(tmp_path):
    write_label_file(tmp_path / "once.h5", "maps", random_rows(300), ATTRS)
    compute_file(tmp_path / "shards.h5")
    assert (tmp_path / "shards.h5").read_bytes() == (tmp_path / "once.h5").read_bytes()


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        compute_file(tmp_path / f"{workers}.h5", workers=workers)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


def test_an_error_keeps_the_finished_shards(tmp_path, scratch):
    with pytest.raises(BadInput):
        compute_rows(tmp_path / "a.h5", "maps", 300, 8, partial(make_failing_from, 256, 300), ATTRS, 1)
    assert len(list(scratch.glob("*/0*.h5"))) == 2


def test_a_fault_in_a_worker_reaches_the_user_as_it_is(tmp_path):
    with pytest.raises(BadInput, match=r"weights\.pth: not a checkpoint"):
        compute_rows(tmp_path / "a.h5", "maps", 9, 3, make_failing, ATTRS, 2)
    assert not (tmp_path / "a.h5").exists()


def test_runs_of_the_same_work_take_turns(scratch):
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


def script(tmp_path, pause):
    text = "import sys; from tests.core.rows import compute_file; compute_file(sys.argv[1], 640, 2, %s)"
    return [sys.executable, "-c", text % pause, str(tmp_path / "killed.h5")]


def test_a_killed_run_leaves_no_file_and_loses_at_most_one_shard_per_worker(tmp_path, scratch):
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
    write_label_file(tmp_path / "once.h5", "maps", random_rows(640), ATTRS)
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "once.h5").read_bytes()
