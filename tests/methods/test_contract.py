"""What every method promises to the loop, the data and the ranking, whatever its name."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.batches.views import eval_batch, eval_batches
from pipeline.core import params
from pipeline.core.params import BadInput
from pipeline.methods.base import Method, data_spec, load_method, load_trained
from pipeline.methods.presets import resolve
from pipeline.training.loop import Loop
from tests import toy

METHODS = sorted(path.parent.name for path in Path("pipeline/methods").glob("*/__init__.py"))
PEOPLE = toy.people()
EITHER = pytest.mark.parametrize("preset", ["recommended", "paper"])
EVERY = pytest.mark.parametrize("name", METHODS)
PARAMS_OF_OLD = re.compile(r"head_gain = -1.*of_old is not a parameter.*take out what is unknown", re.DOTALL)


def settings(name, preset="recommended", **changes):
    """A method's parameters, resolved, for the toy encoder's patches of 16 pixels."""
    module = load_method(name)
    values = params.read("params.yaml", name, module.Params)
    values = replace(values, preset=preset, **{"stride": 16, **toy.FITTING.get(name, {}), **changes})
    return resolve(values, module.PRESETS, preset, name)


def model(name, preset="recommended"):
    torch.manual_seed(0)
    return load_method(name).build(settings(name, preset), data_spec(PEOPLE), toy.encoder())


def test_a_name_that_is_no_method_is_refused_with_those_there_are():
    with pytest.raises(BadInput, match=f"method = ogrf.*{', '.join(METHODS)}"):
        load_method("ogrf")


@EVERY
@EITHER
def test_every_null_of_params_yaml_has_a_row_and_every_row_a_reason(name, preset):
    module = load_method(name)
    values = params.read("params.yaml", name, module.Params)
    train = toy.TRAIN
    nulls = {f"{name}.{f.name}" for f in fields(values) if getattr(values, f.name) is None}
    nulls |= {f"train.{f.name}" for f in fields(train) if getattr(train, f.name) is None}
    nulls |= {
        f"train.obstacles.{f.name}"
        for f in fields(train.obstacles)
        if getattr(train.obstacles, f.name) is None
    }
    assert set(module.PRESETS) == nulls
    assert all(len(row) == 3 and row[2] for row in module.PRESETS.values())
    resolved = resolve(values, module.PRESETS, preset, name)
    assert None not in vars(resolved).values()


@EVERY
@EITHER
def test_param_groups_share_no_parameter_and_hold_all(name, preset):
    method = model(name, preset)
    groups = [{id(p) for p in group.parameters} for group in method.param_groups().values()]
    trainable = {id(p) for p in method.parameters() if p.requires_grad}
    assert sum(map(len, groups)) == len(trainable) and set().union(*groups) == trainable


@EVERY
@EITHER
def test_it_says_whether_an_embedding_has_a_gate(name, preset):
    method = model(name, preset).eval()
    assert method.gated == (method.embed(eval_batch(PEOPLE)).gate is not None)


@EVERY
@EITHER
def test_each_objective_has_a_finite_loss_that_moves_its_own_group(name, preset):
    method = model(name, preset)
    schedule = toy.schedule(preset, optimiser="adamw", lr=5e-3, warmup=0.0, clip=5.0)
    loop = Loop(method.train(), schedule, torch.device("cpu"))
    for _ in range(3):  # added layers may start as the identity
        loop.step(toy.batch(PEOPLE), 0.0)
    groups, yielded = method.param_groups(), []
    for objective in method.objectives(toy.batch(PEOPLE)):
        yielded.append(objective.group)
        assert objective.terms and objective.loss.isfinite()
        gradients = torch.autograd.grad(
            objective.loss, groups[objective.group].parameters, allow_unused=True, retain_graph=True
        )
        assert any(gradient is not None and gradient.any() for gradient in gradients)
    assert yielded[0] == "reid" and set(yielded) == set(groups)
    assert all(value == value for value in loop.log[0].values())  # no NaN


@EVERY
@EITHER
def test_an_embedding_has_unit_parts_with_a_visibility_each_and_does_not_depend_on_its_batch(name, preset):
    method = model(name, preset).eval()
    embedding = method.embed(eval_batch(PEOPLE))
    count, parts, _ = embedding.parts.shape
    assert count == len(PEOPLE) and embedding.visibility.shape == (count, parts)
    assert ((embedding.visibility >= 0) & (embedding.visibility <= 1)).all()
    assert torch.allclose(embedding.parts.norm(dim=2), torch.ones(count, parts), atol=1e-5)
    assert not embedding.parts.requires_grad and embedding.parts.dtype == torch.float32
    batched = torch.cat([method.embed(batch).parts for batch in eval_batches(PEOPLE, 5)])
    assert torch.allclose(embedding.parts, batched, atol=1e-5)


@EVERY
def test_an_encoder_with_registers_is_as_good_as_any(name):
    torch.manual_seed(0)
    method = load_method(name).build(settings(name), data_spec(PEOPLE), toy.registered())
    loop = Loop(method.train(), toy.schedule(), torch.device("cpu"))
    loop.step(toy.batch(PEOPLE), 0.0)
    assert (
        method.encoder.register.grad.any() and method.eval().embed(eval_batch(PEOPLE)).parts.isfinite().all()
    )


@EVERY
def test_an_occlusion_type_is_predicted_for_each_coarse_part_or_not_at_all(name):
    method = model(name).eval()
    z = method.predict_occlusion(method.embed(eval_batch(PEOPLE)))
    assert z is None or (z.dtype == torch.bool and z.shape == PEOPLE.hidden.shape)


@EVERY
def test_a_method_that_needs_no_parsing_map_embeds_the_same_without_one(name):
    method = model(name).eval()
    blind = replace(PEOPLE, parsing=PEOPLE.parsing * 0)
    same = torch.equal(method.embed(eval_batch(PEOPLE)).parts, method.embed(eval_batch(blind)).parts)
    assert same or method.needs_parsing


@EVERY
def test_the_state_dict_is_all_of_a_trained_model(name, tmp_path):
    folder = toy.trained(tmp_path / "model", name)
    first, second = load_trained(folder), load_trained(folder)
    assert isinstance(first, Method) and not first.training
    embeddings = [method.embed(eval_batch(PEOPLE)) for method in (first, second)]
    assert torch.equal(embeddings[0].parts, embeddings[1].parts)
    assert torch.equal(embeddings[0].visibility, embeddings[1].visibility)


@EVERY
def test_a_model_embeds_without_what_its_file_leaves_out(name, tmp_path):
    method = model(name).eval()
    wanted = method.embed(eval_batch(PEOPLE))
    for tensor in method.left_out().values():
        tensor.fill_(-1) if tensor.dtype.is_floating_point else tensor.zero_()
    assert torch.equal(method.embed(eval_batch(PEOPLE)).parts, wanted.parts)
    folder = toy.trained(tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    assert set(method.left_out()) <= set(tensors)
    save_file({n: t for n, t in tensors.items() if n not in method.left_out()}, folder / "model.safetensors")
    assert load_trained(folder).left_out().keys() == method.left_out().keys()


@EVERY
def test_a_model_whose_record_names_weights_that_were_not_read_is_still_loaded(name, tmp_path):
    assert load_trained(toy.trained(tmp_path, name, vit="embedded", weights="models/other.safetensors"))


@EVERY
def test_a_record_of_another_versions_params_says_how_to_mend_it(name, tmp_path):
    record = json.loads((toy.trained(tmp_path, name) / "record.json").read_text())
    record["params"] |= {"head_gain": -1.0, "of_old": 1}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=PARAMS_OF_OLD):
        load_trained(tmp_path)
