"""Occlusion labels of parsing maps: pixels of each part, hidden parts, the occlusion pattern.

The paper's symbols: M the parsing map, y(c) the pixels of coarse part c (Eq. 1), l_c = 1 if the part is
hidden (Eq. 2), z = [l_0 ... l_(C-1)] the occlusion pattern.  The functions take batches of maps: training
labels its augmented views by the rule of the cached labels.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.core.label_file import Dataset
from pipeline.core.params import STRICT
from pipeline.core.workers import progress_bar
from pipeline.data import parts

BLOCK = 256  # maps read and counted at a time


@dataclass(frozen=True, config=STRICT)
class Label:
    """How parsing maps become occlusion labels; `lambda` is a parameter of its own."""

    parts: Literal[1, 2, 3, 4, 5, 6, 7, 8]  # C, the number of coarse parts
    strict: bool  # True: hidden if y(c) < lambda, as printed; False: if y(c) <= lambda


def count_pixels(maps: Integer[Tensor, "B H W"], count: int) -> Int[Tensor, "B C"]:
    """Pixels of each of the C = `count` coarse parts in each label map: y(c) of Eq. 1, in [0, H W].

    Raises `BadInput` for a label above K.
    """
    parts.check(maps)
    labels = range(len(parts.SWAPPED))
    # map by map: one map fits the processor's cache
    counts = [[np.count_nonzero(parsing == label) for label in labels] for parsing in maps.numpy()]
    fine = torch.tensor(counts, dtype=torch.long).view(len(maps), len(labels))
    return torch.stack([fine[:, list(merged)].sum(1) for merged in parts.COARSE[count].values()], 1)


def hidden_parts(counts: Int[Tensor, "B C"], threshold: float, strict: bool) -> Bool[Tensor, "B C"]:
    """Whether each part is hidden: l_c of Eq. 2; one row is z.

    `threshold` is lambda, in pixels of the maps' grid.  A part that is out of the picture, turned away or
    missed by the parser counts as hidden, as the map shows no difference.
    Departs: with `strict=False` a part is also hidden at y(c) = lambda; else lambda = 0 would hide nothing.
    """
    return counts < threshold if strict else counts <= threshold


def pattern_index(flags: Bool[Tensor, "B C"] | Integer[Tensor, "B C"]) -> Int[Tensor, "B"]:
    """Index of each occlusion pattern z, its row of O_e (Eq. 3): the sum of z_c 2^c, in [0, 2^C).

    0 hides nothing.
    """
    powers = 2 ** torch.arange(flags.shape[1], device=flags.device)
    return (flags.long() * powers).sum(1)


def occlusion_labels(maps: Dataset, rule: Label, threshold: float) -> dict[str, np.ndarray]:
    """The arrays of occlusion.h5 for N parsing maps: `pixels` y(c) and `occluded` l_c, both (N, C).

    `threshold` is lambda.
    """
    counts = []
    with progress_bar(total=len(maps), desc="label") as bar:
        for start in range(0, len(maps), BLOCK):
            counts.append(count_pixels(torch.from_numpy(maps[start : start + BLOCK]), rule.parts))
            bar.update(len(counts[-1]))
    pixels = torch.cat(counts) if counts else torch.zeros(0, rule.parts, dtype=torch.long)
    flags = hidden_parts(pixels, threshold, rule.strict)
    return {"pixels": pixels.numpy().astype(np.int32), "occluded": flags.numpy().astype(np.uint8)}
