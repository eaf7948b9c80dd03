"""TransReID read aloud: the jigsaw patch module and the losses in loops over single tokens.

Nothing here calls `pipeline`.  Sequences are lists; what is shuffled may be tensors, numbers or names.
"""

from tests import reference


def shuffled(tokens, shift, groups):
    """The patches in their new order; tokens[0] is the class token, and the sequence starts at `shift`."""
    row = [tokens[n] for n in range(shift, len(tokens))] + [tokens[n] for n in range(1, shift)]
    beside_last = row[-2]
    while len(row) % groups:
        row.append(beside_last)
    size = len(row) // groups
    return [row[group * size + place] for place in range(size) for group in range(groups)]


def grouped(tokens, shift, groups, divide):
    """The sequence of each local feature: the class token and its share of the shuffled patches."""
    size = (len(tokens) - 1) // divide
    order = shuffled(tokens, shift, groups)
    return [[tokens[0]] + [order[k * size + m] for m in range(size)] for k in range(divide)]


def vector(features):
    """[g, l_1/4 ... l_4/4] of length 1, from g and l_1 ... l_4."""
    g, *local = features
    whole = list(g) + [x / len(local) for feature in local for x in feature]
    return [x / reference.length(whole) for x in whole]


def loss(logits, features, pids, average=False):
    """The loss of a batch; `logits` and `features` have g, l_1 ... l_4 of each image."""
    identity = [
        reference.mean([reference.identity(image[k], pid) for image, pid in zip(logits, pids, strict=True)])
        for k in range(len(logits[0]))
    ]
    triplet = [
        reference.triplet([image[k] for image in features], pids, average) for k in range(len(features[0]))
    ]
    return sum(0.5 * values[0] + 0.5 * reference.mean(values[1:]) for values in (identity, triplet))
