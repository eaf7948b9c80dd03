"""OGFR, equation by equation: the fast code gives the values and gradients of the paper read aloud.

Where the two presets differ in an equation, both forms are compared.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ranking
from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.batches.views import ImageSet, eval_batch, eval_batches
from pipeline.labels import occlusion
from pipeline.methods.base import DataSpec, Embedding, Objective
from pipeline.methods.ogfr import params
from pipeline.methods.ogfr.agent import Agent, policy_loss, reward
from pipeline.methods.ogfr.branches import Branch, Encoded
from pipeline.methods.ogfr.correlation import correlation, visible
from pipeline.methods.ogfr.decoder import DecoderLayer
from pipeline.methods.ogfr.losses import loss_weights, mask_loss, mse_loss, part_triplet
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import HOLISTIC, OCCLUDED, K
from pipeline.model import losses
from pipeline.model.backbones import small_vit
from pipeline.model.heads import Heads
from pipeline.model.vit import grid, patch_labels
from tests import reference as slow
from tests import toy
from tests.reference import scalars, stacked

SIZE, GRID, N, HEADS, WIDTH = (6, 4), (3, 2), 6, 2, 4  # tiny pictures: 3 x 2 patches of 2 x 2 pixels
FIRST = K + 1  # g, 1 ... K; also 0, 1 ... K
PRESETS = ["paper", "recommended"]
RNG = np.random.default_rng
PIECES = st.integers(1, 8)
LAW = settings(max_examples=20, deadline=None)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def agree(fast, read_aloud, *leaves):
    """Equal values, and equal gradients for each leaf along some direction: 1e-5 of the largest or of 1."""
    aloud = stacked(read_aloud)
    assert close(fast, aloud)
    if not leaves:
        return
    along = torch.randn(fast.shape, generator=torch.Generator().manual_seed(9))
    gradients, wanted = (
        torch.autograd.grad((each * along).sum(), leaves, retain_graph=True, materialize_grads=True)
        for each in (fast, aloud)
    )
    for leaf, (a, b) in enumerate(zip(gradients, wanted, strict=True)):
        assert b.any() and close(a, b), f"gradient for leaf {leaf}"


def close(values, wanted):
    return (values - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max())


def pictures(identities=2, each=2):
    """People of 6 x 4 pixels, all labels somewhere."""
    rng = RNG(0)
    count = identities * each
    return ImageSet(
        image=rng.integers(0, 256, (count, *SIZE, 3), np.uint8),
        parsing=rng.integers(0, 9, (count, *SIZE), np.uint8),
        hidden=rng.integers(0, 2, (count, 4)).astype(bool),
        camid=np.arange(count) % 2,
        pid=np.arange(count) // each,
        threshold=3.0,
    )


def tiny(preset="recommended", **changes):
    """An OGFR for such people whose every weight matters: nothing starts as zero or one."""
    torch.manual_seed(0)
    encoder = small_vit(img_size=SIZE, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=HEADS)
    chosen = toy.settings(preset, **{"stride": 2, **changes})
    model = build(chosen, DataSpec(SIZE, identities=2, cameras=2, coarse=4, trained_cameras=(0, 1)), encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for heads in (model.heads, model.global_head):
            for neck in heads.necks:
                neck.bias.zero_()
                neck.weight.uniform_(0.5, 1.5)
                neck.running_mean.normal_()
                neck.running_var.uniform_(0.5, 2)
            heads.weight /= model.params.head_gain
    return model


def batch():
    rows, plan = np.arange(4), toy.schedule().obstacles
    return training_batch(pictures(), rows, sample_augmentations(pictures(), rows, 0.5, 1, plan, {}, RNG(0)))


# ------------------------------------------------------------------ Eq. 1-3: occlusion types


@pytest.mark.parametrize("count", range(1, 9))
def test_1_and_2_every_grouping_counts_and_hides_parts_as_printed(count):
    maps = RNG(count).integers(0, 9, (4, 5, 4), np.uint8)
    counts = occlusion.count_pixels(torch.from_numpy(maps), count)
    assert counts.tolist() == [slow.pixels(one.tolist(), count) for one in maps]
    for threshold, strict in itertools.product([0.0, 2.0, 5.0, 5.5], [True, False]):
        hidden = occlusion.hidden_parts(counts, threshold, strict)
        assert hidden.tolist() == [
            [slow.hidden(y, threshold, strict) for y in row] for row in counts.tolist()
        ]


@LAW
@given(st.integers(0, 10**6), PIECES, st.integers(0, 9).map(float), st.integers(1, 9))
def test_2_a_higher_lambda_hides_more_and_another_comparison_hides_what_it_meets(seed, count, low, more):
    counts = torch.from_numpy(RNG(seed).integers(0, 20, (3, count)))
    assert (
        occlusion.hidden_parts(counts, low, True) <= occlusion.hidden_parts(counts, low + more, True)
    ).all()
    assert torch.equal(
        occlusion.hidden_parts(counts, low, False), occlusion.hidden_parts(counts, low + 1, True)
    )


@pytest.mark.parametrize("count", range(1, 9))
def test_3_every_occlusion_type_has_an_embedding_of_its_own(count):
    flags = torch.tensor(list(itertools.product([0, 1], repeat=count)))
    table = normal(2**count, 2)
    # our table counts the first part lowest; the paper's has an axis for each part, the first outermost
    nested = table.view(*[2] * count, 2).permute(*reversed(range(count)), count)
    aloud = [slow.pattern_embedding(scalars(nested), z) for z in flags.tolist()]
    agree(table[occlusion.pattern_index(flags)], aloud, table)
    assert occlusion.pattern_index(flags).sort().values.tolist() == list(range(2**count))
    assert occlusion.pattern_index(flags[:1] * 0).item() == 0


# ------------------------------------------------------------------ Eq. 4, 5: the sequence


@LAW
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 25))
def test_4_patches_are_counted_as_printed_whatever_the_stride(more_down, more_across, patch, stride):
    height, width = patch + more_down - 1, patch + more_across - 1
    down, across = grid((height, width), patch, stride)
    assert down * across == slow.patches(height, width, stride, patch)
    assert down == len(range(0, height - patch + 1, stride))  # the patches that there are to cut
    assert across == len(range(0, width - patch + 1, stride))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_5_the_sequence_is_the_tokens_plus_what_is_given(stride):
    encoder = tiny(stride=stride).encoder
    image, camid = normal(2, 3, *SIZE), torch.tensor([1, -1])
    hidden = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    weights = encoder.projection.weight, encoder.projection.bias, encoder.cls, encoder.part
    leaves = image, *weights, encoder.position, encoder.pattern, encoder.camera
    kernel, bias, cls, part = (scalars(p) for p in weights)
    position, pattern, camera = (scalars(p) for p in (encoder.position, encoder.pattern, encoder.camera))
    unknown = [slow.mean(column) for column in zip(*camera, strict=True)]
    aloud = []
    for picture, row, eye in zip(scalars(image), (1 + 4 + 8, 8), (camera[1], unknown), strict=True):
        patch = slow.project(picture, kernel, bias, stride)
        assert len(patch) == slow.patches(*SIZE, stride, 2)
        aloud.append(slow.sequence(cls[0][0], part[0], patch, position[0], pattern[row], eye, 3.0, 3.0))
    agree(encoder.embed(image, hidden, camid), aloud, *leaves)


# ------------------------------------------------------------------ Eq. 6-11: the agent


@pytest.mark.parametrize("seed", range(3))
def test_6_the_state_is_the_cosine_of_every_patch_and_part(seed):
    patch, part = normal(2, N, WIDTH, seed=seed), normal(2, FIRST, WIDTH, seed=seed + 10)
    aloud = [slow.correlation(scalars(p), scalars(k)) for p, k in zip(patch, part, strict=True)]
    agree(correlation(patch, part), aloud, patch, part)


def agent(bias):
    torch.manual_seed(0)
    module = Agent(toy.settings(agent_bias=bias, agent_keep=0.9))
    torch.nn.init.normal_(module.linear.weight)
    leaves = list(module.parameters())
    return module, leaves, [scalars(module.linear.weight[0]), scalars(module.linear.bias[0]) if bias else 0.0]


@pytest.mark.parametrize("bias", [False, True])  # as printed, and ours
def test_7_a_patch_is_kept_with_the_probability_of_its_state(bias):
    module, leaves, weights = agent(bias)
    state = normal(3, N, FIRST)
    agree(module(state).sigmoid(), [slow.keep(one, *weights) for one in scalars(state)], *leaves)
    assert torch.autograd.grad(module(state).sum(), state, allow_unused=True) == (None,)


def test_8_every_action_comes_as_often_as_its_probability_says():
    model, draws = tiny(), 20_000
    state = normal(1, 3, FIRST).detach()
    drawn = model.agent.sample_mask(state.expand(draws, -1, -1), torch.zeros(draws, 3, FIRST)).tolist()
    linear = model.agent.linear
    m = slow.keep(scalars(state[0]), scalars(linear.weight[0]), scalars(linear.bias[0]))
    chances = {a: slow.chance(a, m).item() for a in itertools.product([False, True], repeat=3)}
    assert sum(chances.values()) == pytest.approx(1) and sorted(chances.values())[-2] > 0.02
    for action, chance in chances.items():
        often = sum(tuple(row) == action for row in drawn) / draws
        assert abs(often - chance) < 5 * math.sqrt(chance * (1 - chance) / draws) + 1e-4


def test_9_the_baseline_is_refreshed_as_printed(monkeypatch):
    model, news = tiny("paper"), [0.1, 0.5, 0.2, 0.9]
    assert model.params.baseline_epochs == 10
    baselines, coming = [], iter(news)
    monkeypatch.setattr(Heads, "score", lambda self, *_: torch.full((2,), next(coming)))
    for epoch in range(40):
        model.begin_epoch(epoch, lambda: [eval_batch(pictures(1))])
        baselines.append(model.agent.baseline.item())
    assert baselines == pytest.approx([p for p in slow.baseline(news) for _ in range(10)], abs=1e-6)


def test_9_the_new_score_is_that_of_the_purified_features_without_a_mask():
    model = tiny("paper").eval()
    whole = eval_batch(pictures())
    model.begin_epoch(0, lambda: eval_batches(pictures(), 3))
    with torch.no_grad():
        h = model.encode(whole.holistic, whole.camid)
    every = [[True] * N] * 4
    news = slow.mean(scores(model, h, every, whole.pid)).item()
    assert model.agent.baseline.item() == pytest.approx(news, abs=1e-5)


SCORES = st.floats(0, 0.999)


@LAW
@given(SCORES, SCORES)
def test_10_the_reward_is_the_printed_one_and_ours_is_bounded(masked, base):
    for floor, clip in [(1e-6, 1e6), (0.05, 1.0)]:
        gain = reward(exact([masked]), exact([base]), floor, clip)
        assert gain.item() == pytest.approx(slow.reward(masked, base, floor, clip), rel=1e-9, abs=1e-12)
        assert -clip <= gain.item() <= 1
        if (floor, clip) == (1e-6, 1e6):
            assert gain.item() == pytest.approx(slow.reward(masked, base), rel=1e-9, abs=1e-12)
    assert [params.PRESETS[f"ogfr.reward_{n}"][:2] for n in ("floor", "clip")] == [
        (0.05, 1e-6),
        (1.0, 1e6),
    ]


@pytest.mark.parametrize("kind", ["paper", "image", "self_critical"])
def test_10_a_reward_compares_the_scores_with_and_without_the_mask(kind):
    model = tiny(baseline=kind)
    model.agent.baseline.fill_(0.3)
    h = tokens()
    state, action = correlation(h.patch, h.part), torch.from_numpy(RNG(1).random((3, N)) < 0.5)
    pid = torch.tensor([0, 1, 1])
    first = model.heads.score(model.purify(h, action)[:, 0], HOLISTIC, pid)
    score = lambda masks: model.identity_probability(h, masks, pid, HOLISTIC)  # noqa: E731
    gains, base = model.agent.rewards(state, first, [], score)
    masked = scores(model, h, action.tolist(), pid)
    linear = model.agent.linear
    keep = [slow.keep(one, scalars(linear.weight[0]), scalars(linear.bias[0])) for one in scalars(state)]
    likelier = [[m > 0.5 for m in one] for one in keep]
    other = {"self_critical": likelier, "image": [[True] * N] * 3}.get(kind)
    wanted = scores(model, h, other, pid) if other else [torch.tensor(0.3)] * 3
    rewards = [slow.reward(m.item(), b.item(), 0.05, 1.0) for m, b in zip(masked, wanted, strict=True)]
    assert gains.tolist() == [pytest.approx(rewards, abs=1e-5)]
    assert base.expand(3).tolist() == pytest.approx([b.item() for b in wanted], abs=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_11_the_policy_gradient_is_the_printed_sum(bias):
    module, leaves, weights = agent(bias)
    state, action = normal(3, N, FIRST).detach(), torch.from_numpy(RNG(1).random((3, N)) < 0.6)
    gain = torch.tensor([0.5, -1.0, 0.3])
    minus = torch.autograd.grad(policy_loss(module(state), action, gain), leaves)
    wanted, bias_gradient = slow.policy_gradient(scalars(state), action.tolist(), gain.tolist(), *weights)
    agree(-minus[0][0], wanted)
    if bias:
        agree(-minus[1][0], bias_gradient)


@pytest.mark.parametrize("kind", ["paper", "self_critical"])
def test_11_the_policy_gradient_of_several_episodes_is_the_mean_of_theirs(kind):
    model, shown = tiny(baseline=kind, episodes=3), batch()
    model.agent.baseline.fill_(0.3)
    drawn = iter(actions := list(torch.from_numpy(RNG(2).random((3, 4, N)) < 0.5)))
    model.agent.sample_mask = lambda state, labels: next(drawn)
    h, _ = model.encode_views(shown)
    state = correlation(h.patch, h.part)
    loss = list(model.objectives(shown))[1].loss
    gradients = torch.autograd.grad(loss, list(model.agent.parameters()))
    linear = model.agent.linear
    agent = scalars(linear.weight[0].detach()), scalars(linear.bias[0].detach())
    likelier = [[m > 0.5 for m in slow.keep(one, *agent)] for one in scalars(state.detach())]
    base = scores(model, h, likelier, shown.pid) if kind == "self_critical" else exact([0.3] * 4)
    wanted = []
    for action in actions:
        masked = scores(model, h, action.tolist(), shown.pid)
        rewards = [slow.reward(m.item(), b.item(), 0.05, 1.0) for m, b in zip(masked, base, strict=True)]
        gradient, bias_gradient = slow.policy_gradient(
            scalars(state.detach()), action.tolist(), rewards, *agent
        )
        wanted.append(stacked([*gradient, bias_gradient]))
    assert close(-torch.cat([gradients[0][0], gradients[1]]), torch.stack(wanted).mean(0))


@LAW
@given(st.integers(0, 10**6))
def test_11_on_average_the_policy_gradient_is_that_of_the_expected_reward(seed):
    module, leaves, weights = agent(True)
    state, rewards = normal(1, 3, FIRST, seed=seed).detach(), RNG(seed).uniform(-1, 1, 8)
    loss, expected = 0.0, 0.0
    for action, gain in zip(itertools.product([False, True], repeat=3), rewards, strict=True):
        chance = slow.chance(action, slow.keep(scalars(state[0]), *weights))
        expected = expected + chance * gain
        each = policy_loss(module(state), torch.tensor([action]), torch.tensor([gain]).float())
        loss = loss + chance.item() * each
    gradients, wanted = (
        torch.autograd.grad(loss, leaves),
        torch.autograd.grad(expected, leaves, retain_graph=True),
    )
    torch.testing.assert_close([-g for g in gradients], list(wanted), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ Eq. 12-16: purification


def tokens(count=3, seed=0):
    """What the encoder might give."""
    return Encoded(
        normal(count, WIDTH, seed=seed),
        normal(count, FIRST, WIDTH, seed=seed + 1),
        normal(count, N, WIDTH, seed=seed + 2),
        torch.zeros(count, 0, WIDTH),
    )


def weights(layer):
    """A decoder layer's, by their names in the paper."""
    attention = layer.attention
    tensors = {}
    for name, rows in zip("qkv", attention.qkv.weight.chunk(3), strict=True):
        tensors[f"W_{name}"] = scalars(rows)
    for name, rows in zip("qkv", attention.qkv.bias.chunk(3), strict=True):
        tensors[f"b_{name}"] = scalars(rows)
    for name, linear in {"o": attention.output, "1": layer.ffn[0], "2": layer.ffn[2]}.items():
        tensors[f"W_{name}"], tensors[f"b_{name}"] = scalars(linear.weight), scalars(linear.bias)
    return {**tensors, "scale": scalars(layer.norm.weight), "shift": scalars(layer.norm.bias)}


