"""FED read aloud: its modules and losses in loops over single numbers (nested lists, see `tests.reference`).

Nothing here is fast and nothing calls `pipeline`.
"""

import math
from fractions import Fraction

from tests.reference import batch_norm, dot, identity, length, linear, mean, sigmoid, softmax

# ------------------------------------------------------------------ stripes and their labels


def stripes(plane, count):
    """The mean of each horizontal stripe; a row that two stripes share counts in both."""
    height, pooled = len(plane), []
    for n in range(count):
        start, stop = Fraction(height * n, count), Fraction(height * (n + 1), count)
        inside = [row for y, row in enumerate(plane) if y + 1 > start and y < stop]
        cells = [cell for row in inside for cell in row]
        pooled.append([mean(channel) for channel in zip(*cells, strict=True)])
    return pooled


def changes(first, second, count):
    """How the colours of two pictures, planes of red, green and blue, differ in each stripe."""
    height, width = len(first[0]), len(first[0][0])
    plane = [
        [[sum(abs(a[y][x] - b[y][x]) for a, b in zip(first, second, strict=True))] for x in range(width)]
        for y in range(height)
    ]
    return [value for (value,) in stripes(plane, count)]


def label(change):
    """1 for each visible stripe, as the published code tells it case by case."""
    changed = [value > 0 for value in change]
    if all(changed):
        return [1.0] * len(change)
    if sum(changed) == 1:
        return [0.0 if each else 1.0 for each in changed]
    greatest, second = sorted(change, reverse=True)[:2]
    if second > 0 and greatest / second > 3:
        return [0.0 if value == greatest else 1.0 for value in change]
    return [0.0 if each else 1.0 for each in changed]


# ------------------------------------------------------------------ OEM, FDM


def layer_norm(row, scale, shift):
    """A row with mean 0 and variance 1, then scaled and shifted."""
    centre = mean(row)
    spread = (mean([(x - centre) ** 2 for x in row]) + 1e-5) ** 0.5
    return [(x - centre) / spread * a + b for x, a, b in zip(row, scale, shift, strict=True)]


def score(stripe, w):
    """o of one stripe by its own detector."""
    inner = layer_norm(linear(stripe, w["in"], w["in_bias"]), w["scale"], w["shift"])
    (logit,) = linear(inner, w["out"], w["out_bias"])
    return sigmoid(logit)


def erase(features, scores):
    """o f, stripe by stripe."""
    return [[o * x for x in stripe] for o, stripe in zip(scores, features, strict=True)]


def cross_attention(feature, centres, w, heads, width):
    """What a feature takes from its centres; `width` is that of one stripe."""
    query = linear(feature, w["query"])
    size = len(query) // heads
    keys_values = [linear(centre, w["key_value"]) for centre in centres]
    taken = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits, values = [], []
        for row in keys_values:
            key, value = row[: len(query)], row[len(query) :]
            logits.append(dot(query[part], key[part]) / math.sqrt(width / heads))
            values.append(value[part])
        weights = softmax(logits)
        taken += [dot(weights, channel) for channel in zip(*values, strict=True)]
    return linear(taken, w["proj"], w["proj_bias"])


def gated_feed_forward(row, w):
    """LN, out to twice four times the width, one half times the GELU of the other, and back."""
    wide = linear(layer_norm(row, w["scale"], w["shift"]), w["inner"], w["inner_bias"])
    half = len(wide) // 2
    gelu = [x * (1 + (x / math.sqrt(2)).erf()) / 2 for x in wide[half:]]
    return linear([a * g for a, g in zip(wide[:half], gelu, strict=True)], w["proj"], w["proj_bias"])


def diffuse(feature, scores, centres, w, heads):
    """d of one image before its neck, stripe by stripe."""
    width = len(feature) // len(scores)
    taken = cross_attention(feature, centres, w["attention"], heads, width)
    out = []
    for n, o in enumerate(scores):
        part = slice(n * width, (n + 1) * width)
        mixed = gated_feed_forward(taken[part], w["before"])
        out.append(
            gated_feed_forward([o * m + b for m, b in zip(mixed, feature[part], strict=True)], w["after"])
        )
    return out


def neck(images, scale):
    """B images of S stripes, each after the batch norm of its stripe, concatenated; `scale` is of all."""
    width = len(images[0][0])
    necked = [
        batch_norm([image[n] for image in images], scale[n * width : (n + 1) * width])
        for n in range(len(images[0]))
    ]
    return [[x for stripe in stripes_of_one for x in stripe] for stripes_of_one in zip(*necked, strict=True)]


# ------------------------------------------------------------------ memory


def cosine(first, second):
    """Of two vectors; 0 if one is 0."""
    return dot(first, second) / (length(first) * length(second))


def starting_centres(features, pids, count):
    """The mean feature of each identity."""
    centres = []
    for identity_number in range(count):
        own = [feature for feature, pid in zip(features, pids, strict=True) if pid == identity_number]
        centres.append([mean(channel) for channel in zip(*own, strict=True)])
    return centres


def nearest(feature, pid, centres, count):
    """As published: one more than `count`, then the own identity leaves, or else the last."""
    ranked = sorted(range(len(centres)), key=lambda c: -float(cosine(feature, centres[c])))[: count + 1]
    others = [c for c in ranked if c != pid] if pid in ranked else ranked[:-1]
    return [[x / length(centres[c]) for x in centres[c]] for c in others]


def contrast(features, pids, centres, temperature):
    """K, the mean over images."""
    terms = []
    for feature, pid in zip(features, pids, strict=True):
        powers = [(cosine(feature, centre) / temperature).exp() for centre in centres]
        terms.append(-(powers[pid] / (sum(powers) + 1e-6) + 1e-6).log())
    return mean(terms)


def moved(centres, features, pids, momentum):
    """The memory after a batch, image by image."""
    centres = list(centres)
    for feature, pid in zip(features, pids, strict=True):
        centres[pid] = [momentum * m + (1 - momentum) * x for m, x in zip(centres[pid], feature, strict=True)]
    return centres


# ------------------------------------------------------------------ the loss


def squared_error(scores, wanted):
    """Mean over stripes and images."""
    return mean(
        [(a - b) ** 2 for rows in zip(scores, wanted, strict=True) for a, b in zip(*rows, strict=True)]
    )


def classify(features, weight, gain, pids):
    """Cross-entropy of a classifier without bias."""
    logits = [[gain * z for z in linear(feature, weight)] for feature in features]
    return mean([identity(row, pid) for row, pid in zip(logits, pids, strict=True)])


def total(scores, labels, b, d, tokens, classifiers, gain, pids, memory, diffused_memory, temperature):
    """L of the published code; pairs are the holistic and the occluded view's."""
    ones = [[1.0] * len(row) for row in scores[0]]
    loss = squared_error(scores[0], ones) + squared_error(scores[1], labels)
    for features, weight in zip((b, d, tokens), classifiers, strict=True):
        loss = loss + mean([classify(view, weight, gain, pids) for view in features])
    loss = loss + contrast(b[0], pids, memory, temperature) + 0.3 * contrast(b[1], pids, memory, temperature)
    return loss + 0.5 * sum(contrast(view, pids, diffused_memory, temperature) for view in d)
