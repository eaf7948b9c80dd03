"""Files are written whole or not at all, and a full disk is reported."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput


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


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_place_without_a_name_is_refused(path):
    with pytest.raises(BadInput, match="is no name of a file or folder to write"), atomic_write(path):
        pytest.fail("entered")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with atomic_write(tmp_path / "model") as beside:
            beside.mkdir()
            (beside / text).write_text(text)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def test_every_file_of_a_folder_is_fsynced_before_it_appears(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
    )
    with atomic_write(tmp_path / "model") as beside:
        (beside / "in").mkdir(parents=True)
        (beside / "in/weights").touch()
    assert set(synced[:-2]) == {"in", "weights"} and synced[-1] == tmp_path.name


def test_leftovers_of_killed_runs_are_removed_and_files_of_live_runs_kept(tmp_path):
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


# ------------------------------------------------------------------ a full disk

FULL_DISK = """
import resource, sys
from pipeline.core.cli import run_stage
from pipeline.core.label_file import write_label_file
from tests.core.rows import ATTRS, random_rows

def main(path):
    write_label_file(path, "maps", random_rows(64), ATTRS)

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
run_stage(main, sys.argv[2:])
"""


@pytest.mark.parametrize("size", [0, 100, 2_000, 20_000])
def test_a_process_exits_cleanly_after_a_full_disk(tmp_path, size):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(size), str(tmp_path / "a.h5")], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr == f"{tmp_path / 'a.h5'}: the disk is full or over quota. " + (
        "Free some space and run again; what was finished before is kept.\n"
    )