def purified(model, h, action):
    """F_hp of each image, read aloud."""
    position = scalars(model.encoder.position[0, FIRST + 1 :]) if model.params.erased == "shared" else None
    erased, layers = scalars(model.erased[0]), [(weights(layer), layer.fixed) for layer in model.decoder]
    features = []
    for cls, part, patch, kept in zip(*(scalars(t) for t in h[:3]), action, strict=True):
        rows = [cls, *part[1:], *slow.erase(patch, kept, erased, position)]
        for w, fixed in layers:
            rows = slow.decoder_layer(rows, w, HEADS, fixed, model.params.residual)
        features.append(rows)
    return features


def scores(model, h, action, pid):
    """Probability of each image's identity after purification, by the necks' running statistics."""
    heads = model.heads
    neck = [
        scalars(t[:WIDTH])
        for t in (heads.necks[0].weight, heads.necks[0].running_mean, heads.necks[0].running_var)
    ]
    probabilities = []
    with torch.no_grad():
        for rows, truth in zip(purified(model, h, action), pid.tolist(), strict=True):
            necked = slow.running_norm(rows[0], *neck)
            logits = slow.linear([heads.gain * x for x in necked], scalars(heads.weight[0]))
            probabilities.append(slow.softmax(logits)[truth])
    return probabilities


