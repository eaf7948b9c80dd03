"""DPM++ read aloud: its losses in loops over single numbers; `reference` has what all methods share.

Nothing here is fast and nothing calls `pipeline`.  `ignored` is a set of classes, or of images.
"""

import math

from tests.reference import dot, length, mean


def cross_entropy(logits, pid, ignored=(), smoothing=0.0):
    """Against the true identity, which shares `smoothing` with all classes; ignored ones are no classes."""
    classes = [c for c in range(len(logits)) if c not in ignored]
    total = sum(logits[c].exp() for c in classes)
    surprise = {c: -(logits[c].exp() / total).log() for c in classes}
    return (1 - smoothing) * surprise[pid] + smoothing * mean(list(surprise.values()))


def masked_cosine(feature, mask, prototype):
    """cos(f, m * W_c / |W_c|)"""
    unit = [w / length(prototype) for w in prototype]
    masked = [m * w for m, w in zip(mask, unit, strict=True)]
    return dot(feature, masked) / (length(feature) * length(masked))


def arc(cosines, pid, scale, margin):
    """ArcFace's logits."""
    logits = [scale * c for c in cosines]
    angle = cosines[pid].acos()
    if angle < math.pi - margin:
        logits[pid] = scale * (angle + margin).cos()
    else:
        logits[pid] = scale * (cosines[pid] - margin * math.sin(margin))
    return logits


def triplet(features, pids, ignored):
    """Each image against its farthest match and its nearest stranger that it does not ignore."""
    losses = []
    for i, anchor in enumerate(features):
        gap = [length([a - b for a, b in zip(anchor, f, strict=True)]) for f in features]
        match = max(gap[j] for j in range(len(pids)) if pids[j] == pids[i] and j != i)
        strangers = [gap[j] for j in range(len(pids)) if pids[j] != pids[i] and j not in ignored[i]]
        stranger = min(strangers) if strangers else match.detach()
        losses.append((1 + (match - stranger).exp()).log())
    return mean(losses)


def orthogonality(logits):
    """L_orth of one image: (1 / H^2) |O O^T - I|^2, rows of O of length 1."""
    rows = [[v / length(row) for v in row] for row in logits]
    count, total = len(rows), 0.0
    for i in range(count):
        for j in range(count):
            total = total + (dot(rows[i], rows[j]) - int(i == j)) ** 2
    return total / count**2


def project(cls, patches, weight):
    """v = P [class token; mean patch token], of length 1."""
    tokens = [*cls, *[mean(list(channel)) for channel in zip(*patches, strict=True)]]
    image = [dot(row, tokens) for row in weight]
    return [v / length(image) for v in image]


def align(prototypes, texts, back, pids):
    """(1 / |Y|) sum over the identities Y of a batch of 1 - cos(W_y, A t_y)."""
    gaps = []
    for y in sorted(set(pids)):
        place = [dot(row, texts[y]) for row in back]
        gaps.append(1 - dot(prototypes[y], place) / (length(prototypes[y]) * length(place)))
    return mean(gaps)


def budget(masks, least):
    """mean(relu(beta - PR(m))), PR(m) = (sum m)^2 / (D sum m^2)."""
    gaps = [least - sum(m) ** 2 / (len(m) * dot(m, m)) for m in masks]
    return mean([gap.clamp(min=0) for gap in gaps])
