"""Both sides on the same weights and images, and how far they are apart."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ROOT
from benchmarks.official import cases
from benchmarks.official.names import as_theirs, theirs_of
from pipeline.model.diffusion import HEADS, CrossAttention

AGREE = 1e-4  # relative
NOTHING = 1e-4  # of a whole gradient: what rounding leaves of 0
KEPT = 4  # numbers of an embedding that tests keep


def compare(name: str, checkout: Path) -> dict[str, Any]:
    """Everything that is printed of a method; FED's also as it is published, with its fault."""
    contexts = {"mixing_images_as_published": mixing_images()} if name == "fed" else {}
    results = _compare(name, checkout, contextlib.nullcontext())
    return results | {key: _compare(name, checkout, context) for key, context in contexts.items()}


@contextlib.contextmanager
def mixing_images() -> Iterator[None]:
    """FED's cross-attention with a fault of the published code.

    There a leading axis shifts a transposition by one, so that heads and images trade places before heads
    are joined: the diffused feature of an image has heads of other images of its batch.
    """

    def forward(self: CrossAttention, features: Tensor, centres: Tensor) -> Tensor:
        rows = (self.query(features)[:, None], *self.key_value(centres).chunk(2, -1))
        query, key, value = (row.unflatten(-1, (HEADS, -1)).transpose(1, 2) for row in rows)
        joined = (query @ key.mT * self.scale).softmax(-1) @ value
        return self.proj(joined.transpose(0, 1).reshape(features.shape))

    with mock.patch.object(CrossAttention, "forward", forward):
        yield


def _compare(name: str, checkout: Path, context: contextlib.AbstractContextManager[None]) -> dict[str, Any]:
    model: Any = cases.method(name)
    case = cases.images()
    weights = as_theirs(name, dict(model.named_parameters()))
    extra = {"bank": model.memories[0].centres.clone()} if name == "fed" else {}
    theirs = run_theirs(name, checkout, {**case, **extra, "weights": weights})
    with context:
        ours = run(model, case)
    gradients, theirs_gradients = ours.pop("gradients"), theirs.pop("gradients")
    gradients = _differences(name, gradients, theirs_gradients)
    counts, pairs = theirs.pop("parameters"), theirs_of(name, dict(model.named_parameters()))
    unmatched = sorted(set(counts) - {one for names in pairs.values() for one in names})
    theirs["embedding"] = F.normalize(theirs["embedding"], dim=1)
    values = {key: difference(ours[key], theirs[key]) for key in ours}
    return {
        "relative_difference": values,
        "gradients": {
            "compared": len(gradients),
            "greatest": max(gradients.values()),
            "above_1e-4": {key: value for key, value in gradients.items() if value > AGREE},
        },
        "agrees": max(*values.values(), *gradients.values()) <= AGREE,
        "parameters_of_theirs_alone": {key: counts[key] for key in unmatched},
        "numbers": recorded(theirs["loss"], theirs["embedding"], theirs_gradients),
    }


def run_theirs(name: str, checkout: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The checkout's results, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.pt"
        torch.save(case, file)
        command = [sys.executable, "-m", "benchmarks.official.theirs", name, str(checkout), str(file)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"{checkout}: {process.stderr[-2000:]}")
        return torch.load(file, weights_only=True)


def run(model: Any, case: dict[str, Tensor]) -> dict[str, Any]:
    """A method's embedding, loss and gradients; DPM's gate and FED's bank beside them."""
    plain = cases.batch(case)
    embedding = model.eval().embed(plain)
    results: dict[str, Any] = {"embedding": embedding.parts[:, 0]}
    if embedding.gate is not None:
        results["gate"] = embedding.gate[:, 0]
    two_views = hasattr(model, "memories")
    learnt = plain if two_views else cases.batch({**case, "occluded": case["holistic"]})
    for number, objective in enumerate(model.train().objectives(learnt)):
        if number == 0:  # DPM's second has the same loss
            objective.loss.backward()
            results["loss"] = objective.loss.detach()
    if two_views:
        results["bank"] = model.memories[0].centres
    results["gradients"] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return results


def _differences(name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """|ours - theirs| / |theirs| of each gradient.

    Gradients that are 0 but for rounding, as of a shift that a batch norm takes back, are compared with
    `NOTHING` times the whole gradient instead.
    """
    least = NOTHING * float(torch.cat([g.flatten() for g in theirs.values()]).norm())
    pairs = theirs_of(name, ours)
    return {
        key: difference(ours[key].flatten(), torch.cat([theirs[one].flatten() for one in names]), least)
        for key, names in pairs.items()
    }


def difference(ours: Tensor, theirs: Tensor, least: float = 0.0) -> float:
    """|ours - theirs| / |theirs|, the latter at least `least`."""
    return float((ours.double() - theirs.double()).norm()) / max(float(theirs.double().norm()), least)


def recorded(loss: Tensor, embedding: Tensor, gradients: dict[str, Tensor]) -> dict[str, Any]:
    """Numbers that tests keep: the loss, the first of two embeddings, lengths of two gradients."""
    lengths = {
        name: float(gradients[name].norm()) for name in ("base.cls_token", "base.patch_embed.proj.weight")
    }
    return {"loss": float(loss), "embedding": embedding[[0, -1], :KEPT].tolist(), "gradients": lengths}