@pytest.mark.parametrize("fixed", [0, 3])
@pytest.mark.parametrize("seed", range(2))
def test_13_to_16_each_head_lets_patches_look_at_all_and_fixed_tokens_at_none(fixed, seed):
    torch.manual_seed(seed)
    layer = DecoderLayer(WIDTH, HEADS, fixed, residual=False)
    rows = normal(2, 5, WIDTH, seed=seed)
    aloud = [slow.attention(one, weights(layer), HEADS, fixed) for one in scalars(rows)]
    agree(
        layer.attention(rows, fixed), aloud, rows, layer.attention.qkv.weight, layer.attention.output.weight
    )


@pytest.mark.parametrize("decoder", ["fixed", "plain"])
@pytest.mark.parametrize("preset", PRESETS)
def test_12_purified_features_are_those_of_two_layers_over_what_is_left_of_the_patches(preset, decoder):
    model = tiny(preset, decoder=decoder)
    assert model.params.residual == (preset == "recommended")
    assert model.erased.shape[1] == {"recommended": 1, "paper": N}[preset]
    h, action = tokens(2), torch.from_numpy(RNG(3).random((2, N)) < 0.6)
    leaves = [*h[:3], model.erased, *model.decoder.parameters()]
    if preset == "recommended":
        leaves.append(model.encoder.position)
    agree(model.purify(h, action), purified(model, h, action.tolist()), *leaves)


