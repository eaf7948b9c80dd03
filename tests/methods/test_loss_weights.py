"""The params that weigh losses weigh the terms that they name; equal defaults would hide an exchange."""

import pytest
import torch

from tests import toy
from tests.methods import test_contract as contract

WEIGHTS = {  # method: params that all differ, and the weights of its objectives' terms (1 where not named)
    "dpm": (
        {"plain": 0.3, "arc": 0.7, "orthogonal": 0.2},
        [{"identity": 0.3, "arc": 0.7, "triplet": 1, "orthogonality": 0.2}, {"mask": 0.7}],
    ),
    "dpmpp": (
        {"plain": 0.3, "arc": 0.7, "orthogonal": 0.2, "budget": 0.9},
        [
            {"identity": 0.3, "arc": 0.7, "triplet": 1, "orthogonality": 0.2, "budget": 0.9},
            {"mask": 0.7, "mask_budget": 0.9},
        ],
    ),
    "fed": (
        {"oem_weight": 1.7, "contrast_occluded": 0.2, "contrast_diffused": 0.6},
        [{"oem": 1.7, "contrast_occluded": 0.2, "contrast_diffused": 0.6}],
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_term_counts_by_its_own_param(name):
    changes, wanted = WEIGHTS[name]
    torch.manual_seed(0)
    module = contract.load_method(name)
    settings = contract.settings(name, **changes)
    method = module.build(settings, contract.data_spec(contract.PEOPLE), toy.encoder()).train()
    objectives = list(method.objectives(toy.batch(contract.PEOPLE)))
    assert len(objectives) == len(wanted)
    for objective, weights in zip(objectives, wanted, strict=True):
        used = {term: objective.weights.get(term, 1.0) for term in objective.terms}
        assert weights.items() <= used.items()
        assert all(weight == 1 for term, weight in used.items() if term not in weights)


def test_texts_count_by_their_own_weights():
    changes = {"text_weight": 2.0, "align_weight": 3.0, "transfer": ("i2t", "align")}
    settings = contract.settings("dpmpp", **changes)
    torch.manual_seed(0)
    module = contract.load_method("dpmpp")
    method = module.build(settings, contract.data_spec(contract.PEOPLE), toy.encoder()).train()
    weights = next(method.objectives(toy.batch(contract.PEOPLE))).weights
    assert (weights["i2t"], weights["align"]) == (2.0, 3.0)
