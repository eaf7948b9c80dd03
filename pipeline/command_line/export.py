"""Export a trained model to ONNX.

Reads:
    model    folder of the trained model
Writes:
    out      the ONNX file
"""

from pathlib import Path

from pipeline.inference import onnx


def main(model: str, out: str) -> None:
    """Write the file, and print its size and the names of its inputs and outputs."""
    outputs = onnx.write(model, out)
    size = Path(out).stat().st_size / 1e6
    print(f"{out}: {size:.1f} MB, {', '.join(onnx.INPUTS)} -> {', '.join(outputs)}")
