"""Losses against their slow versions, and points on a line where the answer can be seen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from pipeline.model import losses

PID = tensor([0, 0, 1, 1])


def test_distances_are_euclidean():
    a, b = torch.randn(5, 3), torch.randn(4, 3)
    for i in range(5):
        for j in range(4):
            assert losses.pairwise_distances(a, b)[i, j] == pytest.approx(
                (a[i] - b[j]).norm().item(), abs=1e-4
            )


def test_equal_features_have_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    losses.triplet(features, PID).backward()
    assert features.grad.isfinite().all()


LINES = {  # places of images 0 0 1 1 on a line: (farthest match - nearest stranger) of each
    (0, 1, 10, 11): (-9, -8, -8, -9),
    (0, 5, 4, 9): (1, 4, 4, 1),
}


@pytest.mark.parametrize(("places", "gaps"), LINES.items())
def test_triplets_take_the_farthest_match_and_the_nearest_stranger(places, gaps):
    features = tensor(places, dtype=torch.float)[:, None]
    soft = sum(math.log1p(math.exp(g)) for g in gaps) / 4
    assert losses.triplet(features, PID).item() == pytest.approx(soft, rel=1e-4)


def test_an_average_distance_does_not_grow_with_the_channels():
    features, pid = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    wide = features.repeat(1, 9)
    assert losses.triplet(wide, pid).item() != pytest.approx(losses.triplet(features, pid).item(), rel=1e-3)
    narrow = losses.triplet(features / 2, pid)  # 4 channels: the root of a mean is half the root of a sum
    for same in (features, wide):
        assert losses.triplet(same, pid, average=True).item() == pytest.approx(narrow.item(), rel=1e-5)


def test_parts_are_independent():
    features = torch.randn(3, 4, 5)
    together = losses.triplet(features, PID)
    assert torch.allclose(together, torch.stack([losses.triplet(f, PID) for f in features]))


def test_a_batch_of_one_identity_has_a_finite_triplet_loss():
    assert losses.triplet(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)).isfinite()


def test_identity_loss_is_the_mean_surprise_of_the_truth():
    logits = torch.randn(4, 2, 6)
    slow = [-sum(logits[i, p].log_softmax(0)[PID[i]].item() for i in range(4)) / 4 for p in range(2)]
    assert losses.identity(logits, PID).tolist() == pytest.approx(slow, rel=1e-5)


def test_divergence_is_that_of_the_teacher_from_the_student():
    teacher, student = torch.randn(4, 2, 6), torch.randn(4, 2, 6)
    slow = [0.0, 0.0]
    for p in range(2):
        for i in range(4):
            t, s = teacher[i, p].softmax(0), student[i, p].softmax(0)
            slow[p] += sum((t[c] * (t[c] / s[c]).log()).item() for c in range(6)) / 4
    assert losses.kl_divergence(teacher, student).tolist() == pytest.approx(slow, rel=1e-4)
    assert losses.kl_divergence(teacher, teacher).abs().max() < 1e-6


@given(st.floats(0.1, 10))
def test_cosine_ignores_length(length):
    a = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    b = torch.tensor([[[length, 0.0], [-1.0, 1.0]]])
    assert losses.cosine(a, b).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("loss", [losses.kl_divergence, losses.cosine])
def test_the_teacher_receives_no_gradient(loss):
    teacher, student = (torch.randn(4, 2, 6, requires_grad=True) for _ in range(2))
    loss(teacher, student).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_distances_are_exact_inside_autocast():
    a = torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.pairwise_distances(a, a[:3]), losses.pairwise_distances(a, a[:3]).float())
        inside = losses.pairwise_distances(a, a[:3])
    assert torch.equal(inside, losses.pairwise_distances(a, a[:3]))
