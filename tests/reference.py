"""OGFR read aloud: every equation of the paper in loops over single numbers, in the paper's order.

Nothing here is fast and nothing calls `pipeline`.  Values are nested lists of float64 scalars that carry
gradients (`scalars`).  Left to its defaults a function computes the printed equation; its keyword arguments
are our departures.  What the paper leaves to custom (norms, the feed-forward layer) is at the end.
"""

import math

import torch

# C -> the fine parts (1 head ... 8 right foot) that each coarse part merges; the paper lists C = 4 alone
MERGED = {
    1: "12345678",
    2: "1234 5678",
    3: "1 234 5678",
    4: "1 23 4 5678",
    5: "1 23 4 56 78",
    6: "1 2 3 4 56 78",
    7: "1 2 3 4 5 6 78",
    8: "1 2 3 4 5 6 7 8",
}


def scalars(tensor):
    """A tensor as nested lists of its elements."""
    return [scalars(row) for row in tensor.unbind()] if tensor.ndim else tensor.double()


def stacked(values):
    """Nested lists as a tensor again."""
    return torch.stack([stacked(v) for v in values]) if isinstance(values, list) else torch.as_tensor(values)


def dot(first, second):
    """a . b"""
    return sum(a * b for a, b in zip(first, second, strict=True))


def length(values):
    """||a||"""
    return dot(values, values) ** 0.5


def mean(values):
    """Of a list."""
    return sum(values) / len(values)


def linear(row, weight, bias=None):
    """W x + b"""
    return [dot(w, row) + (bias[i] if bias else 0) for i, w in enumerate(weight)]


def softmax(values, temperature=1.0):
    """Numbers as probabilities."""
    grown = [(v / temperature).exp() for v in values]
    return [g / sum(grown) for g in grown]


# ------------------------------------------------------------------ 3.1 occlusion-aware ViT


def pixels(parsing, count):
    """y(c), Eq. 1, from a map of labels."""
    totals = []
    for merged in MERGED[count].split():
        total = 0
        for row in parsing:
            for label in row:
                total += str(int(label)) in merged  # M~[h, w, c]
        totals.append(total)
    return totals


def hidden(total, threshold, strict=True):
    """l_c, Eq. 2."""
    if total < threshold:
        return 1
    return 1 if total == threshold and not strict else 0


def pattern_embedding(table, flags):
    """E_o = O_e[z[0], ..., z[C-1]], Eq. 3; the table is C lists deep."""
    for flag in flags:
        table = table[flag]
    return table


def patches(height, width, stride, patch):
    """N, Eq. 4."""
    return math.floor((height + stride - patch) / stride) * math.floor((width + stride - patch) / stride)


def project(image, kernel, bias, stride):
    """P_s: patches in reading order, each weighed pixel by pixel."""
    size, tokens = len(kernel[0][0]), []
    for top in range(0, len(image[0]) - size + 1, stride):
        for left in range(0, len(image[0][0]) - size + 1, stride):
            token = []
            for weights, start in zip(kernel, bias, strict=True):
                total = start
                for colour, plane in enumerate(weights):
                    for y in range(size):
                        for x in range(size):
                            total = total + plane[y][x] * image[colour][top + y][left + x]
                token.append(total)
            tokens.append(token)
    return tokens


def sequence(cls, part, patch, position, pattern, camera, gamma_1, gamma_2):
    """E = [x_cls; P_t; P_s] + P_E + gamma_1 E_o + gamma_2 C_e, Eq. 5."""
    return [
        [t + p + gamma_1 * o + gamma_2 * c for t, p, o, c in zip(token, place, pattern, camera, strict=True)]
        for token, place in zip([cls, *part, *patch], position, strict=True)
    ]


# ------------------------------------------------------------------ 3.2.1 erasing mask generation


def correlation(patch, part):
    """I = norm(f^p) . norm([f^0 ... f^K])^T, Eq. 6."""
    return [[dot(p, k) / (length(p) * length(k)) for k in part] for p in patch]


def sigmoid(value):
    """1 / (1 + e^-x)"""
    return 1 / (1 + (-value).exp())


def keep(state, weight, bias=0.0):
    """m = sigmoid(I G^T), Eq. 7."""
    return [sigmoid(dot(row, weight) + bias) for row in state]


def chance(action, probabilities):
    """Probability of a whole action, whose choices are Bernoulli(m), Eq. 8."""
    product = 1.0
    for kept, m in zip(action, probabilities, strict=True):
        product = product * (m if kept else 1 - m)
    return product


def baseline(scores):
    """p^b after each refresh, Eq. 9."""
    value, history = 0.0, []
    for n, new in enumerate(scores):
        value = (value * n + new) / (n + 1)
        history.append(value)
    return history


def reward(masked, base, floor=0.0, clip=math.inf):
    """r = (p^m - p^b) / (1 - p^b), Eq. 10."""
    return max((masked - base) / max(1 - base, floor), -clip)


