"""Saliency-guided patch transfer: who is mixed with whom, what of each patch is kept, and what is ignored."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import distributed
from pipeline.model.transfer import Transfer, draw_donors, draw_transfer, mix, oiou, saliency

GRID = (4, 3)
PATCHES = 12
seeds = st.integers(0, 2**31)


def people(count, seed=0, share=0.6):
    """A of some images, drawn patch by patch."""
    return torch.rand(count, PATCHES, generator=torch.Generator().manual_seed(seed)) < share


def columns(*shown):
    """A of images that show a person in these columns of the grid."""
    plane = torch.zeros(len(shown), *GRID, dtype=torch.bool)
    for image, where in enumerate(shown):
        plane[image, :, list(where)] = True
    return plane.flatten(1)


# ------------------------------------------------------------------ saliency


def test_a_patch_is_salient_if_at_least_half_of_it_shows_any_part():
    parsing = torch.zeros(1, 4, 8, dtype=torch.uint8)
    parsing[0, :2, :4] = torch.tensor([1, 2, 7, 8], dtype=torch.uint8)  # half of the left patch
    parsing[0, :2, 5:] = 3  # 6 of 16 pixels of the right one
    assert saliency(parsing, 4, 4).tolist() == [[True, False]]
    assert saliency(parsing, 4, 2).tolist() == [[True, False, False]]  # 4 + 2 of 16 in the middle


# ------------------------------------------------------------------ pairing


def oiou_in_loops(anchor, donor, grid, shift):
    height, width = grid
    both = sum(
        bool(anchor[y * width + (x - shift) % width] and donor[y * width + x])
        for y in range(height)
        for x in range(width)
    )
    return both / sum(map(bool, donor)) if any(donor) else 0.0


@given(seeds, st.sampled_from([0.05, 0.5, 0.95]))
def test_the_overlap_equals_that_in_loops_for_every_roll(seed, share):
    anchor, donor = people(3, seed, share), people(5, seed + 1, share)
    overlap = oiou(anchor, donor, GRID, GRID[1])
    assert overlap.shape == (3, 3, 5)
    for i in range(3):
        for k in range(3):
            for j in range(5):
                wanted = oiou_in_loops(anchor[i].tolist(), donor[j].tolist(), GRID, k)
                assert overlap[i, k, j].item() == pytest.approx(wanted)


def test_the_overlap_is_the_share_of_the_donors_person_that_the_anchors_fills():
    left, wide, nobody = columns([0], [0, 1], [])[:, None]
    assert oiou(left, wide, GRID, 2).tolist() == [[[0.5], [0.5]]]  # rolled by a column: the other half
    assert oiou(wide, left, GRID, 3).tolist() == [[[1.0], [0.0], [1.0]]]
    assert oiou(left, nobody, GRID, 2).tolist() == [[[0.0], [0.0]]]


def allowed_in_loops(salient, i, roll):
    """The (k, j) that an anchor may take, as SPT words it, with the image itself left out."""
    rows = salient.tolist()
    ranked = sorted(
        ((k, j) for k in range(GRID[1] if roll else 1) for j in range(len(rows)) if j != i),
        key=lambda pair: -oiou_in_loops(rows[i], rows[pair[1]], GRID, pair[0]),
    )
    tries = ranked[1 : len(rows) // 10]
    good = [(k, j) for k, j in tries if oiou_in_loops(rows[i], rows[j], GRID, 0) > 0.7]
    return set(good or ranked[:1])


@pytest.mark.parametrize("roll", [True, False])
@pytest.mark.parametrize("count", [6, 40])
def test_a_donor_is_one_of_the_best_ranks_that_overlap_or_the_very_best(count, roll):
    salient = people(count, seed=3)
    allowed = [allowed_in_loops(salient, i, roll) for i in range(count)]
    drawn = [set() for _ in range(count)]
    torch.manual_seed(0)
    for _ in range(60):
        for i, (row, shift, mixed) in enumerate(draw_donors(salient, GRID, 1.0, "oiou", roll).tolist()):
            assert mixed
            drawn[i].add((shift, row))
    assert drawn == allowed
    assert (max(map(len, allowed)) > 1) == (count == 40)  # fewer than 20 images have rank 0 alone


@pytest.mark.parametrize("pairing", ["oiou", "random"])
@given(seed=seeds, count=st.integers(2, 24), share=st.sampled_from([0.0, 0.1, 0.6, 1.0]))
def test_a_donor_is_never_the_image_itself(pairing, seed, count, share):
    torch.manual_seed(seed)
    row, shift, _ = draw_donors(people(count, seed, share), GRID, 1.0, pairing, True).unbind(1)
    assert (row != torch.arange(count)).all() and ((row >= 0) & (row < count)).all()
    assert ((shift >= 0) & (shift < GRID[1])).all()


def test_random_pairing_draws_every_other_image_and_never_rolls():
    torch.manual_seed(0)
    draws = torch.stack([draw_donors(people(4), GRID, 1.0, "random", True) for _ in range(60)])
    assert [sorted(set(draws[:, i, 0].tolist()) | {i}) for i in range(4)] == [[0, 1, 2, 3]] * 4
    assert not draws[..., 1].any()


def test_images_are_mixed_with_the_probability():
    torch.manual_seed(0)
    for probability, least, most in ((0.0, 0, 0), (0.3, 0.25, 0.35), (1.0, 1, 1)):
        mixed = [draw_donors(people(8), GRID, probability, "oiou", True)[:, 2] for _ in range(200)]
        assert least <= torch.stack(mixed).float().mean() <= most


@pytest.mark.parametrize("pairing", ["oiou", "random"])
def test_an_image_in_which_nobody_was_found_neither_gives_nor_takes(pairing):
    salient = columns([0, 1], [], [1, 2], [0, 1, 2])
    torch.manual_seed(0)
    for _ in range(30):
        donors = draw_donors(salient, GRID, 1.0, pairing, True)
        assert not donors[1, 2] and not donors[donors[:, 0] == 1, 2].any()
        assert donors[3, 2] or donors[3, 0] == 1
    assert not draw_donors(columns([], [], []), GRID, 1.0, pairing, True)[:, 2].any()


# ------------------------------------------------------------------ mixing


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, PATCHES, 2, generator=generator, dtype=torch.float64).requires_grad_()


def mix_in_loops(anchor, donor, kept, shift):
    height, width = GRID
    image = []
    for y in range(height):
        for x in range(width):
            a = kept[y * width + x]
            own, other = anchor[y * width + (x - shift) % width], donor[y * width + x]
            image.append(int(a) * own + (1 - int(a)) * other)
    return torch.stack(image)


def test_mixing_and_its_gradients_equal_those_in_loops():
    anchor, donor, kept, shift = tokens(3, 0), tokens(3, 1), people(3), torch.tensor([0, 1, 2])
    mixed = mix(anchor, donor, kept, shift, GRID)
    wanted = torch.stack([mix_in_loops(anchor[i], donor[i], kept[i], int(shift[i])) for i in range(3)])
    assert torch.equal(mixed, wanted)
    weights = torch.randn_like(wanted)
    got = torch.autograd.grad((weights * mixed).sum(), [anchor, donor])
    assert all(map(torch.equal, got, torch.autograd.grad((weights * wanted).sum(), [anchor, donor])))


def test_a_donor_that_shows_its_person_everywhere_leaves_the_anchor_and_nowhere_replaces_it():
    anchor, donor, everywhere = tokens(2, 0), tokens(2, 1), torch.ones(2, PATCHES, dtype=torch.bool)
    still = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(mix(anchor, donor, everywhere, still, GRID), anchor)
    assert torch.equal(mix(anchor, donor, ~everywhere, still, GRID), donor)


def test_images_that_are_not_mixed_keep_their_patches_and_take_nothing():
    torch.manual_seed(0)
    salient, patches = people(10), tokens(10, 0)
    drawn = draw_transfer(salient, GRID, 0.5, "oiou", True)
    edited = drawn.edit(patches)
    assert torch.equal(edited[~drawn.mixed], patches[~drawn.mixed]) and 0 < drawn.mixed.sum() < 10
    for i in drawn.mixed.nonzero()[:, 0].tolist():
        j = int(drawn.row[i])
        assert torch.equal(edited[i], mix_in_loops(patches[i], patches[j], salient[j], int(drawn.shift[i])))


# ------------------------------------------------------------------ ignoring

PID = torch.tensor([4, 4, 0, 2])
DRAWN = Transfer(
    row=torch.tensor([2, 0, 3, 0]),  # identities 0, 4, 2, 4
    shift=torch.zeros(4, dtype=torch.int64),
    kept=people(4),
    mixed=torch.tensor([True, True, True, False]),
    grid=GRID,
)


def test_the_donors_identity_is_ignored_unless_it_is_the_anchors_or_nothing_is_taken():
    classes = [row.nonzero()[:, 0].tolist() for row in DRAWN.ignored_classes(PID, 5)]
    assert classes == [[0], [], [2], []]
    images = [row.nonzero()[:, 0].tolist() for row in DRAWN.ignored_candidates(PID)]
    assert images == [[2], [], [3], []]


# ------------------------------------------------------------------ several processes


def measure():
    """This process's transfer, and the gradient of a loss of its edited patches for all patches."""
    torch.manual_seed(5)
    rows, patches = distributed.local_slice(24), tokens(24, 2)
    drawn = draw_transfer(people(24)[rows], GRID, 0.5, "oiou", True)
    edited = drawn.edit(patches[rows])
    (gradient,) = torch.autograd.grad(edited.square().mean(), patches)
    pid = (torch.arange(24) // 3)[rows]
    return {
        "row": drawn.row,
        "shift": drawn.shift,
        "edited": edited.detach(),
        "classes": drawn.ignored_classes(pid, 8),
        "images": drawn.ignored_candidates(pid),
        "next": torch.rand(1),  # generators stay equal
    }, distributed.all_reduce_mean(gradient)


def measure_as_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(measure(), folder / f"{rank}.pt")


def test_two_processes_mix_what_one_mixes(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=measure_as_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    (first, gradient), (second, same) = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    whole, wanted = measure()
    assert first.pop("next") == second.pop("next") == whole.pop("next")
    assert all(torch.equal(torch.cat([first[name], second[name]]), whole[name]) for name in whole)
    torch.testing.assert_close(gradient, wanted)
    assert torch.equal(gradient, same) and wanted.any()
    assert (whole["row"][:12] >= 12).any()  # a donor of the other process
