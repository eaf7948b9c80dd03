"""By hand, no stage of the DAG: `python -m stages.export models/trained model.onnx`."""

import sys
from pathlib import Path

from pipeline.core.cli import run_stage
from pipeline.inference import onnx


def main(trained: str, out: str) -> None:
    outputs = onnx.write(trained, out)
    size = Path(out).stat().st_size / 1e6
    print(f"{out}: {size:.1f} MB, {', '.join(onnx.INPUTS)} -> {', '.join(outputs)}")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
