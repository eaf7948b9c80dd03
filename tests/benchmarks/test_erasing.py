"""What a mask can change: its bounds, the labels' mask, and networks that read no patch or many."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.erasing.masks import measure
from pipeline.batches.views import eval_batches
from tests import toy

PEOPLE = toy.people()


@pytest.fixture
def model():
    return toy.model(PEOPLE, start="random").eval()


def measured(model):
    return measure(model, eval_batches(PEOPLE, 5))


def test_the_bounds_keep_all_patches_and_none(model):
    rows = measured(model)
    assert rows["none"]["kept"] == 1 and rows["everything"]["kept"] == 0
    assert 0.4 < rows["random"]["kept"] < 1  # 0.3 are erased


def test_the_labels_keep_the_patches_that_show_somebody(model):
    shows_person = torch.from_numpy(PEOPLE.parsing > 0).float()[:, None]
    share = (torch.nn.functional.avg_pool2d(shows_person, 16) > 0.5).float().mean()
    assert measured(model)["labels"]["kept"] == pytest.approx(share.item(), abs=1e-4)


def test_a_decoder_that_passes_on_what_it_gets_is_moved_by_no_mask():
    unmoved = toy.model(PEOPLE, start="encoder").eval()  # its layers begin as no change
    torch.nn.init.normal_(unmoved.heads.weight, std=0.05)
    assert len({row["probability"] for row in measured(unmoved).values()}) == 1


def test_a_decoder_that_reads_patches_is_moved(model):
    torch.nn.init.normal_(model.heads.weight, std=0.05)
    for layer in model.decoder:
        torch.nn.init.normal_(layer.attention.qkv.weight, std=0.3)
    rows = measured(model)
    assert rows["everything"]["probability"] != rows["none"]["probability"]


def test_kept_shares_of_what_contaminates_and_of_the_target_are_told_apart(model):
    parsing, contaminating = np.zeros_like(PEOPLE.parsing), np.zeros(PEOPLE.parsing.shape, bool)
    parsing[:, 16:48, 16:] = 1  # two whole patches
    contaminating[::2, :16, :16] = True  # one whole patch of every other image
    contaminating[:, 16:32, :8] = True  # half a patch, which is not counted
    people = replace(PEOPLE, parsing=parsing)
    rows = measure(model, eval_batches(people, 5), contaminating)
    assert rows["labels"]["kept_target"] == 1 and rows["labels"]["kept_contaminating"] == 0
    assert rows["none"]["kept_contaminating"] == 1 and rows["everything"]["kept_target"] == 0
    assert set(measured(model)["none"]) == {"probability", "kept"}
