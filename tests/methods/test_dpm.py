"""DPM: its losses against loops, its two steps, its gate, its size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.batches.views import Batch, View, eval_batch
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.inference import api
from pipeline.methods import dpm
from pipeline.methods.base import DataSpec, data_spec
from pipeline.methods.presets import resolve
from pipeline.model.backbones import untrained_vit
from pipeline.model.distance import distances
from pipeline.ranking import Embedded, rank, rerank
from pipeline.ranking.reranking import Rerank
from pipeline.training import checkpoint
from pipeline.training.loop import Loop
from pipeline.training.run import train_model
from tests import toy
from tests.methods import dpm_reference as slow
from tests.reference import scalars, stacked

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE, rows=np.array([0, 1, 4, 5, 8, 9]))  # three people, two images each
EITHER = pytest.mark.parametrize("preset", ["recommended", "paper"])
PARAMS = params.read("params.yaml", "dpm", dpm.Params)
OCCLUDED_DUKE = DataSpec((256, 128), identities=702, cameras=8, coarse=4, trained_cameras=tuple(range(8)))


def settings(preset="recommended", **changes):
    unresolved = replace(PARAMS, preset=preset, **{"stride": 16, **changes})
    return resolve(unresolved, dpm.PRESETS, preset, "dpm")


def model(preset="recommended", masked=True, **changes):
    """A DPM whose masks differ from image to image, unless they are to be those of the start."""
    torch.manual_seed(0)
    network = dpm.build(settings(preset, **changes), data_spec(PEOPLE), toy.encoder(depth=3))
    if masked and network.generator is not None:
        torch.nn.init.normal_(network.generator.linear.weight)
    return network


# ------------------------------------------------------------------ the loss


@EITHER
def test_the_loss_is_that_of_the_loop_in_value_and_gradient(preset):
    network = model(preset, triplet="plain", head_gain=1.0)
    for p in network.encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)  # a soft attention has heads that are alike
    whole = next(network.objectives(BATCH)).loss
    features = network.features(BATCH.occluded, BATCH.camid, logits=True)
    necked, masks = network.neck(features.token), network.mask(features)
    tensors = (features.token, necked, masks, network.head.weight[0], features.logits)
    own = network.params
    loop = slow.loss(*map(scalars, tensors), BATCH.pid.tolist(), own.scale, own.margin, own.orthogonal)
    assert whole.item() == pytest.approx(loop.item(), rel=1e-5)
    leaves = [p for p in network.parameters() if p.requires_grad]
    fast, wanted = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, materialize_grads=True)])
        for loss in (whole, loop)
    )
    assert (fast - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_recommended_compares_necked_features_and_multiplies_plain_logits():
    network = model()
    terms = next(network.objectives(BATCH)).terms
    features = network.features(BATCH.occluded, BATCH.camid)
    necked = F.batch_norm(features.token, None, None, training=True)
    plain = F.cross_entropy(10 * necked @ network.head.weight[0].T, BATCH.pid)
    assert terms["identity"].item() == pytest.approx(plain.item(), rel=1e-4)
    loop = slow.soft_triplet(scalars(necked / 16**0.5), BATCH.pid.tolist())
    assert terms["triplet"].item() == pytest.approx(loop.item(), rel=1e-4)


def test_it_learns_from_the_occluded_view_alone():
    blind = replace(BATCH, holistic=replace(BATCH.holistic, image=BATCH.holistic.image * float("nan")))
    assert all(objective.loss.isfinite() for objective in model().objectives(blind))


@EITHER
def test_masks_start_flat_and_the_masked_loss_as_plain_arcface(preset):
    start = model(preset, masked=False)
    without = model(preset, mask="none")
    without.load_state_dict(start.state_dict(), strict=False)
    features = start.features(BATCH.occluded, BATCH.camid)
    assert torch.equal(start.mask(features), torch.full((6, 16), 0.5))
    ours, theirs = (next(network.objectives(BATCH)).terms for network in (start, without))
    assert ours.keys() == theirs.keys()
    for name, term in ours.items():
        assert term.item() == pytest.approx(theirs[name].item(), rel=1e-5), name
    cosine = F.normalize(start.neck(features.token)) @ F.normalize(start.head.weight[0]).T
    logits = [
        slow.arc_logits(row, label, start.params.scale, start.params.margin)
        for row, label in zip(scalars(cosine), BATCH.pid.tolist(), strict=True)
    ]
    arcface = F.cross_entropy(stacked(logits), BATCH.pid)
    assert ours["arc"].item() == pytest.approx(arcface.item(), rel=1e-5)


def test_the_sum_of_the_head_enrichment_doubles_with_the_batch():
    network = model()
    rows = np.array([0, 1, 4, 5, 8, 9])
    double = toy.batch(PEOPLE, rows=np.concatenate([rows, rows]))
    view = View(*(torch.cat([tensor, tensor]) for tensor in vars(BATCH.occluded).values()))
    double = replace(double, occluded=view)
    once, more = (next(network.objectives(b)).terms["orthogonality"].item() for b in (BATCH, double))
    assert more == pytest.approx(2 * once, rel=1e-5) and once > 0


def test_what_is_off_is_not_computed():
    terms = next(model(orthogonal=0.0).objectives(BATCH)).terms
    assert list(terms) == ["identity", "arc", "triplet"]
    plain = model(mask="none")
    assert plain.generator is None and plain.taps == () and list(plain.param_groups()) == ["reid"]
    assert len(list(plain.objectives(BATCH))) == 1
    assert plain.eval().embed(eval_batch(PEOPLE)).gate is None


# ------------------------------------------------------------------ two steps a batch


def stepped(network, preset="recommended", **changes):
    """State before and after each step of one batch, by the step's name."""
    plan = toy.schedule(preset, lr=1e-2, warmup=0.0, **changes)
    loop, states = Loop(network.train(), plan, torch.device("cpu")), {}
    optimise = loop._optimise

    def watched(objective, *rest):
        before = {n: t.clone() for n, t in network.state_dict().items()}
        row = optimise(objective, *rest)
        states[objective.group] = before, {n: t.clone() for n, t in network.state_dict().items()}
        return row

    loop._optimise = watched
    loop.step(BATCH, 0.0)
    return states


