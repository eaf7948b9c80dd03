"""What both sides compute on: a method of ours at ViT-B's size, its random weights, and images."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import ROOT
from benchmarks.complexity.counts import VIT
from pipeline.batches.views import Batch, View
from pipeline.core import params
from pipeline.methods.base import DataSpec, Method, load_method
from pipeline.methods.presets import resolve
from pipeline.model.backbones import untrained_vit

SPEC = DataSpec((128, 64), identities=12, cameras=4, coarse=4, trained_cameras=tuple(range(4)))
IMAGES = 8  # two of each of four people
STRIDE = {"transreid": 11, "fed": 16, "dpm": 11}  # 11 gives an odd number of patches
CHANGES: dict[str, dict[str, Any]] = {  # params whose published code differs from the preset `paper`
    "transreid": {},
    "fed": {"banks": "one", "label": "difference", "global_token": "first_patch"},
    "dpm": {},
}
SCALE = 0.02  # of random weights; those of norms are near 1


def method(name: str) -> Method:
    """A method of ours with random weights, which the name alone decides."""
    module = load_method(name)
    settings = params.read(ROOT / "params.yaml", name, module.Params)
    settings = replace(settings, preset="paper", stride=STRIDE[name], **CHANGES[name])
    settings = resolve(settings, module.PRESETS, "paper", name)
    model = module.build(settings, SPEC, untrained_vit({"name": VIT}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                near_1 = parameter.ndim == 1 and bool((parameter == 1).all())
                parameter.normal_(float(near_1), SCALE, generator=generator)
        for tensor_name, buffer in model.named_buffers():
            if "memories" in tensor_name:
                buffer.normal_(0, 1, generator=generator)
    return model


def images() -> dict[str, Tensor]:
    """Random pictures, a second view of them with something in front of the upper third, and labels."""
    generator = torch.Generator().manual_seed(2)
    holistic = torch.randint(256, (IMAGES, 3, *SPEC.size), generator=generator, dtype=torch.uint8)
    occluded = holistic.clone()
    height = SPEC.size[0] // 3
    occluded[:, :, :height] = torch.randint(256, (3, height, 1), generator=generator, dtype=torch.uint8)
    rows = torch.arange(IMAGES)
    return {"holistic": holistic, "occluded": occluded, "pid": rows // 2, "camid": rows % SPEC.cameras}


def batch(case: dict[str, Tensor]) -> Batch:
    """The images as a batch of ours.  Methods of one view get the holistic one."""
    hidden = torch.zeros(IMAGES, SPEC.coarse, dtype=torch.bool)
    parsing = torch.zeros(IMAGES, *SPEC.size, dtype=torch.uint8)
    views = [View(case[name], parsing, hidden) for name in ("holistic", "occluded")]
    covered = (case["holistic"] != case["occluded"]).any(1)
    return Batch(views[0], case["camid"], case["pid"], views[1], covered)
