# SPDX-License-Identifier: MIT
"""Other codings against their formulas, computed value by value."""
import math

import numpy as np
import torch
from cq import peers

GEOMETRY = {"n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}


def cache(tokens=64, seed=1):
    x = torch.randn(1, 2, tokens, 16, generator=torch.Generator().manual_seed(seed))
    return x * torch.linspace(0.5, 3, 16)


def h16(x):
    return float(np.float16(x))


def minmax(values, bits):
    """One group, as INT quantisation is defined."""
    lo = h16(min(values))
    step = h16((max(values) - lo) / (2 ** bits - 1))
    return [min(max(round((v - lo) / step), 0), 2 ** bits - 1) * step + lo for v in values]


def close(got, want):
    assert torch.allclose(got, torch.as_tensor(want, dtype=got.dtype), atol=2e-5), (got, want)


def test_int_per_token_has_a_range_for_each_group():
    x = cache()
    got = peers.IntToken(3, 8).code(0, "k", x)
    for head, token, first in ((0, 0, 0), (1, 63, 8), (0, 17, 8)):
        want = minmax(x[0, head, token, first:first + 8].tolist(), 3)
        close(got[0, head, token, first:first + 8], want)
    assert peers.IntToken(3, 8).bits(0, "k") == 3 + 32 / 8


def test_int_groups_may_span_heads():
    x = cache()
    got = peers.IntToken(2, 32).code(0, "v", x)
    want = minmax(torch.cat([x[0, 0, 5], x[0, 1, 5]]).tolist(), 2)
    close(torch.cat([got[0, 0, 5], got[0, 1, 5]]), want)


def test_kivi_codes_keys_by_channel_and_values_by_token():
    x = cache()
    coder = peers.Kivi(2, 32, sinks=4)
    k, v = coder.code(0, "k", x), coder.code(0, "v", x)
    close(k[0, 1, 32:64, 3], minmax(x[0, 1, 32:64, 3].tolist(), 2))
    close(k[0, 1, 4:32, 3], minmax(x[0, 1, 4:32, 3].tolist(), 2))
    close(torch.cat([v[0, 0, 9], v[0, 1, 9]]),
          minmax(torch.cat([x[0, 0, 9], x[0, 1, 9]]).tolist(), 2))
    assert coder.bits(0, "k") == 3


def test_kivi_does_not_let_sinks_widen_a_range():
    x = cache()
    x[:, :, 0] = 1000
    k = peers.Kivi(2, 32, sinks=4).code(0, "k", x)
    assert (k[0, 0, 4:32] - x[0, 0, 4:32]).abs().max() < 4


def test_hadamard_turns_and_turns_back():
    h = peers.hadamard(16)
    close(h @ h.T, torch.eye(16))
    assert h.abs().eq(0.25).all()
    r = peers.hadamard(12)
    close(r @ r.T, torch.eye(12))
    x = cache()
    got = peers.HadamardInt(4, 16).code(0, "k", x)
    turned = [sum(x[0, 1, 7, i].item() * h[i, j].item() for i in range(16)) for j in range(16)]
    close(got[0, 1, 7] @ h, minmax(turned, 4))


def test_turbo_levels_are_those_of_lloyd_and_max():
    # Max, Quantizing for Minimum Distortion, 1960, table I
    for bits, want in ((1, [0.7980]), (2, [0.4528, 1.510]), (3, [0.2451, 0.7560, 1.344, 2.152])):
        levels = peers.lloyd_max(bits)
        assert torch.allclose(levels[len(want):], torch.tensor(want), atol=2e-3), levels
        assert torch.allclose(levels, -levels.flip(0), atol=1e-3)


def test_turbo_codes_directions():
    x = torch.randn(1, 2, 400, 64, generator=torch.Generator().manual_seed(2)) * 5
    coder = peers.Turbo(2, 64)
    error = (coder.code(0, "k", x) - x).pow(2).sum() / x.pow(2).sum()
    assert abs(error.item() - 0.1175) < 0.01, error     # Max: 0.1175 at 2 bit
    close(coder.code(0, "k", x * 4), coder.code(0, "k", x) * 4)
    assert coder.bits(0, "v") == 2 + 16 / 64


def test_fp8_has_the_values_of_e4m3():
    values = sorted({m * 2.0 ** (e - 3) for e in range(-6, 9) for m in range(8, 16)} |
                    {m * 2.0 ** -9 for m in range(8)})
    values = [v for v in values if v <= 448]
    x = torch.rand(1, 1, 50, 16, generator=torch.Generator().manual_seed(3)) * 3
    x[0, 0, 0, :3] = torch.tensor([1000.0, 0.001, 447.0])
    got = peers.Fp8().code(0, "k", x)
    for a, b in zip(x.flatten().tolist(), got.flatten().tolist()):
        nearest = min(abs(a - v) for v in values)
        assert b in values and math.isclose(abs(a - b), nearest, rel_tol=1e-6), (a, b)


def test_weighted_levels_are_a_fixed_point():
    g = torch.Generator().manual_seed(4)
    x, w = torch.randn(2, 500, generator=g), torch.rand(2, 500, generator=g)
    levels = peers.weighted_levels(x, w, 4, rounds=200)
    for row in range(2):
        at = [min(range(4), key=lambda i: abs(v - levels[row, i].item()))
              for v in x[row].tolist()]
        for i in range(4):
            own = torch.tensor([a == i for a in at])
            mean = (x[row, own] * w[row, own]).sum() / w[row, own].sum()
            assert abs(mean - levels[row, i]) < 1e-3


def dump_of(x):
    return {"layers.0.k": x[0].numpy(), "layers.0.v": x[0].numpy(),
            "layers.0.k.fisher": np.ones(x[0].shape, np.float32),
            "layers.0.v.fisher": np.ones(x[0].shape, np.float32)}


def test_kvquant_has_levels_for_each_channel_of_keys():
    x = cache(512)
    coder = peers.KvQuant(2, dump_of(x), GEOMETRY, outliers=0, sinks=0)
    got = coder.code(0, "k", x)
    for head, ch in ((0, 0), (1, 15)):
        assert len(got[0, head, :, ch].unique()) == 4
        spread = x[0, head, :, ch].std()
        error = (got[0, head, :, ch] - x[0, head, :, ch]).pow(2).mean().sqrt() / spread
        assert error < 0.37, error      # Max: sqrt(0.1175) = 0.343
    assert coder.bits(0, "k") == 2 and coder.bits(0, "v") == 2 + 32 / 32


def test_kvquant_keeps_outliers():
    x = cache(512)
    x[0, 1, 77, 5] = 90
    kept = peers.KvQuant(2, dump_of(x), GEOMETRY, outliers=0.01, sinks=0)
    for kv in "kv":
        assert kept.code(0, kv, x)[0, 1, 77, 5] == 90
    assert abs(kept.bits(0, "k") - 2.32) < 1e-9


def test_kvquant_normalises_values_by_token():
    x = cache(512)
    coder = peers.KvQuant(3, dump_of(x), GEOMETRY, outliers=0, sinks=0)
    y = torch.cat([x, x[:, :, :1] * 100], 2)
    a, b = coder.code(0, "v", y)[0, :, 0], coder.code(0, "v", y)[0, :, -1]
    assert torch.allclose(a * 100, b, rtol=2e-2, atol=1e-1), (a, b)
