"""What the stages `segment` and `pose` share: one network over every image of a dataset, into a label file.

A parser is a module with

- `KIND`, the kind of its label file;
- `weights_file(params, path)`, the file of weights that the network reads;
- `load(params, path)`, the network, ready for use: `network.arrays(crops)` gives the file's arrays for a
  batch of crops, one row per crop, and `network.attrs` what readers of the file must know;
- `libraries(params)`, the packages whose versions shape the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import ModuleType
from typing import Any

from pipeline.core import distributed
from pipeline.core.label_file import Arrays
from pipeline.core.resumable import compute_rows
from pipeline.core.weights import fingerprint
from pipeline.data.index import Crop, Images, index_hash, read_index


def run_parser(
    parser: ModuleType, settings: Any, index: str, images: str, weights: str, out: str, workers: int
) -> None:
    """Run a parser over every image of an index and write its arrays to the label file `out`.

    `settings` are the parser's params, `weights` the path that dvc.yaml gives.  The network is loaded here
    once, before any worker starts, so that unfit weights end the stage at once.  Raises `BadInput` for them.
    """
    table = read_index(index)
    key = index_hash(table)
    make = partial(load_rows, parser.load, settings, weights, Images(images, key))
    content = fingerprint(parser.weights_file(settings, weights))
    network_attrs = parser.load(replace(settings, device="cpu"), weights).attrs  # frees the network at once
    attrs = {"index": key, "weights": content, "params": asdict(settings), **network_attrs}
    libraries = parser.libraries(settings)
    with distributed.shard_group() as group:
        compute_rows(out, parser.KIND, len(table), settings.batch, make, attrs, workers, libraries, group)


def load_rows(
    load: Callable[[Any, str], Any], settings: Any, weights: str, images: Images | Sequence[Crop]
) -> Callable[[int, int], Arrays]:
    """A parser's network over a dataset's images: (start, stop) -> the arrays of these rows.

    `load` is the parser's.  Each worker process calls this once, and loads the network there.
    """
    network = load(settings, weights)
    return lambda start, stop: network.arrays([images[row] for row in range(start, stop)])
