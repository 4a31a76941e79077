#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Expected times of the attention kernels, from what they do for a token and kv head.

    gpu-model.py [--check]

Shared memory is simulated: the addresses of attn_few.cu with random codes, by banks.
Instructions are those of the path through one tile, as cuda-sass.py --blocks counts them.
Nothing here was measured. --check fails unless gathers are free of conflicts where
Documentation/gpu.md says so.
"""
import random
import sys

SMS, CLOCK = 132, 1.755e9
HBM = {"H100": 3.35e12, "H200": 4.8e12}
MMA_CLOCKS = 2.0        # of a multiprocessor, for mma.sync m16n8k16: 1024 FMA per clock
STRIDE = 80             # CQKD_FEW_STRIDE
GQA = 4                 # query heads of a kv head

# Instructions of a warp for 16 tokens, and those of them that the unit of half the width
# (selects, permutes, logic, comparisons) computes; head_dim 128, sm_90. Tile: tokens seen,
# keys loaded, turned, untangled and multiplied, values loaded, untangled and multiplied; by
# channels of a unit. Page: codes and queries got ready, and for each 128 pieces of 16 bytes.
FEW_TILE = {4: (27 + 73 + 80 + 109 + 64 + 113, 9 + 34 + 0 + 78 + 33 + 101),
            2: (33 + 137 + 80 + 141 + 123 + 148, 9 + 66 + 0 + 111 + 66 + 136)}
SOFTMAX = (41 + 40 + 25 + 8, 12 + 14 + 14)
FEW_PAGE = (180, 52)
FEW_PIECES = (23, 13)
F16_TILE = (2 * 51 + 2 * 74 + 52 + 31, 130)


def wavefronts(addresses, size):
    """Passes of shared memory for one load of a warp: lanes in groups of 128 bytes."""
    lanes = min(32, 128 // size)
    count = 0
    for first in range(0, 32, lanes):
        words = {}
        for at in addresses[first:first + lanes]:
            for word in range(at // 4, (at + size + 3) // 4):
                words.setdefault(word % 32, set()).add(word)
        count += max(len(w) for w in words.values())
    return count


def key_gather(d, unit, step):
    """Lanes' addresses of one load of keys: attn_few.cu, keys_of_codes()."""
    sets = d // 8 // unit
    at = []
    for lane in range(32):
        first = lane % 4 | lane // 4 % sets * 4
        at.append(random.randrange(256) * 2 * d + (first * 2 * unit ^ 8 * step * unit))
    return wavefronts(at, 2 * unit)


