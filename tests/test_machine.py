"""What is known of the machine: its processor, what was measured on it once, the memory that it hands out."""

import ctypes
import json
import platform
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import machine

CPU = torch.device("cpu")
MB = 1 << 20
PROCESSORS = {
    "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC: 9354P\n\n"
    "vendor_id\t: of the second core\n": "vendor_id AuthenticAMD, cpu family 25, model 17",
    "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n": "CPU implementer 0x41, CPU part 0xd0c",
}


@pytest.mark.parametrize(("file", "named"), PROCESSORS.items())
def test_a_processor_is_known_by_what_its_maker_calls_it(monkeypatch, file, named):
    monkeypatch.setattr(Path, "read_text", lambda self: file)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert machine.kind(CPU) == f"x86_64 AVX512, {named}"


def test_where_the_system_does_not_say_python_does(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.kind(CPU).endswith(", arm")


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
    monkeypatch.setattr(f"pipeline.machine.{change[0]}", change[1])
    assert ask("how fast", 2.0) == 2.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"found": "fast"}', '{"found": null}', "{}"])
def test_a_damaged_answer_is_measured_anew(ask, text):
    ask("how fast", 1.0)
    next(ask.folder.iterdir()).write_text(text)
    assert [ask("how fast", 2.0), ask("how fast", 3.0)] == [2.0, 2.0]


def test_where_nothing_can_be_written_each_time_is_the_first(ask):
    ask.folder.parent.parent.joinpath("cache").write_text("in the way")
    assert [ask("how fast", 1.0), ask("how fast", 2.0)] == [1.0, 2.0]


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
def test_answers_lie_in_the_users_folder(users_folder, monkeypatch, variables, folder):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert users_folder() == Path(folder)


# ------------------------------------------------------------------ memory


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_kept_within_and_given_back_after():
    with machine.memory_kept():
        np.ones(256 * MB, np.uint8)
        before = faults()
        np.ones(256 * MB, np.uint8)
        assert faults() - before < 64  # of the 65,536 pages, or 128 huge ones, that it has
        held = resident()
    assert resident() < held - 200 * MB


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with machine.memory_kept():
        assert torch.ones(3).sum() == 3
