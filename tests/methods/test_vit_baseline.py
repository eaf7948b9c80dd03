"""The baseline of Table 4: its input, its losses, and that it trains by OGFR's schedule."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pipeline.batches.views import eval_batch, eval_batches
from pipeline.core import params
from pipeline.methods import vit_baseline
from pipeline.methods.base import data_spec, describe, load_trained
from pipeline.methods.ogfr.params import PRESETS
from pipeline.methods.presets import resolve
from pipeline.model import losses
from pipeline.training.loop import Loop
from pipeline.training.run import train_model
from tests import toy

PEOPLE = toy.people()
BATCH = toy.batch(PEOPLE)
PARAMS = params.read("params.yaml", "vit_baseline", vit_baseline.Params)


def settings(preset="recommended", **changes):
    unresolved = replace(PARAMS, preset=preset, **{"stride": 16, **changes})
    return resolve(unresolved, vit_baseline.PRESETS, preset, "vit_baseline")


def model(pictures=PEOPLE, preset="recommended", **changes):
    torch.manual_seed(0)
    return vit_baseline.build(settings(preset, **changes), data_spec(pictures), toy.encoder())


def test_it_minimises_identity_and_triplet_losses_of_the_occluded_view_alone():
    blind = replace(BATCH, holistic=replace(BATCH.holistic, image=BATCH.holistic.image * float("nan")))
    other = model(preset="paper")
    (only,) = other.objectives(blind)
    token = other.encoder(BATCH.occluded.image, BATCH.occluded.hidden, BATCH.camid).cls
    necked = torch.nn.functional.batch_norm(token, None, None, training=True)
    identity = torch.nn.functional.cross_entropy(necked @ other.head.weight[0].T, BATCH.pid)
    assert only.terms["identity"].item() == pytest.approx(identity.item(), rel=1e-4)
    assert only.terms["triplet"].item() == pytest.approx(losses.triplet(token, BATCH.pid).item(), rel=1e-5)
    assert only.loss.item() == pytest.approx(sum(t.item() for t in only.terms.values()), rel=1e-6)


def test_it_compares_what_its_preset_says():
    (only,) = model(preset="recommended").objectives(BATCH)
    other = model(preset="recommended")
    necked = other.head.neck(other.token(BATCH.occluded, BATCH.camid))
    wanted = losses.triplet(necked[:, 0], BATCH.pid, average=True)
    assert only.terms["triplet"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_neither_labels_nor_cameras_reach_it():
    other = model().eval()
    features = other.embed(eval_batch(PEOPLE)).parts
    blind = replace(PEOPLE, hidden=~PEOPLE.hidden, camid=1 - PEOPLE.camid, parsing=PEOPLE.parsing * 0)
    assert torch.equal(features, other.embed(eval_batch(blind)).parts)
    with_cameras = model(gamma_camera=3.0).eval()
    assert not torch.equal(
        with_cameras.embed(eval_batch(PEOPLE)).parts, with_cameras.embed(eval_batch(blind)).parts
    )


@pytest.mark.parametrize("feature", ["before", "after"])
def test_an_embedding_is_one_unit_feature_whatever_its_batch(feature):
    other = model(feature=feature).eval()
    embedding = other.embed(eval_batch(PEOPLE))
    assert (
        embedding.parts.shape == (16, 1, 16) and (embedding.visibility == 1).all() and embedding.gate is None
    )
    assert (
        torch.allclose(embedding.parts.norm(dim=2), torch.ones(16, 1)) and not embedding.parts.requires_grad
    )
    each = torch.cat([other.embed(b).parts for b in eval_batches(PEOPLE, 5)])
    assert torch.allclose(embedding.parts, each, atol=1e-5)


def test_it_overfits_one_batch():
    people = toy.people(identities=4, each=2)
    plan = replace(toy.schedule(epochs=1, lr=5e-3, decay=0.0, warmup=0.0, clip=5.0), floor=1.0)
    loop = Loop(model(people).train(), plan, torch.device("cpu"))
    batch = toy.batch(people)
    for _ in range(50):
        loop.step(batch, 0.0)
    for term in ("identity", "triplet"):
        assert loop.log[-1][term] < 0.3 * loop.log[0][term]


def test_a_saved_model_embeds_as_before(tmp_path):
    start = toy.encoder()
    saved = vit_baseline.build(settings(), data_spec(PEOPLE), start)
    train_model(saved, PEOPLE, toy.schedule(epochs=1, lr=1e-4), 1)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    record = describe("vit_baseline", settings(), data_spec(PEOPLE), start.architecture)
    (tmp_path / "record.json").write_text(json.dumps(record))
    again = load_trained(tmp_path)
    plain = eval_batch(PEOPLE)
    assert torch.equal(saved.embed(plain).parts, again.embed(plain).parts)


def test_it_trains_as_ogfr_does_but_on_its_one_view():
    ours, theirs = vit_baseline.PRESETS, PRESETS
    shared = [name for name in theirs if name.startswith("train.")]
    assert [name for name in ours if name.startswith("train.")] == shared
    differ = {name for name in shared if ours[name][:2] != theirs[name][:2]}
    assert differ == {"train.obstacles.probability"}
    for name in ("stride", "head_gain", "triplet", "feature"):
        assert ours[f"vit_baseline.{name}"][:2] == theirs[f"ogfr.{name}"][:2]


def test_every_preset_row_names_a_parameter_and_gives_a_reason():
    for preset in ("recommended", "paper"):
        assert None not in vars(settings(preset, stride=None)).values()
        plan = resolve(toy.TRAIN, vit_baseline.PRESETS, preset, "train")
        assert None not in vars(plan).values()
    assert all(reason for _, _, reason in vit_baseline.PRESETS.values())
    assert {name.split(".")[0] for name in vit_baseline.PRESETS} == {"train", "vit_baseline"}
