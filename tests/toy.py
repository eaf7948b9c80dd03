"""Tiny worlds for the tests: a few people drawn as stripes, networks of a few channels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from pipeline.batches.augment import sample_augmentations, training_batch
from pipeline.batches.views import ImageSet
from pipeline.core import params
from pipeline.methods.base import data_spec, describe, load_method
from pipeline.methods.ogfr.model import build
from pipeline.methods.ogfr.params import PRESETS, Params
from pipeline.methods.presets import resolve
from pipeline.model.backbones import small_vit
from pipeline.training.schedule import Schedule

SIZE = (64, 32)
OGFR = params.read("params.yaml", "ogfr", Params)
TRAIN = params.read("params.yaml", "train", Schedule)
# params that fit four people, and an encoder that no text tower was trained with, by method
FITTING = {"fed": {"neighbours": 2}, "dpmpp": {"text": "none"}}


def settings(preset="recommended", **changes):
    """OGFR's parameters, resolved, with a stride of 16 pixels."""
    unresolved = replace(OGFR, preset=preset, **{"stride": 16, **changes})
    return resolve(unresolved, PRESETS, preset, "ogfr")


def schedule(preset="recommended", **changes):
    """A schedule for small images in float32, resolved."""
    unresolved = replace(
        TRAIN,
        size=SIZE,
        **{"identities": 2, "images": 2, "precision": "float32", "compile": False, "pad": 2, **changes},
    )
    return resolve(unresolved, PRESETS, preset, "train")


def people(identities=4, each=4, seed=0, size=SIZE):
    """Pictures of people: an identity is a colour above another, over a grey ground; all 8 parts visible."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (identities, 2, 3))
    image = rng.integers(100, 140, (identities * each, *size, 3))
    parsing = np.zeros((identities * each, *size), np.uint8)
    top, half, left, right = size[0] // 8, size[0] // 2, size[1] // 4, 3 * size[1] // 4
    for n in range(identities * each):
        image[n, top:half, left:right] = colours[n // each, 0]
        image[n, half:-top, left:right] = colours[n // each, 1]
        rows = np.linspace(top, size[0] - top, 9).astype(int)
        for k in range(8):
            parsing[n, rows[k] : rows[k + 1], left:right] = k + 1
    return ImageSet(
        image=(image + rng.integers(-9, 10, image.shape)).clip(0, 255).astype(np.uint8),
        parsing=parsing,
        hidden=np.zeros((identities * each, 4), bool),
        camid=np.tile(np.arange(each) % 2, identities),
        pid=np.arange(identities * each) // each,
        threshold=5.0,
    )


def encoder(width=16, depth=2, size=SIZE):
    """A ViT with random weights."""
    return small_vit(img_size=size, patch_size=16, embed_dim=width, depth=depth, num_heads=2)


def registered(registers=4):
    """A ViT as DINOv2's in timm: neither its registers nor its class token has a place."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=SIZE, embed_dim=16, depth=2, num_heads=2, num_classes=0, reg_tokens=registers,
        no_embed_class=True, init_values=0.1,
    )  # fmt: skip
    torch.nn.init.normal_(model.reg_token)
    torch.nn.init.normal_(model.cls_token)
    return model


def model(pictures=None, seed=0, preset="recommended", **changes):
    """An OGFR for the pictures, with random weights."""
    torch.manual_seed(seed)
    world = data_spec(people() if pictures is None else pictures)
    return build(settings(preset, **changes), world, encoder(size=world.size))


def trained(folder, name="ogfr", seed=0, **changes):
    """A folder as `stages.train` leaves it, with a model of random weights that z and camera matter to."""
    module = load_method(name)
    unresolved = params.read("params.yaml", name, module.Params)
    unresolved = replace(
        unresolved, **{"stride": 16, "gamma_camera": 3.0, **FITTING.get(name, {}), **changes}
    )
    settings, world = resolve(unresolved, module.PRESETS, unresolved.preset, name), data_spec(people())
    torch.manual_seed(seed)
    start = encoder()
    model = module.build(settings, world, start)
    for rows in (model.encoder.pattern, model.encoder.camera, model.encoder.part):
        torch.nn.init.normal_(rows)
    if getattr(model, "generator", None) is not None:
        torch.nn.init.normal_(model.generator.linear.weight)  # or all gates are flat
    record = describe(name, settings, world, start.architecture) | {"data": {}}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), Path(folder) / "model.safetensors")
    (Path(folder) / "record.json").write_text(json.dumps(record))
    return Path(folder)


def batch(pictures=None, seed=0, rows=None, preset="recommended", share=slice(None)):
    """A training batch: both views of some rows, all by default; `share` is a slice of them."""
    pictures = people() if pictures is None else pictures
    rows = np.arange(len(pictures)) if rows is None else rows
    plan = schedule(preset)
    rng = np.random.default_rng(seed)
    chances = sample_augmentations(pictures, rows, plan.flip, plan.pad, plan.obstacles, {}, rng, plan.jitter)
    return training_batch(pictures, rows[share], chances[share])
