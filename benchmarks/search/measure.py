"""A gallery of random embeddings, and the cost of searching it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.search import Gallery, gallery_file

PARTS, CHANNELS = 9, 128
VISIBLE = 0.8  # share of the body parts
ROWS = 10_000  # written at a time
PROBES = 100
MB = 1e6


def write_gallery(path: Path, count: int) -> None:
    """Write a gallery of `count` random rows."""
    rng = np.random.default_rng(0)
    source = {"root": "/", "model": "models/trained", "pattern": ""}
    with gallery_file.create(
        path, count, {"model": "random", "z": "guessed", "source": source}, []
    ) as append:
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            visibility = (rng.random((rows, PARTS)) < VISIBLE).astype(np.float32)
            visibility[:, 0] = 1
            stamps = {name: np.zeros(rows, np.int64) for name in ("size", "changed")}
            part = rng.standard_normal((rows, PARTS, CHANNELS), np.float32)
            part /= np.linalg.norm(part, axis=2, keepdims=True)
            names = [f"folder/{start + n:09d}.jpg" for n in range(rows)]
            append(names, {"part": part, "visibility": visibility, **stamps})


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Everything that is printed."""
    gallery, opened = _cost(lambda: Gallery(path))
    probe, probes = gallery.embedding([0]), gallery.embedding(slice(0, PROBES))
    tenth = np.arange(len(gallery)) % 10 == 0
    searches: dict[str, Callable[[], Any]] = {
        "one": lambda: gallery.nearest(probe),
        "hundred": lambda: gallery.nearest(probes),
        "one_in_a_tenth": lambda: gallery.nearest(probe, allowed=tenth),
        "one_by_two_parts": lambda: gallery.nearest(probe, parts=("torso", "left leg")),
    }
    first = _cost(searches["one"])[1]
    costs = {}
    for name, search in searches.items():
        runs = [_cost(search)[1] for _ in range(rounds)]
        costs[name] = {key: (max if key == "peak_mb" else min)(run[key] for run in runs) for key in runs[0]}
    size = round(path.stat().st_size / MB)
    return {"pictures": len(gallery), "file_mb": size, "open": opened, "first": first, **costs}


def _cost(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result, its seconds, and the peak of the memory of its own, looked at every 5 ms."""
    before, peak, done = _memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    result = run()
    seconds = {
        "wall_s": round(time.perf_counter() - start, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }
    done.set()
    watcher.join()
    return result, {**seconds, "peak_mb": round(max(peak[0] - before, 0), 1)}


def _memory() -> float:
    """MB of memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / MB
