"""Which epoch to keep: training identities that are held out choose it, never a test set."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from pipeline.batches.views import ImageSet, eval_batches
from pipeline.core.params import BadInput
from pipeline.methods.base import Method
from pipeline.model.average_precision import average_precision
from pipeline.model.distance import check_embeddings, distances


def hold_out(
    images: ImageSet, names: list[str], count: int, seed: int
) -> tuple[ImageSet, list[str], ImageSet | None]:
    """Images to train on, their names, and the images of `count` identities drawn at random (None for 0).

    A camera of held-out images alone becomes unknown (-1).  Raises `BadInput` if `count` leaves no identity,
    or if no held-out image has a match to rank.
    """
    if count == 0:
        return images, names, None
    identities = np.unique(images.pid)
    if count >= len(identities):
        raise BadInput(
            f"params.yaml: train.held_out = {count}, but there are only {len(identities)} training "
            "identities. Lower it."
        )
    is_held_out = np.isin(images.pid, np.random.default_rng(seed).permutation(identities)[:count])
    train, held_out = subset(images, ~is_held_out), subset(images, is_held_out)
    held_out = replace(held_out, camid=np.where(np.isin(held_out.camid, train.camid), held_out.camid, -1))
    if not _has_match(held_out):
        raise BadInput(
            f"params.yaml: train.held_out = {count}: no such identity has images of two cameras, so that no "
            "epoch ranks them better than another. Raise it, or set 0."
        )
    return train, [names[i] for i in np.flatnonzero(~is_held_out)], held_out


def _has_match(images: ImageSet) -> bool:
    cameras = [images.camid[images.pid == pid] for pid in np.unique(images.pid)]
    return any(len(row) > 1 and (row.min() < 0 or len(np.unique(row)) > 1) for row in cameras)


def subset(images: ImageSet, rows: Bool[np.ndarray, "N"]) -> ImageSet:
    """The images where `rows` is true, their identities numbered from 0."""
    return replace(
        images,
        image=images.image[rows],
        parsing=images.parsing[rows],
        hidden=images.hidden[rows],
        camid=images.camid[rows],
        pid=np.unique(images.pid[rows], return_inverse=True)[1],
    )


@torch.no_grad()
def score(method: Method, images: ImageSet, batch_size: int, device: torch.device) -> float:
    """Mean average precision in [0, 1] of the images without augmentation, each a query for all others.

    A query's gate, if the method has one, is that of the ranking.
    Raises `BadInput` for embeddings that cannot be compared.
    """
    method.eval()
    embeddings = [method.embed(batch.to(device)) for batch in eval_batches(images, batch_size)]
    method.train()
    parts = torch.cat([embedding.parts for embedding in embeddings])
    visibility = torch.cat([embedding.visibility for embedding in embeddings])
    gates = [embedding.gate for embedding in embeddings if embedding.gate is not None]
    gate = torch.cat(gates) if gates else None
    check_embeddings("held-out", parts, visibility, gate)
    distance = distances(parts, parts, visibility, visibility, gate=gate)
    return mean_average_precision(distance.cpu().numpy(), images.pid, images.camid)


def mean_average_precision(
    distance: Float[np.ndarray, "N N"], pid: Int[np.ndarray, "N"], camid: Int[np.ndarray, "N"]
) -> float:
    """Mean AP of the images that have a match on another camera, or on an unknown one; 0 if none has.

    Junk: the image itself, and images of its identity by the same known camera.
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
