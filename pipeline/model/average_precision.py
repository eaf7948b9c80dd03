"""Average precision of ranked galleries, by both rules that the field uses for Market-1501."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Rule = Literal["rectangular", "trapezoid"]


def average_precision(
    ranks: Int[np.ndarray, "n"], matches: Int[np.ndarray, "Q"], rule: Rule | str = "rectangular"
) -> tuple[Float[np.ndarray, "Q"], Float[np.ndarray, "n"]]:
    """AP of each query in [0, 1], NaN without a match, and the precision at each match; AP is their mean.

    `matches` is the number of matches of each query; `ranks` holds their ranks from 1, query by query and
    ascending in each.
    `rectangular` takes the precision at each match, as the Python evaluators do.  `trapezoid` takes the mean
    of the precisions at and just before it: the area under the curve, as Market-1501's own Matlab script
    computes it; before rank 1 the precision is 1.
    """
    start = np.cumsum(matches) - matches
    earlier = np.arange(len(ranks)) - np.repeat(start, matches)  # matches of the query before this one
    precision = (earlier + 1) / ranks
    if rule == "trapezoid":
        before = np.where(ranks > 1, earlier / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + before) / 2
    ap = np.full(len(matches), np.nan)
    answered = np.flatnonzero(matches)
    if len(answered):
        ap[answered] = np.add.reduceat(precision, start[answered]) / matches[answered]
    return ap, precision
