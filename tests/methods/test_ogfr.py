"""OGFR: its modules on tiny tensors, its objectives, embeddings and presets."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.batches.views import eval_batch, eval_batches
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.methods.base import data_spec, describe, load_trained
from pipeline.methods.ogfr import agent
from pipeline.methods.ogfr.agent import Episodes
from pipeline.methods.ogfr.correlation import correlation, visible
from pipeline.methods.ogfr.decoder import DecoderLayer, FixedAttention
from pipeline.methods.ogfr.losses import mask_loss, mse_loss, part_triplet
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import HOLISTIC, OCCLUDED, PRESETS, STUDENT_WEIGHTS, Params
from pipeline.model import losses
from pipeline.model.heads import Heads
from pipeline.model.vit import patch_labels, patch_share
from pipeline.training.loop import Loop
from pipeline.training.run import train_model
from tests import toy

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE)
N = 8  # patches of a small picture
EVERY = torch.ones(16, N, dtype=torch.bool)


def gradients(loss, module):
    """Names of the parameters that a loss would move."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    tensors = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name for name, g in zip(named, tensors, strict=True) if g is not None and g.any()}


@pytest.fixture(scope="module")
def model():
    return toy.model(PEOPLE)


# ------------------------------------------------------------------ the agent


def test_correlation_is_the_cosine_of_every_patch_and_part():
    patch, part = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    state = correlation(patch, part)
    for n in range(5):
        for k in range(3):
            a, b = patch[1, n], part[1, k]
            assert state[1, n, k].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-5)


def test_an_agent_starts_by_keeping_nearly_all_patches_and_without_a_bias_half():
    state = torch.rand(2, N, 9) * 2 - 1
    assert agent.Agent(toy.settings(agent_bias=True, agent_keep=0.9))(
        state
    ).sigmoid().mean().item() == pytest.approx(0.9, abs=0.03)
    assert agent.Agent(toy.settings(agent_bias=False, agent_keep=0.9))(
        state
    ).sigmoid().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_policy_loss_sums_over_patches_and_averages_over_images():
    logits, action = torch.randn(3, 4), torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    gain = torch.tensor([0.5, -1.0, 2.0])
    slow = 0.0
    for b in range(3):
        chances = [logits[b, t].sigmoid().item() for t in range(4)]
        log_pi = sum(math.log(m if kept else 1 - m) for m, kept in zip(chances, action[b], strict=True))
        slow -= gain[b].item() * log_pi / 3
    assert agent.policy_loss(logits, action, gain).item() == pytest.approx(slow, rel=1e-5)


REWARDS = {  # p^m, p^b: r
    (0.75, 0.5): 0.5,
    (0.5, 0.5): 0.0,
    (1.0, 0.2): 1.0,
    (0.0, 0.9): -1.0,  # -9, clipped
    (0.98, 0.99): -0.2,  # 1 - p^b is at least 0.05
}


@pytest.mark.parametrize(("scores", "wanted"), REWARDS.items())
def test_a_reward_is_the_gain_over_the_baseline_as_a_share_of_what_is_possible(scores, wanted):
    masked, base = (torch.tensor([p]) for p in scores)
    assert agent.reward(masked, base, 0.05, 1.0).item() == pytest.approx(wanted, abs=1e-5)


def test_the_policy_gradient_touches_the_agent_alone():
    model = toy.model(PEOPLE, start="random")  # a decoder that changes nothing rewards nothing
    first, second = list(model.objectives(BATCH))
    assert gradients(second.loss, model) == {"agent.linear.weight", "agent.linear.bias"}
    assert not any(name.startswith("agent") for name in gradients(first.loss, model))


def test_param_groups_share_no_parameter_and_hold_all(model):
    groups = model.param_groups()
    names = [{id(p) for p in group.parameters} for group in groups.values()]
    assert set(groups) == {"reid", "agent"} and not names[0] & names[1]
    assert len(names[0] | names[1]) == sum(p.requires_grad for p in model.parameters())


def test_the_agent_has_an_optimiser_and_a_rate_of_its_own_and_its_weights_do_not_decay():
    plan = toy.schedule(optimiser="sgd", decay=0.25)
    loop = Loop(toy.model(PEOPLE, agent_optimiser="adamw", agent_lr=0.5), plan, torch.device("cpu"))
    ((rest,), (agent,)) = (loop.optimisers[name].param_groups for name in ("reid", "agent"))
    assert isinstance(loop.optimisers["agent"], torch.optim.AdamW) and loop.base_lr["agent"] == [0.5]
    assert (rest["weight_decay"], agent["weight_decay"]) == (0.25, 0.0)


