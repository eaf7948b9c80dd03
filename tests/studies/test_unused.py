"""Params without effect, of all sections: what is listed for which params.yaml."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from pipeline.batches.views import eval_batch
from pipeline.core import params
from pipeline.methods.base import load_trained
from pipeline.studies.tables import METHODS
from pipeline.studies.unused import UNUSED, unused_params
from tests import toy

VALUES = params.load("params.yaml")
COMMITTED = [
    "parse.spread", "index.occlude.seed", "index.occlude.area", "index.occlude.aspect",
    "index.occlude.cutouts", "evaluate.rerank.k1", "evaluate.rerank.k2", "evaluate.rerank.original",
    *sorted(METHODS - {"ogfr"}), "ogfr.erase_rate", "ogfr.baseline_epochs", "train.mining",
    "train.statistics",
]  # fmt: skip
# params by their dotted names; what is listed beside, and instead of, the committed list
CASES = [
    ({}, set(), set()),
    ({"parsers": "coco"}, {"segment.network", "segment.weights", "pose.network", "pose.weights"}, set()),
    ({"segment.network": "maskrcnn_resnet50_fpn_v2:COCO_V1"}, {"segment.weights"}, set()),
    ({"parse_on": []}, {"segment", "pose", "parsers", "parse.target"}, set()),
    ({"parse.fill": True}, set(), {"parse.spread"}),
    (
        {"index.occlude.datasets": ["embedded"]},
        set(),
        {n for n in COMMITTED if n.startswith("index.occlude")},
    ),
    ({"evaluate.rerank.depth": 100}, set(), {n for n in COMMITTED if n.startswith("evaluate.rerank")}),
    ({"processes.train": 2}, set(), {"train.mining", "train.statistics"}),
    (
        {"method": "vit_baseline"},
        {"embed.cameras", "ogfr"},
        {n for n in COMMITTED if n.startswith(("ogfr", "vit"))},
    ),
    (
        {"method": "vit_baseline", "vit_baseline.gamma_camera": 3.0},
        {"ogfr"},
        {n for n in COMMITTED if n.startswith(("ogfr", "vit"))},
    ),
    ({"evaluate.top": 0}, {"draw.nearest"}, set()),
    ({"ogfr.erase": "random"}, {"ogfr.episodes", "ogfr.agent_lr", "ogfr.baseline"}, {"ogfr.erase_rate"}),
]


@pytest.mark.parametrize(("changes", "more", "less"), CASES)
def test_a_param_is_listed_where_others_leave_it_without_effect(changes, more, less):
    values = deepcopy(VALUES)
    for name, value in changes.items():
        *path, last = name.split(".")
        section = values
        for key in path:
            section = section[key]
        section[last] = value
    listed = unused_params(values)
    assert more <= set(listed) and not less & set(listed)
    assert set(COMMITTED) - less <= set(listed)
    assert changes or listed == COMMITTED


@pytest.mark.parametrize("name", UNUSED)
def test_every_name_is_a_param(name):
    value = VALUES
    for key in name.split("."):
        value = value[key]


@pytest.mark.parametrize(("gamma", "equal"), [(0.0, True), (3.0, False)])
def test_cameras_matter_to_an_embedding_only_under_a_weight(tmp_path, gamma, equal):
    model = load_trained(toy.trained(tmp_path / "model", "vit_baseline", gamma_camera=gamma))
    people = toy.people()
    unknown = replace(people, camid=people.camid * 0 - 1)
    parts = [model.embed(eval_batch(images)).parts for images in (people, unknown)]
    assert torch.equal(*parts) is equal
