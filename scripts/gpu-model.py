#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Expected times of the attention kernels, from what they do for a token and kv head.

    gpu-model.py [--check]

Shared memory is simulated: the addresses of attn_few.cu with random codes, by banks.
Instructions are those of the path through one tile, as cuda-sass.py counts them.
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

# Instructions of a warp for 16 tokens of a page that four vectors see whole, keys turned,
# and those of them that the unit of half the width (selects, permutes, logic, comparisons)
# computes; then mma. By channels of a group; head_dim 128, sm_90: cuda-sass.py --path. Two
# of twelve warps look at what is to come every second round.
FEW_TILE = {8: (387, 115, 40), 4: (436, 135, 48), 2: (605, 191, 64)}
FEW_LOOK = (102 / 12, 38 / 12)
SOFTMAX = (41 + 40 + 25 + 8, 12 + 14 + 14)
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


def units(d, c):
    """Channels of a unit of K and of V: attn_few.cuh, struct key and struct value."""
    return (c if d == 128 else min(c, 4)), min(c, 4)


def key_unit(lane, d, unit, step):
    """The unit of a side that a lane loads at a step: keys_of_codes()."""
    return (lane % 4 | lane // 4 % (d // 8 // unit) * 4) ^ 4 * step


def value_unit(lane, d, unit, step):
    """The same of values: values_of_codes()."""
    count = d // 8 // unit
    order = (lane % 4 | lane // 16 * 4) & (count - 1)
    return (lane // 4 * count | order) ^ step


def gather(of, d, unit, step):
    """Passes of one load of centroids with random codes."""
    return wavefronts([random.randrange(256) * 2 * d + of(lane, d, unit, step) * 2 * unit
                       for lane in range(32)], 2 * unit)


def key_codes(d, unit, c, step):
    """Passes of one load of the codes of two tokens."""
    return wavefronts([key_unit(lane, d, unit, step) * unit // c * STRIDE + lane // 4 * 2
                       for lane in range(32)], 2)


def value_codes(d, unit, c, step):
    """Those of four tokens."""
    return wavefronts([value_unit(lane, d, unit, step) * unit // c * STRIDE + lane % 4 * 4
                       for lane in range(32)], 4)


def mean(fn, steps):
    """Mean over steps and some random codes."""
    return sum(fn(s) for s in range(steps) for _ in range(16)) / (16 * steps)


def gathers(d, c):
    """Passes of one gather of K and of V over the least that each takes."""
    k, v = units(d, c)
    return (mean(lambda s: gather(key_unit, d, k, s), d // 8 // k) / (k * 2 * 32 / 128),
            mean(lambda s: gather(value_unit, d, v, s), d // 8 // v) / (v * 2 * 32 / 128))


def few(c, d=128):
    """(bytes, wavefronts, instructions, of the ALU, mma) of a token and kv head in attn_few.cu."""
    k, v = units(d, c)
    of_k, of_v = gathers(d, c)
    waves = 16 * 2 * d * 2 / 128 / 2 * (of_k + of_v)        # a tile's keys and values
    waves += 2 * (d // 8 // k) * mean(lambda s: key_codes(d, k, c, s), d // 8 // k)
    # two units of a group have one load of codes
    waves += d // 8 // c * mean(lambda s: value_codes(d, v, c, s), d // 8 // v)
    waves += d / 32 * 4 + 8 + 4                             # queries; what is looked up; turns
    waves /= 16
    waves += 2 * d / c / 128 + GQA * d / 32 * 2 / 64        # codes come; queries turn
    count, alu = ((FEW_TILE[c][i] + FEW_LOOK[i]) / 16 for i in range(2))
    return 2 * d / c, waves, count, alu, FEW_TILE[c][2] / 16


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
            print("gather, head_dim {} {}c8b: K {:.2f}, V {:.2f} of the least there can be"
                  .format(d, c, *gathers(d, c)))


def check():
    """No conflicts with head_dim 128."""
    bad = [c for c in (2, 4, 8) if max(gathers(128, c)) > 1]
    for c in bad:
        print(f"gpu-model: {c}c8b: gathers have conflicts", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    random.seed(1)
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    table()