def policy_gradient(states, actions, rewards, weight, bias=0.0):
    """Gradient of J for G and for the bias, Eq. 11.

    pi(a | s) is m where a = 1 and 1 - m where a = 0, and d log pi / d (I G^T) is a - m.
    """
    gradient, bias_gradient = [0.0] * len(weight), 0.0
    for state, action, total in zip(states, actions, rewards, strict=True):  # b = 1 ... B
        for row, kept, m in zip(state, action, keep(state, weight, bias), strict=True):  # t = 1 ... N
            for k, similarity in enumerate(row):
                gradient[k] += (int(kept) - m) * similarity * total / len(states)
            bias_gradient += (int(kept) - m) * total / len(states)
    return gradient, bias_gradient


# ------------------------------------------------------------------ 3.2.2 feature purification


def erase(patch, action, erased, position=None):
    """Patch features with those of action 0 replaced: the last part of F~_h.

    `erased` has a token for each place; with `position` it has one token for all places.
    """
    features = []
    for n, (token, kept) in enumerate(zip(patch, action, strict=True)):
        if position is None:
            other = erased[n]
        else:
            other = [e + p for e, p in zip(erased[0], position[n], strict=True)]
        features.append(token if kept else other)
    return features


def attention(tokens, w, heads, fixed):
    """MHSA_fix, Eq. 13-16, of which MHSA is the case without fixed tokens."""
    width = len(tokens[0]) // heads
    joined = [[] for _ in tokens]
    for head in range(heads):
        channels = slice(head * width, (head + 1) * width)
        queries = [linear(t, w["W_q"][channels], w["b_q"][channels]) for t in tokens[fixed:]]  # Eq. 13
        keys = [linear(t, w["W_k"][channels], w["b_k"][channels]) for t in tokens]
        values = [linear(t, w["W_v"][channels], w["b_v"][channels]) for t in tokens]
        for i in range(len(tokens)):
            if i < fixed:
                joined[i] += values[i]  # Eq. 15
                continue
            shares = softmax([dot(queries[i - fixed], key) / math.sqrt(width) for key in keys])
            joined[i] += [dot(shares, [v[d] for v in values]) for d in range(width)]  # Eq. 14
    return [linear(row, w["W_o"], w["b_o"]) for row in joined]  # Eq. 16, and all heads


def decoder_layer(tokens, w, heads, fixed, residual=False):
    """FFN(LN(MHSA(F))), Eq. 12."""

    def plus(first, second):
        return [a + b for a, b in zip(first, second, strict=True)] if residual else second

    moved = [plus(t, a) for t, a in zip(tokens, attention(tokens, w, heads, fixed), strict=True)]
    return [plus(t, feed_forward(layer_norm(t, w), w)) for t in moved]


# ------------------------------------------------------------------ 3.3 knowledge distillation


def mse(teacher, student, average=False):
    """L_mse = ||F_hp - F_op||^2, Eq. 17, of one image."""
    total = 0.0
    for first, second in zip(teacher, student, strict=True):
        for a, b in zip(first, second, strict=True):
            total = total + (a - b) ** 2
    return total / (len(teacher) * len(teacher[0])) if average else total


def cosine(teacher, student):
    """L_cos, Eq. 18, of one image: i runs over g, 1 ... K."""
    return mean([1 - dot(h, o) / (length(h) * length(o)) for h, o in zip(teacher, student, strict=True)])


def identity(logits, pid):
    """L_id of one feature: cross-entropy against the identity."""
    return -softmax(logits)[pid].log()


def divergence(teacher, student):
    """KL(f_hp || f_op) of two features' class distributions."""
    return sum(p * (p / q).log() for p, q in zip(softmax(teacher), softmax(student), strict=True))


def distillation(teacher, student, pid, alpha, beta):
    """L_kd, Eq. 19, of one image, from the logits of g, 1 ... K."""
    return mean(
        [alpha * identity(o, pid) + beta * divergence(h, o) for h, o in zip(teacher, student, strict=True)]
    )


# ------------------------------------------------------------------ 3.4 model optimisation


def encoder(holistic, occluded, pid):
    """L_en = L_id(f_o^g) + L_id(f_h^g), Eq. 20, of one image, from logits."""
    return identity(occluded, pid) + identity(holistic, pid)


