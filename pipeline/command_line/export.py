"""Export a trained model to ONNX.  Run by hand; no stage of the DAG.

Reads:
    trained    folder of the trained model, models/trained
Writes:
    out        the ONNX file
"""

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