def test_12_layers_that_start_from_the_encoder_change_nothing_yet():
    encoder = small_vit(img_size=SIZE, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=HEADS)
    world = DataSpec(SIZE, identities=2, cameras=2, coarse=4, trained_cameras=(0, 1))
    model = build(toy.settings(stride=2), world, encoder)
    h = tokens()
    whole = torch.cat([h.cls[:, None], h.part[:, 1:], h.patch], 1)
    assert torch.equal(model.purify(h, torch.ones(3, N).bool()), whole) and torch.equal(
        model.student_output(h), whole
    )


def test_12_without_skip_connections_a_decoder_does_not_start_from_zeros():
    encoder = small_vit(img_size=SIZE, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=HEADS)
    world = DataSpec(SIZE, identities=2, cameras=2, coarse=4, trained_cameras=(0, 1))
    model = build(toy.settings(stride=2, residual=False), world, encoder)
    assert model.params.start == "encoder"
    assert (model.purify(tokens(), torch.ones(3, N).bool()).abs().amax((1, 2)) > 0).all()


# ------------------------------------------------------------------ Eq. 17-20, 22: the losses


@pytest.mark.parametrize(("reduction", "average"), [("sum", False), ("mean", True)])  # as printed, and ours
def test_17_the_squared_distance_of_all_tokens_moves_the_student_alone(reduction, average):
    teacher, student = normal(3, 5, WIDTH), normal(3, 5, WIDTH, seed=1)
    held = scalars(teacher.detach())
    aloud = slow.mean([slow.mse(h, o, average) for h, o in zip(held, scalars(student), strict=True)])
    agree(mse_loss(teacher, student, reduction), aloud, student)


