"""Whatever a stage writes: a full disk is named, and nothing is left."""

import resource

import pandas as pd
import pytest
import torch

from pipeline.core.files import atomic_write
from pipeline.core.label_file import write_label_file
from pipeline.core.params import BadInput
from pipeline.model.backbones import save_vit
from pipeline.pretraining.fit import _save_state
from pipeline.training import checkpoint
from pipeline.training.loop import Loop
from stages import train
from tests import toy
from tests.core.rows import ATTRS, random_rows


def state_of_a_training(folder):
    running = Loop(toy.model(), toy.schedule(), torch.device("cpu"))
    running.log.append({"step": 0})
    checkpoint.Checkpoints(folder, 0.0).step(running, {}, None)


def table(folder):
    with atomic_write(folder / "a.parquet") as beside:
        pd.DataFrame(random_rows(64)["part"]).to_parquet(beside)


WRITERS = {  # what writes more than 20 kB into a folder
    "label file": lambda folder: write_label_file(folder / "a.h5", "maps", random_rows(64), ATTRS),
    "weights": lambda folder: save_vit(folder / "vit.safetensors", toy.encoder(), {}),
    "trained model": lambda folder: train.save(
        *(str(folder / name) for name in ("model", "log.csv", "curves")), toy.model(), {}, pd.DataFrame()
    ),
    "state of a training": state_of_a_training,
    "state of a pretraining": lambda folder: _save_state(folder / "state.pt", 1, [], *[toy.encoder()] * 3),
    "table": table,
}


@pytest.mark.parametrize("left", [0, 500, 20_000])
@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, what, left):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        with pytest.raises(BadInput, match=f"{tmp_path}/.*: the disk is full or over quota. Free some"):
            WRITERS[what](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["log.jsonl"])