@pytest.mark.parametrize("erase", ["none", "random", "labels"])
def test_masks_without_an_agent_have_one_objective(erase):
    other = toy.model(PEOPLE, erase=erase, erase_rate=1.0)
    (only,) = other.objectives(BATCH)
    assert only.group == "reid" and set(other.param_groups()) == {"reid"}
    labels = patch_labels(BATCH.holistic.parsing, 9, 16, 16)
    action = other.agent.sample_mask(torch.zeros(16, N, 9), labels)
    wanted = {"none": EVERY, "random": ~EVERY, "labels": labels[..., 0] < 0.5}[erase]
    assert torch.equal(action, wanted)


def test_the_agents_action_follows_its_probabilities():
    other = toy.model(PEOPLE)
    torch.nn.init.zeros_(other.agent.linear.weight)
    kept = other.agent.sample_mask(torch.zeros(4000, N, 9), torch.zeros(4000, N, 9)).float().mean().item()
    assert kept == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("kind", ["self_critical", "image"])
def test_an_action_that_is_its_own_baseline_earns_nothing(kind):
    other = toy.model(PEOPLE, baseline=kind)
    h, _ = other.encode_views(BATCH)
    state = correlation(h.patch, h.part)
    first = other.heads.score(other.purify(h, EVERY)[:, 0], HOLISTIC, BATCH.pid)  # the start: all are kept
    score = lambda masks: other.identity_probability(h, masks, BATCH.pid, HOLISTIC)  # noqa: E731
    gain, base = other.agent.rewards(state, first, [], score)
    assert gain.abs().max() < 1e-5 and gain.shape == (1, 16) and base.shape == (16,)


def test_the_papers_baseline_is_a_cumulative_mean_refreshed_every_ten_epochs():
    other = toy.model(PEOPLE, preset="paper").eval()
    plain = lambda: eval_batches(PEOPLE, 5)  # noqa: E731
    scores = []
    for scale in (0.0, 30.0):
        torch.nn.init.normal_(other.heads.weight, std=scale)
        whole = eval_batch(PEOPLE)
        h = other.encode(whole.holistic, whole.camid)
        with torch.no_grad():
            scores.append(other.heads.score(other.purify(h, EVERY)[:, 0], HOLISTIC, whole.pid).mean())
        other.begin_epoch(10 * (len(scores) - 1), plain)
        other.begin_epoch(10 * (len(scores) - 1) + 1, plain)  # not refreshed
    assert other.agent.refreshed == 2 and scores[0] == pytest.approx(0.25)
    assert other.agent.baseline.item() == pytest.approx((scores[0] + scores[1]).item() / 2, abs=1e-5)


# ------------------------------------------------------------------ the decoder


def test_fixed_tokens_do_not_see_the_patches_and_patches_see_them():
    torch.manual_seed(0)
    layer = DecoderLayer(16, 2, 3, residual=True)
    tokens = torch.randn(2, 7, 16)
    other_patch, other_fixed = tokens.clone(), tokens.clone()
    other_patch[:, 4] += 1
    other_fixed[:, 0] += 1
    whole, patch, fixed = layer(tokens), layer(other_patch), layer(other_fixed)
    assert torch.equal(whole[:, :3], patch[:, :3]) and not torch.allclose(whole[:, 5], patch[:, 5])
    assert not torch.allclose(whole[:, 3:], fixed[:, 3:]) and torch.equal(whole[:, 1:3], fixed[:, 1:3])


def test_fixed_attention_is_that_of_equations_13_to_16():
    torch.manual_seed(0)
    attention = FixedAttention(4, 2)
    tokens = torch.randn(1, 5, 4)
    w_q, w_k, w_v = attention.qkv.weight.chunk(3)
    b_q, b_k, b_v = attention.qkv.bias.chunk(3)
    joined = torch.zeros(5, 4)
    for head in range(2):
        channels = slice(2 * head, 2 * head + 2)
        for i in range(5):
            values = [w_v[channels] @ t + b_v[channels] for t in tokens[0]]
            if i < 2:  # Eq. 15: its own value
                joined[i, channels] = values[i]
                continue
            query = w_q[channels] @ tokens[0, i] + b_q[channels]
            scores = torch.stack([query @ (w_k[channels] @ t + b_k[channels]) / 2**0.5 for t in tokens[0]])
            joined[i, channels] = sum(w * v for w, v in zip(scores.softmax(0), values, strict=True))
    assert torch.allclose(attention(tokens, fixed=2)[0], attention.output(joined), atol=1e-5)


