"""The inner loops of k-reciprocal re-ranking, compiled.

Images are numbered; -1 is none.  `neighbours` (N, k) holds the nearest images of each image, nearest first.
A sparse matrix is given by rows: row i holds value[start[i] : start[i + 1]] in the columns `column`.
No annotations: numba reads the types off the arguments.
"""

from typing import no_type_check

import numpy as np

from pipeline.ranking.kernels import compiled


@compiled
@no_type_check
def _reciprocal(neighbours, i, k, out):
    """Write R(i, k) into `out`: the k nearest of i that have i among their k nearest.  Returns how many."""
    count = 0
    for j in neighbours[i, :k]:
        if j >= 0:
            for back in neighbours[j, :k]:
                if back == i:
                    out[count] = j
                    count += 1
                    break
    return count


@compiled
@no_type_check
def expanded(neighbours, begin, end, k, half, mark, start, column):
    """R*(i, k) for i from `begin` to `end`: R(i, k) with those R(j, k / 2) of which it holds two thirds.

    `mark` has a place for every image, 0 before and after.
    """
    near, others, count = np.empty(k, np.int64), np.empty(half, np.int64), 0
    for i in range(begin, end):
        size = _reciprocal(neighbours, i, k, near)
        for j in near[:size]:
            mark[j] = 1
        first = count
        for j in near[:size]:
            column[count] = j
            count += 1
        for j in near[:size]:
            candidates, common = _reciprocal(neighbours, j, half, others), 0
            for other in others[:candidates]:
                common += mark[other] == 1
            if 3 * common > 2 * candidates:
                for other in others[:candidates]:
                    if mark[other] == 0:
                        mark[other] = 2
                        column[count] = other
                        count += 1
        for j in column[first:count]:
            mark[j] = 0
        column[first:count].sort()
        start[i - begin + 1] = count


@compiled
@no_type_check
def look_up(neighbours, distance, begin, start, column, out):
    """Write into `out` the distances of the pairs that the neighbour lists hold; the others stay."""
    for i in range(len(start) - 1):
        for place in range(start[i], start[i + 1]):
            for n in range(neighbours.shape[1]):
                if neighbours[begin + i, n] == column[place]:
                    out[place] = distance[begin + i, n]


@compiled
@no_type_check
def _add_mean(start, column, value, neighbours, row, k, out):
    """Add to `out` the mean of the sparse rows of the k nearest of an image."""
    count = 0
    for j in neighbours[row, :k]:
        count += j >= 0
    for j in neighbours[row, :k]:
        if j >= 0:
            for place in range(start[j], start[j + 1]):
                out[column[place]] += value[place] / count


@compiled
@no_type_check
def jaccard(start, column, value, neighbours, k, row, others, row_mean, other_mean, out):
    """Jaccard distances of an image to others, of rows averaged over the k nearest: 1 - sum min / sum max.

    `row_mean` and `other_mean` have a place for every image, 0 before and after.
    """
    _add_mean(start, column, value, neighbours, row, k, row_mean)
    for n in range(len(others)):
        if others[n] < 0:
            continue
        _add_mean(start, column, value, neighbours, others[n], k, other_mean)
        common = 0.0
        for j in neighbours[others[n], :k]:
            if j >= 0:
                for place in range(start[j], start[j + 1]):
                    c = column[place]
                    common += min(row_mean[c], other_mean[c])
                    other_mean[c] = 0
        out[n] = 1 - common / (2 - common)  # both sum to 1
    for j in neighbours[row, :k]:
        if j >= 0:
            row_mean[column[start[j] : start[j + 1]]] = 0
