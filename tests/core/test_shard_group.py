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

import pytest

from pipeline.core import resumable
from pipeline.core.label_file import write_label_file
from pipeline.core.resumable import ShardGroup, resumable_folder
from tests.core.rows import ATTRS, BATCH, compute_batch, compute_file, random_rows

COUNT = 640  # rows, in five shards


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".scratch"


@pytest.fixture
def expected(tmp_path):
    """The bytes of the file as one process writes it at once."""
    write_label_file(tmp_path / "expected.h5", "maps", random_rows(COUNT), ATTRS)
    return (tmp_path / "expected.h5").read_bytes()


class ThreadGroup:
    """The processes of a group, as threads of this one; a queue to each carries what rank 0 broadcasts."""

    def __init__(self, world_size):
        self.queues = [queue.Queue() for _ in range(world_size)]
        self.threads = ThreadPoolExecutor(world_size)
        self.waiting, self.sent = threading.Event(), threading.Event()

    def broadcast(self, rank, value):
        if rank > 0:
            self.waiting.set()
            return self.queues[rank].get(timeout=300)
        self.sent.set()
        for receiver in self.queues[1:]:
            receiver.put(value)
        return value

    def start(self, path, workers=1):
        size = len(self.queues)
        groups = [ShardGroup(rank, size, partial(self.broadcast, rank)) for rank in range(size)]
        return [self.threads.submit(compute_file, path, COUNT, workers, group=group) for group in groups]


def finish(futures):
    for future in futures:
        future.result(timeout=300)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, expected, scratch, world_size):
    finish(ThreadGroup(world_size).start(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == expected and not list(scratch.iterdir())


@pytest.fixture
def in_this_process(monkeypatch):
    """Shards are computed here, without workers; a list of how many workers each process asks for."""
    asked = []

    def run_workers(shards, batch, make, workers, name):
        asked.append(workers)
        for start, stop, path in shards:
            resumable._compute_shard(start, stop, batch, path)
            yield

    monkeypatch.setattr(resumable, "_run_workers", run_workers)
    monkeypatch.setattr(resumable, "_compute", partial(compute_batch, COUNT, 0))
    return asked


def test_processes_beyond_the_number_of_missing_shards_do_nothing(tmp_path, expected, in_this_process):
    with pytest.raises(ZeroDivisionError), resumable_folder("maps", [COUNT, BATCH, ATTRS]) as folder:
        for start in range(0, COUNT - 128, 128):  # all but the last
            resumable._compute_shard(start, start + 128, BATCH, folder / f"{start:09d}.h5")
        _ = 1 / 0
    finish(ThreadGroup(3).start(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == expected


@pytest.mark.parametrize(("workers", "each"), [(1, 1), (4, 2), (5, 2), (0, 3)])
def test_workers_are_divided_among_the_processes(tmp_path, monkeypatch, in_this_process, workers, each):
    monkeypatch.setattr(resumable, "num_cores", lambda: 6)
    finish(ThreadGroup(2).start(tmp_path / "a.h5", workers))
    assert in_this_process == [each, each]


def test_a_group_waits_for_another_run_of_the_same_work(tmp_path, expected):
    group = ThreadGroup(2)
    with resumable_folder("maps", [COUNT, BATCH, ATTRS]) as folder:
        futures = group.start(tmp_path / "a.h5")
        assert group.waiting.wait(60) and not group.sent.wait(0.3) and not list(folder.iterdir())
    finish(futures)
    assert (tmp_path / "a.h5").read_bytes() == expected


# ------------------------------------------------------------------ by torchrun

SCRIPT = """
import os, sys
from pathlib import Path
from tests.core.rows import compute_file
if __name__ == "__main__":  # workers import this file, too
    from pipeline.core.distributed import shard_group
    with shard_group() as group:
        Path(f"{sys.argv[1]}.{group.rank}").write_text(str(os.getpid()))
        compute_file(sys.argv[1], 640, pause=float(sys.argv[2]), group=group)
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(tmp_path, *launcher, pause):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, *launcher, str(script), str(tmp_path / "a.h5"), str(pause)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": "."})


def shards(scratch):
    return {path: path.stat().st_mtime_ns for path in scratch.glob("*/0*.h5")}


def ended(pid):
    """Whether a process is gone, or only its status is left to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def start_two(tmp_path, scratch):
    """torchrun, and the ids of its two processes, as soon as there are shards."""
    run = start(tmp_path, *TORCHRUN, pause=0.1)
    wait_until(lambda: len(shards(scratch)) >= 2)
    return run, *(int((tmp_path / f"a.h5.{rank}").read_text()) for rank in (0, 1))


@pytest.mark.slow
def test_all_end_if_torchrun_itself_is_killed(tmp_path, scratch):
    run, first, second = start_two(tmp_path, scratch)
    run.kill()
    wait_until(lambda: ended(first) and ended(second))
    assert run.wait() != 0 and shards(scratch) and not (tmp_path / "a.h5").exists()


@pytest.mark.slow
def test_a_killed_process_stops_all_and_the_next_run_continues_from_their_shards(tmp_path, scratch, expected):
    run, first, second = start_two(tmp_path, scratch)
    os.kill(second, signal.SIGKILL)
    assert run.wait(60) != 0 and ended(first)
    kept = shards(scratch)
    assert 2 <= len(kept) < 5 and not (tmp_path / "a.h5").exists()
    again, unchanged = start(tmp_path, pause=0.02), True  # alone
    while again.poll() is None:
        unchanged &= all(path.stat().st_mtime_ns == kept[path] for path in kept if path.exists())
        time.sleep(0.02)
    assert again.returncode == 0 and unchanged
    assert (tmp_path / "a.h5").read_bytes() == expected and not list(scratch.iterdir())