def test_ordinary_attention_has_no_fixed_tokens():
    torch.manual_seed(0)
    attention = FixedAttention(16, 2)
    tokens = torch.randn(2, 5, 16)
    query, key, value = attention.qkv(tokens).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    theirs = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    assert torch.allclose(attention(tokens), attention.output(theirs), atol=1e-5)


def test_the_printed_layer_has_no_skip_connection():
    layer = DecoderLayer(16, 2, 0, residual=False)
    tokens = torch.randn(1, 3, 16)
    assert torch.allclose(layer(tokens), layer.ffn(layer.norm(layer.attention(tokens))))


@pytest.mark.parametrize("erased", ["shared", "place"])
def test_keeping_all_patches_is_the_pass_without_a_mask(erased):
    other = toy.model(PEOPLE, erased=erased)
    h, _ = other.encode_views(BATCH)
    whole = other.purify(h, EVERY)
    sequence = torch.cat([h.cls[:, None], h.part[:, 1:], h.patch], 1)
    assert torch.equal(whole, other.decoder(sequence))
    with torch.no_grad():
        other.erased += 1
    assert torch.equal(whole, other.purify(h, EVERY))
    assert not torch.allclose(whole, other.purify(h, ~EVERY))


def test_an_erased_patch_leaves_no_trace_and_tells_its_place():
    other = toy.model(PEOPLE)
    h, _ = other.encode_views(BATCH)
    changed = h._replace(patch=h.patch + torch.randn_like(h.patch))
    assert torch.equal(other.purify(h, ~EVERY), other.purify(changed, ~EVERY))
    tokens = other.purify(h, ~EVERY)[0, 9:]
    assert not torch.allclose(tokens[0], tokens[1])


# ------------------------------------------------------------------ erasing earlier, a rebuilt global token


def erase_by_hand(model, view, camid, blocks, mask):
    """The encoder's output where patches are erased before its last blocks, block by block."""
    encoder = model.encoder
    tokens = encoder.embed(view.image, view.hidden, camid)
    for number, block in enumerate(encoder.blocks):
        if number == len(encoder.blocks) - blocks:
            for image in range(len(tokens)):
                for place in range(mask.shape[1]):
                    if not mask[image, place]:
                        row = 10 + place  # after the class token and nine part tokens
                        tokens[image, row] = model.erased[0, 0] + encoder.position[0, row]
        tokens = block(tokens)
    return encoder.norm(tokens)


def test_patches_can_be_erased_before_the_last_blocks_of_the_encoder():
    other = toy.model(PEOPLE, erase_before=1)
    h, _ = other.encode_views(BATCH)
    torch.manual_seed(3)
    mask = torch.rand(EVERY.shape) < 0.5
    with torch.no_grad():
        wanted = erase_by_hand(other, BATCH.holistic, BATCH.camid, 1, mask)
    erased = other.erase(h, mask)
    torch.testing.assert_close(torch.cat([erased.cls[:, None], erased.part, erased.patch], 1), wanted)
    torch.testing.assert_close(other.erase(h, EVERY).cls, h.cls)  # nothing erased: the encoder's own output


def test_registers_stay_when_patches_are_erased_before_the_last_blocks():
    torch.manual_seed(0)
    other = build(toy.settings(erase_before=1), data_spec(PEOPLE), toy.registered())
    h, _ = other.encode_views(BATCH)
    torch.testing.assert_close(other.erase(h, EVERY).cls, h.cls)
    assert not torch.allclose(other.erase(h, ~EVERY).cls, h.cls)


def test_erasing_before_more_blocks_than_the_encoder_has_is_refused():
    with pytest.raises(BadInput, match="erase_before = 2, but the encoder has 2 blocks"):
        toy.model(PEOPLE, erase_before=2)


