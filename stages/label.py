"""Stage `label`: parsing maps -> the parts that each image hides.

Reads:
    parsing    parsing.h5, one parsing map per image
Writes:
    out        occlusion.h5, the visible pixels and occlusion label of each part

Params: lambda, label.
"""

import sys

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import LabelFile, write_label_file
from pipeline.data import parts
from pipeline.labels import occlusion


def main(parsing: str, out: str, config: str = "params.yaml") -> None:
    label = params.read(config, "label", occlusion.Label)
    threshold = params.read(config, "lambda", params.Amount)
    maps = LabelFile(parsing, "parsing")
    arrays = occlusion.occlusion_labels(maps["map"], label, threshold)
    names = list(parts.COARSE[label.parts])
    attrs = {"index": maps.attrs["index"], "parts": names, "grouping": parts.COARSE[label.parts]}
    write_label_file(out, "occlusion", arrays, attrs)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
