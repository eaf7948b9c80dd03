"""Which queries a figure shows, and which image stands beside each of them."""

import numpy as np
import pandas as pd
import pytest

from pipeline.core.params import BadInput
from pipeline.explanation.choice import choose, holistic_image

QUERIES = pd.DataFrame(
    {
        "key": list("abcdef"),
        "matches": [1, 2, 1, 1, 1, 0],
        "occluded": [True, True, False, True, False, True],
        "model_ap": [0.9, 0.1, 1.0, 0.5, 0.2, np.nan],
        "encoder_ap": [0.8, 0.5, 0.1, 0.5, 0.0, np.nan],  # changed by +0.1, -0.4, +0.9, 0, +0.2
        "histogram_ap": [0.0, 0.1, 1.0, 0.5, 0.2, np.nan],
    }
)
CASES = {  # choice, group: the keys in a figure's order
    ("worst", "all"): "bedac",
    ("best", "all"): "cadeb",
    ("changed", "all"): "cbead",
    ("worst", "occluded"): "bda",
    ("best", "holistic"): "ce",
    ("changed", "occluded"): "bad",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_queries_are_chosen_by_their_ap_among_those_with_a_match(case, count):
    choice, group = case
    chosen = choose(QUERIES, [choice], count, seed=1, group=group)
    assert "".join(chosen["key"]) == CASES[case][:count]


def test_what_changed_is_measured_against_the_system_that_is_named():
    chosen = choose(QUERIES, ["changed"], 1, seed=1, systems=("model", "histogram"))
    assert chosen["key"].tolist() == ["a"]


def test_random_queries_are_fixed_by_the_seed_and_do_not_need_any_ap():
    plain = QUERIES[["key", "matches", "occluded"]]
    draws = ["".join(choose(plain, ["random"], 5, seed)["key"]) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) > 1
    assert {"".join(sorted(draw)) for draw in draws} == {"abcde"}


def test_the_seed_orders_queries_of_equal_ap():
    alike = QUERIES.assign(model_ap=[0.5, 0.5, 0.5, 0.5, 0.1, np.nan])
    orders = {"".join(choose(alike, ["worst"], 5, seed)["key"]) for seed in range(9)}
    assert len(orders) > 1 and {order[0] for order in orders} == {"e"}


def test_named_queries_come_in_their_own_order_once_each_with_a_match_or_without():
    assert "".join(choose(QUERIES, ["f", "b", "f"], 1, seed=1)["key"]) == "fb"
    assert "".join(choose(QUERIES, ["d"], 1, seed=1)["key"]) == "d"


WRONG = {  # wanted, group, other system: what the user reads
    (("x", "a", "y"), "all", "encoder"): r"queries: x, y: no query has this key\. Name keys .* such as a, or",
    (("worst", "best"), "all", "encoder"): "queries: worst, best: no query has this key",
    (("changed",), "all", "clip"): r"beside = clip: no AP of this system\. Name one of model, encoder, histo",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_chosen_is_named(case):
    wanted, group, other = case
    with pytest.raises(BadInput, match=WRONG[case]):
        choose(QUERIES, wanted, 2, 1, group, ("model", other))


def test_a_group_without_a_match_is_named():
    with pytest.raises(BadInput, match="group = occluded: no such query has a match in the gallery"):
        choose(QUERIES[QUERIES["key"] == "f"], ["worst"], 2, 1, "occluded")


def test_beside_a_query_stands_the_gallery_image_of_its_person_that_hides_least():
    index = pd.DataFrame(
        {"split": ["train", "query", "query", *["gallery"] * 5], "pid": [1, 1, 3, 1, 1, 1, 2, 0]}
    )
    hidden = np.zeros((8, 4), np.uint8)
    hidden[3, :2] = 1
    hidden[4, 2] = hidden[5, 3] = 1
    assert holistic_image(index, hidden, 1) == 4  # not the training image, which hides nothing
    assert holistic_image(index, hidden, 2) is None
    assert holistic_image(index, hidden, 7) is None  # a distractor is nobody
