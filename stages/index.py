"""Stage `index`: one archive of person crops -> a row an image, the pictures in one file, the truth."""

import sys
from pathlib import Path

from pipeline import params, store
from pipeline.datasets import indexing
from pipeline.datasets.archive import Archive
from pipeline.params import BadInput


def main(layout: str, archive: str, index: str, images: str, truth: str, config: str = "params.yaml") -> None:
    options = params.read(config, "index", indexing.Index)
    workers = params.read(config, "workers", params.Count)
    named = params.read(config, "datasets", dict)
    for name in options.occlude.datasets:
        if name not in named:
            raise BadInput(
                f"{config}: index.occlude.datasets = {name}: no such dataset. There are: {', '.join(named)}."
            )
    dataset = Path(index).parent.name
    labelled = [*params.read(config, "parse_on", list), *params.read(config, "labels_from", dict)]
    if dataset in named and dataset not in labelled:
        raise BadInput(
            f"{config}: {dataset} of datasets stands in neither parse_on nor labels_from, so it has no "
            "labels. Add it to parse_on, or tell labels_from where they lie (README, Labels made elsewhere)."
        )
    with Archive(archive) as files:
        found = indexing.build(files, layout, options, workers, dataset in options.occlude.datasets)
        indexing.write_index(index, found.index, dataset=dataset, layout=layout)
        store.pack(images, "images", found.blobs(), found.sizes, {"index": found.hash})
    attrs = {"index": found.hash, "truth": int(bool(found.truth))}
    store.write(truth, "truth", found.truth or found.pasted, attrs)
    print(indexing.describe(found))


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
