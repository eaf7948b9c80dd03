"""Peak memory of a stage's own command, its worker processes included, above what its imports take.

`python -m benchmarks.memory NOTE STAGE WORDS...` runs a stage, after writing to NOTE what the imports took.
"""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.worlds import ROOT, World
from pipeline.core.cli import run_stage

EVERY = 0.02  # seconds between two looks
MB = 1e6


def peak(world: World, stage: str) -> dict[str, float]:
    """Run the command and watch it: `seconds` from the imports to the end, `peak_mb` above the imports.

    The imports of its own process, `import_mb`, are taken off; those of its workers, as large, are not.

    Counted is memory of the processes' own (anonymous and shared pages), not the libraries' files.
    """
    note = world.path(f"{stage}.imported")
    command = [sys.executable, "-m", "benchmarks.memory", str(note), stage, *world.words(stage)]
    env = {**os.environ, "DVC_ROOT": str(world.folder)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    highest, started = 0, 0.0
    while process.poll() is None:
        if note.exists():
            started = started or time.perf_counter()
            highest = max(highest, sum(map(_own, _family(process.pid))))
        time.sleep(EVERY)
    seconds, message = time.perf_counter() - started, process.stderr.read().decode()
    if process.returncode:
        raise RuntimeError(f"stage {stage} failed: {message[-2000:]}")
    imported = int(note.read_text())
    figures = {"peak_mb": highest - imported, "import_mb": imported}
    return {"seconds": round(seconds, 2), **{name: round(size / MB, 1) for name, size in figures.items()}}


def _family(pid: int) -> list[int]:
    try:
        tasks = [p.read_text().split() for p in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return [pid]
    return [pid] + [p for task in tasks for child in task for p in _family(int(child))]


def _own(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def main(note: str, stage: str, *words: str) -> None:
    """Import a stage, note what that took, run it."""
    module = importlib.import_module(f"stages.{stage}")
    Path(note).write_text(str(_own(os.getpid())))
    module.main(*words)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
