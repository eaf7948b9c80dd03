"""Long computations over rows: parallel, resumable after `kill -9`, with the same bytes every time.

Unusual here:
- Finished shards of whole batches lie in `.scratch/<kind>-<hash>/`.  The next run continues from them, under
  `dvc repro` and `dvc exp run` alike.  The final file is the shards' raw chunks in row order.
- Workers are spawned and compute with one thread each: their number cannot change a result.
- Several processes, one per GPU, share the shards of one file as a `ShardGroup`; rank 0 locks and writes.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np

from pipeline.core.label_file import (
    Arrays,
    content_hash,
    create_dataset,
    create_file,
    row_hashes,
    write_attrs,
)
from pipeline.core.params import BadInput
from pipeline.core.workers import WorkerPool, num_cores, progress_bar

SHARD_ROWS = 128  # rows of the smallest shard, which is what a kill loses in each worker
MAX_SHARDS = 512  # each is an open file while they are merged
POLL_SECONDS = 0.2  # seconds between looks at what other processes have finished
Compute = Callable[[int, int], Arrays]  # first row, row after the last -> values of these rows
Shard = tuple[int, int, Path]  # first row, row after the last, file


class ShardGroup(NamedTuple):
    """One process's view of the processes that compute the shards of one file together.

    A launcher such as torchrun starts them and stops all if one fails.
    """

    rank: int  # of this process, from 0
    world_size: int
    broadcast: Callable[[Any], Any]  # rank 0's value; every process waits for it


SINGLE_PROCESS = ShardGroup(0, 1, lambda value: value)


def compute_rows(
    path: str | Path,
    kind: str,
    count: int,
    batch: int,
    make: Callable[[], Compute],
    attrs: dict[str, Any],
    workers: int,
    libraries: Iterable[str] = (),
    group: ShardGroup = SINGLE_PROCESS,
) -> None:
    """Compute `count` rows in batches and write them to a label file; continue where an earlier run stopped.

    `make` must be picklable.  It is called once in each worker process, where it loads a network, say, and
    returns the function that computes the rows `start` to `stop` of a batch.  Batches are cut in row order:
    their rows, and every byte of the file, depend on `batch` alone.

    Shards of an earlier run are used if `attrs`, the versions of `libraries` and the source code of the
    modules in use are the same.  `workers` = 0 starts one per core.

    Every process of a `group` calls this with the same arguments, computes its shards with its part of the
    workers, and returns when it has finished.  The file exists when rank 0 returns.
    """
    if count == 0:
        raise BadInput(f"{path}: nothing to compute, the index has no rows. Check the dataset.")
    step = batch * -(-max(SHARD_ROWS, -(-count // MAX_SHARDS)) // batch)
    is_first = group.rank == 0
    with resumable_folder(kind, [count, batch, attrs], libraries) if is_first else nullcontext() as scratch:
        folder = group.broadcast(scratch)
        shards = [(a, min(a + step, count), folder / f"{a:09d}.h5") for a in range(0, count, step)]
        _compute_shards(shards, batch, make, workers, Path(path).name, group)
        if is_first:
            _merge_shards(path, kind, count, [s[2] for s in shards], attrs, libraries)


@contextmanager
def resumable_folder(
    kind: str, identity: list[Any], libraries: Iterable[str] = (), root: Path | None = None
) -> Iterator[Path]:
    """A folder for unfinished work, which the run after a kill gets again; removed when the block succeeds.

    `identity` holds everything that the work depends on, beside the versions of `libraries` and the source
    code of the modules in use.  It lies in `.scratch/` below `root`, by default the project's.  A second run
    of the same work waits for the first.
    """
    folder = _scratch_folder(kind, [*identity, _library_versions(libraries), _code_hash()], root)
    with _exclusive(folder):
        yield folder
        shutil.rmtree(folder)


def _scratch_folder(kind: str, identity: list[Any], root: Path | None) -> Path:
    text = json.dumps(identity, sort_keys=True, default=str)
    # DVC_ROOT is the real project even where DVC runs a stage in a copy of it
    root = root or Path(os.environ.get("DVC_ROOT", "."))
    folder = root / ".scratch" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _library_versions(libraries: Iterable[str]) -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in sorted({"numpy", *libraries})]


def _code_hash() -> str:
    # of the project's modules in use: shards of older code are not reused
    packages = (__name__.split(".")[0], "stages", "__main__")
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] in packages]
    files = {Path(path) for m in modules if (path := getattr(m, "__file__", None))}
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files) if f.suffix == ".py")).hexdigest()


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    # a second run of the same work waits
    path = folder.with_suffix(".lock")
    while True:
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, path):
                continue  # the previous holder deleted this file; others may have locked a new one
            folder.mkdir(exist_ok=True)
            yield
            path.unlink(missing_ok=True)
            return


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _compute_shards(
    shards: list[Shard], batch: int, make: Callable[[], Compute], workers: int, name: str, group: ShardGroup
) -> None:
    missing = group.broadcast([s for s in shards if not s[2].exists()])
    if not missing:
        return
    local = missing[group.rank :: group.world_size]
    awaited = missing if group.rank == 0 else local  # rank 0 merges all
    local_workers = max(1, (workers or num_cores()) // group.world_size)
    done = _rows_done(shards)
    with progress_bar(total=shards[-1][1], initial=done, desc=name, disable=group.rank > 0) as bar:
        for _ in chain(_run_workers(local, batch, make, local_workers, name), _wait_for(awaited)):
            now = _rows_done(shards)  # of all processes
            bar.update(now - done)
            done = now


def _rows_done(shards: list[Shard]) -> int:
    return sum(b - a for a, b, path in shards if path.exists())


def _wait_for(shards: list[Shard]) -> Iterator[None]:
    # yields at every poll, the last time when all exist
    while True:
        finished = all(path.exists() for _, _, path in shards)
        yield
        if finished:
            return
        time.sleep(POLL_SECONDS)


def _run_workers(
    shards: list[Shard], batch: int, make: Callable[[], Compute], workers: int, name: str
) -> Iterator[None]:
    # yields after every shard
    if not shards:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the spawned workers, not by this process
    with WorkerPool(min(workers, len(shards)), _start_worker, (make,)) as pool:
        futures = [pool.submit(_compute_shard, a, b, batch, path) for a, b, path in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise BadInput(
                f"{name}: a worker was killed, most likely for lack of memory. Lower `workers` in "
                "params.yaml and run again; finished shards are kept."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_make_compute: Callable[[], Compute] | None = None
_compute: Compute | None = None


def _start_worker(make: Callable[[], Compute]) -> None:
    global _make_compute
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _make_compute = make


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compute_shard(start: int, stop: int, batch: int, path: Path) -> None:
    global _compute
    if _compute is None:  # made here, as the pool hides errors of `_start_worker`
        assert _make_compute is not None
        _compute = _make_compute()
    parts = [_compute(a, min(a + batch, stop)) for a in range(start, stop, batch)]
    arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    with create_file(path) as file:
        for name, array in arrays.items():
            assert len(array) == stop - start, f"{name}: {len(array)} rows for {stop - start} images"
            create_dataset(file, name, array.shape, array.dtype)[...] = array
        file[".rows"] = row_hashes(arrays)


def _merge_shards(
    path: str | Path, kind: str, count: int, shards: list[Path], attrs: dict, libraries: Any
) -> None:
    with create_file(path) as file, ExitStack() as stack:
        parts = [stack.enter_context(h5py.File(shard, locking=False)) for shard in shards]
        for name in sorted(set(parts[0]) - {".rows"}):
            source = parts[0][name]
            target, row = create_dataset(file, name, (count, *source.shape[1:]), source.dtype), 0
            for part in parts:
                row = _append_shard(part[name], target, row)
        hashes = np.concatenate([part[".rows"][...] for part in parts])
        write_attrs(file, kind, attrs, libraries, content_hash(hashes))


def _append_shard(source: h5py.Dataset, target: h5py.Dataset, row: int) -> int:
    if source.chunks is None:
        target[row : row + len(source)] = source[...]
        return row + len(source)
    rest = (0,) * (source.ndim - 1)
    for i in range(len(source)):
        mask, raw = source.id.read_direct_chunk((i, *rest))
        target.id.write_direct_chunk((row + i, *rest), raw, mask)
    return row + len(source)