def test_18_the_cosine_loss_is_the_printed_mean_over_the_features():
    teacher, student = normal(3, FIRST, WIDTH), normal(3, FIRST, WIDTH, seed=1)
    held = scalars(teacher.detach())
    aloud = slow.mean([slow.cosine(h, o) for h, o in zip(held, scalars(student), strict=True)])
    agree(losses.cosine(teacher, student), aloud, student)


def test_19_distillation_is_the_printed_mean_over_the_features():
    teacher, student = normal(3, FIRST, 5), normal(3, FIRST, 5, seed=1)
    pid, held = torch.tensor([0, 4, 2]), scalars(teacher.detach())
    aloud = [
        slow.distillation(h, o, i, 0.3, 0.4)
        for h, o, i in zip(held, scalars(student), pid.tolist(), strict=True)
    ]
    fast = 0.3 * losses.identity(student, pid).mean() + 0.4 * losses.kl_divergence(teacher, student).mean()
    agree(fast, slow.mean(aloud), student)


@pytest.mark.parametrize("seed", range(5))
def test_22_the_triplet_loss_is_batch_hard_with_a_soft_margin(seed):
    features = normal(6, FIRST, WIDTH, seed=seed)
    pid = torch.tensor([0, 1, 0, 1, 2, 2])
    agree(
        part_triplet(features, features, pid, "plain"),
        slow.part_triplet(scalars(features), pid.tolist()),
        features,
    )


