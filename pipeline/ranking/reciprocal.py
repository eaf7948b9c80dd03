"""The inner loops of k-reciprocal re-ranking, compiled; images are numbered, -1 is none.

A sparse matrix is given by rows: row i holds value[first[i] : first[i + 1]] in the columns `column`.
No annotations: numba reads the types off the arguments.
"""

from typing import no_type_check

import numpy as np

from pipeline.ranking.kernels import compiled


@compiled
@no_type_check
def _mutual(who, i, k, found):
    """Put R(i, k) into `found`: those of the k nearest of i that have i among their k nearest; how many."""
    count = 0
    for j in who[i, :k]:
        if j >= 0:
            for back in who[j, :k]:
                if back == i:
                    found[count] = j
                    count += 1
                    break
    return count


@compiled
@no_type_check
def expanded(who, start, stop, k, half, seen, first, column):
    """R*(i, k) for i from `start` to `stop`, R(i, k) with those R(j, k / 2) that it holds two thirds of.

    `seen` holds a place for every image, 0 before and after.
    """
    near, others, count = np.empty(k, np.int64), np.empty(half, np.int64), 0
    for i in range(start, stop):
        own = _mutual(who, i, k, near)
        for j in near[:own]:
            seen[j] = 1
        begin = count
        for j in near[:own]:
            column[count] = j
            count += 1
        for j in near[:own]:
            more, common = _mutual(who, j, half, others), 0
            for other in others[:more]:
                common += seen[other] == 1
            if 3 * common > 2 * more:
                for other in others[:more]:
                    if seen[other] == 0:
                        seen[other] = 2
                        column[count] = other
                        count += 1
        for j in column[begin:count]:
            seen[j] = 0
        column[begin:count].sort()
        first[i - start + 1] = count


@compiled
@no_type_check
def known(who, distance, start, first, column, found):
    """Distances of the pairs that the neighbour lists hold; the others stay as they are."""
    for i in range(len(first) - 1):
        for place in range(first[i], first[i + 1]):
            for n in range(who.shape[1]):
                if who[start + i, n] == column[place]:
                    found[place] = distance[start + i, n]


@compiled
@no_type_check
def _spread(first, column, value, who, row, k, into):
    """Add up the mean of the rows of the k nearest of an image."""
    count = 0
    for j in who[row, :k]:
        count += j >= 0
    for j in who[row, :k]:
        if j >= 0:
            for place in range(first[j], first[j + 1]):
                into[column[place]] += value[place] / count


@compiled
@no_type_check
def jaccard(first, column, value, who, k, row, others, mine, theirs, found):
    """Jaccard distances of an image to others, by rows averaged over the k nearest: 1 - min / max, summed.

    `mine` and `theirs` hold a place for every image, 0 before and after.
    """
    _spread(first, column, value, who, row, k, mine)
    for n in range(len(others)):
        if others[n] < 0:
            continue
        _spread(first, column, value, who, others[n], k, theirs)
        common = 0.0
        for j in who[others[n], :k]:
            if j >= 0:
                for place in range(first[j], first[j + 1]):
                    c = column[place]
                    common += min(mine[c], theirs[c])
                    theirs[c] = 0
        found[n] = 1 - common / (2 - common)  # both sum to 1
    for j in who[row, :k]:
        if j >= 0:
            mine[column[first[j] : first[j + 1]]] = 0
