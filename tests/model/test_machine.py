"""What is known of the machine: its processor, what was measured on it once, the memory that it hands out."""

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model import machine

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MB = 1 << 20


def test_a_cpu_is_known_by_its_instructions(monkeypatch):
    told = {"cpu_name": "EPYC", "fma3": True, "avx2": True, "amx_tile": False, "num_sockets": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **told})
    assert machine.processor(CPU) == "x86_64: avx2 fma3"


# ------------------------------------------------------------------ measured once


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks a question whose answer would be `finds` now; `asked` counts the measurements."""

    def asking(question, finds):
        def measure():
            asking.asked += 1
            return finds

        return machine.remembered(question, CPU, measure)

    asking.asked, asking.folder = 0, tmp_path / "cache" / "of ours"
    monkeypatch.setattr(machine, "folder", lambda: asking.folder)
    return asking


def test_the_first_answer_holds(ask):
    assert [ask("how fast", 1.49), ask("how fast", 1.51), ask("how slow", 0.5)] == [1.49, 1.49, 0.5]
    assert ask.asked == 2
    files = [json.loads(file.read_text()) for file in ask.folder.iterdir()]
    assert sorted((f["question"], f["found"]) for f in files) == [("how fast", 1.49), ("how slow", 0.5)]


@pytest.mark.parametrize("change", [("kind", lambda device: "another"), ("torch.__version__", "3.0")])
def test_another_machine_or_torch_is_asked_anew(ask, monkeypatch, change):
    ask("how fast", 1.0)
    monkeypatch.setattr(f"pipeline.model.machine.{change[0]}", change[1])
    assert ask("how fast", 2.0) == 2.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"found": "fast"}', '{"found": null}', "{}"])
def test_a_damaged_answer_is_measured_anew(ask, text):
    ask("how fast", 1.0)
    next(ask.folder.iterdir()).write_text(text)
    assert [ask("how fast", 2.0), ask("how fast", 3.0)] == [2.0, 2.0]


def test_where_nothing_can_be_written_each_time_is_the_first(ask):
    ask.folder.parent.parent.joinpath("cache").write_text("in the way")
    assert [ask("how fast", 1.0), ask("how fast", 2.0)] == [1.0, 2.0]


def test_without_a_home_nothing_is_written(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask.folder = Path("~/.cache/occluded-reid")
    assert [ask("how fast", 1.0), ask("how fast", 2.0)] == [1.0, 2.0]
    assert list(tmp_path.iterdir()) == []


def test_who_answers_second_takes_the_first_answer(ask):
    def slow():
        ask("how fast", 1.0)  # by another process, meanwhile
        return 2.0

    assert machine.remembered("how fast", CPU, slow) == 1.0
    assert len(list(ask.folder.iterdir())) == 1  # nothing is left beside it


@pytest.mark.parametrize(
    ("variables", "folder"),
    [({"XDG_CACHE_HOME": "/caches"}, "/caches/occluded-reid"), ({"HOME": "/me"}, "/me/.cache/occluded-reid")],
)
def test_answers_lie_in_the_users_folder(monkeypatch, variables, folder):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.folder() == Path(folder)


# ------------------------------------------------------------------ memory

GLIBC = hasattr(ctypes.CDLL(None), "mallopt")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults(size: int) -> int:
    """Pages that the system hands out for a block of some bytes, once there was one: the least of some."""
    counts = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(size, np.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_memory_is_kept_within_and_given_back_after():
    with machine.keep_freed_memory():
        assert faults(256 * MB) < 64  # of its 65,536 pages, or 128 huge ones
        held = resident()
    assert resident() < held - 200 * MB and faults(256 * MB) >= 64


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_afterwards_blocks_of_some_mb_are_kept_as_ever():
    looked = (
        "from pipeline import machine; from tests import test_machine as t\n"
        "with machine.memory_kept(): pass\n"
        "print(t.faults(8 * t.MB))"  # in a process that freed no such block before
    )
    done = subprocess.run(
        [sys.executable, "-c", looked], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < 64  # of 2,048


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with machine.keep_freed_memory():
        assert torch.ones(3).sum() == 3