@LAW
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(2, 3))
def test_22_the_order_of_images_does_not_matter_to_the_triplet_loss(seed, identities, images):
    pid = torch.arange(identities).repeat_interleave(images)
    features = normal(len(pid), 3, WIDTH, seed=seed).detach()
    order = torch.from_numpy(RNG(seed).permutation(len(pid)))
    whole, moved = (
        part_triplet(features, features, pid, "plain"),
        part_triplet(features[order], features[order], pid[order], "plain"),
    )
    torch.testing.assert_close(whole, moved, rtol=1e-5, atol=1e-5)
    agree(whole, slow.part_triplet(scalars(features), pid.tolist()))


# ------------------------------------------------------------------ Eq. 21: the parsing map

FORMS = list(itertools.product(["image", "patch"], ["sum", "mean"], [1.0, 0.1]))  # the paper's is first


@pytest.mark.parametrize(("place", "reduction", "temperature"), FORMS)
def test_21_the_similarities_are_held_against_the_map_of_pixels_or_of_patches(place, reduction, temperature):
    chosen = toy.settings("paper")
    if FORMS[0] != (place, reduction, temperature):
        chosen = replace(chosen, mask_grid=place, mask=reduction, temperature=temperature)
    state = (normal(2, N, FIRST) / 3).detach().requires_grad_()
    parsing = torch.from_numpy(pictures().parsing[:2])
    fast = mask_loss(state, parsing, patch_labels(parsing, FIRST, 2, 2), GRID, chosen)
    aloud = []
    for one, labels in zip(scalars(state), parsing, strict=True):
        if place == "patch":
            aloud.append(slow.patch_mask(one, labels, 2, 2, temperature, reduction == "mean"))
        else:
            aloud.append(slow.mask(one, labels, GRID, temperature, reduction == "mean"))
    agree(fast, slow.mean(aloud), state)


def test_21_the_presets_name_the_printed_form_and_ours():
    chosen = {preset: toy.settings(preset) for preset in PRESETS}
    forms = {name: (p.mask_grid, p.mask, p.temperature) for name, p in chosen.items()}
    assert forms == {"paper": FORMS[0], "recommended": FORMS[-1]}


