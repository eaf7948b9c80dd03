"""Label files: HDF5, one row an image, the same bytes whoever made them and however often interrupted.

Unusual here:
- A file appears whole or not at all: written beside its place, fsynced, renamed.
- Long computations leave shards (whole batches) in `.scratch/<kind>-<fingerprint>/`, found again after a
  `kill -9`, under `dvc repro` and `dvc exp run` alike; the final file is their raw chunks in row order.
- Large rows are one checked chunk each, gzip's unless they are floats, so that `rows["map"][i]` reads one
  image; read single rows, not lists.
- Workers are spawned and compute with one thread each: their number cannot change a result.
- Several processes, one a GPU, share the shards of one file as a `Team`; the first alone locks and writes.
"""

import errno
import fcntl
import glob
import hashlib
import importlib.metadata
import inspect
import io
import json
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from pipeline.params import BadInput

FORMAT = 1
CHUNKED_FROM = 1024  # bytes a row; below, a dataset is stored in one piece
PACK_CHUNK = 1 << 16  # bytes; the unit of checksums in a packed file
SHARD_ROWS = 128  # at least so many rows a shard: the most that a kill loses in each worker
SHARDS = 512  # at most so many, as each is an open file while they are merged
LOOK = 0.2  # seconds between looks at what other processes have finished
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Arrays = dict[str, np.ndarray]
Compute = Callable[[int, int], Arrays]
Shard = tuple[int, int, Path]  # first row, row after the last, file


class Team(NamedTuple):
    """Processes that fill the shards of one file together, as one of them sees it.

    Someone else starts them and stops all if one ends with an error.
    """

    number: int  # this one's, from 0, the first
    count: int
    from_first: Callable[[Any], Any]  # what the first one gives; all wait for it


ALONE = Team(0, 1, lambda value: value)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------ whole or not at all


