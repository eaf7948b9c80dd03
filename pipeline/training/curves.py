"""A training's log as curves to look at: few points, and one table for each quantity.

The methods differ in their loss terms, so that each column of the log is a table of its own.
"""

import numpy as np
import pandas as pd

from pipeline.training.loop import TIMES

POINTS = 100  # of a curve at most: more hide a loss's trend behind its noise from batch to batch


def training_curves(log: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curve of each loss term, rate, norm and figure of a log: its name -> `epoch` and the values.

    log: one row per step, as `train_model` returns it

    A curve of more than `POINTS` values is cut into stretches of equally many (the last may be shorter), and
    a point is the mean of a stretch, in `epoch` as in the value.  Steps without a finite value are left out:
    those between two scores of the held-out identities, and gradients that overflowed float16.
    """
    names = log.columns.drop(["step", "epoch", *TIMES])
    finite = log.replace([np.inf, -np.inf], np.nan)
    return {name: _mean_of_stretches(finite[["epoch", name]].dropna()) for name in names}


def _mean_of_stretches(values: pd.DataFrame) -> pd.DataFrame:
    length = max(1, -(-len(values) // POINTS))
    return values.groupby(np.arange(len(values)) // length).mean()
