# SPDX-License-Identifier: MIT
"""Vector quantisation at widths that the codec does not store, to compare with it.

Weighted k-means as in the paper (arXiv 2405.03917): c channels share a code of
b bits. Only for evaluation.
"""
import numpy as np
import torch

ROUNDS, SAMPLES, EACH = 20, 8192, 128   # tokens to learn from: at least so many, and per centroid
CLIP = 0.99                             # as cqctl calibrate does
AT_ONCE = 1 << 22                       # distances


def _start(x, w, n, generator):
    """k-means++ for each group: x [group][token][c], w [group][token]."""
    group = torch.arange(len(x))
    pick = torch.multinomial(w, 1, generator=generator)[:, 0]
    centres = [x[group, pick]]
    near = (x - centres[0][:, None]).pow(2).sum(-1)
    while len(centres) < n:
        pick = torch.multinomial(w * near + 1e-20, 1, generator=generator)[:, 0]
        centres.append(x[group, pick])
        near = torch.minimum(near, (x - centres[-1][:, None]).pow(2).sum(-1))
    return torch.stack(centres, 1)


def assign(x, centres):
    """Index of the nearest of centres [group][n][c] for x [group][token][c]."""
    half = centres.pow(2).sum(-1)[:, None] / 2
    step = max(1, AT_ONCE // (centres.shape[0] * centres.shape[1]))
    return torch.cat([(half - part @ centres.transpose(1, 2)).argmin(-1)
                      for part in x.split(step, 1)], 1)


def learn(x, w, n, seed=1):
    """Centroids [group][n][c] of x [group][token][c] with weights [group][token]."""
    centres = _start(x, w, n, torch.Generator().manual_seed(seed))
    for _ in range(ROUNDS):
        at = assign(x, centres)
        mass = torch.zeros(centres.shape[:2]).scatter_add_(1, at, w)
        wide = at[..., None].expand_as(x)
        sums = torch.zeros_like(centres).scatter_add_(1, wide, x * w[..., None])
        centres = torch.where(mass[..., None] > 0, sums / mass.clamp(min=1e-30)[..., None],
                              centres)
    return centres


def clipped(g):
    """g with what exceeds its quantile CLIP over tokens (dimension 1) cut to that."""
    rank = int((g.shape[1] - 1) * CLIP) + 1
    return torch.minimum(g, g.kthvalue(rank, 1, keepdim=True).values)


class Coupled:
    """c channels, b bits, learnt from a dump with Fisher weights per token.

    both: also with a weight per channel, in learning and coding, and all of them
    clipped: what the codec does by default.
    """

    family, rotated = "coupled", False

    def __init__(self, c, b, dump, geometry, sinks=4, both=False):
        self.name, self.c, self.b, self.both = f"{c}c{b}b", c, b, both
        self.books, d = {}, geometry["head_dim"]
        self.once = geometry["n_layers"] * 2 * geometry["n_kv_heads"] * d * 2 ** b * 16
        for layer in range(geometry["n_layers"]):
            for kv in "kv":
                x, g = (self._groups(dump[f"layers.{layer}.{kv}{end}"], sinks)
                        for end in ("", ".fisher"))
                self.books[layer, kv] = self._learn(x, g)

    def _learn(self, x, g):
        """(centroids [group][n][c], what x is multiplied by first [group][1][c])"""
        root = torch.ones_like(x[:, :1])
        if self.both:
            metric = clipped(g).mean(1, keepdim=True) + 1e-30
            metric = metric / metric.mean(-1, keepdim=True)
            root, g = metric.sqrt(), g / metric
        w = g.sum(-1)
        return learn(x * root, clipped(w) if self.both else w, 2 ** self.b), root

    def _groups(self, x, sinks):
        """[head][token][d] -> [head * group][token][c], tokens thinned out"""
        step = max(1, (x.shape[1] - sinks) // max(SAMPLES, EACH << self.b))
        x = torch.from_numpy(np.array(x[:, sinks::step], np.float32))
        return self._split(x)

    def _split(self, x):
        h, t, d = x.shape
        return x.reshape(h, t, d // self.c, self.c).transpose(1, 2).reshape(-1, t, self.c)

    def code(self, layer, kv, x):
        centres, root = self.books[layer, kv]
        out = []
        for one in x:
            at = assign(self._split(one) * root, centres)
            y = centres.gather(1, at[..., None].expand(-1, -1, self.c)) / root
            h, t, d = one.shape
            out.append(y.reshape(h, d // self.c, t, self.c).transpose(1, 2).reshape(h, t, d))
        return torch.stack(out)

    def bits(self, layer, kv):
        return self.b / self.c

    def model_bits(self):
        return self.once


def entropy(x, bins=16, most=4):
    """Mean joint entropy (bits) of 1..most neighbouring channels of x [token][d].

    The paper's section 3.1: each channel in 16 equal bins over its range.
    """
    lo, hi = np.percentile(x, [0.1, 99.9], axis=0)
    at = np.clip(((x - lo) / np.maximum(hi - lo, 1e-9) * bins).astype(np.int64), 0, bins - 1)
    out = []
    for n in range(1, most + 1):
        found = []
        for first in range(0, x.shape[1] - n + 1, n):
            key = np.zeros(len(x), np.int64)
            for ch in range(first, first + n):
                key = key * bins + at[:, ch]
            p = np.unique(key, return_counts=True)[1] / len(x)
            found.append(-(p * np.log2(p)).sum())
        out.append(float(np.mean(found)))
    return out
