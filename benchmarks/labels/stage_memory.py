"""Peak memory of a stage's own command, its worker processes included, above the memory of its imports.

`measure_memory` starts this module in a process of its own.  It imports the stage, writes the bytes that the
imports took to NOTE, and runs the stage.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import ROOT
from benchmarks.labels.sandbox import Sandbox

INTERVAL = 0.02  # seconds between two readings
MB = 1e6


def measure_memory(sandbox: Sandbox, stage: str) -> dict[str, float]:
    """Run the stage's command: `seconds` after its imports, `peak_mb` above its imports, `import_mb`.

    Memory is that of the processes' own pages (anonymous and shared), without the libraries' files.  The
    imports of the stage's process are subtracted; those of its workers, which are as large, are not.
    """
    note = sandbox.path(f"{stage}.imported")
    command = [sys.executable, "-m", "benchmarks.labels.stage_memory", str(note), str(sandbox.config), stage]
    env = {**os.environ, "DVC_ROOT": str(sandbox.folder)}
    process = subprocess.Popen(
        [*command, *sandbox.arguments(stage)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak, start = 0, 0.0
    while process.poll() is None:
        if note.exists():
            start = start or time.perf_counter()
            peak = max(peak, sum(map(_own_bytes, _process_tree(process.pid))))
        time.sleep(INTERVAL)
    seconds, message = time.perf_counter() - start, process.stderr.read().decode()
    if process.returncode:
        raise RuntimeError(f"stage {stage} failed: {message[-2000:]}")
    imported = int(note.read_text())
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round((peak - imported) / MB, 1),
        "import_mb": round(imported / MB, 1),
    }


def _process_tree(pid: int) -> list[int]:
    try:
        children = [p.read_text().split() for p in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return [pid]
    return [pid] + [p for task in children for child in task for p in _process_tree(int(child))]


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def main() -> None:
    """Import a stage, write what that took, run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels.stage_memory", description=__doc__)
    parser.add_argument("note", type=Path, help="file for the bytes that the imports took")
    parser.add_argument("config", help="params.yaml of the stage")
    parser.add_argument("stage", help="name of the stage, such as segment")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the stage's own arguments")
    options = parser.parse_args()
    module = importlib.import_module(f"stages.{options.stage}")
    options.note.write_text(str(_own_bytes(os.getpid())))
    module.main(*options.arguments, config=options.config)


if __name__ == "__main__":
    main()