@contextmanager
def replace(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends and vanishes if it fails.

    Works for a file or a folder; what a killed run left beside goes, too.  Raises `BadInput` if a file would
    take the place of a folder, or if the disk is full (see `room`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with room(path):
            yield beside
            for part in (*beside.rglob("*"), beside):
                _sync(part)
            if path.is_dir():
                if not beside.is_dir():
                    raise BadInput(
                        f"{path}: is a folder, and a file would take its place. Name a file in it."
                    )
                shutil.rmtree(path)
            os.replace(beside, path)
            _sync(path.parent)
    except BaseException:
        _remove(beside)
        raise


def _sweep(path: Path) -> None:
    # only of this machine's processes can be told whether they live
    for left in path.parent.glob(f".{glob.escape(f'{path.name}.{socket.gethostname()}')}.*.part"):
        if not Path("/proc", left.name.split(".")[-2]).exists():
            _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def room(path: str | Path) -> Iterator[None]:
    """Within it, a full disk becomes a `BadInput` that names `path` and says what is kept.

    It is known by Python's `OSError`: let libraries that write by themselves write to an `Output`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise BadInput(
            f"{path}: the disk is full or over quota. Free some space and run again; "
            "what was finished before is kept."
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Output(io.FileIO):
    """A file that takes every write, remembers the first that the disk refused, and raises it when closed.

    HDF5 cannot close a dataset that it could not write: it crashes when the process ends.  torch.save says
    that a write failed, and not why.
    """

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.refusal is None:
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.refusal = error
        return len(view)

    def close(self) -> None:
        super().close()
        if self.refusal is not None:
            raise self.refusal


# ------------------------------------------------------------------ writing


@contextmanager
def _hdf5(path: str | Path) -> Iterator[h5py.File]:
    with (
        replace(path) as beside,
        Output(beside, "w+") as output,
        h5py.File(output, "w", libver="earliest") as file,
    ):
        yield file


def write(
    path: str | Path,
    kind: str,
    arrays: Arrays,
    attrs: dict[str, Any],
    libraries: Iterable[str] = (),
) -> None:
    """Write a small result at once; the first axis of every array is the row.

    `attrs` must hold `index`, the hash of the index whose rows these are.  `libraries` names the
    packages, beside numpy and h5py, whose versions shaped the result.
    """
    with _hdf5(path) as file:
        for name in sorted(arrays):
            _create(file, name, arrays[name].shape, arrays[name].dtype)[...] = arrays[name]
        _describe(file, kind, attrs, libraries, _content(_row_hashes(arrays)))


def pack(
    path: str | Path, kind: str, blobs: Iterable[bytes], sizes: np.ndarray, attrs: dict[str, Any]
) -> None:
    """Write byte strings one after the other: `data` and `offset`, blob i = data[offset[i]:offset[i + 1]].

    `sizes` gives the bytes of each blob beforehand, so that nothing but one blob is held.
    """
    offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    digest = hashlib.sha256()
    with _hdf5(path) as file:
        total = int(offset[-1])
        chunk = (min(PACK_CHUNK, max(total, 1)),)
        data = file.create_dataset("data", (total,), np.uint8, chunks=chunk, fletcher32=True)
        for start, blob in zip(offset, blobs, strict=False):
            data[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
            digest.update(hashlib.sha256(blob).digest())
        file["offset"] = offset
        _describe(file, kind, attrs, (), digest.hexdigest())


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    if row_bytes < CHUNKED_FROM or shape[0] == 0:
        return file.create_dataset(name, shape, dtype)
    # features lose a fourteenth to gzip, which writes them 18 times as slowly and reads them 7 times
    packed = {} if np.dtype(dtype).kind == "f" else {"compression": "gzip", "compression_opts": 4}
    return file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), fletcher32=True, **packed)


def _describe(file: h5py.File, kind: str, attrs: dict, libraries: Iterable[str], content: str) -> None:
    names = sorted({"numpy", "h5py", *libraries})
    versions = {name: importlib.metadata.version(name) for name in names}
    own = {"format": FORMAT, "kind": kind, "content": content, "versions": versions}
    for name, value in sorted({**attrs, **own}.items()):
        plain = isinstance(value, str | int | float | np.integer | np.floating)
        file.attrs[name] = value if plain else json.dumps(value, sort_keys=True)


def _row_hashes(arrays: Arrays) -> np.ndarray:
    # one digest a row, over all arrays by name: independent of shards and of compression
    rows = len(next(iter(arrays.values()))) if arrays else 0
    held = [np.ascontiguousarray(arrays[name]) for name in sorted(arrays)]
    digests = [hashlib.sha256(b"".join(a[i].tobytes() for a in held)).digest() for i in range(rows)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(rows, 32)


def _content(hashes: np.ndarray) -> str:
    return hashlib.sha256(hashes.tobytes()).hexdigest()


# ------------------------------------------------------------------ computing, resumable and parallel


def compute(
    path: str | Path,
    kind: str,
    count: int,
    batch: int,
    make: Callable[[], Compute],
    attrs: dict[str, Any],
    workers: int,
    key: dict[str, Any],
    libraries: Iterable[str] = (),
    team: Team = ALONE,
) -> None:
    """Compute `count` rows in batches and write them to `path`; go on where an earlier run was stopped.

    `make` is picklable and is called once in each worker process (a network is loaded there); what it
    returns maps a batch (start, stop) to arrays of stop - start rows.  Batches are cut in row order, so
    their composition, and with it every byte of the file, depends on `batch` alone.  `key` is all that
    the rows depend on beside `attrs`, the versions and the source code of the modules in use.

    Every process of a `team` calls this with the same arguments, takes its share of the missing shards and
    of the `workers` (0: one a core), and returns when it has no more to do; the file is there when the first
    returns.
    """
    if count == 0:
        raise BadInput(f"{path}: nothing to compute, the index has no rows. Check the dataset.")
    step = batch * -(-max(SHARD_ROWS, -(-count // SHARDS)) // batch)
    first = team.number == 0
    with scratch(kind, [count, batch, attrs, key], libraries) if first else nullcontext() as held:
        folder = team.from_first(held)
        shards = [(a, min(a + step, count), folder / f"{a:09d}.h5") for a in range(0, count, step)]
        _fill(shards, batch, make, workers, Path(path).name, team)
        if first:
            _merge(path, kind, count, [s[2] for s in shards], attrs, libraries)


@contextmanager
def scratch(kind: str, identity: list[Any], libraries: Iterable[str] = ()) -> Iterator[Path]:
    """A folder for unfinished work, the same for the run that follows a kill; gone when the block ends well.

    `identity` is all that the work depends on beside the versions of the libraries and the source code of
    the modules in use.  A second run of the same work waits for the first.
    """
    folder = _scratch(kind, [*identity, _versions(libraries), _code()])
    with _alone(folder):
        yield folder
        shutil.rmtree(folder)


def _scratch(kind: str, identity: list[Any]) -> Path:
    text = json.dumps(identity, sort_keys=True, default=str)
    # DVC_ROOT is the real project even where DVC runs a stage in a copy of it
    root = Path(os.environ.get("DVC_ROOT", "."))
    folder = root / ".scratch" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _versions(libraries: Iterable[str]) -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in sorted({"numpy", *libraries})]


def _code() -> str:
    # the project's modules in use, by name and text: editing one must not reuse its old shards
    own = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("pipeline", "stages", "__main__")}
    files = {Path(m.__file__) for m in own.values() if getattr(m, "__file__", None)}
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files) if f.suffix == ".py")).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    # a second run of the same work waits instead of sharing half-made shards
    path = folder.with_suffix(".lock")
    while True:
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _lies_at(lock, path):
                continue  # it waited for a file that is gone: others hold a new one
            folder.mkdir(exist_ok=True)
            yield
            path.unlink(missing_ok=True)
            return


def _lies_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill(
    shards: list[Shard], batch: int, make: Callable[[], Compute], workers: int, name: str, team: Team
) -> None:
    missing = team.from_first([s for s in shards if not s[2].exists()])
    if not missing:
        return
    own = missing[team.number :: team.count]
    awaited = missing if team.number == 0 else own  # as the first goes on to merge all
    each = max(1, (workers or cores()) // team.count)
    done = _rows(shards)
    with progress(total=shards[-1][1], initial=done, desc=name, disable=team.number > 0) as bar:
        for _ in chain(_finished(own, batch, make, each, name), _awaited(awaited)):
            now = _rows(shards)  # whoever finished them
            bar.update(now - done)
            done = now


def _rows(shards: list[Shard]) -> int:
    return sum(b - a for a, b, path in shards if path.exists())


def _awaited(shards: list[Shard]) -> Iterator[None]:
    # a step at every look, until all are there
    while True:
        there = all(path.exists() for _, _, path in shards)
        yield
        if there:
            return
        time.sleep(LOOK)


def _finished(
    shards: list[Shard], batch: int, make: Callable[[], Compute], workers: int, name: str
) -> Iterator[None]:
    # a step for every shard that a worker has computed
    if not shards:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the spawned workers, not by this process
    with ProcessPoolExecutor(
        min(workers, len(shards)), multiprocessing.get_context("spawn"), _start, (make,)
    ) as pool:
        futures = [pool.submit(_shard, a, b, batch, path) for a, b, path in shards]
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


def cores() -> int:
    """Processor cores that this process may use; what `workers: 0` means."""
    return len(os.sched_getaffinity(0))


def progress(**kwargs: Any) -> tqdm:
    """A progress bar with rate and time left; on a log file, a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(unit=kwargs.pop("unit", "img"), mininterval=interval, dynamic_ncols=True, **kwargs)


_make: Callable[[], Compute] | None = None
_run: Compute | None = None


def _start(make: Callable[[], Compute]) -> None:
    global _make
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # die with it
    _make = make


def _shard(start: int, stop: int, batch: int, path: Path) -> None:
    global _run
    if _run is None:  # here, not in `_start`, so that its errors reach the user as they are
        _run = _make()
    parts = [_run(a, min(a + batch, stop)) for a in range(start, stop, batch)]
    arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    with _hdf5(path) as file:
        for name, array in arrays.items():
            assert len(array) == stop - start, f"{name}: {len(array)} rows for {stop - start} images"
            _create(file, name, array.shape, array.dtype)[...] = array
        file[".rows"] = _row_hashes(arrays)


def _merge(path: str | Path, kind: str, count: int, shards: list[Path], attrs: dict, libraries: Any) -> None:
    with _hdf5(path) as file, ExitStack() as stack:
        parts = [stack.enter_context(h5py.File(shard)) for shard in shards]
        for name in sorted(set(parts[0]) - {".rows"}):
            source = parts[0][name]
            target, row = _create(file, name, (count, *source.shape[1:]), source.dtype), 0
            for part in parts:
                row = _append(part[name], target, row)
        hashes = np.concatenate([part[".rows"][...] for part in parts])
        _describe(file, kind, attrs, libraries, _content(hashes))


def _append(source: h5py.Dataset, target: h5py.Dataset, row: int) -> int:
    if source.chunks is None:
        target[row : row + len(source)] = source[...]
        return row + len(source)
    rest = (0,) * (source.ndim - 1)
    for i in range(len(source)):
        mask, raw = source.id.read_direct_chunk((i, *rest))
        target.id.write_direct_chunk((row + i, *rest), raw, mask)
    return row + len(source)


# ------------------------------------------------------------------ reading


class Rows:
    """A label file, opened on first use in each process: `rows["map"][i]` is image i's map.

    Raises `BadInput` if the file is missing, damaged, of another kind or format, or made for another index.
    """

    def __init__(self, path: str | Path, kind: str | None = None, index: str | None = None):
        self.path, self._file, self._pid = str(path), None, None
        self.attrs = {name: _plain(value) for name, value in self._open().attrs.items()}
        self._check(kind, index)
        self.close()

    def _check(self, kind: str | None, index: str | None) -> None:
        found = self.attrs.get("kind")
        if kind is not None and found != kind:
            raise BadInput(f"{self.path}: holds '{found}', not '{kind}'. Check the paths in dvc.yaml.")
        if self.attrs.get("format") != FORMAT:
            raise BadInput(
                f"{self.path}: format {self.attrs.get('format')}, this version reads {FORMAT}. "
                "Delete it and run `dvc repro`."
            )
        if index is not None and self.attrs.get("index") != index:
            raise BadInput(
                f"{self.path}: made for another index ({str(self.attrs.get('index'))[:12]}, this one is "
                f"{index[:12]}). Run `dvc repro`, or `dvc checkout` to get the files that belong together."
            )

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            if not Path(self.path).is_file():
                raise BadInput(f"{self.path}: no such file. Run `dvc repro`, or `dvc pull` to fetch it.")
            try:
                self._file, self._pid = h5py.File(self.path, "r", locking="best-effort"), os.getpid()
            except OSError as error:
                raise BadInput(f"{self.path}: {_damaged(error)}") from None
        return self._file

    def names(self) -> list[str]:
        """The datasets in this file, groups spelt out (`model/part`)."""
        found: list[str] = []
        self._open().visititems(lambda n, o: found.append(n) if isinstance(o, h5py.Dataset) else None)
        return sorted(found)

    def __getitem__(self, name: str) -> "Column":
        if name not in self._open():
            raise BadInput(f"{self.path}: holds no '{name}', only {', '.join(self.names()) or 'nothing'}.")
        return Column(self, name)

    def __contains__(self, name: str) -> bool:
        return name in self._open()

    def close(self) -> None:
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": None}  # a handle survives no pickling


class Column:
    """One dataset of a label file; an int gives a row, a slice the rows, `[:]` everything."""

    def __init__(self, rows: Rows, name: str):
        self._rows, self._name = rows, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._rows._open()[self._name].shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> np.ndarray | np.generic:
        try:
            return self._rows._open()[self._name][where]
        except OSError as error:
            rows = f"rows from {where.start or 0}" if isinstance(where, slice) else f"row {where}"
            raise BadInput(f"{self._rows.path}: '{self._name}', {rows}: {_damaged(error)}") from None


def _damaged(error: OSError) -> str:
    return (
        f"cannot be read ({' '.join(str(error).split())[:120]}): damaged or no HDF5 file. Fetch it "
        "again with `dvc checkout` or `dvc pull`, or delete it and run `dvc repro`."
    )


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value[:1] in "[{":
        return json.loads(value)
    return value


# ------------------------------------------------------------------ the edge


def run(main: Callable[..., None], words: list[str]) -> None:
    """Call a stage with the words of its command line; bad input ends in one clear message and status 1."""
    try:
        inspect.signature(main).bind(*words)
    except TypeError as error:
        sys.exit(f"{sys.argv[0]}: {error}; usage: {' '.join(inspect.signature(main).parameters)}")
    try:
        main(*words)
    except BadInput as error:
        sys.exit(str(error))