@EITHER
def test_each_step_leaves_the_parameters_of_the_other_bit_equal(preset):
    network = model(preset)
    states = stepped(network, preset)
    assert list(states) == ["reid", "mask"]
    for group, (before, after) in states.items():
        for name, parameter in network.named_parameters():
            moved = not torch.equal(before[name], after[name])
            mine = name.startswith("generator.") == (group == "mask")
            assert not moved or (mine and parameter.requires_grad), (group, name)
        weight = {"reid": "encoder.blocks.0.attn.qkv.weight", "mask": "generator.layers.0.weight"}[group]
        assert not torch.equal(before[weight], after[weight])


def test_the_generator_learns_on_the_weights_that_the_first_step_left():
    network = model()
    objectives = network.objectives(BATCH)
    first = next(objectives)
    with torch.no_grad():
        for p in network.encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    second = next(objectives).terms["mask"]
    new = next(network.objectives(BATCH)).terms["arc"]
    assert second.item() == pytest.approx(new.item(), rel=1e-5)
    assert abs(second.item() - first.terms["arc"].item()) > 1e-3


@EITHER
def test_the_second_pass_gives_the_generator_the_gradient_of_the_whole_loss(preset):
    network = model(preset)
    whole, mask = network.objectives(BATCH)
    generator = list(network.generator.parameters())
    wanted, got = (
        torch.autograd.grad(objective.loss, generator, retain_graph=True) for objective in (whole, mask)
    )
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    before = [p for p in network.encoder.parameters() if p.requires_grad]
    assert not any(g is not None for g in torch.autograd.grad(mask.loss, before, allow_unused=True))


