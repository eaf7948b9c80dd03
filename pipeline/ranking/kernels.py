"""The inner loops of ranking, compiled for the processor that they run on; each works on rows of a tile.

Kept beside this file once compiled.  No annotations: numba reads the types off the arguments.
"""

from typing import no_type_check

import numpy as np
from numba import njit

FAR = np.float32(np.inf)
OUT = np.float32(np.nan)  # nearer than nothing and equal to nothing: an image that does not count

compiled = njit(nogil=True, error_model="numpy", cache=True)
summing = njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})  # sums in any order


@summing
@no_type_check
def unit(source, places, seen, first, units, lengths):
    """Copy the parts that images show, scaled to length 1; what has no length stays zero.

    Those of part p stand from units[first[p]] on, in the order of `places`, which are rows of the source.
    """
    behind = first.copy()
    for i in range(len(places)):
        for p in range(len(first)):
            if seen[i, p] != 0:
                part, square = source[places[i], p], np.float32(0)
                for c in range(len(part)):
                    square += part[c] * part[c]
                length = np.sqrt(square)
                scale = np.float32(1) / length if length > 0 else np.float32(0)
                scaled = units[behind[p]]
                for c in range(len(part)):
                    scaled[c] = part[c] * scale
                lengths[i, p] = length
                behind[p] += 1


@compiled
@no_type_check
def fold(total, rows, columns, product, own, other, mine, theirs, rooted):
    """Add a part's weighted distances to the rows and columns that show it; the product is overwritten.

    |q - g|^2 = |q|^2 + |g|^2 - 2 q g; `own` (n) and `other` (w) are the squares, 0 or 1; `mine` (n) and
    `theirs` (w) are the visibilities.
    """
    whole = len(columns) == total.shape[1]
    for r in range(len(rows)):
        sums, row = total[rows[r]], product[r]
        square, weight = own[r], mine[r]
        for c in range(len(columns)):
            value = square + other[c] - np.float32(2) * row[c]
            value = value if value > 0 else np.float32(0)
            row[c] = weight * theirs[c] * (np.sqrt(value) if rooted else value)
        if whole:  # without indices, so that it runs in the processor's wide registers
            for c in range(len(sums)):
                sums[c] += row[c]
        else:
            for c in range(len(columns)):
                sums[columns[c]] += row[c]


@compiled
@no_type_check
def divide(total, weight):
    """Sums into means, in place; without a weight, into infinity."""
    for r in range(len(total)):
        sums, by = total[r], weight[r]
        for c in range(len(sums)):
            sums[c] = sums[c] / by[c] if by[c] > 0 else FAR


@compiled
@no_type_check
def count(table, first, at, split, ranks):
    """Add to each match's rank the images of the table that come before it.

    Row r of the table belongs to the matches first[r] to first[r + 1]: nearer than `at`, or as near
    and left of `split`.
    """
    for r in range(len(table)):
        row = table[r]
        for k in range(first[r], first[r + 1]):
            limit, before = at[k], np.int32(0)
            left, right = row[: split[k]], row[split[k] :]
            for c in range(len(left)):
                before += np.int32(left[c] <= limit)
            for c in range(len(right)):
                before += np.int32(right[c] < limit)
            ranks[k] += before


@compiled
@no_type_check
def _first(number, other):
    return other < 0 or number < other


@compiled
@no_type_check
def nearest(table, images, distance, image):
    """Keep in each row the nearest of what it holds and of the table, equal ones in the gallery's order.

    Rows of `distance` and `image` are sorted; places without an image hold infinity and the number -1.
    """
    top = distance.shape[1]
    for r in range(len(table)):
        row, best, who = table[r], distance[r], image[r]
        for c in range(len(row)):
            value, number = row[c], images[c]
            if not (value < best[top - 1] or (value == best[top - 1] and _first(number, who[top - 1]))):
                continue
            k = top - 1
            while k > 0 and (value < best[k - 1] or (value == best[k - 1] and _first(number, who[k - 1]))):
                best[k], who[k] = best[k - 1], who[k - 1]
                k -= 1
            best[k], who[k] = value, number


@compiled
@no_type_check
def farthest(table, most):
    """Keep in `most` the greatest finite distance of each row."""
    for r in range(len(table)):
        row, value = table[r], most[r]
        for c in range(len(row)):
            value = row[c] if value < row[c] < FAR else value
        most[r] = value
