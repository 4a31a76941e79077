# SPDX-License-Identifier: MIT
"""Other cache codings, to compare with: what they read back, and their bits.

Formulas as in the papers, simulated: values are rounded to what the coding can
hold and computed with in f32. Scales and zeros are rounded to fp16. Tokens
that a reader keeps in fp16 at the start (sinks) take no part in any range.
"""
import math

import numpy as np
import torch

SCALE_BITS = 16


def half(x):
    """Rounded to what fp16 holds."""
    return x.half().to(x.dtype)


def uniform(x, bits, dim=-1):
    """Asymmetric min-max rounding over dim: z = min, s = (max - min) / (2^b - 1)."""
    lo = half(x.amin(dim, keepdim=True))
    step = half((x.amax(dim, keepdim=True) - lo) / (2 ** bits - 1)).clamp(min=1e-8)
    return ((x - lo) / step).round().clamp(0, 2 ** bits - 1) * step + lo


def flat(x):
    """[batch][kv head][token][d] -> [batch][token][all channels of the token]"""
    return x.transpose(1, 2).flatten(2)


def unflat(y, like):
    """Undo flat()."""
    b, h, t, d = like.shape
    return y.reshape(b, t, h, d).transpose(1, 2)


def per_token(x, bits, group):
    """Each token's channels in groups that have a range of their own."""
    y = flat(x)
    if y.shape[-1] % group:
        raise ValueError(f"group {group} does not divide {y.shape[-1]} channels")
    return unflat(uniform(y.unflatten(-1, (-1, group)), bits).flatten(-2), x)


def per_channel(x, bits, group, sinks=0):
    """Each channel's tokens in groups that have a range of their own."""
    n = x.shape[2]
    y = x.clone()
    y[:, :, :min(sinks, n)] = y[:, :, min(sinks, n - 1), None]
    pad = -n % group
    y = torch.cat([y, y[:, :, -1:].expand(-1, -1, pad, -1)], 2)
    y = uniform(y.unflatten(2, (-1, group)), bits, 3).flatten(2, 3)
    return y[:, :, :n]


class Peer:
    """A coding with the same bits everywhere and nothing stored once."""

    rotated = True

    def __init__(self, name, family, bits):
        self.name, self.family, self._bits = name, family, bits

    def bits(self, layer, kv):
        return self._bits

    def model_bits(self):
        return 0


class IntToken(Peer):
    """Uniform, a range per token and group of channels."""

    def __init__(self, bits, group):
        super().__init__(f"int{bits}-g{group}", "int", bits + 2 * SCALE_BITS / group)
        self.levels, self.group = bits, group

    def code(self, layer, kv, x):
        return per_token(x, self.levels, self.group)


class Kivi(Peer):
    """KIVI (Liu et al., arXiv 2402.02750): keys per channel, values per token."""

    def __init__(self, bits, group, sinks=4):
        super().__init__(f"kivi{bits}-g{group}", "kivi", bits + 2 * SCALE_BITS / group)
        self.levels, self.group, self.sinks = bits, group, sinks

    def code(self, layer, kv, x):
        if kv == "k":
            return per_channel(x, self.levels, self.group, self.sinks)
        return per_token(x, self.levels, min(self.group, x.shape[1] * x.shape[3]))


class Fp8(Peer):
    """e4m3 without a scale: 3 bits of mantissa, exponents -6 to 8, at most 448."""

    def __init__(self):
        super().__init__("fp8-e4m3", "fp8", 8)

    def code(self, layer, kv, x):
        step = 2.0 ** (torch.floor(torch.log2(x.abs().clamp(min=2.0 ** -6))) - 3)
        return ((x / step).round() * step).clamp(-448, 448)


def hadamard(d):
    """Orthogonal [d][d]: Sylvester's for a power of 2, else of a fixed random matrix."""
    if d & (d - 1):
        noise = torch.randn(d, d, generator=torch.Generator().manual_seed(d))
        return torch.linalg.qr(noise.double())[0].float()
    h = torch.ones(1, 1)
    while len(h) < d:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(d)


class HadamardInt(Peer):
    """QuaRot (Ashkboos et al., arXiv 2404.00456): rotated, then uniform per token."""

    def __init__(self, bits, group):
        super().__init__(f"hadamard{bits}-g{group}", "hadamard",
                         bits + 2 * SCALE_BITS / group)
        self.levels, self.group = bits, group

    def code(self, layer, kv, x):
        h = hadamard(x.shape[-1])
        return per_token(x @ h, self.levels, self.group) @ h.T


def lloyd_max(bits):
    """The 2^bits levels with the least squared error for a normal variable."""
    grid = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    weight = torch.exp(-grid ** 2 / 2)
    levels = torch.linspace(-2, 2, 2 ** bits, dtype=torch.float64)
    for _ in range(500):
        at = torch.bucketize(grid, (levels[1:] + levels[:-1]) / 2)
        mass = torch.zeros_like(levels).index_add_(0, at, weight)
        levels = torch.zeros_like(levels).index_add_(0, at, weight * grid) / mass
    return levels.float()