def test_a_rebuilt_global_token_reads_the_kept_patches_and_nothing_else():
    other = toy.model(PEOPLE, global_token="rebuilt")
    h, _ = other.encode_views(BATCH)
    mask = torch.arange(EVERY.shape[1]).expand(EVERY.shape) % 2 > 0
    before = other.purify(h, mask)
    changed = h._replace(
        cls=h.cls + 1,
        part=h.part + 1,
        patch=torch.where(mask[..., None], h.patch, h.patch + 1),
    )
    assert torch.equal(other.purify(changed, mask)[:, 0], before[:, 0])
    kept = h._replace(patch=torch.where(mask[..., None], h.patch + torch.randn_like(h.patch), h.patch))
    assert not torch.allclose(other.purify(kept, mask)[:, 0], before[:, 0])
    assert torch.equal(other.purify(h, mask, 1), before[:, :1])  # what rewards are made of


@pytest.mark.parametrize("changes", [{"erase_before": 1}, {"global_token": "rebuilt"}])
def test_teachers_of_either_kind_learn_and_embed_as_before(changes):
    other = toy.model(PEOPLE, **changes)
    loop = Loop(other.train(), toy.schedule(lr=5e-3, warmup=0.0), torch.device("cpu"))
    for _ in range(12):
        loop.step(toy.batch(PEOPLE), 0.0)
    assert loop.log[-1]["teacher_identity"] < loop.log[0]["teacher_identity"]
    embedding = other.eval().embed(eval_batch(PEOPLE))
    assert embedding.parts.shape[:2] == (len(PEOPLE), 9)


@pytest.mark.parametrize(("kind", "fixed"), [("fixed", 9), ("plain", 0)])
def test_the_first_decoder_layer_alone_is_customised(kind, fixed):
    layers = toy.model(PEOPLE, decoder=kind).decoder
    assert [layer.fixed for layer in layers] == [fixed, 0]


# ------------------------------------------------------------------ the start


@pytest.mark.parametrize(("kind", "least", "most"), [("encoder", 0.0, 0.3), ("random", 2.7, 3.3)])
def test_part_tokens_enter_the_encoder_as_the_class_token_does_or_as_nothing(kind, least, most):
    start = toy.encoder()
    with torch.no_grad():
        start.cls_token += 1
        start.pos_embed[:, 0] += 2  # the class token enters as 3
    encoder = build(toy.settings(start=kind), data_spec(PEOPLE), start).encoder
    entered = encoder.embed(BATCH.holistic.image, BATCH.holistic.hidden, BATCH.camid)
    away = (entered[:, 1:10] - entered[:, :1]).abs()
    assert least <= away.min() and away.max() <= most


# ------------------------------------------------------------------ the losses


def test_a_student_learns_and_its_teacher_does_not():
    teacher, student = (torch.randn(2, 12, 16, requires_grad=True) for _ in range(2))
    mse_loss(teacher, student, "mean").backward()
    assert teacher.grad is None and student.grad.any()


def test_distillation_reaches_neither_the_decoder_nor_the_erased_tokens(model):
    objective = next(model.objectives(BATCH))
    for term in ("mse", "cos", "identity"):
        reached = gradients(objective.terms[term], model)
        assert reached and not any(name.startswith(("decoder", "erased")) for name in reached)
    reached = gradients(objective.terms["kl"], model)
    assert not any(name.startswith(("decoder", "erased", "heads.necks.0")) for name in reached)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_squared_distance_is_a_mean_or_a_sum_over_each_images_tokens(reduction):
    teacher, student = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    slow = sum(((teacher[b] - student[b]) ** 2).sum().item() for b in range(3)) / 3
    wanted = slow / 20 if reduction == "mean" else slow
    assert mse_loss(teacher, student, reduction).item() == pytest.approx(wanted, rel=1e-5)


def test_the_mask_loss_compares_each_patch_with_what_it_sees():
    params = toy.settings()
    state, parsing = torch.rand(3, N, 9) * 2 - 1, BATCH.holistic.parsing[:3]
    labels = patch_labels(parsing, 9, 16, 16)
    slow = 0.0
    for b in range(3):
        for n in range(N):
            chances = (state[b, n] / params.temperature).softmax(0)
            slow -= sum(labels[b, n, k].item() * math.log(chances[k]) for k in range(9)) / (3 * N)
    assert mask_loss(state, parsing, labels, (4, 2), params).item() == pytest.approx(slow, rel=1e-4)


