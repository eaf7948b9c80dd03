"""Several processes share the shards of one file: the bytes of one process, one lock, all or nothing."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import resumable
from pipeline.core import workers as workers_module
from pipeline.core.label_file import write_label_file
from pipeline.core.resumable import (
    ShardGroup,
    _compute_shard,
    compute_rows,
    resumable_folder,
)

COUNT, BATCH, ATTRS, KEY = 640, 8, {"index": "abc"}, {"size": 1}  # five shards
DRAWN = {"number": np.arange(COUNT, dtype=np.int32), "map": np.arange(COUNT * 512).reshape(COUNT, 512)}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".scratch"


@pytest.fixture
def wanted(tmp_path):
    """The file as one process writes it at once."""
    write_label_file(tmp_path / "wanted.h5", "maps", DRAWN, ATTRS)
    return (tmp_path / "wanted.h5").read_bytes()


def take(pause, start, stop):
    time.sleep(pause)
    return {name: array[start:stop] for name, array in DRAWN.items()}


def compute(path, group, workers=1, pause=0.0):
    make = partial(partial, take, pause)
    compute_rows(path, "maps", COUNT, BATCH, make, ATTRS, workers, KEY, group=group)


class Members:
    """The processes of a team, as threads of this one; what the first says goes to each by a queue."""

    def __init__(self, count):
        self.lines = [queue.Queue() for _ in range(count)]
        self.threads = ThreadPoolExecutor(count)
        self.waiting, self.told = threading.Event(), threading.Event()

    def from_first(self, number, value):
        if number > 0:
            self.waiting.set()
            return self.lines[number].get(timeout=300)
        self.told.set()
        for line in self.lines[1:]:
            line.put(value)
        return value

    def start(self, path, workers=1):
        teams = [ShardGroup(n, len(self.lines), partial(self.from_first, n)) for n in range(len(self.lines))]
        return [self.threads.submit(compute, path, team, workers) for team in teams]


def finish(futures):
    for future in futures:
        future.result(timeout=300)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, wanted, scratch, count):
    finish(Members(count).start(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == wanted and not list(scratch.iterdir())


def test_more_processes_than_shards_are_missing_find_nothing_to_do(tmp_path, wanted, scratch):
    with pytest.raises(ZeroDivisionError), resumable_folder("maps", [COUNT, BATCH, ATTRS, KEY]) as folder:
        for start in range(0, COUNT - 128, 128):  # all but the last
            _make_compute, _compute = None, partial(take, 0)
            _compute_shard(start, start + 128, BATCH, folder / f"{start:09d}.h5")
        _ = 1 / 0
    finish(Members(3).start(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == wanted


@pytest.mark.parametrize(("workers", "each"), [(1, 1), (4, 2), (5, 2), (0, 3)])
def test_workers_are_shared_out(tmp_path, monkeypatch, workers, each):
    asked = []

    def finished(shards, batch, make, workers, name):
        asked.append(workers)
        for start, stop, path in shards:
            _compute_shard(start, stop, batch, path)
            yield

    monkeypatch.setattr(workers_module, "num_cores", lambda: 6)
    monkeypatch.setattr(resumable, "_run_workers", finished)
    monkeypatch.setattr(resumable, "_compute", partial(take, 0))
    finish(Members(2).start(tmp_path / "a.h5", workers))
    assert asked == [each, each]


def test_a_team_waits_for_another_run_of_the_same_work(tmp_path, wanted):
    team = Members(2)
    with resumable_folder("maps", [COUNT, BATCH, ATTRS, KEY]) as folder:
        futures = team.start(tmp_path / "a.h5")
        assert team.waiting.wait(60) and not team.told.wait(0.3) and not list(folder.iterdir())
    finish(futures)
    assert (tmp_path / "a.h5").read_bytes() == wanted


# ------------------------------------------------------------------ by torchrun

SCRIPT = """
import os, sys
from pathlib import Path
from tests.test_shares import compute
if __name__ == "__main__":  # workers import this file, too
    from pipeline import processes
    with distributed.shard_group() as group:
        Path(f"{sys.argv[1]}.{group.rank}").write_text(str(os.getpid()))
        compute(sys.argv[1], group, pause=float(sys.argv[2]))
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def started(tmp_path, *before, pause):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, *before, str(script), str(tmp_path / "a.h5"), str(pause)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": "."})


def shards(scratch):
    return {path: path.stat().st_mtime_ns for path in scratch.glob("*/0*.h5")}


def ended(number):
    """Whether a process is gone, or only its status is left to be read."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert happened()


def at_work(tmp_path, scratch):
    """torchrun, and the numbers of its two processes, as soon as there are shards."""
    run = started(tmp_path, *TORCHRUN, pause=0.1)
    until(lambda: len(shards(scratch)) >= 2)
    return run, *(int((tmp_path / f"a.h5.{n}").read_text()) for n in (0, 1))


def test_all_end_if_torchrun_itself_is_killed(tmp_path, scratch):
    run, first, second = at_work(tmp_path, scratch)
    run.kill()
    until(lambda: ended(first) and ended(second))
    assert run.wait() != 0 and shards(scratch) and not (tmp_path / "a.h5").exists()


def test_one_that_is_killed_ends_all_and_the_next_run_goes_on_from_their_shards(tmp_path, scratch, wanted):
    run, first, second = at_work(tmp_path, scratch)
    os.kill(second, signal.SIGKILL)
    assert run.wait(60) != 0 and ended(first)
    kept = shards(scratch)
    assert 2 <= len(kept) < 5 and not (tmp_path / "a.h5").exists()
    again, unchanged = started(tmp_path, pause=0.02), True  # alone
    while again.poll() is None:
        unchanged &= all(path.stat().st_mtime_ns == kept[path] for path in kept if path.exists())
        time.sleep(0.02)
    assert again.returncode == 0 and unchanged
    assert (tmp_path / "a.h5").read_bytes() == wanted and not list(scratch.iterdir())