class Turbo(Peer):
    """TurboQuant (Zandieh et al., arXiv 2504.19874), the variant for squared error:
    norm, random rotation, the normal distribution's best levels for each channel."""

    def __init__(self, bits, d, seed=1):
        super().__init__(f"turbo{bits}", "turbo", bits + SCALE_BITS / d)
        signs = torch.randint(0, 2, (d,), generator=torch.Generator().manual_seed(seed))
        self.turn = torch.diag(signs * 2.0 - 1) @ hadamard(d)
        self.levels = lloyd_max(bits)

    def code(self, layer, kv, x):
        norm = half(x.norm(dim=-1, keepdim=True)).clamp(min=1e-8)
        y = x @ self.turn / norm * math.sqrt(x.shape[-1])
        at = torch.bucketize(y, (self.levels[1:] + self.levels[:-1]) / 2)
        return self.levels[at] / math.sqrt(x.shape[-1]) * norm @ self.turn.T


def weighted_levels(x, w, n, rounds=30):
    """1-D weighted k-means for each row of x [row][sample]: levels [row][n], ascending."""
    x, order = x.sort(-1)
    w = w.gather(-1, order) + 1e-12
    share = w.cumsum(-1) / w.sum(-1, keepdim=True)
    want = ((torch.arange(n) + 0.5) / n).expand(len(x), n).contiguous()
    at = torch.searchsorted(share.contiguous(), want).clamp(max=x.shape[-1] - 1)
    levels = x.gather(-1, at)
    for _ in range(rounds):
        mid = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        at = torch.searchsorted(mid, x.contiguous())
        mass = torch.zeros_like(levels).scatter_add_(-1, at, w)
        sums = torch.zeros_like(levels).scatter_add_(-1, at, w * x)
        levels = torch.where(mass > 0, sums / mass.clamp(min=1e-30), levels).sort(-1)[0]
    return levels


def nearest(x, levels):
    """x [row][sample] -> the nearest of levels [row][n], ascending."""
    mid = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return levels.gather(-1, torch.searchsorted(mid, x.contiguous()))


class KvQuant(Peer):
    """KVQuant (Hooper et al., arXiv 2401.18079): keys before RoPE with levels of
    their own for each channel, values normalised per token with levels of their
    own for each layer; levels by Fisher-weighted k-means; a share of outliers is
    kept apart in fp16, keys' by thresholds of the calibration, values' per token.
    """

    rotated = False
    SAMPLES = 4096
    OUTLIER_BITS = 16 + 16     # value and place

    def __init__(self, bits, dump, geometry, outliers=0.01, sinks=4):
        channels = geometry["n_kv_heads"] * geometry["head_dim"]
        mark = f"-{outliers:.0%}".replace("-0%", "")
        super().__init__(f"kvquant{bits}{mark}", "kvquant",
                         bits + outliers * self.OUTLIER_BITS)
        self.token_bits = 2 * SCALE_BITS / channels
        self.levels_n, self.outliers = 2 ** bits, outliers
        self.once = geometry["n_layers"] * SCALE_BITS * (
            channels * (self.levels_n + 2) + self.levels_n)
        self.k, self.v = [], []
        for layer in range(geometry["n_layers"]):
            self._learn(dump, layer, sinks)

    def bits(self, layer, kv):
        return self._bits + (self.token_bits if kv == "v" else 0)

    def model_bits(self):
        return self.once

    def _sample(self, dump, name, sinks):
        x = dump[name]
        pick = np.random.default_rng(1).permutation(np.arange(sinks, x.shape[1]))
        pick = np.sort(pick[:self.SAMPLES])
        return torch.from_numpy(np.array(x[:, pick], np.float32))

    def _learn(self, dump, layer, sinks):
        k, g = (self._sample(dump, f"layers.{layer}.k{end}", sinks).transpose(1, 2).flatten(0, 1)
                for end in ("", ".fisher"))
        cut = self.outliers / 2
        lo, hi = k.quantile(cut, -1, keepdim=True), k.quantile(1 - cut, -1, keepdim=True)
        inside = (k >= lo) & (k <= hi)
        self.k.append((lo, hi, half(weighted_levels(k, g * inside, self.levels_n))))
        v, g = (self._sample(dump, f"layers.{layer}.v{end}", sinks).transpose(0, 1).flatten(1)
                for end in ("", ".fisher"))
        y, _, _, out = self._normalise(v)
        levels = weighted_levels(y.reshape(1, -1), (g * ~out).reshape(1, -1), self.levels_n)
        self.v.append(half(levels))

    def _normalise(self, v):
        """Rows [token][channel] to -1..1 by their range without outliers."""
        n = math.ceil(v.shape[-1] * self.outliers / 2)
        order = v.sort(-1)[0]
        lo, hi = order[:, n, None], order[:, -1 - n, None]
        mid, reach = half((hi + lo) / 2), half((hi - lo) / 2).clamp(min=1e-6)
        return (v - mid) / reach, mid, reach, (v < lo) | (v > hi)

    def code(self, layer, kv, x):
        if kv == "k":
            rows = x.permute(1, 3, 0, 2).reshape(x.shape[1] * x.shape[3], -1)
            lo, hi, levels = self.k[layer]
            y = nearest(rows, levels)
            if self.outliers:
                y = torch.where((rows < lo) | (rows > hi), half(rows), y)
            return y.reshape(x.shape[1], x.shape[3], x.shape[0], x.shape[2]).permute(2, 0, 3, 1)
        rows = flat(x).flatten(0, 1)
        y, mid, reach, out = self._normalise(rows)
        y = nearest(y.reshape(1, -1), self.v[layer]).reshape(rows.shape) * reach + mid
        return unflat(torch.where(out, half(rows), y), x)