def test_the_printed_mask_loss_sums_over_the_pixels_of_the_image():
    params = toy.settings("paper")
    state, parsing = torch.rand(1, N, 9) * 2 - 1, BATCH.holistic.parsing[:1]
    plane = F.interpolate(state.mT.view(1, 9, 4, 2), (64, 32), mode="bilinear")[0]
    chances, slow = plane.softmax(0), 0.0
    for h in range(64):
        for w in range(32):
            slow -= math.log(chances[parsing[0, h, w].long(), h, w])
    labels = torch.zeros(1, N, 9)
    assert mask_loss(state, parsing, labels, (4, 2), params).item() == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_images_without_a_parsed_person_do_not_enter_the_mask_loss(preset):
    params = toy.settings(preset)
    state, parsing = torch.rand(2, N, 9), BATCH.holistic.parsing[:2].clone()
    parsing[1] = 0
    labels = patch_labels(parsing, 9, 16, 16)
    alone = mask_loss(state[:1], parsing[:1], labels[:1], (4, 2), params)
    assert torch.allclose(mask_loss(state, parsing, labels, (4, 2), params), alone)
    assert mask_loss(state, parsing * 0, labels, (4, 2), params) == 0


def test_the_total_is_the_weighted_sum_of_equation_23(model):
    objective = next(toy.model(PEOPLE, preset="paper").objectives(BATCH))
    t = {name: term.item() for name, term in objective.terms.items()}
    kd = 0.3 * t["identity"] + 0.4 * t["kl"]
    wanted = (t["mse"] + 0.5 * t["cos"] + kd) + (t["encoder"] + 0.5 * t["triplet"]) + t["mask"]
    assert objective.loss.item() == pytest.approx(wanted, rel=1e-5)
    assert set(t) == {"mse", "cos", "identity", "kl", "encoder", "triplet", "mask"}


def test_optional_terms_are_there_when_weighted():
    terms = next(toy.model(PEOPLE, teacher_identity=1.0, student_triplet=0.5).objectives(BATCH)).terms
    assert {"teacher_identity", "student_triplet"} <= set(terms)


def test_the_triplet_compares_tokens_as_printed_or_necked_ones_by_their_mean_over_channels():
    pid = torch.tensor([0, 0, 1])
    plain, necked = torch.randn(3, 2, 4), torch.tensor([0.0, 2.0, 5.0])[:, None, None].expand(3, 2, 4)
    # one channel or four: images 0 and 1 are 2 apart, 0 and 2 are 5, 1 and 2 are 3
    gaps = torch.tensor([2.0 - 5.0, 2.0 - 3.0, 0.0 - 3.0])
    wanted = 2 * torch.log1p(gaps.exp()).mean()  # the global feature's and the mean of the parts'
    assert part_triplet(plain, necked, pid, "necked").item() == pytest.approx(wanted.item(), abs=1e-5)
    per_part = losses.triplet(plain.transpose(0, 1), pid)  # of Euclidean distances
    wanted = per_part[0] + per_part[1:].mean()
    assert part_triplet(plain, necked, pid, "plain").item() == pytest.approx(wanted.item())


def test_heads_normalise_each_branch_by_its_own_statistics():
    heads = Heads(2, 4, 3, gain=2.0, branches=2)
    features = torch.randn(8, 2, 4) * 5 + 3
    necked = heads.neck(features, OCCLUDED)
    assert necked.mean(0).abs().max() < 1e-5 and heads.necks[HOLISTIC].running_mean.abs().sum() == 0
    logits = heads(necked)
    assert logits[1, 1, 2].item() == pytest.approx(2.0 * (necked[1, 1] @ heads.weight[1, 2]).item())


def test_a_score_is_the_probability_of_the_truth_by_running_statistics():
    heads = Heads(2, 4, 3, gain=2.0, branches=2)
    torch.nn.init.normal_(heads.weight)
    for _ in range(3):
        heads.neck(torch.randn(8, 2, 4) + 2, HOLISTIC)
    features, pid = torch.randn(5, 2, 4), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        logits = heads(heads.eval().neck(features, HOLISTIC))[:, 0]
    wanted = logits.softmax(1)[torch.arange(5), pid]
    assert torch.allclose(heads.score(features[:, 0], HOLISTIC, pid), wanted, atol=1e-6)


# ------------------------------------------------------------------ how it sees

VISIBLE = [
    ([0.9, 0.1, 0.0], [0.2, 0.8, -0.1], "argmax", [1, 0]),
    ([0.9, 0.1, 0.0], [0.2, 0.8, -0.1], "positive", [1, 0]),
    ([0.9, 0.1, 0.0], [0.9, 0.8, 0.1], "argmax", [0, 0]),
    ([0.9, 0.1, 0.0], [0.9, 0.8, 0.1], "positive", [1, 1]),
]


