"""Stage `index`: an archive of person crops -> one row per image, the images in one file, the truth.

Takes:
    layout     how the archive is laid out, a file of pipeline/indexing/layouts, such as market1501
Reads:
    archive    archive of the dataset, .zip or .tar
Writes:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    truth      truth.h5, exact part maps and keypoints if the archive holds them

Params: index, datasets, parse_on, labels_from, workers.
"""

import sys
from pathlib import Path

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.indexing import build
from pipeline.indexing.archive import Archive


def main(layout: str, archive: str, index: str, images: str, truth: str, config: str = "params.yaml") -> None:
    options = params.read(config, "index", build.Index)
    workers = params.read(config, "workers", params.Count)
    datasets = params.read(config, "datasets", dict)
    for name in options.occlude.datasets:
        if name not in datasets:
            raise BadInput(
                f"{config}: index.occlude.datasets = {name}: no such dataset. "
                f"There are: {', '.join(datasets)}."
            )
    dataset = Path(index).parent.name
    labelled = [*params.read(config, "parse_on", list), *params.read(config, "labels_from", dict)]
    if dataset in datasets and dataset not in labelled:
        raise BadInput(
            f"{config}: {dataset} of datasets stands in neither parse_on nor labels_from, so it has no "
            "labels. Add it to parse_on, or name the folder of its labels in labels_from "
            "(pipeline/labels/README.md)."
        )
    with Archive(archive) as files:
        indexed = build.build_index(files, layout, options, workers, dataset in options.occlude.datasets)
        build.write_index(index, indexed.index, dataset=dataset, layout=layout)
        write_packed(images, "images", indexed.blobs(), indexed.sizes, {"index": indexed.hash})
    attrs = {"index": indexed.hash, "truth": int(bool(indexed.truth))}
    write_label_file(truth, "truth", indexed.truth or indexed.pasted, attrs)
    print(build.describe(indexed))


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
