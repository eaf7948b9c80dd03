"""What every test can rely on: checked shapes, two cores, one thread each, and no GPU unless it asks for one.

- Shapes and types in the signatures of `pipeline` are checked while the tests run.
- The GPU is hidden, from the processes that tests start, too; `pytest -m gpu` alone shows it.
- At most two cores can be used, on a machine of any size, as on the machine that CI has.
"""

import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

CORES = 2

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch and numba when they are imported, here and in children

install_import_hook("pipeline", "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # the first example of a test may compile a kernel
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU before anything imports torch, and all cores but two."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.sched_setaffinity(0, two_cores(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])))


def two_cores(worker: int) -> set[int]:
    """The cores of a pytest-xdist worker: each has two of its own if there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[(CORES * worker + n) % len(cores)] for n in range(CORES)}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for folders; none for a file, which costs less than importing everything twice."""
    return CORES if any(Path(argument).is_dir() for argument in config.args) else 0


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed made of the test's name, which pytest prints if the test fails."""
    number = zlib.crc32(request.node.nodeid.encode())
    print(f"seed of {request.node.nodeid}: {number}")
    return number


@pytest.fixture
def chance(seed: int) -> random.Random:
    """For a test's random choices, such as when to kill something."""
    return random.Random(seed)