@pytest.mark.parametrize(("first", "second", "rule", "wanted"), VISIBLE)
def test_a_part_is_visible_where_it_wins_a_patch_or_is_above_zero(first, second, rule, wanted):
    state = torch.tensor([[first, second]])  # two patches; background and two parts
    assert visible(state, rule).tolist() == [wanted]


@pytest.mark.parametrize("feature", ["before", "after"])
def test_an_embedding_has_nine_unit_features_and_its_global_one_always_counts(feature):
    other = toy.model(PEOPLE, feature=feature).eval()
    embedding = other.embed(eval_batch(PEOPLE))
    assert embedding.parts.shape == (16, 9, 16) and embedding.visibility.shape == (16, 9)
    assert (
        torch.allclose(embedding.parts.norm(dim=2), torch.ones(16, 9))
        and (embedding.visibility[:, 0] == 1).all()
    )
    assert set(embedding.visibility.unique().tolist()) <= {0, 1} and not embedding.parts.requires_grad


def test_an_embedding_does_not_depend_on_its_batch(model):
    other = toy.model(PEOPLE).eval()
    whole = other.embed(eval_batch(PEOPLE))
    for size in (1, 5):
        parts = [other.embed(b) for b in eval_batches(PEOPLE, size)]
        assert torch.allclose(whole.parts, torch.cat([p.parts for p in parts]), atol=1e-5)
        assert torch.equal(whole.visibility, torch.cat([p.visibility for p in parts]))


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_a_saved_model_embeds_as_before(tmp_path, preset):
    torch.manual_seed(0)
    params, world, start = toy.settings(preset), data_spec(PEOPLE), toy.encoder()
    model = build(params, world, start)
    train_model(model, PEOPLE, toy.schedule(preset, epochs=1, lr=1e-4, clip=1.0), 1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "record.json").write_text(json.dumps(describe("ogfr", params, world, start.architecture)))
    again = load_trained(tmp_path)
    assert not again.training
    before, after = (m.embed(eval_batch(PEOPLE)) for m in (model, again))
    assert torch.equal(before.parts, after.parts) and torch.equal(before.visibility, after.visibility)


def test_it_overfits_one_batch():
    people = toy.people(identities=4, each=2)
    plan = replace(toy.schedule(epochs=1, lr=5e-3, decay=0.0, warmup=0.0, clip=5.0), floor=1.0)
    loop = Loop(toy.model(people, alpha=1.0).train(), plan, torch.device("cpu"))
    batch = toy.batch(people)
    for _ in range(50):
        loop.step(batch, 0.0)
    first, last = loop.log[0], loop.log[-1]
    for term in ("identity", "encoder", "teacher_identity", "triplet"):
        assert last[term] < 0.3 * first[term]
    assert last["mask"] < first["mask"]


def test_the_log_has_the_agents_metrics(model):
    loop = Loop(toy.model(PEOPLE), toy.schedule(), torch.device("cpu"))
    loop.step(BATCH, 0.5)
    assert {"reward", "baseline", "keep_body", "keep_background", "keep_obstacle", "policy"} <= set(
        loop.log[0]
    )


