"""The memory of identities: how it starts, what is near, how it moves, and what contrasts with it."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import distributed
from pipeline.core.params import BadInput
from pipeline.model.memory import Centres, check_neighbours
from tests.methods import fed_reference as slow
from tests.methods.test_equations import agree, normal
from tests.reference import scalars, stacked

LAW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10**6)


def memory(rows):
    rows = torch.as_tensor(rows, dtype=torch.float32)
    centres = Centres(*rows.shape)
    centres.centres.copy_(rows)
    return centres


def drawn(seed, identities=5, width=3, images=8):
    """A memory, and a batch with some identity several times."""
    features = normal(images, width, seed=seed)
    pid = torch.randint(identities, (images,), generator=torch.Generator().manual_seed(seed))
    return memory(normal(identities, width, seed=seed + 1).detach()), features, pid


# ------------------------------------------------------------------ start


def test_a_centre_starts_as_the_mean_of_its_identitys_features_however_they_are_batched():
    _, features, _ = drawn(0)
    pid = torch.tensor([0, 1, 2, 2, 0, 1, 0, 2])
    aloud = stacked(slow.starting_centres(scalars(features), pid.tolist(), 3)).detach().float()
    for size in (1, 3, 8):
        centres = memory(torch.full((3, 3), 9.0))  # nothing is left of what was there
        centres.start(zip(features.split(size), pid.split(size), strict=True))
        torch.testing.assert_close(centres.centres, aloud)
    assert not centres.centres.requires_grad


# ------------------------------------------------------------------ neighbours

ON_A_CIRCLE = torch.tensor([[1.0, 0.0], [0.9, 0.1], [5.0, 5.0], [0.0, 0.2], [-1.0, 0.0]])


def test_the_nearest_are_ranked_by_cosine_without_the_own_identity_and_have_length_1():
    near = memory(ON_A_CIRCLE).nearest(torch.tensor([[2.0, 0.0]] * 2), torch.tensor([0, 4]), 2)
    unit = F.normalize(ON_A_CIRCLE, dim=1)
    torch.testing.assert_close(near, torch.stack([unit[[1, 2]], unit[[0, 1]]]))


@LAW
@given(SEEDS, st.integers(1, 4))
def test_the_own_identity_is_never_a_neighbour_and_the_others_are_those_of_the_published_code(seed, count):
    centres, features, pid = drawn(seed)
    near = centres.nearest(features, pid, count)
    own = F.normalize(centres.centres[pid], dim=1)
    assert (near != own[:, None]).any(-1).all() and not near.requires_grad
    rows, alike = scalars(centres.centres), scalars(features.detach())
    wanted = [slow.nearest(row, own, rows, count) for row, own in zip(alike, pid.tolist(), strict=True)]
    torch.testing.assert_close(near, stacked(wanted).float())


@pytest.mark.parametrize("identities", [1, 8])
def test_too_few_identities_are_refused(identities):
    others = identities - 1
    with pytest.raises(BadInput, match=f"fed.neighbours = 8: a memory of {identities} .* {others} others"):
        check_neighbours("fed.neighbours", 8, identities)
    check_neighbours("fed.neighbours", 8, 9)


# ------------------------------------------------------------------ contrast


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_contrast_is_that_of_the_published_code(temperature):
    centres, features, pid = drawn(3)
    aloud = slow.contrast(scalars(features), pid.tolist(), scalars(centres.centres), temperature)
    agree(centres.contrast(features, pid, temperature), aloud, features)


def test_an_image_on_its_centre_far_from_all_others_loses_nothing_and_a_hopeless_one_a_finite_number():
    centres = memory(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]))
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    assert centres.contrast(features, torch.tensor([0]), 0.05).item() == pytest.approx(0, abs=1e-5)
    hopeless = centres.contrast(features, torch.tensor([1]), 0.05)
    assert hopeless.item() == pytest.approx(13.8, abs=0.1)
    assert torch.autograd.grad(hopeless, features)[0].isfinite().all()


# ------------------------------------------------------------------ moving


def test_one_image_moves_its_centre_and_no_other():
    centres = memory([[1.0, 0.0], [0.0, 1.0]])
    centres.move(torch.tensor([[6.0, 2.0]]), torch.tensor([0]), 0.2)
    torch.testing.assert_close(centres.centres, torch.tensor([[0.2 + 4.8, 1.6], [0.0, 1.0]]))


@LAW
@given(SEEDS, st.sampled_from([0.0, 0.2, 0.9, 1.0]))
def test_images_of_one_identity_follow_one_another(seed, momentum):
    centres, features, pid = drawn(seed)
    wanted = slow.moved(scalars(centres.centres), scalars(features.detach()), pid.tolist(), momentum)
    centres.move(features, pid, momentum)
    torch.testing.assert_close(centres.centres, stacked(wanted).float())


def move_a_share(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    centres, features, pid = drawn(7)
    share = distributed.local_slice(len(pid))
    centres.move(features[share], pid[share], 0.2)
    torch.save(centres.centres, folder / f"{rank}.pt")


def test_two_processes_end_with_the_memory_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=move_a_share, args=(rank, tmp_path)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    whole, features, pid = drawn(7)
    whole.move(features, pid, 0.2)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole.centres)
