"""By hand: a run's page with what differs from a commit -> a page beside it.

No stage of the DAG, which cannot see what git's HEAD is: `report.html` of `draw` holds this run alone.

Takes:
    rev     the commit, as git names it
Reads:
    page    data/<dataset>/report.html, as `draw` wrote it, with report.json and the metrics beside it
Writes:
    out     the same page, with a section on the scores and params that differ

The metrics (metrics.json, encoder.json, histogram.json, labels.json) and the params are compared with those
that git has at `--rev`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput
from pipeline.ranking.changes import add_changes, changes

METRICS = ("metrics.json", "encoder.json", "histogram.json", "labels.json")


def main(page: str, out: str, rev: str = "HEAD", config: str = "params.yaml") -> None:
    files = [*(Path(page).with_name(name) for name in METRICS), Path(config)]
    before = {path.name: parse(committed(path, rev)) for path in files}
    now = {path.name: parse(path.read_text()) for path in files}
    confidence = json.loads(Path(page).with_name("report.json").read_text())["confidence"]
    with atomic_write(out) as path:
        text = add_changes(Path(page).read_text(encoding="utf-8"), rev, changes(before, now, confidence))
        path.write_text(text, encoding="utf-8")


def committed(path: Path, rev: str) -> str:
    """A file's text at a commit; raises `BadInput` if the commit or the file is not there."""
    words = ["git", "-C", str(path.parent), "show", f"{rev}:./{path.name}"]
    run = subprocess.run(words, capture_output=True, text=True)
    if run.returncode:
        raise BadInput(f"{path}: not in the commit {rev} ({run.stderr.strip()}). Name one with --rev.")
    return run.stdout


def parse(text: str) -> Any:
    """What a JSON or YAML file says."""
    return YAML(typ="safe").load(text)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
