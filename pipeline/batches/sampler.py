"""The identity sampler: batches of P identities x K images."""

import numpy as np
from jaxtyping import Int

from pipeline.core.params import BadInput, plural


def pk_batches(
    pid: Int[np.ndarray, "N"], identities: int, images: int, rng: np.random.Generator
) -> list[Int[np.ndarray, "B"]]:
    """One epoch of batches of P = `identities` x K = `images`: the rows of each batch.

    Each identity's images are shuffled and cut into chunks of K.  An identity with fewer than K images is
    sampled with replacement; a rest smaller than K is left out of the epoch.  A batch takes one chunk from
    each of P random identities, until fewer than P identities have a chunk left.
    Raises `BadInput` if the set has fewer than P identities.
    """
    check_identities(identities, len(np.unique(pid)))
    chunks = {int(i): _chunks(np.flatnonzero(pid == i), images, rng) for i in np.unique(pid)}
    batches = []
    while len(chunks) >= identities:
        sampled = rng.permutation(sorted(chunks))[:identities]
        batches.append(np.concatenate([chunks[i].pop() for i in sampled]))
        chunks = {i: c for i, c in chunks.items() if c}
    return batches


def check_identities(identities: int, count: int) -> None:
    """Raise `BadInput`, which says what to set, if a training set of `count` identities has fewer than P."""
    if count < 2:
        raise BadInput(
            f"train_on: the training set has {plural(count, 'identity')}, and training compares two. "
            "Train on another dataset, or lower train.held_out."
        )
    if count < identities:
        raise BadInput(
            f"params.yaml: train.identities = {identities}, but the training set has only {count}. "
            f"Set it to {count} or less."
        )


def _chunks(rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    if len(rows) < size:
        rows = rng.choice(rows, size)
    rows = rng.permutation(rows)
    return [rows[a : a + size] for a in range(0, len(rows) - size + 1, size)]
