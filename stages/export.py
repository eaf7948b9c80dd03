"""By hand, no stage of the DAG: `python -m stages.export models/trained model.onnx`."""

import sys
from pathlib import Path

from pipeline import export, store


def main(trained: str, out: str) -> None:
    outputs = export.write(trained, out)
    size = Path(out).stat().st_size / 1e6
    print(f"{out}: {size:.1f} MB, {', '.join(export.INPUTS)} -> {', '.join(outputs)}")


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
