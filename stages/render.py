"""Stage `render`: params -> the embedded dataset of rendered pedestrians, with its truth, as one archive.

Writes:
    out        .zip archive

Params: render, workers.
"""

import sys

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.synthetic import dataset


def main(out: str, config: str = "params.yaml") -> None:
    render = params.read(config, "render", dataset.Render)
    dataset.write(out, render, params.read(config, "workers", params.Count))


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
