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


# ------------------------------------------------------------------ what DPM, DPM++ and CLIP-ReID add


def both(fast, slow, *inputs):
    """Check values and gradients of a loss and of its slow twin."""
    ends = []
    for function in (fast, slow):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        ends.append((value.detach().double(), torch.autograd.grad(value, leaves)))
    (value, gradients), (expected, slow_gradients) = ends
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, other in zip(gradients, slow_gradients, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("margin", [None, 0.3, 5.0])
def test_a_triplet_loss_with_a_margin_and_ignored_images_equals_loops(margin):
    torch.manual_seed(0)
    features, pid = torch.randn(8, 3), tensor([0, 0, 1, 1, 2, 2, 3, 3])
    ignored = torch.rand(8, 8) < 0.4
    ignored[0] = True  # no negative is left

    def slow(features):
        total = 0.0
        for i in range(8):
            distance = [(features[i] - features[j]).square().sum().clamp(min=1e-12).sqrt() for j in range(8)]
            far = max(distance[j] for j in range(8) if pid[i] == pid[j])
            strangers = [distance[j] for j in range(8) if pid[i] != pid[j] and not ignored[i, j]]
            gap = far - min(strangers) if strangers else far - far.detach()
            total = total + (torch.log1p(gap.exp()) if margin is None else (gap + margin).clamp(min=0))
        return total / 8

    both(lambda f: losses.triplet(f, pid, margin=margin, ignored=ignored), slow, features)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("some", [False, True])
def test_a_smooth_identity_loss_that_ignores_identities_equals_loops(smoothing, some):
    torch.manual_seed(0)
    logits = torch.randn(4, 6)
    ignored = (torch.rand(4, 6) < 0.4) & (torch.arange(6) != PID[:, None])
    assert ignored.any()

    def slow(logits):
        total = 0.0
        for i in range(4):
            kept = [c for c in range(6) if not (some and ignored[i, c])]
            norm = torch.stack([logits[i, c] for c in kept]).logsumexp(0)
            for c in kept:
                truth = (1 - smoothing) * (c == PID[i].item()) + smoothing / len(kept)
                total = total + truth * (norm - logits[i, c])
        return total / 4

    both(lambda x: losses.identity(x, PID, smoothing, ignored if some else None), slow, logits)


def test_an_ignored_identity_has_no_gradient_in_any_part():
    logits = torch.randn(4, 2, 6, requires_grad=True)
    ignored = torch.arange(6) == (PID[:, None] + 3)
    losses.identity(logits, PID, 0.1, ignored).sum().backward()
    assert (logits.grad.abs() > 0).logical_xor(ignored[:, None]).all()


@pytest.mark.parametrize("margin", [0.3, 0.5])
def test_the_angle_of_the_true_identity_grows_by_the_margin(margin):
    cosine = torch.linspace(-0.99, 0.99, 12).reshape(4, 3)
    pid = tensor([0, 1, 2, 0])

    def slow(cosine):
        total = 0.0
        for i in range(4):
            for c in range(3):
                angle, logit = cosine[i, c].acos(), cosine[i, c]
                if c == pid[i] and angle < math.pi - margin:
                    logit = (angle + margin).cos()
                elif c == pid[i]:
                    logit = logit - margin * math.sin(margin)
                total = total + (i + 2 * c + 1) * 30 * logit
        return total

    weights = torch.arange(4)[:, None] + 2 * torch.arange(3) + 1
    both(lambda x: (weights * losses.arc(x, pid, 30.0, margin)).sum(), slow, cosine)


@pytest.mark.parametrize("edge", [-1.0, 1.0, 1.0000001])
def test_the_gradient_of_an_angle_of_0_or_pi_is_finite(edge):
    cosine = torch.full((4, 3), edge, requires_grad=True)
    logits = losses.arc(cosine, PID, 30.0, 0.5)
    losses.identity(logits, PID).backward()
    assert cosine.grad.isfinite().all() and (cosine.grad[:, 0] != 0).all()
    beyond = edge * math.cos(0.5) if edge > 0 else edge - 0.5 * math.sin(0.5)
    assert logits[0, 0].item() == pytest.approx(30 * beyond, abs=0.02)


def test_orthogonal_heads_cost_nothing_and_alike_ones_are_counted_in_pairs():
    torch.manual_seed(0)
    assert losses.orthogonality(torch.eye(4)[None] * 7).item() == pytest.approx(0, abs=1e-6)
    assert losses.orthogonality(torch.ones(1, 4, 9)).item() == pytest.approx(12 / 16)
    logits = torch.randn(3, 4, 9)
    once = losses.orthogonality(logits).item()
    assert losses.orthogonality(torch.cat([logits, logits])).item() == pytest.approx(2 * once)

    def slow(logits):
        total = 0.0
        for rows in logits:
            for i in range(4):
                for j in range(4):
                    cosine = rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())
                    total = total + (cosine - float(i == j)) ** 2 / 16
        return total

    both(losses.orthogonality, slow, logits)


def test_pictures_and_texts_of_an_identity_are_sought_both_ways():
    torch.manual_seed(0)
    image, text, pid = torch.randn(5, 3), torch.randn(5, 3), tensor([0, 0, 1, 2, 1])

    def slow(image, text):
        total = 0.0
        for rows, columns in ((image, text), (text, image)):
            for i in range(5):
                matches = [j for j in range(5) if pid[i] == pid[j]]
                norm = torch.stack([rows[i] @ columns[j] for j in range(5)]).logsumexp(0)
                total = total + sum(norm - rows[i] @ columns[j] for j in matches) / len(matches) / 5
        return total

    both(lambda v, t: losses.contrast(v, t, pid), slow, image, text)
