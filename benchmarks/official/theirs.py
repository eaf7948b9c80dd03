"""A checkout's embeddings, losses and gradients, in a process of its own.

`python -m benchmarks.official.theirs <method> <folder> <file>` reads weights and images of the file
and writes the results in its place.  The code runs as it is.  Replaced are what torch no longer has
(`torch._six`), what may not be installed and is not used (yacs, einops), GPUs (everything stays on the CPU),
and a loss that is built and never used.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.checkouts import import_loss, read_settings, stand_in
from benchmarks.official.__main__ import SETTINGS
from benchmarks.official.cases import SPEC, STRIDE
from pipeline.batches.views import normalise

Results = dict[str, Any]


def shim() -> None:
    """Stand in for what the checkouts import and call."""
    stand_in(einops={"rearrange": None, "repeat": None})
    stay: Any = lambda tensor, *_: tensor  # noqa: E731
    setattr(Tensor, "cuda", stay)  # noqa: B010
    zeros = torch.zeros
    setattr(torch, "zeros", lambda *size, device=None, **kinds: zeros(*size, **kinds))  # noqa: B010


def configure(method: str, checkout: Path) -> SimpleNamespace:
    """The checkout's configuration, for random weights and small images."""
    config = read_settings(checkout / SETTINGS[method][1], STRIDE[method])
    config.MODEL.DROP_PATH, config.INPUT.SIZE_TRAIN = 0.0, list(SPEC.size)
    return config


def loss_function(config: SimpleNamespace) -> Callable[..., Tensor]:
    """The checkout's loss."""
    loss = import_loss().make_loss(config, SPEC.identities)
    return loss[0] if isinstance(loss, tuple) else loss


def transreid(model: nn.Module, loss: Callable[..., Tensor], case: dict[str, Tensor]) -> Results:
    """As in `do_inference` and `do_train`."""
    image, pid, camid = normalise(case["holistic"]), case["pid"], case["camid"]
    view = torch.zeros_like(camid)
    with torch.no_grad():
        embedding = model.eval()(image, cam_label=camid, view_label=view)
    scores, features = model.train()(image, pid, cam_label=camid, view_label=view)
    return {"embedding": embedding, "loss": loss(scores, features, pid, camid)}


def dpm(model: nn.Module, loss: Callable[..., Tensor], case: dict[str, Tensor]) -> Results:
    """As in `do_inference` and `do_train`; the loss is the same for both players."""
    image, pid, camid = normalise(case["holistic"]), case["pid"], case["camid"]
    view = torch.zeros_like(camid)
    with torch.no_grad():
        embedding, gate = model.eval()(image, cam_label=camid, view_label=view)
    score, masked, feature, logits = model.train()(image, pid, cam_label=camid, view_label=view)
    total = loss(score, masked, feature, logits, 1, pid, camid)
    return {"embedding": embedding, "gate": gate, "loss": total}


def fed(model: nn.Module, loss: Callable[..., Tensor], case: dict[str, Tensor]) -> Results:
    """As in `do_train`, with one bank for both memories, as in `train.py`; it moves in the backward pass."""
    memories = [
        importlib.import_module("model.hm").HybridMemory(case["bank"].shape[1], SPEC.identities, 0.05, 0.2)
        for _ in range(2)
    ]
    bank = case["bank"].clone()
    for memory in memories:
        memory.features, memory.labels = bank, torch.arange(SPEC.identities)
    pid, first, second = case["pid"], case["holistic"] / 255, case["occluded"] / 255
    with torch.no_grad():
        embedding, _ = model.eval()(normalise(case["holistic"]), memory_features=bank)
    change = (first - second).abs().sum(1, keepdim=True)
    image = torch.cat([normalise(case["holistic"]), normalise(case["occluded"]), change], 1)
    scores, b_1, b_2, d_1, d_2, o_1, o_2, label = model.train()(image, labels=pid, memory_features=bank)
    mse = nn.MSELoss()
    total = mse(o_1, torch.ones_like(o_1)) + mse(o_2, label)
    total = total + sum(loss(scores[n : n + 2], None, pid) for n in (0, 2, 4))
    contrast = memories[0](b_1, pid) + 0.3 * memories[0](b_2, pid, self_momentum=1)
    diffused = 0.5 * (memories[1](d_1, pid) + memories[1](d_2, pid, self_momentum=1))
    return {"embedding": embedding, "loss": total + contrast + diffused, "bank": bank}


def main(method: str, folder: str, file: str) -> None:
    """Run and write."""
    shim()
    sys.path.insert(0, folder)
    config = configure(method, Path(folder))
    cameras = SPEC.cameras
    model = importlib.import_module("model.make_model").make_model(config, SPEC.identities, cameras, 1)
    case = torch.load(file, weights_only=True)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in case.pop("weights").items():
            own[name].copy_(tensor.reshape(own[name].shape))
    results = globals()[method](model, loss_function(config), case)
    results["loss"].backward()
    results["loss"] = results["loss"].detach()
    parameters = dict(model.named_parameters())
    results["gradients"] = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    results["parameters"] = {name: p.numel() for name, p in parameters.items()}
    torch.save(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
