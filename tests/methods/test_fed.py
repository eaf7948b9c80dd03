"""FED: its modules and losses read aloud, what its memory does in training, and what its switches build."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st

from pipeline.batches.views import Batch, View, eval_batch, eval_batches
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.inference import onnx
from pipeline.methods import fed
from pipeline.methods.base import DataSpec, data_spec, load_trained
from pipeline.methods.fed.erasing import OcclusionErasing, pool_stripes, stripe_changes, visible_stripes
from pipeline.methods.presets import resolve
from pipeline.model import diffusion
from pipeline.model.backbones import small_vit
from pipeline.model.memory import Centres
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Loop
from pipeline.training.run import train_model
from tests import stand_in_gpu, toy
from tests.methods import fed_reference as slow
from tests.methods.test_equations import SIZE, agree, normal
from tests.reference import scalars

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE)
PARAMS = params.read("params.yaml", "fed", fed.Params)
WIDTH, STRIPES, IDENTITIES = 8, 2, 4


def settings(preset="recommended", **changes):
    unresolved = replace(PARAMS, preset=preset, **{"neighbours": 2, **changes})
    return resolve(unresolved, fed.PRESETS, preset, "fed")


def model(people=PEOPLE, preset="recommended", **changes):
    torch.manual_seed(0)
    return fed.build(settings(preset, **changes), data_spec(people), toy.encoder())


def started(people=PEOPLE, **changes):
    """A model as it is at the first step."""
    method = model(people, **changes).eval()
    method.begin_epoch(0, lambda: eval_batches(people, 5))
    return method.train()


# ------------------------------------------------------------------ labels of stripes

LABELS = {  # of an obstacle on 256 x 128 pixels, from the top, and which of four stripes stay visible
    "64 rows": (np.s_[:64], [0, 1, 1, 1]),
    "85 rows: a third of a stripe more is too little": (np.s_[:85], [0, 1, 1, 1]),
    "86 rows": (np.s_[:86], [0, 0, 1, 1]),
    "128 rows": (np.s_[:128], [0, 0, 1, 1]),
    "86 rows from the bottom": (np.s_[-86:], [1, 1, 0, 0]),
    "32 rows": (np.s_[:32], [0, 1, 1, 1]),
    "a tall band": (np.s_[:, :40], [1, 1, 1, 1]),
    "nothing": (np.s_[:0], [1, 1, 1, 1]),
}


def two_views(first, second, covered):
    """A batch of pictures of somebody each, and of the same pictures occluded."""
    parsing, hidden = covered.byte(), torch.zeros(len(covered), 4, dtype=torch.bool)
    pid = torch.arange(len(covered))
    return Batch(View(first, parsing, hidden), pid % 2, pid, View(second, parsing, hidden), covered)


def noise(count, size, seed):
    """Pictures of random colours."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), np.uint8))


@pytest.mark.parametrize("kind", ["coverage", "difference"])
@pytest.mark.parametrize("name", LABELS)
def test_a_stripe_is_occluded_where_a_band_covers_enough_of_it(name, kind):
    where, wanted = LABELS[name]
    covered = torch.zeros(1, 256, 128, dtype=torch.bool)
    covered[0][where] = True
    blank = torch.full((1, 3, 256, 128), 200, dtype=torch.uint8)
    batch = two_views(blank, blank - 90 * covered[:, None].byte(), covered)
    assert visible_stripes(stripe_changes(batch, kind, 4)).tolist() == [wanted]


@law(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.29, 0.31, 0.9, 1.0]), min_size=2, max_size=5))
def test_labels_are_those_of_the_published_code_case_by_case(change):
    assert visible_stripes(torch.tensor([change])).tolist() == [slow.label(change)]


def test_a_change_of_colours_is_the_sum_over_red_green_and_blue():
    first, second = noise(1, SIZE, 0), noise(1, SIZE, 1)
    batch = two_views(first, second, torch.zeros(1, *SIZE, dtype=torch.bool))
    aloud = [slow.changes(scalars(first.float()[0]), scalars(second.float()[0]), 3)]
    agree(stripe_changes(batch, "difference", 3), aloud)


# ------------------------------------------------------------------ stripes


def test_stripes_of_16_rows_are_those_of_the_flat_sequence_as_in_the_published_code():
    patches = normal(2, 16 * 8, 3)
    flat = F.adaptive_avg_pool1d(patches.mT, 4).mT
    torch.testing.assert_close(pool_stripes(patches.unflatten(1, (16, 8)), 4), flat)


@pytest.mark.parametrize("grid", [(22, 11), (21, 10), (4, 2), (5, 1)])
def test_stripes_are_rows_whatever_the_grid(grid):
    plane = normal(2, *grid, 3)
    agree(pool_stripes(plane, 4), [slow.stripes(scalars(one), 4) for one in plane], plane)


