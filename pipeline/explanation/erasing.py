"""Which patches of a picture OGFR's agent erases (Eq. 7), and how much of the body that leaves."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.batches.views import Batch
from pipeline.core.params import BadInput
from pipeline.methods.base import Method
from pipeline.methods.ogfr.correlation import correlation
from pipeline.methods.ogfr.model import OGFR
from pipeline.methods.ogfr.params import K
from pipeline.model.vit import patch_labels


class Erasing(NamedTuple):
    """What the agent does to the patches of B pictures."""

    keep: Float[Tensor, "B N"]  # m of Eq. 7, the probability of keeping a patch
    kept: Bool[Tensor, "B N"]  # the likelier choice: in training it is drawn
    body: Bool[Tensor, "B N"]  # whether the parsing map calls more than half of a patch the person's


@torch.no_grad()
def erasing(model: Method, batch: Batch) -> Erasing:
    """What the agent does to `batch.holistic`, of a model in evaluation mode.

    Raises `BadInput` if no agent chooses the patches that the model erases.
    """
    if not isinstance(model, OGFR):
        raise BadInput("no agent that erases patches: OGFR alone has one. Name a model of the method ogfr.")
    if not model.trains_agent:
        raise BadInput(
            f"no agent that erases patches, as it was trained with ogfr.fep = {model.params.fep} and "
            f"ogfr.erase = {model.params.erase}. Name a model with ogfr.erase = agent, and ogfr.fep not none."
        )
    tokens = model.encode(batch.holistic, batch.camid)
    state = correlation(tokens.patch, tokens.part)
    labels = patch_labels(batch.holistic.parsing, K + 1, model.encoder.patch, model.encoder.stride)
    keep = model.agent(state).sigmoid()
    return Erasing(keep, model.agent.sample_mask(state, labels), labels[..., 0] < 0.5)


def kept_shares(kept: Bool[Tensor, "N"], body: Bool[Tensor, "N"]) -> dict[str, float]:
    """Share of the patches that are kept, in [0, 1]: of all, of the body, of the background; NaN of none."""
    groups = {"all": torch.ones_like(body), "body": body, "background": ~body}
    return {name: kept[patches].float().mean().item() for name, patches in groups.items()}
