# SPDX-License-Identifier: MIT
"""RoPE: what a config.json says of it, and the rotation that a dump's metadata names."""
import math

import torch

from .attention import plain

PAIRS = ("half", "interleaved")
PROBE_TOKENS = 64
TOLERANCE = 1e-3


def settings(config):
    """(theta, kind of scaling, its numbers, rotated share of a head) of a config as a dict.

    rope_parameters is what newer versions of transformers write; rope_theta,
    rope_scaling and partial_rotary_factor are what older ones do.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"RoPE scaling {given!r}: an object is wanted")
    if any(isinstance(v, dict) for v in given.values()):
        raise ValueError("RoPE that differs by layer is not known here")
    theta = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    share = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    for name, value, most in (("rope_theta", theta, 1e12), ("partial_rotary_factor", share, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or \
                not 0 < value <= most:
            raise ValueError(f"{name} {value!r} is out of range")
    return float(theta), given.get("rope_type", given.get("type", "default")), given, share


def frequencies(rope):
    """Angle per position of each pair (f64), for the metadata of a dump."""
    d = int(rope["rope_dim"])
    freq = float(rope["rope_theta"]) ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    kind = rope.get("rope_scaling")
    if kind is None:
        return freq
    slow = freq / float(rope["rope_factor"])
    if kind == "linear":
        return slow
    low, high = float(rope["rope_low_freq_factor"]), float(rope["rope_high_freq_factor"])
    turns = float(rope["rope_original_max_position"]) * freq / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return share * freq + (1 - share) * slow


def angles(rope, tokens):
    """(cosine, sine) [token][pair] of positions from 0 on."""
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies(rope)
    return angle.cos().float(), angle.sin().float()


def turn(x, cos, sin, pairs="half"):
    """Rotate the leading channels of x [...][token][d]; the others stay."""
    n = 2 * cos.shape[-1]
    head, rest = x[..., :n], x[..., n:]
    if pairs == "half":
        a, b = head.chunk(2, -1)
        out = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = head[..., ::2], head[..., 1::2]
        out = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([out, rest], -1) if rest.shape[-1] else out


class Probe:
    """A tap that finds which channels a model's own rotation turns together.

    pairs: those of PAIRS that every layer so far agrees with; layers: how many came.
    """

    def __init__(self, rope):
        self.rope, self.pairs, self.layers = rope, PAIRS, 0

    def attend(self, layer, q, k, v, rotate, scale, softcap=None, sliding=None):
        x = torch.randn(k.shape, generator=torch.Generator().manual_seed(layer))
        got, (cos, sin) = rotate(x), angles(self.rope, k.shape[2])
        self.pairs = [p for p in self.pairs
                      if (turn(x, cos, sin, p) - got).abs().max() < TOLERANCE]
        self.layers += 1
        return plain(q, rotate(k), v, scale, softcap, sliding)