def test_the_shares_kept_are_of_body_and_background_patches_and_of_what_the_obstacle_mostly_covers():
    other = toy.model(PEOPLE)
    with torch.no_grad():
        other.agent.linear.weight.copy_(torch.eye(9)[:1])  # m is the sigmoid of the first similarity
        other.agent.linear.bias.zero_()
    labels, state = torch.zeros(1, N, 9), torch.zeros(1, N, 9)
    labels[:, :4, 1], labels[:, 4:, 0] = 1, 1  # four patches of a head over four of background
    action = torch.tensor([[1, 1, 1, 0, 1, 0, 0, 0]]).bool()
    state[0, :3, 0] = torch.tensor([0.9, 0.7, 0.1]).logit()
    covered = torch.zeros(1, 64, 32, dtype=torch.bool)
    covered[:, :16], covered[:, 16:23, :16] = True, True  # patches 0 and 1, and seven rows of patch 2
    rewards, baseline = torch.tensor([[0.5], [-0.1]]), torch.tensor([0.4])
    episodes = Episodes(state, labels, [action, ~action], rewards, baseline)
    metrics = other.agent.metrics(episodes, state, patch_share(covered, 16, 16))
    wanted = {
        "reward": (0.5 - 0.1) / 2,
        "baseline": 0.4,
        "keep_body": 3 / 4,
        "keep_background": 1 / 4,
        "keep_obstacle": (0.9 + 0.7) / 2,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(wanted, abs=1e-5)


def test_the_log_has_the_shares_that_the_teacher_keeps_and_would_keep_of_the_obstacle():
    other = toy.model(PEOPLE)
    torch.nn.init.normal_(other.agent.linear.weight, std=10.0)  # small differences decide
    torch.manual_seed(1)
    h, o = other.branches(BATCH)
    torch.manual_seed(1)  # the same action again
    _, second = other.objectives(BATCH)
    episodes = Episodes(h.state, h.labels, [h.mask], torch.zeros(1, 16), torch.zeros(16))
    covered = patch_share(BATCH.covered, 16, 16)
    wanted = other.agent.metrics(episodes, o.state, covered)
    blind = other.agent.metrics(episodes, h.state, covered)  # no obstacle is in the teacher's view
    for name in ("keep_body", "keep_background", "keep_obstacle"):
        assert second.metrics[name].item() == pytest.approx(wanted[name].item(), abs=1e-5)
    assert abs(wanted["keep_obstacle"] - blind["keep_obstacle"]) > 0.01


def test_every_preset_row_names_a_parameter_and_gives_a_reason():
    known = {"ogfr": toy.OGFR, "train": toy.TRAIN}
    for name, (_, _, reason) in PRESETS.items():
        section, *path = name.split(".")
        value = known[section]
        for part in path:
            value = getattr(value, part)
        assert value is None and reason


# ------------------------------------------------------------------ Table 4 and 8

ROWS = {  # distil, fep: branches that erase
    (True, "teacher"): {HOLISTIC},
    (True, "student"): {OCCLUDED},
    (True, "both"): {HOLISTIC, OCCLUDED},
    (True, "none"): set(),
    (False, "student"): {OCCLUDED},
    (False, "none"): set(),
}


@pytest.mark.parametrize(("row", "erasing"), ROWS.items())
def test_each_branch_purifies_if_it_is_asked_to(row, erasing):
    distil, fep = row
    other = toy.model(PEOPLE, distil=distil, fep=fep, start="random")
    branches = other.branches(BATCH)
    assert [b.number for b in branches] == ([HOLISTIC] if distil else []) + [OCCLUDED]
    assert {b.number for b in branches if b.mask is not None} == erasing
    objectives = list(other.objectives(BATCH))
    assert [o.group for o in objectives] == (["reid", "agent"] if erasing else ["reid"])
    assert {o.group for o in objectives} == set(other.param_groups())
    moved = gradients(objectives[0].loss, other)
    assert ("erased" in moved) == bool(erasing) and any(n.startswith("decoder") for n in moved) == bool(
        erasing
    )
    plain = len(branches) > len(erasing)
    assert any(n.startswith("student") for n in moved) == plain
    if erasing:
        assert gradients(objectives[1].loss, other) == {"agent.linear.weight", "agent.linear.bias"}


def test_a_branch_alone_sees_the_occluded_view_and_takes_identity_and_triplet_losses_unweighted():
    other = toy.model(PEOPLE, distil=False, fep="none", student_layers=0)
    unseen = replace(BATCH, holistic=replace(BATCH.holistic, image=BATCH.holistic.image * float("nan")))
    (only,) = other.objectives(unseen)
    assert set(only.terms) == {"identity", "encoder", "triplet", "mask"}
    assert only.loss.item() == pytest.approx(sum(t.item() for t in only.terms.values()), rel=1e-5)
    tokens = other.encode(BATCH.occluded, BATCH.camid)
    (branch,) = other.branches(BATCH)
    assert torch.equal(branch.output[:, 0], tokens.cls)  # no layer follows the encoder


def section(**changes):
    return params.validate(params.load("params.yaml")["ogfr"] | changes, Params, "params.yaml: ", "ogfr")


def test_a_teacher_that_purifies_needs_distillation():
    with pytest.raises(BadInput, match=r"^params.yaml: ogfr.fep = both.*Set ogfr.fep to student or none\.$"):
        section(distil=False, fep="both")


def test_a_student_that_no_loss_reaches_is_refused():
    nothing = dict.fromkeys(STUDENT_WEIGHTS, 0.0)
    with pytest.raises(BadInput, match=r"ogfr\.alpha, .*ogfr\.student_triplet are all 0.*Raise one"):
        section(**nothing)
    with pytest.raises(BadInput, match="are all 0"):
        section(**nothing | {"student_triplet": None, "preset": "paper"})  # which sets it to 0
    for taught in ({"beta": 0.1}, {"student_triplet": None, "preset": "recommended"}, {"distil": False}):
        section(**nothing | {"fep": "student"} | taught)
    with pytest.raises(BadInput, match=r"ogfr\.mu_2 = -1: input should be greater than or equal to 0"):
        section(mu_2=-1)


@pytest.mark.parametrize("erase", ["agent", "random", "labels", "none"])
def test_a_student_that_purifies_sees_an_image_the_same_twice(erase):
    other = toy.model(PEOPLE, fep="student", erase=erase, start="random").eval()
    torch.nn.init.normal_(other.agent.linear.weight)
    once, again = (other.embed(eval_batch(PEOPLE)).parts for _ in range(2))
    assert torch.equal(once, again)
    with torch.no_grad():
        other.decoder[1].ffn[2].weight += 0.1
    assert not torch.allclose(once, other.embed(eval_batch(PEOPLE)).parts)  # it goes through the decoder


@pytest.mark.parametrize("fep", ["teacher", "student"])
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_an_embedding_is_the_whole_branchs_output_where_it_is_compared(preset, fep):
    other = toy.model(PEOPLE, preset=preset, fep=fep, start="random").eval()
    plain = eval_batch(PEOPLE)
    with torch.no_grad():
        tokens = other.encode(plain.holistic, plain.camid)
        whole = other.branch(OCCLUDED, tokens, plain.holistic).output
        least = other.branch(OCCLUDED, tokens, plain.holistic, num_tokens=9).output
    assert least.shape[1] == 9 and torch.allclose(whole[:, :9], least, atol=1e-5)


def test_several_masks_pass_the_decoder_as_one_batch_and_score_as_they_would_alone():
    other = toy.model(PEOPLE, start="random").eval()
    torch.nn.init.normal_(other.heads.weight)
    h, _ = other.encode_views(BATCH)
    masks = list(torch.rand(3, 16, N) < 0.5)
    together = other.identity_probability(h, masks, BATCH.pid, HOLISTIC)
    for mask, scores in zip(masks, together, strict=True):
        alone = other.heads.score(other.purify(h, mask)[:, 0], HOLISTIC, BATCH.pid)
        assert torch.allclose(scores, alone, atol=1e-5)
    assert not together[0].requires_grad and other.identity_probability(h, [], BATCH.pid, HOLISTIC) == []


def test_a_purifying_students_agent_keeps_the_likelier_patches_once_trained():
    other = toy.model(PEOPLE, fep="student").eval()
    torch.nn.init.zeros_(other.agent.linear.bias)
    state = torch.randn(2, N, 9)
    assert torch.equal(
        other.agent.sample_mask(state, torch.zeros(2, N, 9)), other.agent(state).sigmoid() > 0.5
    )


@pytest.mark.parametrize(
    ("fep", "branch"), [("teacher", HOLISTIC), ("student", OCCLUDED), ("both", HOLISTIC)]
)
def test_the_papers_baseline_is_the_score_of_the_branch_that_purifies_the_teachers_if_both_do(fep, branch):
    other = toy.model(PEOPLE, preset="paper", fep=fep).eval()
    torch.nn.init.normal_(other.heads.weight)
    other.heads.necks[OCCLUDED].running_mean += 1
    other.begin_epoch(0, lambda: eval_batches(PEOPLE, 5))
    whole = eval_batch(PEOPLE)
    with torch.no_grad():
        h = other.encode(whole.holistic, whole.camid)
        score = other.heads.score(other.purify(h, EVERY)[:, 0], branch, whole.pid).mean()
    assert other.agent.baseline.item() == pytest.approx(score.item(), abs=1e-5)


def test_each_distillation_term_can_be_left_out():
    whole = next(toy.model(PEOPLE).objectives(BATCH))
    for names, changes in {
        ("mse",): {"mse_weight": 0.0},
        ("cos",): {"mu_1": 0.0},
        ("identity", "kl"): {"alpha": 0.0, "beta": 0.0},
    }.items():
        part = next(toy.model(PEOPLE, **changes).objectives(BATCH))
        left = sum(whole.weights[name] * whole.terms[name].item() for name in names)
        assert part.loss.item() == pytest.approx(whole.loss.item() - left, abs=1e-3)
