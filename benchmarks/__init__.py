"""Benchmarks: what labels, training and ranking cost, beside the field's own code.  No stage of the pipeline.

A benchmark is a folder.  Its `__main__.py` is the command line: `python -m benchmarks.labels --help`.  Slow
libraries are imported after the arguments are parsed.

CPU time is that of one thread, unless a benchmark says otherwise.  The number of threads is set here,
before a library reads it.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
