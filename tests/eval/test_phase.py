# SPDX-License-Identifier: MIT
"""Turns of keys within the pairs of RoPE."""
import itertools

import numpy as np
import torch
from cq import phase, rope


def test_a_turn_of_keys_and_queries_changes_no_product():
    draw = np.random.default_rng(1)
    for pairs, part in itertools.product(rope.PAIRS, (16, 12)):
        told = {"rope": pairs, "rope_dim": str(part), "rope_theta": "100"}
        weights = {f"model.layers.1.self_attn.{name}_proj.{end}":
                   draw.normal(size=(heads * 16, *[10] * (end == "weight")))
                   for name, heads in (("q", 4), ("k", 2)) for end in ("weight", "bias")}
        kept = dict(weights)
        geometry = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
        x, (cos, sin) = draw.normal(size=(9, 10)), rope.angles(told, 9)
        products = []
        for _ in range(2):
            q, k = (torch.from_numpy(x @ weights[f"model.layers.1.self_attn.{p}_proj.weight"].T +
                                     weights[f"model.layers.1.self_attn.{p}_proj.bias"])
                    .reshape(9, heads, 16).transpose(0, 1) for p, heads in (("q", 4), ("k", 2)))
            q, k = (rope.turn(y, cos.double(), sin.double(), pairs) for y in (q, k))
            products.append(q @ k.repeat_interleave(2, 0).transpose(1, 2))
            phase.fold(weights, geometry, told, 1, draw.uniform(0, 7, (2, part // 2)))
        assert torch.allclose(*products), pairs
        assert not any(np.allclose(weights[name], kept[name]) for name in weights)


def twisted(tokens=2000):
    """Keys of 4 pairs that are one circular variable, each at an angle of its own, and noise."""
    draw = np.random.default_rng(2)
    z = draw.normal(size=tokens) + 1j * draw.normal(size=tokens)
    z = z[:, None] * np.exp(1j * np.array([0, 0.7, 2.1, 1.3])) * [1, 2, 0.5, 1]
    z += 0.1 * (draw.normal(size=z.shape) + 1j * draw.normal(size=z.shape))
    return np.concatenate([z.real, z.imag], 1)


def test_pairs_that_move_together_are_turned_to_do_so():
    k, (first, second) = twisted(), phase.channels({"rope": "half", "rope_dim": "8"})
    angles = phase.angles_of(k, np.ones(8), first, second)
    after = phase.turned(k[..., None], first, second, angles)[..., 0]
    assert phase.volume(np.cov(after.T)) < 0.5 * phase.volume(np.cov(k.T))
    near = np.corrcoef(after[:, :4].T)
    assert (np.abs(near) > 0.9).all(), near


def test_keys_that_are_0_or_count_for_nothing_stay():
    k, (first, second) = twisted(), phase.channels({"rope": "half", "rope_dim": "8"})
    assert (phase.angles_of(k, np.zeros(8), first, second) == 0).all()
    assert (phase.angles_of(k * 0, np.ones(8), first, second) == 0).all()


def test_pairs_are_those_of_the_model():
    for pairs, want in (("half", ([0, 1], [2, 3])), ("interleaved", ([0, 2], [1, 3]))):
        got = phase.channels({"rope": pairs, "rope_dim": "4"})
        assert [list(x) for x in got] == list(want)
