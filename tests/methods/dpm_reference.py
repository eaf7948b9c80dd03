"""DPM read aloud: its mask generator, its similarities and its loss in loops over single numbers.

Nothing here is fast and nothing calls `pipeline`.  Values are nested lists of float64 scalars that carry
gradients (`tests.reference.scalars`).
"""

import math

import torch

from tests.reference import dot, length

EPS = 1e-5  # of a batch norm


# ------------------------------------------------------------------ the mask generator


def convolution(plane, weight, bias):
    """3 x 3 under a border of zeros: plane [channel][row][column], weight [output][channel][3][3]."""
    rows, columns = len(plane[0]), len(plane[0][0])

    def at(channel, row, column):
        return plane[channel][row][column] if 0 <= row < rows and 0 <= column < columns else 0.0

    def output(kernel, offset, row, column):
        return offset + sum(
            kernel[channel][i][j] * at(channel, row + i - 1, column + j - 1)
            for channel in range(len(plane))
            for i in range(3)
            for j in range(3)
        )

    return [
        [[output(kernel, offset, row, column) for column in range(columns)] for row in range(rows)]
        for kernel, offset in zip(weight, bias, strict=True)
    ]


def batch_norm(planes, weight, bias):
    """Every channel by the mean and the deviation of its places in all images."""
    planes = [[[list(row) for row in channel] for channel in plane] for plane in planes]
    for channel in range(len(weight)):
        values = [x for plane in planes for row in plane[channel] for x in row]
        mean = sum(values) / len(values)
        deviation = (sum((x - mean) ** 2 for x in values) / len(values) + EPS) ** 0.5
        for plane in planes:
            plane[channel] = [
                [(x - mean) / deviation * weight[channel] + bias[channel] for x in row]
                for row in plane[channel]
            ]
    return planes


def rectified(channel):
    """max(x, 0) of each place."""
    return [[torch.relu(x) for x in row] for row in channel]


def halved(channel):
    """The greatest of each 2 x 2 places; an odd last row or column is dropped."""
    return [
        [max(channel[r + i][c + j] for i in (0, 1) for j in (0, 1)) for c in range(0, len(channel[0]) - 1, 2)]
        for r in range(0, len(channel) - 1, 2)
    ]


def mask(planes, layers, linear):
    """m of each image: three convolutions with halvings between, the greatest place, a linear, a sigmoid.

    planes: [image][channel][row][column], the channels of all taps one after the other
    layers: weight and bias of each convolution, then of its batch norm
    """
    for number, (kernel, offset, gain, shift) in enumerate(layers, 1):
        planes = [convolution(plane, kernel, offset) for plane in planes]
        planes = batch_norm(planes, gain, shift)
        planes = [
            [[[torch.relu(x) for x in row] for row in channel] for channel in plane] for plane in planes
        ]
        if number < len(layers):
            planes = [[halved(channel) for channel in plane] for plane in planes]
    greatest = [[max(x for row in channel for x in row) for channel in plane] for plane in planes]
    weight, bias = linear
    return [
        [1 / (1 + torch.exp(-(dot(w, vector) + b))) for w, b in zip(weight, bias, strict=True)]
        for vector in greatest
    ]


# ------------------------------------------------------------------ similarities


def unit(vector):
    """A vector of length 1."""
    size = length(vector)
    return [x / size for x in vector]


def masked_cosine(feature, prototype, mask):
    """Normalise the prototype, mask it, normalise it again; then its product with the unit feature."""
    masked = unit([m * w for m, w in zip(mask, unit(prototype), strict=True)])
    return dot(unit(feature), masked)


# ------------------------------------------------------------------ the loss


def cross_entropy(logits, label):
    """-log softmax of the true class."""
    return torch.log(sum(torch.exp(x) for x in logits)) - logits[label]


def arc_logits(cosines, label, scale, margin):
    """s cos(theta + mu) for the true class, s (c - mu sin(pi - mu)) beyond pi - mu; s c for all others."""
    logits = [scale * c for c in cosines]
    c = cosines[label]
    if c > math.cos(math.pi - margin):
        logits[label] = scale * torch.cos(torch.acos(c) + margin)
    else:
        logits[label] = scale * (c - margin * math.sin(math.pi - margin))
    return logits


def orthogonality(logits):
    """Squared entries of O O' - I over heads, rows O of length 1 over patches; the sum over images."""
    total = 0.0
    for heads in logits:
        rows = [unit(row) for row in heads]
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                total = total + (dot(first, second) - int(i == j)) ** 2 / len(rows) ** 2
    return total


def soft_triplet(features, labels):
    """log(1 + exp(farthest positive - nearest negative)), the mean over images."""
    total = 0.0
    for i, mine in enumerate(features):
        apart = [length([a - b for a, b in zip(mine, other, strict=True)]) for other in features]
        same = [d for j, d in enumerate(apart) if labels[j] == labels[i] and j != i]
        other = [d for j, d in enumerate(apart) if labels[j] != labels[i]]
        total = total + torch.log(1 + torch.exp(max(same) - min(other)))
    return total / len(features)


def loss(tokens, necked, masks, prototypes, logits, labels, scale, margin, orthogonal):
    """CE(f W) / 2 + CE(arc) / 2 + triplet(g) + w_o orthogonality."""
    count, plain, arc = len(labels), 0.0, 0.0
    for f, m, label in zip(necked, masks, labels, strict=True):
        plain = plain + cross_entropy([dot(f, w) for w in prototypes], label) / count
        cosines = [masked_cosine(f, w, m) for w in prototypes]
        arc = arc + cross_entropy(arc_logits(cosines, label, scale, margin), label) / count
    enrichment = orthogonal * orthogonality(logits)
    return plain / 2 + arc / 2 + soft_triplet(tokens, labels) + enrichment


# ------------------------------------------------------------------ testing


def distance(query, gallery, mask):
    """Euclidean, of unit vectors, the gallery's under the query's mask."""
    masked = unit([m * x for m, x in zip(mask, gallery, strict=True)])
    return length([a - b for a, b in zip(unit(query), masked, strict=True)])
