"""A checkout, a home and a cache that cannot be written, as in a container that runs as another user."""

import errno
import importlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit
from numba.core.caching import IndexDataCacheFile, _CacheLocator

import pipeline.core
from pipeline.ranking import kernels
from tests import toy

ROOT = Path(__file__).parents[1]


def write_nothing(locator):
    raise PermissionError(errno.EACCES, "Permission denied")


def fill_the_disk(file, *_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "name", "fault"),
    [(_CacheLocator, "ensure_cache_path", write_nothing), (IndexDataCacheFile, "save", fill_the_disk)],
)
def test_a_kernel_is_compiled_anew_where_no_cache_can_be_written(monkeypatch, place, name, fault):
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, OSError)):
        patch.setattr(place, name, fault)
        njit(cache=True)(add_one)(1)
    monkeypatch.setattr(place, name, fault)
    assert kernels.compiled(add_one)(1) == 2


def add_one(number):
    return number + 1


def test_kernels_are_cached_where_they_can_be():
    assert kernels.unit.stats.cache_path and kernels.count.stats.cache_path


def test_a_process_without_a_home_has_one_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("HOME", "")  # so that it comes back as it was
    monkeypatch.delenv("HOME")

    def refuse(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", refuse)
    with pytest.raises(RuntimeError):
        Path.home()
    importlib.reload(pipeline.core)
    assert Path.home() == Path("/nonexistent")


SCRIPT = """
import importlib, pkgutil, sys
import numpy as np
from pipeline import __main__, inference, search
from pipeline.core.cli import command_parser
from pipeline.ranking import Embedded, figures, rank, scores
from pipeline.labels.quality import plots
import stages

trained, image, out = sys.argv[1:]
pictures = image.rpartition("/")[0]
embedding = inference.load(trained).embed([image] * 4)
people = Embedded.of(embedding.parts, [1, 1, 2, 2], None, embedding.visibility)
assert scores(rank(people, people))["queries"] == 4
search.index(pictures, search.Embedder(inference.load(trained)), out, trained)
assert search.Gallery(out).nearest(embedding, 1)[1].tolist() == [[0]] * 4
for module in pkgutil.iter_modules(stages.__path__):
    main = importlib.import_module(f"stages.{module.name}").main
    assert module.name in ("search", "study") or command_parser(main).format_help()
indexing = ["index", pictures, "--model", trained, "--out", "read-only.h5"]
for words in (indexing, ["pack", ".", "read-only.zip"]):
    sys.argv = ["/bin/occluded-reid", *words]
    try:
        __main__.main()
    except SystemExit as error:
        print(error)
"""


@pytest.mark.slow
def test_everything_but_writing_results_works_where_nothing_can_be_written(tmp_path):
    checkout, results = tmp_path / "checkout", tmp_path / "results"
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*checkout.rglob("*"), checkout):
        path.chmod(0o555 if path.is_dir() else 0o444)
    results.mkdir()
    trained, out = toy.trained(tmp_path / "trained"), results / "embeddings.h5"
    image = tmp_path / "people" / "pedestrians.png"
    image.parent.mkdir()
    shutil.copy(ROOT / "data" / "pedestrians.png", image)
    # root may write everywhere, unless it gives up the capability to
    refused = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    env = {**os.environ, "HOME": str(checkout), "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": ""}
    words = [*refused, sys.executable, "-c", SCRIPT, str(trained), str(image), str(out)]
    try:
        done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True)
    finally:
        for path in (checkout, *(path for path in checkout.rglob("*") if path.is_dir())):
            path.chmod(0o755)  # so that it can be removed
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and out.is_file()
    said = done.stdout.splitlines()
    refusal = "Permission denied. Name a place that this user may read and write, or run in one."
    assert said == [f".scratch: {refusal}", f"read-only.zip: {refusal}"]
    assert not list(checkout.rglob("__pycache__"))