def value_gather(d, unit, step):
    """The same of values: values_of_codes()."""
    count = d // 8 // unit
    at = []
    for lane in range(32):
        order = (lane % 4 | lane // 16 * 4) & (count - 1)
        first = lane // 4 * count | order
        at.append(random.randrange(256) * 2 * d + (first * 2 * unit ^ 2 * step * unit))
    return wavefronts(at, 2 * unit)


def key_codes(d, unit, c, step):
    """Lanes' addresses of the codes of two tokens."""
    sets = d // 8 // unit
    at = []
    for lane in range(32):
        first = lane % 4 | lane // 4 % sets * 4
        at.append(((first ^ 4 * step) * unit // c) * STRIDE + lane // 4 * 2)
    return wavefronts(at, 2)


def value_codes(d, unit, c, step):
    """Those of four tokens."""
    count = d // 8 // unit
    at = []
    for lane in range(32):
        order = (lane % 4 | lane // 16 * 4) & (count - 1)
        first = lane // 4 * count | order
        at.append(((first ^ step) * unit // c) * STRIDE + lane % 4 * 4)
    return wavefronts(at, 4)


def mean(fn, steps):
    """Mean over steps and some random codes."""
    return sum(fn(s) for s in range(steps) for _ in range(16)) / (16 * steps)


def gathers(d, c):
    """Wavefronts of one gather of K and of V, and the least there can be."""
    unit = min(c, 4)
    steps = d // 8 // unit
    return (mean(lambda s: key_gather(d, unit, s), steps),
            mean(lambda s: value_gather(d, unit, s), steps), unit * 2 * 32 / 128)


def few(c, d=128):
    """(bytes, wavefronts, instructions, of the ALU, mma) of a token and kv head in attn_few.cu."""
    unit = min(c, 4)
    steps = d // 8 // unit
    k, v, _ = gathers(d, c)
    waves = 2 * 2 * steps * k + 4 * steps * v               # units of two, of four tokens
    waves += 2 * steps * mean(lambda s: key_codes(d, unit, c, s), steps)
    waves += steps * mean(lambda s: value_codes(d, unit, c, s), steps)
    waves += d / 32 * 4 + 6 + 8                             # queries; vectors; shuffles
    waves /= 16
    waves += 2 * d / c / 128 + GQA * d / 32 * 2 / 64        # codes come; queries turn
    pieces = 2 * d / c * 4 / 128
    count, alu = ((FEW_TILE[unit][i] + SOFTMAX[i] + FEW_PAGE[i] + pieces * FEW_PIECES[i]) / 16
                  for i in range(2))
    return 2 * d / c, waves, count, alu, 2 * d / 16 / 16


def f16(d=128):
    """The same of attn_f16.cu."""
    waves = (2 * 16 * d * 2 / 128 * 2 + 6 + 8) / 16         # written once, read once
    count, alu = ((F16_TILE[i] + SOFTMAX[i]) / 16 for i in range(2))
    return 4 * d, waves, count, alu, 2 * d / 16 / 16


def times(work, device):
    """Picoseconds by wall, and the largest."""
    size, waves, instructions, alu, mma = work
    walls = {
        "memory": size / HBM[device] * 1e12,
        "shared": waves / SMS / CLOCK * 1e12,
        "issue": instructions / 4 / SMS / CLOCK * 1e12,
        "alu": alu / 2 / SMS / CLOCK * 1e12,
        "tensor": mma * MMA_CLOCKS / SMS / CLOCK * 1e12,
    }
    return walls, max(walls, key=walls.get)


def block(c, d=128):
    """Picoseconds of attn.cu's gathers: each lane's line is a lookup of the L1."""
    return 2 * d / c / SMS / CLOCK * 1e12


def table():
    """Print the model."""
    print("| variant | code | bytes | wavefronts | instructions | of the ALU | mma | memory |"
          " shared | issue | alu | tensor | wall | H100 ps | of fp16 | H200 ps | of fp16 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    cases = [("few", f"{c}c8b", few(c)) for c in (2, 4, 8)] + [("f16", "fp16", f16())]
    for name, code, work in cases:
        row = [name, code, f"{work[0]:.0f}"] + [f"{x:.1f}" for x in work[1:]]
        walls, wall = times(work, "H100")
        row += [f"{x:.0f}" for x in walls.values()] + [wall]
        for device in HBM:
            walls, wall = times(work, device)
            fp16 = 512 / HBM[device] * 1e12
            row += [f"{walls[wall]:.0f}", f"{fp16 / walls[wall]:.1f}"]
        print("|", " | ".join(row), "|")
    for c in (2, 4, 8):
        print(f"block {c}c8b: {block(c):.0f} ps of lookups in the L1, if one is a clock")
    for d in (64, 128):
        for c in (2, 4, 8):
            print("gather, head_dim {} {}c8b: K {:.2f}, V {:.2f} wavefronts, {:.0f} at least"
                  .format(d, c, *gathers(d, c)))


def check():
    """No conflicts with head_dim 128."""
    bad = [c for c in (2, 4, 8) if max(gathers(128, c)[:2]) > gathers(128, c)[2]]
    for c in bad:
        print(f"gpu-model: {c}c8b: gathers have conflicts", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    random.seed(1)
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    table()