# ------------------------------------------------------------------ OEM and FDM


def weights(module, **names):
    """A module's parameters as nested lists."""
    return {name: scalars(parameter) for name, parameter in names.items()}


def detector(module):
    first, norm, second = module
    return weights(
        module, **{"in": first.weight}, in_bias=first.bias, scale=norm.weight, shift=norm.bias,
        out=second.weight, out_bias=second.bias,
    )  # fmt: skip


def feed_forward(module):
    return weights(
        module, scale=module.norm.weight, shift=module.norm.bias, inner=module.inner.weight,
        inner_bias=module.inner.bias, proj=module.proj.weight, proj_bias=module.proj.bias,
    )  # fmt: skip


def diffusing(module):
    attention = module.attention
    taking = weights(
        attention, query=attention.query.weight, key_value=attention.key_value.weight,
        proj=attention.proj.weight, proj_bias=attention.proj.bias,
    )  # fmt: skip
    return {"attention": taking, "before": feed_forward(module.before), "after": feed_forward(module.after)}


def random_weights(module, std=0.5):
    """Nothing starts as zero or one."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def test_every_stripe_has_a_detector_of_its_own():
    oem, stripes = random_weights(OcclusionErasing(3, WIDTH)), normal(2, 3, WIDTH)
    aloud = [
        [slow.score(stripe, detector(each)) for stripe, each in zip(image, oem.detectors, strict=True)]
        for image in scalars(stripes)
    ]
    agree(oem(stripes), aloud, stripes, *oem.parameters())


def test_a_feature_attends_to_its_centres_and_passes_two_gated_layers():
    fdm = random_weights(diffusion.FeatureDiffusion(STRIPES, WIDTH))
    whole = STRIPES * WIDTH
    feature, score, centres = normal(2, whole), normal(2, STRIPES, seed=1), normal(2, 3, whole, seed=2)
    aloud = [
        slow.diffuse(*each, diffusing(fdm), diffusion.HEADS)
        for each in zip(scalars(feature), scalars(score), scalars(centres), strict=True)
    ]
    agree(fdm(feature, score, centres), aloud, feature, score, centres, *fdm.parameters())


def test_scores_of_1_leave_the_feature_unerased():
    method = started()
    for detector_ in method.erasing.detectors:
        torch.nn.init.constant_(detector_[-1].bias, 100.0)
    unerased = method.neck(method.encode(BATCH.holistic, BATCH.camid)[1])
    torch.testing.assert_close(method.features(BATCH.holistic, BATCH.camid).erased, unerased)
    torch.testing.assert_close(started(oem=False).features(BATCH.holistic, BATCH.camid).erased, unerased)


# ------------------------------------------------------------------ the whole loss


def tiny(**changes):
    """A FED for pictures of 3 x 2 patches; every weight matters, and none so much that rounding shows."""
    torch.manual_seed(0)
    encoder = small_vit(img_size=SIZE, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=2)
    spec = DataSpec(SIZE, IDENTITIES, cameras=2, coarse=4, trained_cameras=(0, 1))
    mild = {"stride": 2, "stripes": STRIPES, "temperature": 0.5, "head_gain": 2.0, **changes}
    method = random_weights(fed.build(settings(**mild), spec, encoder))
    for neck in method.head.necks:
        neck.bias.requires_grad_(False).zero_()
    for memory in method.memories:
        memory.centres.normal_()
    return method


def occluded_people():
    """Four people: one is covered above, one in a corner below, one beside, one not at all."""
    first, covered = noise(IDENTITIES, SIZE, 0), torch.zeros(IDENTITIES, *SIZE, dtype=torch.bool)
    covered[0, :2], covered[1, 4:, :2], covered[2, :, 1:] = True, True, True
    second = torch.where(covered[:, None], noise(IDENTITIES, SIZE, 1), first)
    return two_views(first, second, covered)


AS_PUBLISHED = {"banks": "one", "global_token": "first_patch", "label": "difference"}


@pytest.mark.parametrize("changes", [{}, AS_PUBLISHED])
def test_the_loss_is_that_of_the_published_code(changes):
    method, batch = tiny(**changes), occluded_people()
    scale, pids = scalars(method.head.necks[0].weight), batch.pid.tolist()
    detectors, fdm = [detector(each) for each in method.erasing.detectors], diffusing(method.diffusion)
    memory, diffused_memory = (scalars(method.bank(n).centres) for n in (0, -1))
    tokens, scores, erased, diffused = [], [], [], []
    for view in (batch.holistic, batch.occluded):
        output = method.encoder(view.image, view.hidden, batch.camid)
        tokens.append(scalars(output.patch[:, 0] if changes else output.cls))
        stripes = [slow.stripes(scalars(one), STRIPES) for one in output.patch.unflatten(1, (3, 2))]
        scores.append([[slow.score(s, w) for s, w in zip(one, detectors, strict=True)] for one in stripes])
        images = [slow.erase(*each) for each in zip(stripes, scores[-1], strict=True)]
        erased.append(slow.neck(images, scale))
        values = [[x.detach() for x in b] for b in erased[-1]]
        near = [slow.nearest(b, pid, memory, 2) for b, pid in zip(values, pids, strict=True)]
        rows = zip(erased[-1], scores[-1], near, strict=True)
        diffused.append(slow.neck([slow.diffuse(*row, fdm, diffusion.HEADS) for row in rows], scale))
    if changes:
        pairs = zip(batch.holistic.image.float(), batch.occluded.image.float(), strict=True)
        change = [slow.changes(scalars(a), scalars(b), STRIPES) for a, b in pairs]
    else:
        plane = batch.covered.double()[..., None]
        change = [[s[0] for s in slow.stripes(scalars(one), STRIPES)] for one in plane]
    classifiers = [scalars(h.weight[0]) for h in (method.head, method.diffused_head, method.global_head)]
    labels = [slow.label(one) for one in change]
    assert 0 < np.mean(labels) < 1
    aloud = slow.total(
        scores, labels, erased, diffused, tokens, classifiers, method.params.head_gain, pids, memory,
        diffused_memory, method.params.temperature,
    )  # fmt: skip
    (objective,) = method.objectives(batch)
    unused = {"encoder.part", "encoder.pattern", "encoder.camera"}
    parameters = {n: p for n, p in method.named_parameters() if p.requires_grad and n not in unused}
    agree(objective.loss, aloud, *parameters.values())


def test_the_scores_loss_moves_no_weight_of_the_diffusion():
    (objective,) = (method := started()).objectives(BATCH)
    moved = torch.autograd.grad(objective.terms["oem"], [*method.diffusion.parameters()], allow_unused=True)
    assert not any(gradient is not None for gradient in moved)
    assert torch.autograd.grad(objective.terms["oem"], [*method.erasing.parameters()])[0].any()


# ------------------------------------------------------------------ the memory in training

ONE_EACH = toy.batch(PEOPLE, rows=np.array([0, 4, 8, 12]))


def outcome(method, batch):
    """Centres before and after a step of rate 0, and the features that the holistic view had."""
    before = [memory.centres.clone() for memory in method.memories]
    features = method.features(batch.holistic, batch.camid)
    diffused = method.diffuse(features, batch.pid)
    list(method.objectives(batch))
    return before, [memory.centres for memory in method.memories], features.erased, diffused


def test_the_memory_starts_as_the_means_of_unerased_features_in_evaluation_mode():
    method = model().eval()
    with torch.no_grad():
        plain = eval_batch(PEOPLE)
        unerased = method.neck(method.encode(plain.holistic, plain.camid)[1])
    method.begin_epoch(0, lambda: eval_batches(PEOPLE, 5))
    for memory in method.memories:
        torch.testing.assert_close(memory.centres, unerased.view(4, 4, -1).mean(1))
    list(method.train().objectives(BATCH))
    after = method.bank(0).centres.clone()
    method.eval().begin_epoch(1, lambda: eval_batches(PEOPLE, 5))
    assert torch.equal(method.bank(0).centres, after)


def test_centres_of_two_memories_each_keep_a_fifth_of_what_they_were():
    (m, n), (after, diffused_after), b, d = outcome(started(), ONE_EACH)
    torch.testing.assert_close(after, 0.2 * m + 0.8 * b)
    torch.testing.assert_close(diffused_after, 0.2 * n + 0.8 * d)


def test_one_memory_moves_to_the_diffused_feature_and_then_to_the_erased_one():
    (m,), (after,), b, d = outcome(started(banks="one"), ONE_EACH)
    torch.testing.assert_close(after, 0.04 * m + 0.16 * d + 0.80 * b)


def test_the_occluded_view_moves_no_memory():
    black = replace(BATCH, occluded=replace(BATCH.occluded, image=BATCH.occluded.image * 0))
    (_, ours, *_), (_, theirs, *_) = (outcome(started(), batch) for batch in (BATCH, black))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------ training and testing


def test_an_embedding_is_one_feature_of_all_stripes_that_no_memory_or_diffusion_reaches():
    method = started().eval()
    embedding = method.embed(eval_batch(PEOPLE))
    assert embedding.parts.shape == (16, 1, 64) and (embedding.visibility == 1).all()
    erased = method.features(eval_batch(PEOPLE).holistic, eval_batch(PEOPLE).camid).erased
    torch.testing.assert_close(embedding.parts[:, 0], F.normalize(erased, dim=1))
    random_weights(method.diffusion)
    for memory in method.memories:
        memory.centres.normal_()
    assert torch.equal(method.embed(eval_batch(PEOPLE)).parts, embedding.parts)


def test_every_loss_of_a_batch_that_is_learned_for_40_steps_falls_to_less_than_half():
    plan = replace(toy.schedule(epochs=1, lr=5e-3, decay=0.0, warmup=0.0, clip=5.0), floor=1.0)
    loop = Loop(started(), plan, torch.device("cpu"))
    for _ in range(40):
        loop.step(BATCH, 0.0)
    first, last = loop.log[0], loop.log[-1]
    for term in ("identity", "diffused_identity", "global_identity", "oem", "contrast_occluded"):
        assert last[term] < 0.5 * first[term], term


def trained(preset="recommended", folder=None, stop=None):
    """The weights of a short training by a preset that stops at a step, or goes on from where it stopped."""

    class Stopping(Checkpoints):
        def step(self, loop, state, best):
            super().step(loop, state, best)
            if len(loop.log) == stop:
                raise KeyboardInterrupt

    small = {"size": toy.SIZE, "identities": 2, "images": 2, "pad": 2, "epochs": 2}
    plan = replace(toy.TRAIN, **small, precision="float32", compile=False, attention="math")
    method, checkpoints = model(preset=preset), folder and Stopping(folder, 0.0)
    train_model(method, PEOPLE, resolve(plan, fed.PRESETS, preset, "train"), 1, checkpoints=checkpoints)
    return method.state_dict()


def test_a_stopped_training_resumes_to_the_same_memory_and_weights(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(folder=tmp_path, stop=5)
    whole, resumed = trained(), trained(folder=tmp_path)
    assert "memories.1.centres" in whole and all(torch.equal(whole[n], resumed[n]) for n in whole)


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_a_training_on_the_gpu_ends_at_the_weights_of_the_cpu(preset):
    here = trained(preset)
    with stand_in_gpu.stand_in():
        there = trained(preset)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_the_graph_embeds_as_the_model_does(tmp_path):
    folder = toy.trained(tmp_path / "trained", "fed")
    outputs = onnx.write(folder, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    plain = eval_batch(PEOPLE)
    image = plain.holistic.image.permute(0, 2, 3, 1).numpy()
    arrays = {"image": image, "hidden": plain.holistic.hidden.numpy(), "camera": plain.camid.numpy()}
    whole, rows, visibility = session.run(list(outputs), arrays)
    wanted = load_trained(folder).embed(plain).parts[:, 0]
    np.testing.assert_allclose(whole, wanted, atol=1e-4)
    assert rows.shape == (16, 0, 64) and (visibility == 1).all()


# ------------------------------------------------------------------ what is built


def test_what_is_off_is_not_built():
    names = {n for n, _ in model().named_parameters()}
    assert {n.split(".")[0] for n in names} == {
        "encoder", "head", "global_head", "erasing", "diffusion", "diffused_head",
    }  # fmt: skip
    bare = model(oem=False, fdm=False)
    assert {n.split(".")[0] for n, _ in bare.named_parameters()} == {"encoder", "head", "global_head"}
    assert [type(m) for m in bare.memories] == [Centres]
    (objective,) = bare.train().objectives(BATCH)
    assert objective.terms.keys() == {"identity", "global_identity", "contrast", "contrast_occluded"}


def test_the_parameters_are_those_of_the_published_code_to_the_head():
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=0, img_size=(256, 128))
        spec = DataSpec((256, 128), identities=702, cameras=8, coarse=4, trained_cameras=tuple(range(8)))
        ours = sum(p.numel() for p in fed.build(settings(neighbours=8), spec, vit).parameters())
    imagenet, second_necks, stripe_classifiers = 768_000 + 1_000, 4 * 2 * 768, 4 * 702 * 768
    without_weight = (2**4 + 8) * 768  # embeddings of occlusion patterns and cameras
    assert ours - without_weight == 146_053_868 - imagenet - second_necks - stripe_classifiers


def test_more_stripes_than_rows_of_patches_are_refused():
    with pytest.raises(BadInput, match=r"fed\.stripes = 5, but the grid of patches has 4 rows\. Lower it"):
        model(stripes=5)


def test_fewer_people_than_neighbours_are_refused_unless_nothing_is_diffused():
    with pytest.raises(BadInput, match=r"fed\.neighbours = 8: a memory of 4 identities has 3 others"):
        model(neighbours=8)
    assert model(neighbours=8, fdm=False)
