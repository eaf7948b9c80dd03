"""Stage `index`: an archive of person crops -> one row per image, the images in one file, the truth.

Takes:
    layout     how the archive is laid out, a file of pipeline/indexing/layouts, such as market1501
Reads:
    archive    archive of the dataset, .zip or .tar
Writes:
    index      index.parquet, one row per image
    images     images.h5, the encoded images
    truth      truth.h5, exact part maps and keypoints if the archive holds them

Params: index, datasets, workers; and train_on, test_on, train, for whether the dataset is large enough.
"""

import sys
from pathlib import Path

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.label_file import write_label_file, write_packed
from pipeline.core.params import BadInput
from pipeline.indexing import build, datasets
from pipeline.indexing.archive import Archive


def main(layout: str, archive: str, index: str, images: str, truth: str, config: str = "params.yaml") -> None:
    options = params.read(config, "index", build.Index)
    workers = params.read(config, "workers", params.Count)
    roles = datasets.read_roles(config)
    dataset = Path(index).parent.name
    with Archive(archive, datasets.read_encoding(config, dataset)) as files:
        occlude, value_range = dataset in options.occlude.datasets, options.range.get(dataset)
        indexed = build.build_index(files, layout, options, workers, occlude, value_range)
        print(build.describe(indexed))
        if faults := datasets.role_faults(indexed.index, dataset, roles):
            raise BadInput("\n".join(f"{config}: {fault}" for fault in faults))
        build.write_index(index, indexed.index, dataset=dataset, layout=layout)
        write_packed(images, "images", indexed.blobs(), indexed.sizes, {"index": indexed.hash})
    attrs = {"index": indexed.hash, "truth": int(bool(indexed.truth))}
    write_label_file(truth, "truth", indexed.truth or indexed.pasted, attrs)


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
