# SPDX-License-Identifier: MIT
"""Turns of keys that RoPE leaves alone.

RoPE turns the two channels of a pair by an angle that grows with the position.
One more angle for each pair, the same for all positions and for the queries that
meet the keys, changes no product of both. It decides which mixture of the two
becomes which channel, and so how much the channels that share a code vary
together: the less the determinant of their covariance, the less is lost. Each
angle in turn is moved to where the sum of these determinants' roots is least.
"""
import numpy as np

GROUP = 4       # channels of a code; those of 2c8b and 8c8b gain as well
ANGLES = 32     # that are tried, of half a turn: the other half only changes signs
SWEEPS = 20     # at most


def channels(rope):
    """The first and the second channels of all pairs; rope: a dump's metadata."""
    pairs = np.arange(int(rope["rope_dim"]) // 2)
    if rope["rope"] == "half":
        return pairs, pairs + len(pairs)
    return 2 * pairs, 2 * pairs + 1


def turned(x, first, second, angles):
    """x [...][channel][any] with each pair of channels turned by its angle [...][pair]."""
    cos, sin = np.cos(angles)[..., None], np.sin(angles)[..., None]
    a, b = x[..., first, :], x[..., second, :]
    out = x.copy()
    out[..., first, :], out[..., second, :] = a * cos - b * sin, b * cos + a * sin
    return out


def volume(cov):
    """What two codes lose in proportion: one of the first channels, one of the second."""
    n = len(cov) // 2
    return sum(max(np.linalg.det(cov[i:i + n, i:i + n]), 0) ** (1 / n) for i in (0, n))


def _turn(cov, pair, angle):
    """The covariance of n pairs, first channels before second ones, one of them turned."""
    n = len(cov) // 2
    angles = np.zeros(n)
    angles[pair] = angle
    for _ in range(2):
        cov = turned(cov, np.arange(n), np.arange(n) + n, angles).T
    return cov


def best(cov):
    """Angles of n pairs with the least volume(), of the covariance that _turn() takes."""
    n, found = len(cov) // 2, np.zeros(len(cov) // 2)
    cov = cov + np.eye(2 * n) * np.trace(cov) * 1e-9
    least = volume(cov)
    for _ in range(SWEEPS):
        before = least
        for pair in range(n):
            tried = [(volume(_turn(cov, pair, np.pi * i / ANGLES)), i) for i in range(ANGLES)]
            value, i = min(tried)
            if value < least * (1 - 1e-9):
                cov, least = _turn(cov, pair, np.pi * i / ANGLES), value
                found[pair] += np.pi * i / ANGLES
        if not least < before * (1 - 1e-4):
            break
    return found


def angles_of(k, weight, first, second):
    """Angle of each pair for one head's keys [token][d]; weight [d]: of their errors."""
    size = np.sqrt((weight[first] + weight[second]) / 2)
    y = k - k.mean(0)
    y[:, first] *= size
    y[:, second] *= size
    found = np.zeros(len(first))
    for at in range(0, len(first), GROUP):
        part = slice(at, at + GROUP)
        cov = np.cov(y[:, np.concatenate([first[part], second[part]])].T)
        found[part] = best(cov)
    return found


def fold(weights, geometry, rope, layer, angles):
    """Turn keys and queries of a layer by angles [kv head][pair], in place."""
    again = geometry["n_heads"] // geometry["n_kv_heads"]
    for proj, turn in (("k_proj", angles), ("q_proj", np.repeat(angles, again, 0))):
        for end in (".weight", ".bias"):
            name = f"model.layers.{layer}.self_attn.{proj}{end}"
            w = weights.get(name)
            if w is not None:
                x = w.reshape(len(turn), geometry["head_dim"], -1)
                weights[name] = turned(x, *channels(rope), turn).reshape(w.shape)
