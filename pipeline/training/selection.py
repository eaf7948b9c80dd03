"""Which epoch to keep: training identities that are held out choose it, never a test set."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from pipeline.batches.views import ImageSet, eval_batches
from pipeline.core.params import BadInput
from pipeline.methods.base import Method
from pipeline.model.average_precision import average_precision
from pipeline.model.distance import distances


def hold_out(
    pictures: ImageSet, names: list[str], count: int, seed: int
) -> tuple[ImageSet, list[str], ImageSet | None]:
    """Pictures to train on and their names, and those of `count` identities drawn at random, none for 0.

    A camera that only they were taken by is unknown.  Raises `BadInput` if there are not that many to spare.
    """
    if count == 0:
        return pictures, names, None
    identities = np.unique(pictures.pid)
    if count >= len(identities):
        raise BadInput(
            f"params.yaml: train.held_out = {count}, but there are only {len(identities)} training "
            "identities. Lower it."
        )
    aside = np.isin(pictures.pid, np.random.default_rng(seed).permutation(identities)[:count])
    train, held_out = subset(pictures, ~aside), subset(pictures, aside)
    held_out = replace(held_out, camid=np.where(np.isin(held_out.camid, train.camid), held_out.camid, -1))
    return train, [names[i] for i in np.flatnonzero(~aside)], held_out


def subset(pictures: ImageSet, rows: Bool[np.ndarray, "N"]) -> ImageSet:
    """Some of the pictures, their identities numbered from 0."""
    return replace(
        pictures,
        image=pictures.image[rows],
        parsing=pictures.parsing[rows],
        hidden=pictures.hidden[rows],
        camid=pictures.camid[rows],
        pid=np.unique(pictures.pid[rows], return_inverse=True)[1],
    )


@torch.no_grad()
def score(method: Method, pictures: ImageSet, batch: int, device: torch.device) -> float:
    """Mean average precision in [0, 1] of the pictures as they are, each a query for all others."""
    method.eval()
    seen = [method.embed(b.to(device)) for b in eval_batches(pictures, batch)]
    method.train()
    parts, visibility = torch.cat([e.parts for e in seen]), torch.cat([e.visibility for e in seen])
    distance = distances(parts, parts, visibility, visibility)  # an embedding's gate is left out
    return mean_average_precision(distance.cpu().numpy(), pictures.pid, pictures.camid)


def mean_average_precision(
    distance: Float[np.ndarray, "N N"], pid: Int[np.ndarray, "N"], camid: Int[np.ndarray, "N"]
) -> float:
    """Mean over the images that have a match on another camera, or on one unknown; 0 if none has.

    An image is compared neither with itself nor with others of its person and camera.
    """
    ranks = []
    for i in range(len(pid)):
        match = pid == pid[i]
        junk = match & (camid == camid[i]) & (camid >= 0)
        junk[i] = True
        order = np.argsort(distance[i][~junk], kind="stable")
        ranks.append(np.flatnonzero(match[~junk][order]) + 1)
    matches = np.array([len(row) for row in ranks])
    ap, _ = average_precision(np.concatenate(ranks), matches)
    return float(np.mean(ap[matches > 0])) if matches.any() else 0.0