def test_21_overlapping_patches_are_held_against_the_pixels_that_they_see():
    chosen = replace(toy.settings(), stride=1)
    parsing = torch.from_numpy(pictures().parsing[:1])
    state = (normal(1, 15, FIRST) / 3).detach().requires_grad_()
    labels = patch_labels(parsing, FIRST, 2, 1)
    aloud = slow.patch_mask(scalars(state[0]), parsing[0], 2, 1, 0.1, average=True)
    agree(mask_loss(state, parsing, labels, (5, 3), chosen), aloud, state)


# ------------------------------------------------------------------ Eq. 17-23: the whole objective


def logits(heads, branch, features):
    """After the neck and after the classifiers, each [image][feature]."""
    gain, width = heads.gain, heads.weight.shape[-1]
    necked = [[] for _ in features]
    for i in range(len(features[0])):
        scale = scalars(heads.necks[branch].weight[i * width : (i + 1) * width])
        for image_rows, row in zip(necked, slow.batch_norm([f[i] for f in features], scale), strict=True):
            image_rows.append(row)
    weight = scalars(heads.weight)
    scaled = [
        [[gain * x for x in slow.linear(row, weight[i])] for i, row in enumerate(image)] for image in necked
    ]
    return necked, scaled


@pytest.mark.parametrize("preset", PRESETS)
def test_23_all_terms_together_are_the_printed_sum_and_our_additions(preset):
    model = tiny(preset).train()
    chosen, pid = model.params, [0, 0, 1, 1]
    hp, op = normal(4, 12, WIDTH, seed=4), normal(4, 12, WIDTH, seed=5)
    h, o = tokens(4), tokens(4, seed=7)
    teacher, student = (Branch(n, None, f, None, None, None, out) for n, f, out in ((0, h, hp), (1, o, op)))
    terms = model.distillation(teacher, student, batch().pid)
    fast = Objective("reid", {**terms, "mask": torch.tensor(0.7)}, loss_weights(model.params)).loss

    def each(function, *columns):
        return slow.mean([function(*row) for row in zip(*columns, strict=True)])

    teacher, student, held = scalars(hp), scalars(op), scalars(hp.detach())
    first = [[rows[:FIRST] for rows in features] for features in (teacher, student, held)]
    necked_h, logits_h = logits(model.heads, HOLISTIC, first[0])
    necked_o, logits_o = logits(model.heads, OCCLUDED, first[1])
    frozen = scalars(stacked(logits_h).detach())
    ours = chosen.triplet == "necked"
    compared_h, compared_o = (necked_h, necked_o) if ours else first[:2]
    global_logits = [
        [rows[0] for rows in logits(model.global_head, branch, scalars(view.cls[:, None]))[1]]
        for branch, view in enumerate((h, o))
    ]
    wanted = slow.total(
        mse=each(lambda a, b: slow.mse(a, b, chosen.mse == "mean"), held, student),
        cos=each(slow.cosine, first[2], first[1]),
        kd=each(lambda *row: slow.distillation(*row, 0.3, 0.4), frozen, logits_o, pid),
        en=each(slow.encoder, *global_logits, pid),
        tr=slow.part_triplet(compared_h, pid, average=ours),
        mask=0.7,
        mu_1=0.5,
        mu_2=0.5,
    )
    if preset == "recommended":  # Departs: the teacher's classifiers and the student's features learn too
        wanted = wanted + each(lambda rows, i: slow.mean([slow.identity(x, i) for x in rows]), logits_h, pid)
        wanted = wanted + slow.part_triplet(compared_o, pid, average=ours)
    leaves = hp, op, h.cls, o.cls, model.heads.weight, model.global_head.weight
    agree(fast, wanted, *leaves)


def test_23_the_mask_loss_is_the_mean_of_both_views():
    torch.manual_seed(0)
    model, shown = tiny(), batch()
    loss = next(model.objectives(shown)).terms["mask"]
    each = []
    for view in (shown.holistic, shown.occluded):
        tokens_of_view = model.encode(view, shown.camid)
        labels = patch_labels(view.parsing, FIRST, 2, 2)
        state = correlation(tokens_of_view.patch, tokens_of_view.part)
        each.append(mask_loss(state, view.parsing, labels, GRID, model.params))
    torch.testing.assert_close(loss, sum(each) / 2)


