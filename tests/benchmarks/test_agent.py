"""The agent learns: on a task whose answer is known, it keeps what tells people apart and erases noise."""

from dataclasses import replace

import pytest
import torch

from benchmarks.agent import learning
from benchmarks.agent.__main__ import VARIANTS

RECOMMENDED = learning.make_case(*VARIANTS["recommended"])
STEPS = 800


@pytest.fixture(scope="module")
def learnt():
    torch.set_num_threads(1)
    return learning.train_agent(RECOMMENDED, seed=1, steps=STEPS)


def test_patches_that_carry_identity_are_kept(learnt):
    assert learnt["keep_identity"] >= 0.8


def test_noise_is_erased(learnt):
    assert learnt["keep_noise"] <= 0.3


def test_the_agents_mask_serves_the_reader_as_well_as_the_true_one(learnt):
    assert learnt["score_without_mask"] < 0.7 * learnt["score_by_truth"]  # noise does mislead it
    assert learnt["score_by_agent"] > 0.95 * learnt["score_by_truth"]


def test_the_reader_stays_as_it_is_while_the_agent_learns():
    torch.manual_seed(2)
    task = learning.make_task(2)
    model = learning.build(
        learning.AgentAlone, learning.make_case("recommended", (), start="random").ogfr
    ).train()
    torch.nn.init.normal_(model.heads.weight, std=0.1)  # or nothing that is erased makes a difference
    before = {name: t.clone() for name, t in model.state_dict().items()}
    learning.train(model, replace(RECOMMENDED.train, epochs=1), task.sample_batch)
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"agent.linear.weight", "agent.linear.bias"}


def test_half_of_the_patches_show_somebody_and_the_labels_say_which():
    batch = learning.make_task(3).sample_batch()
    label = batch.holistic.parsing[:, :: learning.PATCH, :: learning.PATCH].flatten(1)
    shows = (label > 0).sum(1)
    assert (shows == learning.PERSON_SHARE * learning.PATCHES).all() and int(label.max()) == 8
    first = batch.holistic.image[0, :, : learning.PATCH, : learning.PATCH]
    again = learning.make_task(3).sample_batch().holistic.image[0, :, : learning.PATCH, : learning.PATCH]
    assert torch.equal(first, again)
