"""TransReID: camera embeddings, the jigsaw patch module, and that without both it is the baseline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.complexity.counts import OCCLUDED_DUKE
from pipeline.batches.views import eval_batch
from pipeline.core.params import BadInput
from pipeline.methods import transreid, vit_baseline
from pipeline.methods.base import data_spec
from pipeline.model.backbones import untrained_vit
from pipeline.training.loop import TIMES, Loop
from tests import toy
from tests.methods import transreid_reference as slow
from tests.methods.test_contract import settings
from tests.reference import scalars, stacked

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE)
EITHER = pytest.mark.parametrize("preset", ["recommended", "paper"])
SHUFFLES = {  # class token 0, patches 1 ... 8: shift, groups -> order
    (1, 1): [1, 2, 3, 4, 5, 6, 7, 8],
    (5, 1): [5, 6, 7, 8, 1, 2, 3, 4],
    (1, 2): [1, 5, 2, 6, 3, 7, 4, 8],
    (5, 2): [5, 1, 6, 2, 7, 3, 8, 4],
    (4, 2): [4, 8, 5, 1, 6, 2, 7, 3],
}


def model(preset="recommended", size=toy.SIZE, **changes):
    people = toy.people(size=size)
    torch.manual_seed(0)
    return transreid.build(
        settings("transreid", preset, **changes), data_spec(people), toy.encoder(depth=3, size=size)
    )


def numbered(count):
    """Patch tokens 1 ... count of one channel."""
    return torch.arange(1.0, count + 1)[None, :, None]


# ------------------------------------------------------------------ without JPM and SIE


@EITHER
def test_without_jpm_and_sie_it_is_the_baseline_bit_for_bit(preset):
    ends = []
    for name, module in (("transreid", transreid), ("vit_baseline", vit_baseline)):
        off = {"jpm": False} if name == "transreid" else {}
        torch.manual_seed(0)
        method = module.build(
            settings(name, preset, gamma_camera=0.0, **off), data_spec(PEOPLE), toy.encoder()
        )
        loop = Loop(method.train(), toy.schedule(preset, epochs=1), torch.device("cpu"))
        for seed in range(3):
            loop.step(toy.batch(PEOPLE, seed), 0.5)
        log = [{name: value for name, value in row.items() if name not in TIMES} for row in loop.log]
        ends.append((log, method.state_dict(), method.eval().embed(eval_batch(PEOPLE))))
    (log, weights, embedding), (other_log, other_weights, other) = ends
    assert log == other_log and list(weights) == list(other_weights)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert torch.equal(embedding.parts, other.parts) and torch.equal(embedding.visibility, other.visibility)


def test_it_trains_by_the_baselines_recommended_schedule_and_transreids_printed_one():
    ours, baseline = transreid.PRESETS, vit_baseline.PRESETS
    shared = {name for name in baseline if name.startswith("train.")}
    assert all(ours[name][0] == baseline[name][0] for name in shared)
    differ = {name.removeprefix("train.obstacles.") for name in shared if ours[name][1] != baseline[name][1]}
    assert differ == {"sources", "area", "aspect"}


# ------------------------------------------------------------------ shuffle and groups


@pytest.mark.parametrize("case", SHUFFLES)
def test_patches_are_shifted_and_interleaved(case):
    assert transreid.shuffle(numbered(8), *case).flatten().tolist() == SHUFFLES[case]


def test_shift_5_moves_four_patches_and_an_odd_count_repeats_the_last_but_one():
    assert transreid.shuffle(numbered(7), 5, 1).flatten().tolist() == [5, 6, 7, 1, 2, 3, 4]
    assert transreid.shuffle(numbered(7), 5, 2).flatten().tolist() == [5, 2, 6, 3, 7, 4, 1, 3]


@given(st.integers(2, 40), st.integers(1, 20), st.integers(1, 4))
def test_the_shuffle_is_that_of_the_loop_and_permutes_what_the_groups_divide(count, shift, groups):
    shift = min(shift, count)
    order = transreid.shuffle(numbered(count), shift, groups).flatten().tolist()
    assert order == slow.shuffled(list(range(count + 1)), shift, groups)
    assert count % groups or len(order) == count
    assert set(order) == set(range(1, count + 1))


@pytest.mark.parametrize(("size", "patches"), [((64, 32), 8), ((80, 48), 15)])
def test_each_local_feature_reads_the_class_token_and_its_group_alone(size, patches):
    other = model(size=size).eval()
    tokens = torch.randn(2, 1 + patches, 16, generator=torch.Generator().manual_seed(1))
    local = other.locals(tokens[:, 0], tokens[:, 1:])
    for image in range(2):
        groups = slow.grouped(list(tokens[image]), shift=5, groups=2, divide=4)
        wanted = [other.local(torch.stack(group)[None])[0, 0] for group in groups]
        assert torch.allclose(local[image], torch.stack(wanted), atol=1e-6)


def test_patches_that_are_left_over_enter_no_local_feature():
    other = model(size=(80, 48)).eval()  # 15 patches: 4 groups of 3
    tokens = torch.randn(1, 16, 16).requires_grad_()
    other.locals(tokens[:, 0], tokens[:, 1:]).square().sum().backward()
    reached = {n for n in range(1, 16) if tokens.grad[0, n].any()}
    read = {n for group in slow.grouped(list(range(16)), 5, 2, 4) for n in group}
    assert reached == read - {0} and len(reached) == 12


def test_at_the_start_one_unshuffled_group_gives_the_global_feature():
    other = model(divide=1, shift=1, groups=1).eval()
    g, local = other.features(eval_batch(PEOPLE).holistic, BATCH.camid).unbind(1)
    assert torch.equal(g, local)


def test_both_branches_start_as_the_encoders_last_layer_and_part_with_the_first_step():
    other = model().train()
    ours, theirs = other.encoder.blocks[-1].state_dict(), other.local[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(other.encoder.norm.weight, other.local[1].weight)
    Loop(other, toy.schedule(lr=1e-2, warmup=0.0), torch.device("cpu")).step(BATCH, 0.0)
    assert not torch.equal(other.encoder.blocks[-1].mlp.fc1.weight, other.local[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["shift", "groups", "divide"])
def test_a_shift_groups_and_local_features_beyond_the_patches_are_refused(name):
    model(**{name: 8})
    with pytest.raises(BadInput, match=rf"transreid\.{name} = 9: more than the 8 patches. Lower it"):
        model(**{name: 9})
    model(**{name: 9, "jpm": False})


# ------------------------------------------------------------------ losses and features


@EITHER
def test_the_loss_and_its_gradients_are_those_of_the_loops(preset):
    other = model(preset).train()
    torch.nn.init.normal_(other.head.weight)
    batch = toy.batch(PEOPLE, rows=np.array([0, 1, 4, 5, 8, 9]))
    features = torch.randn(6, 5, 16).requires_grad_()
    other.features = lambda view, camid: features
    (only,) = other.objectives(batch)
    (gradient,) = torch.autograd.grad(only.loss, features)

    necked = other.head.neck(features)
    plain = preset == "paper"
    compared = features if plain else necked
    wanted = slow.loss(scalars(other.head(necked)), scalars(compared), batch.pid.tolist(), average=not plain)
    (slow_gradient,) = torch.autograd.grad(wanted, features)
    assert only.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(gradient, slow_gradient, atol=1e-6)


def test_half_of_the_loss_is_the_global_features():
    (only,) = model().objectives(BATCH)
    assert only.weights == dict.fromkeys(("identity", "triplet", "local_identity", "local_triplet"), 0.5)
    (only,) = model(jpm=False).objectives(BATCH)
    assert only.weights == {"identity": 1.0, "triplet": 1.0}


@pytest.mark.parametrize("feature", ["before", "after"])
def test_an_embedding_is_one_vector_in_which_local_features_have_a_quarter(feature):
    other = model(feature=feature).eval()
    other.head.necks[0].running_mean += 0.5
    features = other.features(eval_batch(PEOPLE).holistic, eval_batch(PEOPLE).camid)
    if feature == "after":
        features = other.head.neck(features)
    embedding = other.embed(eval_batch(PEOPLE))
    wanted = stacked([slow.vector(image) for image in scalars(features.detach())])
    assert embedding.parts.shape == (16, 1, 80) and (embedding.visibility == 1).all()
    assert torch.allclose(embedding.parts[:, 0].double(), wanted, atol=1e-6)


def test_cameras_reach_it_by_their_weight_alone_and_labels_do_not():
    other = model().eval()
    torch.nn.init.normal_(other.encoder.camera)
    parts = lambda images: other.embed(eval_batch(images)).parts  # noqa: E731
    blind = replace(PEOPLE, hidden=~PEOPLE.hidden, parsing=PEOPLE.parsing * 0)
    assert torch.equal(parts(PEOPLE), parts(blind))
    assert not torch.equal(parts(PEOPLE), parts(replace(PEOPLE, camid=1 - PEOPLE.camid)))


# ------------------------------------------------------------------ size


def test_at_the_papers_size_it_has_the_parameters_of_transreids_code_that_something_runs():
    with torch.device("meta"):
        vit = untrained_vit({"name": "vit_base_patch16_224"})
        other = transreid.build(settings("transreid", "paper", stride=11), OCCLUDED_DUKE, vit)
    code = 103_491_304  # 702 identities, 8 cameras
    imagenet = 768 * 1000 + 1000
    idle = 12 * 768**2 + 13 * 768 + 2 * 768  # the encoder's own last block and norm, beside b1 and b2
    pattern = 2**4 * 768  # our encoder's occlusion patterns, with weight 0
    assert sum(p.numel() for p in other.parameters()) == code - imagenet - idle + pattern


def test_registers_enter_no_group_of_patches():
    method = transreid.build(settings("transreid"), data_spec(PEOPLE), toy.registered(4))
    lengths = []
    method.local.register_forward_pre_hook(lambda _, tokens: lengths.append(tokens[0].shape[1]))
    method.embed(eval_batch(PEOPLE))
    assert lengths == [1 + 8 // 4]  # and not (8 + 4) // 4