@pytest.mark.parametrize(
    ("changes", "times"), [({}, 2), ({"steps": "joint"}, 1), ({"mask": "none", "steps": "alternate"}, 1)]
)
def test_batch_statistics_move_once_in_each_pass(changes, times):
    network = model(**changes)
    stepped(network)
    counts = {n: int(t) for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
    assert set(counts.values()) == {times} and len(counts) == (1 if "mask" in changes else 4)


def test_jointly_one_step_moves_all():
    network = model(steps="joint")
    assert list(network.param_groups()) == ["reid"]
    before, after = stepped(network)["reid"]
    for name in ("generator.layers.0.weight", "head.weight"):
        assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(("preset", "late"), [("recommended", 0.002), ("paper", 1.0)])
def test_the_generators_rate_falls_with_the_others_or_not_at_all(preset, late):
    network = model(preset)
    plan = toy.schedule(preset)
    loop = Loop(network.train(), plan, torch.device("cpu"))
    loop.step(BATCH, float(plan.epochs))
    rates = {name: o.param_groups[0]["lr"] for name, o in loop.optimisers.items()}
    assert rates["reid"] == pytest.approx(0.002 * plan.lr)
    assert rates["mask"] == pytest.approx(late * network.params.mask_lr)


def test_it_overfits_one_batch():
    people = toy.people(identities=4, each=2)
    torch.manual_seed(0)
    network = dpm.build(settings(), data_spec(people), toy.encoder())
    plan = toy.schedule(epochs=1, lr=5e-3, decay=0.0, warmup=0.0, clip=5.0)
    loop = Loop(network.train(), replace(plan, floor=1.0), torch.device("cpu"))
    batch = toy.batch(people)
    for _ in range(30):
        loop.step(batch, 0.0)
    for term in ("identity", "arc", "mask"):
        assert loop.log[-1][term] < 0.3 * loop.log[0][term]


class Stopped(checkpoint.Checkpoints):
    """Those of a training that is stopped after its third step."""

    def step(self, loop, state, best):
        super().step(loop, state, best)
        if len(loop.log) == 3:
            raise KeyboardInterrupt


def test_a_stopped_training_resumes_to_the_same_bytes(tmp_path):
    plan = toy.schedule("paper", epochs=2)  # SGD, and a rate that is constant for the generator alone
    whole, stopped, again = (model("paper") for _ in range(3))
    log = train_model(whole, PEOPLE, plan, 1)
    with pytest.raises(KeyboardInterrupt):
        train_model(stopped, PEOPLE, plan, 1, checkpoints=Stopped(tmp_path, 0.0))
    torch.manual_seed(99)
    resumed = train_model(again, PEOPLE, plan, 1, checkpoints=checkpoint.Checkpoints(tmp_path, 0.0))
    assert len(log) > 3 and resumed["mask"].tolist() == log["mask"].tolist()
    assert all(torch.equal(whole.state_dict()[n], tensor) for n, tensor in again.state_dict().items())


# ------------------------------------------------------------------ the gate


@pytest.mark.parametrize("feature", ["before", "after"])
def test_an_embedding_is_a_unit_feature_and_the_mask_of_the_image(feature):
    network = model(feature=feature).eval()
    embedding = network.embed(eval_batch(PEOPLE))
    features = network.features(eval_batch(PEOPLE).holistic, eval_batch(PEOPLE).camid)
    token = network.neck(features.token) if feature == "after" else features.token
    torch.testing.assert_close(embedding.parts[:, 0], F.normalize(token))
    assert torch.equal(embedding.gate[:, 0], network.mask(features))
    assert (embedding.visibility == 1).all() and not embedding.gate.requires_grad
    assert (embedding.gate > 0).all() and (embedding.gate < 1).all()


def test_distances_are_those_of_the_loop_under_the_querys_mask():
    embedding = model().eval().embed(eval_batch(PEOPLE))
    sides = embedding.parts, embedding.parts, embedding.visibility, embedding.visibility
    distance = distances(*sides, gate=embedding.gate)
    parts, gates = scalars(embedding.parts[:, 0]), scalars(embedding.gate[:, 0])
    loop = [[slow.distance(q, g, m) for g in parts] for q, m in zip(parts, gates, strict=True)]
    torch.testing.assert_close(distance, stacked(loop).float(), atol=1e-5, rtol=1e-5)
    assert (distance - distance.T).abs().max() > 1e-4 and distance.diagonal().min() > 1e-3


def test_under_the_mask_of_the_start_distances_are_plain_and_an_image_is_its_own_nearest():
    embedding = model(masked=False).eval().embed(eval_batch(PEOPLE))
    sides = embedding.parts, embedding.parts, embedding.visibility, embedding.visibility
    gated, plain = distances(*sides, gate=embedding.gate), distances(*sides)
    torch.testing.assert_close(gated, plain, atol=2e-3, rtol=0)
    assert torch.equal(gated.argmin(1), torch.arange(len(PEOPLE)))


def test_an_image_need_not_be_its_own_nearest_under_a_mask():
    """Under a mask the greatest similarity is that of q / m: in two channels, q = (3, 4) and m = (1, 1/2)."""
    query, mask = torch.tensor([[[0.6, 0.8]]]), torch.tensor([[[1.0, 0.5]]])
    gallery = torch.cat([query, F.normalize(query / mask, dim=-1)])
    distance = distances(query, gallery, torch.ones(1, 1), torch.ones(2, 1), gate=mask)
    # m * q = (0.6, 0.4), of length 0.721; its product with q is 0.68
    assert distance[0].tolist() == pytest.approx([math.sqrt(2 - 2 * 0.68 / 0.5200**0.5), 0], abs=1e-3)


def test_the_library_compares_and_ranks_by_the_gate_and_refuses_to_rerank_in_words(tmp_path):
    loaded = api.load(toy.trained(tmp_path, "dpm"))
    embedding = loaded.embed(list(PEOPLE.image))
    parts, gates = scalars(embedding.parts[:, 0]), scalars(embedding.gate[:, 0])
    loop = stacked([[slow.distance(q, g, m) for g in parts] for q, m in zip(parts, gates, strict=True)])
    torch.testing.assert_close(api.distances(embedding, embedding), loop.float(), atol=2e-3, rtol=0)
    camid, pid = np.arange(len(PEOPLE)) % 2, PEOPLE.pid
    images = Embedded(embedding.parts, embedding.visibility, pid, camid, embedding.gate)
    gallery = replace(images, gate=None)
    ranking = rank(images, gallery, top=1)
    away = loop + 9.0 * torch.from_numpy((pid[:, None] == pid) & (camid[:, None] == camid))
    assert ranking.top[:, 0].tolist() == away.argmin(1).tolist()
    with pytest.raises(BadInput, match=r"gated features: nearest neighbours are not mutual\. Set eval"):
        rerank(images, gallery, ranking, Rerank(depth=1, k1=2, k2=1, original=0.3), "euclidean")


# ------------------------------------------------------------------ sizes, and what is refused


def test_at_stride_11_it_has_the_published_numbers_of_parameters_and_multiply_adds():
    with torch.device("meta"):
        network = dpm.build(
            settings("paper", stride=11), OCCLUDED_DUKE, untrained_vit({"name": "vit_base_patch16_224"})
        ).eval()
        image, nothing = torch.zeros(1, 3, 256, 128), torch.zeros(1, 4, dtype=torch.bool)
    camera = torch.zeros(1, dtype=torch.long)  # its value is read
    batch = Batch(View(image, image[:, 0].byte(), nothing), camera, camera)
    with FlopCounterMode(display=False) as counter:
        network.embed(batch)
    assert network.taps == (2, 4, 10, 12)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(146.1e6, rel=0.01)
    assert counter.get_total_flops() / 2 == pytest.approx(32.8e9, rel=0.01)


def test_blocks_that_the_encoder_lacks_are_refused():
    with pytest.raises(BadInput, match=r"dpm.taps = \[2, 4, 10, 12\]: the encoder has 3 blocks"):
        model(taps=(2, 4, 10, 12))
    assert model(taps=(1, 3)).taps == (1, 3)


def test_a_generator_that_nothing_teaches_is_refused():
    values = params.load("params.yaml")["dpm"]
    with pytest.raises(BadInput, match=r"dpm\.arc = 0: nothing teaches the mask generator"):
        params.validate({**values, "arc": 0.0}, dpm.Params, "", "dpm")
    assert params.validate({**values, "arc": 0.0, "mask": "none"}, dpm.Params, "", "dpm")
