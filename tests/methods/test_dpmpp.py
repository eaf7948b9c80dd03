"""DPM++: its losses, texts that teach prototypes, transferred patches, and what is left of it afterwards."""

import functools
import json
import multiprocessing
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.batches.views import eval_batch, eval_batches
from pipeline.core import distributed, params
from pipeline.core.params import BadInput
from pipeline.inference import onnx
from pipeline.methods import dpm, dpmpp
from pipeline.methods.base import data_spec, load_trained
from pipeline.methods.presets import resolve
from pipeline.model import losses, text
from pipeline.model.text.tower import TextTower
from pipeline.model.transfer import draw_transfer, saliency
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import TIMES, Loop
from pipeline.training.remarks import without_effect
from pipeline.training.run import train_model
from tests import stand_in_gpu, toy
from tests.methods import dpmpp_reference as slow
from tests.reference import scalars

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE)
PARAMS = params.read("params.yaml", "dpmpp", dpmpp.Params)
WORDS = [text.START, text.END, *text.BEFORE.split(), *text.AFTER.split()]
CHANNELS = 8  # E of the toy tower


def settings(preset="recommended", **changes):
    toys = {"stride": 16, "text": "embedded", "embedding": CHANNELS, "prompt_epochs": 3, "prompt_batch": 4}
    unresolved = replace(PARAMS, preset=preset, **{**toys, **changes})
    return resolve(unresolved, dpmpp.PRESETS, preset, "dpmpp")


def model(preset="recommended", seed=0, **changes):
    torch.manual_seed(seed)
    return dpmpp.build(settings(preset, **changes), data_spec(PEOPLE), toy.encoder())


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A file with towers of random weights that were trained with `model`'s encoder."""
    path = str(tmp_path_factory.mktemp("towers") / "text.safetensors")
    token = model().encoder.cls.detach()[0, 0]
    torch.manual_seed(1)
    projection = text.Projection(16, CHANNELS, pooled=True)
    projection.scale.fill_(5.0)
    tower = TextTower(len(WORDS), 16, 12, 1, 2, CHANNELS)
    built = text.Towers(tower, projection, token, (), ())
    text.write_towers(path, built, list(dict.fromkeys(WORDS)), 2, {})
    return path


def supervised(towers, preset="recommended", **changes):
    """A model after stage 1."""
    taught = model(preset, **changes)
    assert taught.read_text(towers) == towers
    taught.eval().begin_epoch(0, lambda: eval_batches(PEOPLE, 6))
    return taught.train()


# ------------------------------------------------------------------ the losses


def reach(taught, mixed):
    """What the losses read of the batch, as leaves."""
    features = taught.features(BATCH.occluded, BATCH.camid, True, mixed.edit)
    return features, taught.neck(features.token), taught.mask(features)


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_the_loss_and_its_gradients_equal_those_in_loops(towers, preset, ignore):
    taught = supervised(towers, preset, spt=0.7, budget=0.5, orthogonal=0.2, ignore=ignore)
    nn.init.normal_(taught.generator.linear.weight, std=3.0)  # or all masks are flat
    torch.manual_seed(3)
    (objective, *_) = taught.objectives(BATCH)
    torch.manual_seed(3)
    mixed = taught.draw_transfer(BATCH.occluded)
    assert 0 < mixed.mixed.sum() < 16
    features, necked, mask = reach(taught, mixed)
    pids, mine = BATCH.pid.tolist(), taught.params
    classes = [{pids[j]} - {pids[i]} if m and ignore else set() for i, (j, m) in enumerate(
        zip(mixed.row.tolist(), mixed.mixed.tolist(), strict=True))]  # fmt: skip
    images = [{j for j, pid in enumerate(pids) if pid in row} for row in classes]
    assert ignore == any(classes)
    cls, f, m, weight = map(scalars, (features.token, necked, mask, taught.head.weight[0]))
    table, back, projection = (
        scalars(t) for t in (taught.text.table, taught.text.back, taught.text.projection.weight)
    )
    wanted = dict.fromkeys(["identity", "arc", "i2t", "orthogonality"], 0.0)
    for i, pid in enumerate(pids):
        logits = [taught.head.gain * slow.dot(f[i], w) for w in weight]
        wanted["identity"] += slow.cross_entropy(logits, pid, classes[i]) / 16
        cosines = [slow.masked_cosine(f[i], m[i], w) for w in weight]
        angles = slow.arc(cosines, pid, mine.scale, mine.margin)
        wanted["arc"] += slow.cross_entropy(angles, pid, classes[i]) / 16
        image = slow.project(cls[i], scalars(features.patch[i]), projection)
        fits = [5.0 * slow.dot(image, t) for t in table]
        wanted["i2t"] += slow.cross_entropy(fits, pid, classes[i], 0.1) / 16
        wanted["orthogonality"] += slow.orthogonality(scalars(features.logits[i]))
    wanted["align"] = slow.align(weight, table, back, pids)
    wanted["budget"] = slow.budget(m, 0.9)
    compared = cls if preset == "paper" else [[v / 4 for v in row] for row in f]  # 4: root of the channels
    wanted["triplet"] = slow.triplet(compared, pids, images)
    assert set(wanted) == set(objective.terms)
    for name, value in wanted.items():
        assert objective.terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    whole = (
        0.5 * wanted["identity"] + 0.5 * wanted["arc"] + wanted["triplet"] + wanted["i2t"] + wanted["align"]
        + 0.2 * wanted["orthogonality"] + 0.5 * wanted["budget"]
    )  # fmt: skip
    assert objective.loss.item() == pytest.approx(whole.item(), rel=1e-4)
    moved = [p for p in taught.parameters() if p.requires_grad]
    for got, loop in zip(
        torch.autograd.grad(objective.loss, moved, allow_unused=True),
        torch.autograd.grad(whole, moved, allow_unused=True),
        strict=True,
    ):
        assert (got is None) == (loop is None)
        if got is not None:
            torch.testing.assert_close(got, loop, rtol=1e-3, atol=1e-5)