def enlarge(state, grid, size):
    """The similarities of N patches, rearranged to their grid and bilinearly interpolated to pixels.

    A pixel's place is its centre's; beyond the outer patches' centres their values are kept.
    """

    def between(at, pixels, cells):
        place = min(max((at + 0.5) * cells / pixels - 0.5, 0), cells - 1)
        low = min(math.floor(place), max(cells - 2, 0))
        return low, min(low + 1, cells - 1), place - low

    plane = []
    for y in range(size[0]):
        top, bottom, down = between(y, size[0], grid[0])
        plane.append([])
        for x in range(size[1]):
            left, right, across = between(x, size[1], grid[1])
            corners = [
                (1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across
            ]  # fmt: skip
            rows = [state[r * grid[1] + c] for r in (top, bottom) for c in (left, right)]
            plane[-1].append([dot(corners, values) for values in zip(*rows, strict=True)])
    return plane


def mask(state, parsing, grid, temperature=1.0, average=False):
    """L_mask, Eq. 21, of one image: I~ are probabilities, M_k is 1 where the map says k."""
    size = len(parsing), len(parsing[0])
    plane, total = enlarge(state, grid, size), 0.0
    for y in range(size[0]):
        for x in range(size[1]):
            chances = softmax(plane[y][x], temperature)
            for k, probability in enumerate(chances):
                total = total - (int(parsing[y][x]) == k) * probability.log()
    return total / (size[0] * size[1]) if average else total


def patch_mask(state, parsing, patch, stride, temperature=1.0, average=False):
    """Eq. 21 over patches instead of pixels: M_k is the share of a patch that the map calls k."""
    tops = range(0, len(parsing) - patch + 1, stride)
    lefts = range(0, len(parsing[0]) - patch + 1, stride)
    total = 0.0
    for row, (top, left) in zip(state, [(y, x) for y in tops for x in lefts], strict=True):
        pixels = [int(parsing[top + y][left + x]) for y in range(patch) for x in range(patch)]
        for k, probability in enumerate(softmax(row, temperature)):
            total = total - pixels.count(k) / len(pixels) * probability.log()
    return total / len(state) if average else total


def triplet(features, pids, average=False):
    """L_tri over a batch: each image against its farthest match and its nearest stranger.

    With `average` a distance is the root of the mean, not of the sum, over channels.
    """
    losses, channels = [], len(features[0]) if average else 1
    for i, anchor in enumerate(features):
        gaps = [
            length([a - b for a, b in zip(anchor, f, strict=True)]) / channels**0.5
            for j, f in enumerate(features)
            if j != i
        ]
        others = [p for j, p in enumerate(pids) if j != i]
        match = max(gap for gap, pid in zip(gaps, others, strict=True) if pid == pids[i])
        stranger = min(gap for gap, pid in zip(gaps, others, strict=True) if pid != pids[i])
        losses.append((1 + (match - stranger).exp()).log())
    return mean(losses)


def part_triplet(features, pids, average=False):
    """L_tr = L_tri(f^g) + 1/K sum_i L_tri(f^i), Eq. 22; `features` has g, 1 ... K of each image."""
    each = [triplet([image[i] for image in features], pids, average) for i in range(len(features[0]))]
    return each[0] + mean(each[1:])


def total(mse, cos, kd, en, tr, mask, mu_1, mu_2):
    """L = (L_mse + mu_1 L_cos + L_kd) + (L_en + mu_2 L_tr) + L_mask, Eq. 23."""
    return (mse + mu_1 * cos + kd) + (en + mu_2 * tr) + mask


# ------------------------------------------------------------------ inference


def visible(plane):
    """v_1 ... v_K, Eq. 24, from I~ pixel by pixel."""
    best = [max(pixel[k] for row in plane for pixel in row) for k in range(len(plane[0][0]))]
    return [1 if value > 0 else 0 for value in best[1:]]


def winners(state):
    """v_1 ... v_K: whether a part is the one that some patch resembles most."""
    first = [max(range(len(row)), key=lambda k: row[k]) for row in state]
    return [1 if k in first else 0 for k in range(1, len(state[0]))]


def distance(query, gallery, visible_query, visible_gallery):
    """dist of two images, Eq. 25; features are g, 1 ... K, visibilities 1 ... K."""

    def gap(i):
        return length([a - b for a, b in zip(query[i], gallery[i], strict=True)])

    total, count = gap(0), 1
    for i, (q, g) in enumerate(zip(visible_query, visible_gallery, strict=True), 1):
        total = total + q * g * gap(i)
        count = count + q * g
    return total / count


# ------------------------------------------------------------------ what the paper leaves to custom


def layer_norm(row, w):
    """LN of a token."""
    centre = mean(row)
    spread = (mean([(x - centre) ** 2 for x in row]) + 1e-6) ** 0.5
    return [(x - centre) / spread * a + b for x, a, b in zip(row, w["scale"], w["shift"], strict=True)]


def feed_forward(row, w):
    """FFN: out to four times the width, GELU, and back."""
    wide = [x * (1 + (x / math.sqrt(2)).erf()) / 2 for x in linear(row, w["W_1"], w["b_1"])]
    return linear(wide, w["W_2"], w["b_2"])


def batch_norm(rows, scale, eps=1e-5):
    """B features as the neck makes them in training, channel by channel; it has no shift."""
    columns = []
    for channel, factor in zip(zip(*rows, strict=True), scale, strict=True):
        centre = mean(channel)
        spread = (mean([(x - centre) ** 2 for x in channel]) + eps) ** 0.5
        columns.append([(x - centre) / spread * factor for x in channel])
    return [list(row) for row in zip(*columns, strict=True)]


def running_norm(row, scale, centre, variance, eps=1e-5):
    """A feature as the neck makes it afterwards, from the statistics that it kept."""
    return [(x - m) / (v + eps) ** 0.5 * s for x, s, m, v in zip(row, scale, centre, variance, strict=True)]
