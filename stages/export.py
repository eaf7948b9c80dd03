"""By hand, no stage of the DAG: `python -m stages.export models/trained model.onnx`."""

import sys

from pipeline import export, store


def main(trained: str, out: str) -> None:
    export.write(trained, out)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