def test_an_ignored_logit_has_no_gradient_and_every_other_has():
    logits = torch.randn(2, 5, requires_grad=True)
    ignored = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    losses.identity(logits, torch.tensor([0, 4]), 0.1, ignored).backward()
    assert (logits.grad == 0).tolist() == ignored.tolist()


def test_without_texts_and_transfer_it_is_dpm_step_for_step():
    own = settings(text="none", spt=0.0)
    section = params.read("params.yaml", "dpm", dpm.Params)
    shared = {name: getattr(own, name) for name in vars(section) if hasattr(own, name)}
    logs, weights = [], []
    for build, mine in ((dpmpp.build, own), (dpm.build, replace(section, **shared))):
        torch.manual_seed(0)
        learner = build(mine, data_spec(PEOPLE), toy.encoder())
        log = train_model(learner, PEOPLE, toy.schedule(epochs=2), 1)
        logs.append(log.drop(columns=[*TIMES]).to_json(double_precision=15))
        weights.append(learner.state_dict())
    assert logs[0] == logs[1] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# ------------------------------------------------------------------ the mask's own step


def test_both_steps_see_one_transfer_and_the_mask_learns_as_from_the_whole_loss(towers):
    taught = supervised(towers, spt=0.7, budget=0.3)
    nn.init.normal_(taught.generator.linear.weight, std=3.0)
    reid, mask = taught.objectives(BATCH)  # no step between them
    assert mask.terms["mask"].item() == pytest.approx(reid.terms["arc"].item(), rel=1e-6)
    assert mask.terms["mask_budget"].item() == pytest.approx(reid.terms["budget"].item(), rel=1e-6)
    own = list(taught.generator.parameters())
    for got, wanted in zip(*(torch.autograd.grad(o.loss, own) for o in (mask, reid)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("changes", "groups"), [({}, 2), ({"steps": "joint"}, 1), ({"mask": "none"}, 1)])
def test_only_a_generator_that_alternates_has_steps_of_its_own(changes, groups):
    learner = model(**changes)
    assert len(learner.param_groups()) == len(list(learner.objectives(BATCH))) == groups
    gate = learner.eval().embed(eval_batch(PEOPLE)).gate
    assert (gate is None) == ("mask" in changes)


def test_a_mask_is_flat_at_the_start():
    gate = model().eval().embed(eval_batch(PEOPLE)).gate
    assert torch.equal(gate, torch.full_like(gate, 0.5))


@pytest.mark.parametrize("steps", ["alternate", "joint"])
def test_what_no_tower_brought_learns_at_a_rate_of_its_own(steps):
    learner = model("paper", steps=steps)
    ((fresh, factor),) = learner.param_groups()["reid"].scaled
    names = {n for n, p in learner.named_parameters() if any(p is other for other in fresh)}
    assert factor == 70
    own = {"generator"} if steps == "joint" else set()
    assert {n.split(".")[0] for n in names} == {"encoder", "head", "text"} | own
    assert {n for n in names if n.startswith("text")} == {"text.back"}
    assert {n for n in names if n.startswith("encoder")} == {"encoder.camera"}


# ------------------------------------------------------------------ texts


def test_stage_1_learns_a_text_for_each_identity_and_drops_the_tower(towers):
    taught, again = supervised(towers), supervised(towers)
    assert taught.text.table.shape == (4, CHANNELS) and taught.towers is None
    assert torch.allclose(taught.text.table.norm(dim=1), torch.ones(4))
    assert torch.equal(taught.text.table, again.text.table)
    assert not any("tower" in name for name in taught.state_dict())


def test_stage_1_sees_no_camera(towers):
    tables = [supervised(towers, gamma_camera=gamma).text.table for gamma in (0.0, 30.0)]
    assert torch.equal(*tables) and supervised(towers, gamma_camera=30.0).encoder.gamma_camera == 30.0


def test_stage_2_leaves_the_texts_as_they_are_and_moves_projection_prototypes_and_alignment(towers):
    taught = supervised(towers)
    before = {name: tensor.clone() for name, tensor in taught.state_dict().items()}
    loop = Loop(taught, toy.schedule(), torch.device("cpu"))
    for _ in range(2):
        loop.step(BATCH, 1.0)
    taught.begin_epoch(1, lambda: pytest.fail("later epochs embed nothing"))
    after = taught.state_dict()
    assert torch.equal(after["text.table"], before["text.table"])
    moved = ("text.projection.weight", "text.back", "head.weight")
    assert not any(torch.equal(after[name], before[name]) for name in moved)


def test_the_alignment_starts_as_the_least_tokens_that_give_the_texts(towers):
    taught = model()
    taught.read_text(towers)
    projection, back = taught.text.projection.weight, taught.text.back
    patches = torch.linalg.pinv(projection)[16:]
    torch.testing.assert_close(
        projection @ torch.cat([back, patches]), torch.eye(CHANNELS), atol=1e-4, rtol=0
    )
    shorter = torch.randn(32, CHANNELS)  # any other pre-image is longer
    other = torch.cat([back, patches]) + shorter - torch.linalg.pinv(projection) @ (projection @ shorter)
    assert (other.norm(dim=0) > torch.cat([back, patches]).norm(dim=0)).all()


@pytest.mark.parametrize("link", ["start", "replace"])
def test_prototypes_may_start_as_their_texts_and_may_stay_there(towers, link):
    plain, taught = model(transfer=(link,)), supervised(towers, transfer=(link,))
    weight, table = taught.head.weight.detach()[0].clone(), taught.text.table
    torch.testing.assert_close(weight.norm(dim=1), plain.head.weight[0].norm(dim=1))
    places = table @ taught.text.preimage(16).T
    torch.testing.assert_close(nn.functional.cosine_similarity(weight, places), torch.ones(4))
    Loop(taught, toy.schedule(), torch.device("cpu")).step(BATCH, 1.0)
    assert torch.equal(taught.head.weight[0], weight) == (link == "replace")
    assert not taught.text.projection.weight.requires_grad and taught.text.back is None


def test_the_control_without_words_learns_other_texts_by_the_same_stage(towers):
    words, table = supervised(towers), supervised(towers, text="table")
    assert table.text.table.shape == words.text.table.shape
    assert not torch.allclose(table.text.table, words.text.table)


@pytest.mark.parametrize("changes", [{"text": "none"}, {"transfer": ()}])
def test_without_texts_nothing_is_read_learned_or_kept_of_them(changes):
    learner = model(**changes)
    assert learner.read_text("no/such/file") == ""
    learner.begin_epoch(0, lambda: pytest.fail("no image is needed"))
    assert not any(name.startswith("text") for name in learner.state_dict())


# ------------------------------------------------------------------ transferred patches


def test_images_are_mixed_in_training_with_the_occluded_views_own_people():
    learner = model(spt=1.0, text="none")
    torch.manual_seed(4)
    mixed = learner.draw_transfer(BATCH.occluded)
    torch.manual_seed(4)
    salient = saliency(BATCH.occluded.parsing, 16, 16)
    wanted = draw_transfer(salient, (4, 2), 1.0, "oiou", True)
    assert torch.equal(mixed.row, wanted.row) and torch.equal(mixed.kept, wanted.kept)
    assert mixed.mixed.sum() > 8


def test_no_number_is_drawn_where_no_image_is_mixed():
    learner = model(spt=0.0, text="none")
    state = torch.get_rng_state()
    list(learner.objectives(BATCH))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_embedding_mixes_nothing_and_reads_no_map(towers):
    learner = supervised(towers, spt=1.0).eval()
    state = torch.get_rng_state()
    whole = learner.embed(eval_batch(PEOPLE))
    assert torch.equal(torch.get_rng_state(), state)
    each = [learner.embed(batch) for batch in eval_batches(replace(PEOPLE, parsing=PEOPLE.parsing * 0), 3)]
    for name in ("parts", "visibility", "gate"):
        got = torch.cat([getattr(embedding, name) for embedding in each])
        torch.testing.assert_close(got, getattr(whole, name), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ a training


def learn(towers, folder=None, seed=0, plan=None, stop=None, **changes):
    """A training of two epochs; `stop` kills it after so many steps."""
    learner = model(seed=seed, **changes)
    if towers:
        learner.read_text(towers)
    log = train_model(
        learner, PEOPLE, plan or toy.schedule(epochs=2), 1, checkpoints=folder and Stopped(folder, stop)
    )
    return learner, log.drop(columns=[*TIMES])


class Stopped(Checkpoints):
    """Checkpoints after every step, and a kill after the last one."""

    def __init__(self, folder, last):
        super().__init__(folder, 0.0)
        self.last = last

    def step(self, loop, rng_state, best):
        super().step(loop, rng_state, best)
        if len(loop.log) == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 5])
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(towers, tmp_path, stop):
    whole, log = learn(towers)
    with pytest.raises(KeyboardInterrupt):
        learn(towers, tmp_path, stop=stop)
    again, resumed = learn(None, tmp_path, seed=9)  # stage 1 is over
    assert len(log) == 8 and resumed.to_json() == log.to_json()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_it_trains_on_the_gpu_as_on_the_cpu(towers):
    plan = toy.schedule(epochs=1, attention="math")
    here, log = learn(towers, plan=plan, text="table")
    with stand_in_gpu.stand_in():
        there, other = learn(towers, plan=plan, text="table")
    assert all(torch.equal(tensor, there.state_dict()[name]) for name, tensor in here.state_dict().items())
    assert log["loss"].tolist() == other["loss"].tolist()


