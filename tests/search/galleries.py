"""Gallery files for the tests, without pictures."""

import numpy as np
import torch

from pipeline.methods.base import Embedding
from pipeline.search import Gallery, gallery_file


def gallery(path, embedding, root="/gone", pattern="", names=None):
    """A gallery of an embedding, as `index` writes it."""
    count = len(embedding.parts)
    stamps = {"size": np.zeros(count, np.int64), "changed": np.zeros(count, np.int64)}
    tensors = {"part": embedding.parts, "visibility": embedding.visibility, "gate": embedding.gate}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    source = {"root": str(root), "model": "models/trained", "pattern": pattern}
    with gallery_file.create(path, count, {"model": "a", "z": "guessed", "source": source}, []) as append:
        append(names or [f"{n:04d}.png" for n in range(count)], arrays | stamps)
    return Gallery(path)


def exact(count, parts, generator, gated=False):
    """Embeddings whose distances are computed without rounding, and many of which are equal."""
    axis = torch.randint(0, 3, (count, parts), generator=generator)
    sign = torch.randint(0, 2, (count, parts, 1), generator=generator) * 2.0 - 1
    gate = torch.randint(0, 2, (count, parts, 3), generator=generator).float()
    gate[..., 0] = 1  # a gate without length is refused
    visibility = torch.randint(0, 3, (count, parts), generator=generator) / 2
    return Embedding(torch.eye(3)[axis] * sign, visibility, gate if gated else None)