def test_both_views_in_one_pass_are_those_of_two_passes():
    model, shown = tiny(), batch()
    for together, view in zip(model.encode_views(shown), (shown.holistic, shown.occluded), strict=True):
        alone = model.encode(view, shown.camid)
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ Eq. 24, 25: what is compared


@LAW
@given(st.integers(0, 10**6))
def test_24_a_part_is_visible_by_the_printed_rule_and_by_ours(seed):
    state = (torch.from_numpy(RNG(seed).normal(size=(1, N, FIRST))).float() - 0.7).clamp(-1, 1)
    plane = slow.enlarge(scalars(state[0]), GRID, GRID)  # a pixel for each patch
    assert visible(state, "positive")[0].tolist() == slow.visible(plane)
    assert visible(state, "argmax")[0].tolist() == slow.winners(scalars(state[0]))


@LAW
@given(st.integers(0, 10**6))
def test_24_what_interpolation_shows_some_patch_shows(seed):
    state = (torch.from_numpy(RNG(seed).normal(size=(1, N, FIRST))).float() - 0.7).clamp(-1, 1)
    plane = slow.enlarge(scalars(state[0]), GRID, SIZE)
    flags = visible(state, "positive")[0].tolist()
    assert all(a <= b for a, b in zip(slow.visible(plane), flags, strict=True))


@pytest.mark.parametrize("feature", ["before", "after"])  # as TransReID compares, and ours
def test_25_images_are_compared_by_the_features_that_both_show(feature):
    model, shown = tiny(feature=feature).eval(), eval_batch(pictures())
    embedding = model.embed(shown)
    with torch.no_grad():
        encoded = model.encode(shown.holistic, shown.camid)
        features = scalars(model.student_output(encoded)[:, :FIRST])
    if feature == "after":
        neck = model.heads.necks[OCCLUDED]
        kept = [scalars(t.view(FIRST, -1)) for t in (neck.weight, neck.running_mean, neck.running_var)]
        features = [
            [slow.running_norm(row, *(k[i] for k in kept)) for i, row in enumerate(image)]
            for image in features
        ]
    unit = [[[x / slow.length(row) for x in row] for row in image] for image in features]
    agree(embedding.parts, unit)
    state = correlation(encoded.patch, encoded.part)
    flags = [slow.winners(one) for one in scalars(state)]
    assert embedding.visibility.tolist() == [[1, *row] for row in flags]
    agree(compared(embedding), [[slow.distance(*pair) for pair in row] for row in pairs(unit, flags)])


def compared(embedding):
    """The distances of two images to the two others."""
    who = np.zeros(len(embedding.parts), np.int64)
    every = ranking.Embedded(embedding.parts, embedding.visibility, who, who)
    return ranking.distances(every[:2], every[2:])


def pairs(features, flags):
    """The arguments of Eq. 25 for two images and the two others."""
    return [[(features[q], features[g], flags[q], flags[g]) for g in (2, 3)] for q in (0, 1)]


@LAW
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_25_the_distance_is_the_printed_one_whatever_is_visible(seed, count):
    features = normal(4, count + 1, WIDTH, seed=seed).detach()
    unit = torch.nn.functional.normalize(features, dim=2)
    flags = RNG(seed).integers(0, 2, (4, count))
    visibility = torch.cat([torch.ones(4, 1), torch.from_numpy(flags).float()], 1)
    wanted = [[slow.distance(*pair) for pair in row] for row in pairs(scalars(unit), flags.tolist())]
    agree(compared(Embedding(features, visibility)), wanted)


# ------------------------------------------------------------------ every departure


CHANGE_NO_EQUATION = {"start", "agent_optimiser", "agent_lr"}


def test_every_departure_of_the_method_is_compared_above():
    """A new row of `PRESETS` wants a comparison here, or a reason why it changes no equation."""
    compared = {"stride", "residual", "erased", "agent_bias", "baseline", "reward_floor", "reward_clip"}
    compared |= {"mse", "mask", "mask_grid", "temperature", "teacher_identity", "student_triplet"}
    compared |= {"head_gain", "triplet", "visible", "feature"}
    named = {name.split(".")[1] for name in params.PRESETS if name.startswith("ogfr.")}
    assert named == compared | CHANGE_NO_EQUATION