def test_texts_are_learned_on_the_gpu_nearly_as_on_the_cpu(towers):  # whose attention has another kernel
    plan = toy.schedule(epochs=1)
    here, _ = learn(towers, plan=plan)
    with stand_in_gpu.stand_in():
        there, _ = learn(towers, plan=plan)
    torch.testing.assert_close(there.text.table, here.text.table, atol=1e-5, rtol=1e-5)


def measure(towers):
    """The log, last gradients and weights of two steps of SGD after stage 1; Adam would amplify rounding."""
    learner = supervised(towers, spt=0.7, budget=0.3)
    nn.init.normal_(learner.generator.linear.weight, std=3.0)
    torch.manual_seed(7)
    loop = Loop(learner, toy.schedule(optimiser="sgd", lr=1e-5), torch.device("cpu"))
    for seed in (1, 2):
        loop.step(toy.batch(PEOPLE, seed, share=distributed.local_slice(16)), 1.0)
    gradients = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    rows = [{name: row[name] for name in row if name not in TIMES} for row in loop.log]
    return {"log": rows, "gradients": gradients, "weights": learner.state_dict()}


def measure_as_rank(rank, folder, towers):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(measure(towers), folder / f"{rank}.pt")


def test_two_processes_train_as_one(towers, tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=measure_as_rank, args=(rank, tmp_path, towers)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    whole = measure(towers)
    for half in halves:
        for row, wanted in zip(half["log"], whole["log"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        off = (half["gradients"] - whole["gradients"]).abs().max()
        assert off <= 1e-5 * whole["gradients"].abs().max()
        for name, tensor in whole["weights"].items():
            torch.testing.assert_close(half["weights"][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
            assert torch.equal(half["weights"][name], halves[0]["weights"][name])


def test_it_overfits_one_batch(towers):
    plan = replace(toy.schedule(epochs=1, lr=5e-3, decay=0.0, warmup=0.0, clip=5.0), floor=1.0)
    loop = Loop(supervised(towers, spt=0.3), plan, torch.device("cpu"))
    for _ in range(30):
        loop.step(BATCH, 0.0)
    for term in ("identity", "arc", "triplet", "align"):
        assert loop.log[-1][term] < 0.5 * loop.log[0][term], term


# another value of every param that may be without effect
OTHER = {
    "camera_on": "class", "taps": (1,), "steps": "joint", "budget": 1.0, "mask_lr": 1.0,
    "mask_schedule": "constant", "text_tower": "ViT-L-14", "text_weights": "other",
    "text": "table", "embedding": 3, "prompt_epochs": 7, "prompt_lr": 1.0, "prompt_batch": 9,
    "prompt_tokens": 2, "transfer": ("i2t",), "text_weight": 9.0, "align_weight": 9.0, "pairing": "random",
    "roll": False, "ignore": False,
}  # fmt: skip
RUNS = {
    "as committed": {},
    "without cameras": {"gamma_camera": 0.0},
    "flat masks": {"mask": "none"},
    "joint": {"steps": "joint"},
    "no texts": {"text": "none"},
    "no links": {"transfer": ()},
    "free vectors": {"text": "table"},
    "started": {"transfer": ("start",)},
    "nothing mixed": {"spt": 0.0},
    "mixed with any other": {"spt": 1.0, "pairing": "random"},
}


def listed(run):
    names = without_effect("dpmpp", dpmpp, settings(**RUNS[run]), toy.schedule())
    return [name.removeprefix("dpmpp.") for name in names if name.startswith("dpmpp.")]


@functools.cache
def outcome(towers, **changes):
    learner, log = learn(towers, plan=toy.schedule(epochs=1), **changes)
    return log.to_json(double_precision=15), json.dumps(learner.embed(eval_batch(PEOPLE)).parts.tolist())


@pytest.mark.parametrize("run", RUNS)
def test_a_param_without_effect_changes_nothing(towers, run):
    names = listed(run)
    assert names and set(names) <= set(OTHER)
    changed = RUNS[run] | {name: OTHER[name] for name in names}
    assert outcome(towers, **changed) == outcome(towers, **RUNS[run])


def test_every_row_of_the_table_applies_to_some_run():
    assert {name for run in RUNS for name in listed(run)} == set(dpmpp.WITHOUT_EFFECT) == set(OTHER)
    assert listed("as committed") == ["text_tower", "text_weights"]


# ------------------------------------------------------------------ afterwards


@pytest.mark.slow
def test_the_exported_graph_has_the_gate(tmp_path):
    folder = toy.trained(tmp_path / "trained", "dpmpp")
    outputs = onnx.write(folder, tmp_path / "model.onnx")
    assert outputs == ("global", "parts", "visibility", "gate")
    embedding = load_trained(folder).embed(eval_batch(replace(PEOPLE, camid=PEOPLE.camid * 0 - 1)))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    inputs = {"image": PEOPLE.image, "hidden": PEOPLE.hidden, "camera": np.full(16, -1)}
    token, gate = session.run(["global", "gate"], inputs)
    np.testing.assert_allclose(token, embedding.parts[:, 0], atol=1e-4)
    np.testing.assert_allclose(gate, embedding.gate, atol=1e-4)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"vit": "vit_small_patch16_224"},
            r"dpmpp.text = embedded: .*dpmpp.vit = vit_small_.*Set dpmpp.text to none, or dpmpp.vit to emb",
        ),
        ({"text": "clip"}, r"Set dpmpp.text to embedded or table or none, or dpmpp.vit to a ViT of CLIP"),
        ({"embedding": 9}, r"dpmpp.embedding = 9: .* 8 channels. Set it to 8"),
        ({"prompt_tokens": 9}, r"dpmpp.prompt_tokens = 9: .* Set it to 8 or less"),
    ],
)
def test_a_tower_of_another_encoder_is_refused(towers, changes, words):
    for read in (dpmpp.DPMpp.check_text, dpmpp.DPMpp.read_text):
        with pytest.raises(BadInput, match=words):
            read(model(**changes), towers)


def test_a_tower_of_an_encoder_with_other_weights_is_refused_by_those_who_read_them(towers):
    other = model(seed=5)
    other.check_text(towers)
    with pytest.raises(BadInput, match=r"dpmpp\.text: .*not of one training"):
        other.read_text(towers)


def test_free_vectors_take_no_room_of_a_tower(towers):
    supervised(towers, text="table", prompt_tokens=9).check_text(towers)


def test_a_training_without_its_tower_is_refused():
    with pytest.raises(ValueError, match="call `read_text` before training"):
        model().begin_epoch(0, lambda: [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transfer": ["align", "replace"]}, r"`replace` freezes the prototypes, which `align` would move"),
        ({"arc": 0}, r"nothing teaches the mask generator. Raise it, or set dpmpp.mask to none"),
        ({"spt": 1.5}, r"dpmpp.spt = 1.5"),
        ({"pairing": "best"}, r"dpmpp.pairing = 'best': input should be 'oiou' or 'random'"),
    ],
)
def test_params_that_cannot_learn_or_do_not_exist_are_refused(changes, words):
    values = {**vars(PARAMS), "transfer": list(PARAMS.transfer), **changes}
    with pytest.raises(BadInput, match=words):
        params.validate(values, dpmpp.Params, "", "dpmpp")
