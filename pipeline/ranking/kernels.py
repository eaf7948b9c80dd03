"""The inner loops of ranking, compiled by numba for the processor that they run on.

The compiled code is cached beside this file, or in the user's cache folder.  Where neither can be written, or
the disk is full, each process compiles anew, in seconds.  No annotations: numba reads the types off the
arguments.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, no_type_check

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

FAR = np.float32(np.inf)
JUNK = np.float32(np.nan)  # NaN compares false with everything, so a junk image is never counted


class _Cache(FunctionCache):
    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk
            super().save_overload(sig, data)


def compiled(function: Callable, **options: Any) -> Callable:
    """A function compiled on its first call; cached where some folder for that can be written."""
    kernel = njit(nogil=True, error_model="numpy", **options)(function)
    with suppress(RuntimeError):  # "no locator available"
        kernel._cache = _Cache(function)  # as `cache=True` does it
    return kernel


summing = partial(compiled, fastmath={"reassoc"})  # sums in any order


@summing
@no_type_check
def unit(source, rows, visibility, start, units, lengths):
    """Copy the visible parts of the images `rows` of a source, scaled to length 1; zero stays zero.

    Part p of the images that show it is written from units[start[p]] on, in the order of `rows`; `lengths`
    (n, P) receives the lengths.
    """
    place = start.copy()
    for i in range(len(rows)):
        for p in range(len(start)):
            if visibility[i, p] != 0:
                part, square = source[rows[i], p], np.float32(0)
                for c in range(len(part)):
                    square += part[c] * part[c]
                length = np.sqrt(square)
                scale = np.float32(1) / length if length > 0 else np.float32(0)
                scaled = units[place[p]]
                for c in range(len(part)):
                    scaled[c] = part[c] * scale
                lengths[i, p] = length
                place[p] += 1


@compiled
@no_type_check
def fold(total, rows, columns, product, row_weight, column_weight, rooted):
    """Add a part's weighted distances to the rows and columns that show it; the product is overwritten.

    |q - g|^2 = 2 - 2 q g of features of length 1; the weights are visibilities.
    """
    whole = len(columns) == total.shape[1]
    for r in range(len(rows)):
        sums, row = total[rows[r]], product[r]
        weight = row_weight[r]
        for c in range(len(columns)):
            value = np.float32(2) - np.float32(2) * row[c]
            value = value if value > 0 else np.float32(0)
            row[c] = weight * column_weight[c] * (np.sqrt(value) if rooted else value)
        if whole:  # without indices, so that it runs in the processor's wide registers
            for c in range(len(sums)):
                sums[c] += row[c]
        else:
            for c in range(len(columns)):
                sums[columns[c]] += row[c]


@compiled
@no_type_check
def divide(total, weight):
    """Divide sums by their weights, in place; infinite where the weight is 0."""
    for r in range(len(total)):
        sums, by = total[r], weight[r]
        for c in range(len(sums)):
            sums[c] = sums[c] / by[c] if by[c] > 0 else FAR


@compiled
@no_type_check
def count(table, start, distance, split, ranks):
    """Add to each match's rank the images of the table that come before it.

    Row r of the table belongs to the matches start[r] to start[r + 1].  Before match k come the images nearer
    than distance[k], and those as near in the columns left of split[k].
    """
    for r in range(len(table)):
        row = table[r]
        for k in range(start[r], start[r + 1]):
            limit, before = distance[k], np.int32(0)
            left, right = row[: split[k]], row[split[k] :]
            for c in range(len(left)):
                before += np.int32(left[c] <= limit)
            for c in range(len(right)):
                before += np.int32(right[c] < limit)
            ranks[k] += before


@compiled
@no_type_check
def _precedes(number, other):
    return other < 0 or number < other


@compiled
@no_type_check
def nearest(table, images, top_distance, top_image):
    """Merge a block of distances into the lists of the nearest images; equal ones keep the gallery's order.

    Rows of the lists are sorted; places without an image hold infinity and the number -1.
    """
    top = top_distance.shape[1]
    for r in range(len(table)):
        row, distance, image = table[r], top_distance[r], top_image[r]
        for c in range(len(row)):
            value, number = row[c], images[c]
            last = distance[top - 1]
            if not (value < last or (value == last and _precedes(number, image[top - 1]))):
                continue
            k = top - 1
            while k > 0 and (
                value < distance[k - 1] or (value == distance[k - 1] and _precedes(number, image[k - 1]))
            ):
                distance[k], image[k] = distance[k - 1], image[k - 1]
                k -= 1
            distance[k], image[k] = value, number


@compiled
@no_type_check
def farthest(table, greatest):
    """Raise `greatest` to the greatest finite distance of each row."""
    for r in range(len(table)):
        row, value = table[r], greatest[r]
        for c in range(len(row)):
            value = row[c] if value < row[c] < FAR else value
        greatest[r] = value
