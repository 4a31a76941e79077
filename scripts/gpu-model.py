#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Expected times of the attention kernels, from what they do for a token and kv head.

    gpu-model.py [--check | --count O | --header]

Shared memory is simulated: the addresses of attn_few.cu, attn_bytes.cu and books.cuh with
random codes, by banks. Instructions are those of rounds of loops, as cuda-sass.py counts
them. Nothing here was measured. --check fails unless gathers are free of conflicts where
Documentation/gpu.md says so, and tests/gpu/bench_clocks.h is what --header prints. --count
counts the rounds again in what nvcc made below the folder O, and fails where there are other
numbers here.
"""
import functools
import importlib.util
import pathlib
import random
import sys

SMS, CLOCK = 132, 1.755e9
HBM = {"H100": 3.35e12, "H200": 4.8e12}
MMA_CLOCKS = 2.0        # of a multiprocessor, for mma.sync m16n8k16: 1024 FMA per clock
L2 = 5.5e12             # bytes per second, from which codebooks come
LAUNCH = 2e-6           # seconds that one more launch takes
STRIDE = 80             # CQKD_FEW_STRIDE
GQA = 4                 # query heads of a kv head
# Others, for what is made for them: multiprocessors, Hz, bytes a second, clocks of a product
OTHERS = {"A100": (108, 1.41e9, 2.04e12, 2.0), "L40S": (142, 2.52e9, 0.864e12, 4.0),
          "RTX 4090": (128, 2.52e9, 1.008e12, 8.0)}

# Rounds of loops: fatbin, kernel, what cuda-sass.py --round is told; then instructions of a
# warp, and those of them that the unit of half the width (selects, permutes, logic,
# comparisons) computes. head_dim 128, sm_90.
FEW = "HMMA={},half2=80,LDGSTS=1,STS={}"
NEAR = "HMMA=34,SHFL=16,VOTE=2"
HALVES, FEWS = "kernels/cuda/attn_f16", "kernels/cuda/attn_few"
SLICES = "kernels/cuda/attn_slices"
BLOCK, WIDE, BASE = "kernels/cuda/attn", "kernels/cuda/attn_wide", "tests/gpu/base_wide"
CODES, BOOKS = "kernels/cuda/append_many", "kernels/cuda/attn_books"
WGMMA = "kernels/cuda/attn_books_wgmma"
TURN, TURN2 = "HFMA2=32,HMUL2=32,STS={}", "HFMA2=64,HMUL2=64,STS={}"
LUTS, BYTES = "kernels/cuda/attn_lut", "kernels/cuda/attn_bytes"
ROUND = "HMMA={},half2=180,LDGSTS=1,STS={}"
PLAIN = "HMMA={},half2=110,prmt=60,LDGSTS=1"
LUT = "HMMA={},MUFU={},LDGSTS={},lds={}"
COUNTED = {
    # 16 tokens of a page that four vectors see whole, or eight; keys turned
    ("few", 8, 4): (FEWS, "cqk_attn_few_d128_k8v8", FEW.format(40, 2), 437, 130),
    ("few", 4, 4): (FEWS, "cqk_attn_few_d128_k4v4", FEW.format(48, 2), 499, 151),
    ("few", 2, 4): (FEWS, "cqk_attn_few_d128_k2v2", FEW.format(64, 2), 669, 201),
    ("few", 8, 8): (FEWS, "cqk_attn_few_d128_k8v8", FEW.format(80, 4), 523, 137),
    ("few", 4, 8): (FEWS, "cqk_attn_few_d128_k4v4", FEW.format(96, 4), 590, 160),
    ("few", 2, 8): (FEWS, "cqk_attn_few_d128_k2v2", FEW.format(128, 4), 819, 217),
    # keys that need no turning
    ("as they are", 8, 4): (FEWS, "cqk_attn_few_d128_k8v8", "HMMA=40,LDGSTS=1,STS=0", 353, 114),
    ("as they are", 4, 4): (FEWS, "cqk_attn_few_d128_k4v4", "HMMA=48,LDGSTS=1,STS=0", 446, 143),
    ("as they are", 2, 4): (FEWS, "cqk_attn_few_d128_k2v2", "HMMA=64,LDGSTS=1,STS=0", 553, 184),
    ("as they are", 8, 8): (FEWS, "cqk_attn_few_d128_k8v8", "HMMA=80,LDGSTS=1,STS=0", 446, 121),
    ("as they are", 4, 8): (FEWS, "cqk_attn_few_d128_k4v4", "HMMA=96,LDGSTS=1,STS=0", 517, 134),
    ("as they are", 2, 8): (FEWS, "cqk_attn_few_d128_k2v2", "HMMA=128,LDGSTS=1,STS=0", 679, 195),
    # attn_bytes.cu; keys turned
    ("bytes", 8, 4): (BYTES, "cqk_attn_bytes_k8v8", ROUND.format(40, 2), 656, 207),
    ("bytes", 4, 4): (BYTES, "cqk_attn_bytes_k4v4", ROUND.format(48, 2), 741, 245),
    ("bytes", 2, 4): (BYTES, "cqk_attn_bytes_k2v2", ROUND.format(64, 2), 994, 346),
    ("bytes", 8, 8): (BYTES, "cqk_attn_bytes_k8v8", ROUND.format(80, 4), 740, 213),
    ("bytes", 4, 8): (BYTES, "cqk_attn_bytes_k4v4", ROUND.format(96, 4), 832, 253),
    ("bytes", 2, 8): (BYTES, "cqk_attn_bytes_k2v2", ROUND.format(128, 4), 1145, 361),
    ("bytes as they are", 8, 4): (BYTES, "cqk_attn_bytes_k8v8", PLAIN.format(40), 572, 191),
    ("bytes as they are", 4, 4): (BYTES, "cqk_attn_bytes_k4v4", PLAIN.format(48), 691, 230),
    ("bytes as they are", 8, 8): (BYTES, "cqk_attn_bytes_k8v8", PLAIN.format(80), 665, 195),
    ("bytes as they are", 4, 8): (BYTES, "cqk_attn_bytes_k4v4", PLAIN.format(96), 761, 230),
    # the same as attn_few.cu, if the warp also looks at what is to come
    "look": (FEWS, "cqk_attn_few_d128_k8v8",
             FEW.format(40, 6) + ",SHFL=6", 521, 169),
    # attn_slices.cu: a round of two pages, 32 tokens of each warp, of a slice of keys and of
    # one of values, with all that there is to get ready and the barrier; four vectors
    ("keys", 8, 10): (SLICES, "cqk_attn_slices_d128_k8b10v8b10",
                      "HMMA=8,half2=64,LDS.128=12,LDGSTS=2,STS=2,ST=4", 420, 124),
    ("values", 8, 10): (SLICES, "cqk_attn_slices_d128_k8b10v8b10",
                        "HMMA=16,MUFU=4,LDS.64=18,LDGSTS=2", 357, 115),
    ("keys", 8, 8): (SLICES, "cqk_attn_slices_d256_k8b8v8b8",
                     "HMMA=16,half2=128,LDS.U16=10,ST=4,STS=4,LDGSTS=2", 550, 147),
    ("values", 8, 8): (SLICES, "cqk_attn_slices_d256_k8b8v8b8",
                       "HMMA=64,MUFU=4,LDS=50,LDGSTS=2", 461, 124),
    ("keys", 4, 8): (SLICES, "cqk_attn_slices_d256_k4b8v4b8",
                     "HMMA=32,half2=128,LDS.U16=18,ST=4,STS=4,LDGSTS=2", 641, 182),
    ("values", 4, 8): (SLICES, "cqk_attn_slices_d256_k4b8v4b8",
                       "HMMA=64,MUFU=4,LDS=50,LDGSTS=2", 465, 125),
    ("keys", 2, 8): (SLICES, "cqk_attn_slices_d256_k2b8v2b8",
                     "HMMA=64,half2=128,LDS.U16=34,ST=4,STS=4,LDGSTS=4", 872, 225),
    ("values", 2, 8): (SLICES, "cqk_attn_slices_d256_k2b8v2b8",
                       "HMMA=64,MUFU=4,LDS=80,LDGSTS=4", 577, 178),
    # 32 tokens of a page that one vector sees whole, or two
    ("lut", 8, 1): (LUTS, "cqk_attn_lut_d128_k8v8", LUT.format(40, 8, 2, 36), 320, 98),
    ("lut", 4, 1): (LUTS, "cqk_attn_lut_d128_k4v4", LUT.format(32, 8, 4, 72), 449, 146),
    ("lut", 2, 1): (LUTS, "cqk_attn_lut_d128_k2v2", LUT.format(48, 8, 8, 136), 810, 282),
    ("lut", 8, 2): (LUTS, "cqk_attn_lut_d128_k8v8", LUT.format(72, 16, 2, 36), 436, 126),
    ("lut", 4, 2): (LUTS, "cqk_attn_lut_d128_k4v4", LUT.format(48, 16, 4, 72), 559, 183),
    # 16 tokens with half of the copies, and the other half
    "f16": (HALVES, "cqk_attn_f16_d128", "HMMA=16,LDGSTS=8,MUFU=4", 315, 114),
    "f16 copies": (HALVES, "cqk_attn_f16_d128", "LDGSTS=8", 74, 47),
    # attn.cu: 128 lookups; 64 pairs of keys turned, 128 of queries; 16 vectors' scores of 16
    # tokens; a vector's softmax; 16 vectors' results of 16 tokens, and of 64 vectors
    "block codes": (BLOCK, "cqk_attn_d128", "LDG.E.U8=4,LDG.E.128=4", 87, 49),
    "block keys": (BLOCK, "cqk_attn_d128", "LDG=4,F2FP=4", 82, 22),
    "block queries": (BLOCK, "cqk_attn_d128", "LDG=8,F2FP=4", 144, 41),
    "block scores": (BLOCK, "cqk_attn_d128", "HMMA=16,STS=4", 48, 3),
    "block softmax": (BLOCK, "cqk_attn_d128", "SHFL=10", 109, 36),
    "block values": (BLOCK, "cqk_attn_d128", "HMMA=4,LDSM.16.MT88=2", 23, 6),
    "block more": (BLOCK, "cqk_attn_d128", "HMMA=16,LDSM.16.MT88=8", 49, 6),
    # attn_wide.cu: 128 lookups; 64 pairs of keys turned; a quarter of 16 vectors' products
    "wide codes": (WIDE, "cqk_attn_wide_d128", "LDG.E.U8=4,LDG.E.128=4", 87, 53),
    "wide keys": (WIDE, "cqk_attn_wide_d128", "LDG=8,F2FP=4", 125, 46),
    # attn_books.cu: a page that all see, of a warp with 16 vectors and of one without; keys
    # turned
    ("books", 8, 16): (BOOKS, "cqk_attn_books_k8v8", "HMMA=128," + TURN.format(8), 862, 227),
    ("books", 4, 16): (BOOKS, "cqk_attn_books_k4v4", "HMMA=128," + TURN.format(16), 953, 283),
    ("books", 2, 16): (BOOKS, "cqk_attn_books_k2v2", "HMMA=128," + TURN.format(32), 1077, 316),
    ("books", 8, 0): (BOOKS, "cqk_attn_books_k8v8", TURN.format(8), 266, 90),
    ("books", 4, 0): (BOOKS, "cqk_attn_books_k4v4", TURN.format(16), 358, 150),
    ("books", 2, 0): (BOOKS, "cqk_attn_books_k2v2", TURN.format(32), 481, 188),
    # attn_books_wgmma.cu: the same page, of a warp that decodes and of one with 16 vectors
    ("wgmma", 8, 0): (WGMMA, "cqk_attn_books_wgmma_k8v8", TURN2.format(16), 275, 58),
    ("wgmma", 4, 0): (WGMMA, "cqk_attn_books_wgmma_k4v4", TURN2.format(32), 365, 108),
    ("wgmma", 2, 0): (WGMMA, "cqk_attn_books_wgmma_k2v2", TURN2.format(64), 508, 160),
    ("wgmma", 8, 16): (WGMMA, "cqk_attn_books_wgmma_k8v8", "HGMMA=16", 455, 149),
    ("wgmma", 4, 16): (WGMMA, "cqk_attn_books_wgmma_k4v4", "HGMMA=16", 458, 154),
    ("wgmma", 2, 16): (WGMMA, "cqk_attn_books_wgmma_k2v2", "HGMMA=16", 458, 153),
    # base_wide.cu, whose products and softmax are attn_wide.cu's: 64 tokens with a quarter of
    # the products, of 16 vectors and of 32, and with one round of the loop of copies, of two
    "products": (BASE, "cqb_wide_f16_d128_v128", "HMMA=16", 35, 3),
    "tile": (BASE, "cqb_wide_f16_d128_v128", "HMMA=80,LDGSTS=2,MUFU=34", 583, 131),
    "tiles": (BASE, "cqb_wide_f16_d128_v256", "HMMA=160,LDGSTS=2,MUFU=68", 1016, 226),
    "copies": (BASE, "cqb_wide_f16_d128_v128", "LDGSTS=2", 34, 22),
    # append_many.cu: codes of a group of 16 tokens, with one round of looking
    ("codes", 8): (CODES, "cqk_append_k8v8", NEAR, 473, 202),
    ("codes", 4): (CODES, "cqk_append_k4v4", NEAR, 400, 202),
    ("codes", 2): (CODES, "cqk_append_k2v2", NEAR, 370, 202),
}


def counted(key):
    """(instructions, of the ALU) of a round."""
    return COUNTED[key][3:]


def total(*terms):
    """The sum of rounds, each (how many, key)."""
    return tuple(sum(n * counted(key)[i] for n, key in terms) for i in range(2))


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


def gather(of, d, unit, step, size=2):
    """Passes of one load of centroids with random codes, of so many bytes a channel."""
    return wavefronts([random.randrange(256) * size * d + of(lane, d, unit, step) * size * unit
                       for lane in range(32)], size * unit)


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


@functools.lru_cache(maxsize=None)
def few(c, d=128, vectors=GQA):
    """(bytes, wavefronts, instructions, of the ALU, mma) of a token and kv head in attn_few.cu."""
    k, v = units(d, c)
    of_k, of_v = gathers(d, c)
    waves = 16 * 2 * d * 2 / 128 / 2 * (of_k + of_v)        # a tile's keys and values
    waves += 2 * (d // 8 // k) * mean(lambda s: key_codes(d, k, c, s), d // 8 // k)
    # two units of a group have one load of codes
    waves += d // 8 // c * mean(lambda s: value_codes(d, v, c, s), d // 8 // v)
    waves += d / 32 * vectors + 8 + 4                       # queries; what is looked up; turns
    waves /= 16
    waves += 2 * d / c / 128 + vectors * d / 32 * 2 / 64    # codes come; queries turn
    # two of twelve warps look at what is to come every second round
    count, alu = (x / 16 for x in total((1, ("few", c, vectors)), (1 / 12, "look"),
                                        (-1 / 12, ("few", 8, 4))))
    return 2 * d / c, waves, count, alu, {8: 40, 4: 48, 2: 64}[c] * vectors / GQA / 16


def wide_keys(lane, side):
    """Bytes in a row of keys_of_wide(): the unit of a side, which odd tokens exchange."""
    return (lane % 4 * 8 + (side ^ lane // 4 % 2) * 32) * 2


def slice_gathers(c, bits):
    """Passes of all gathers of 16 tokens of a slice, of keys and of values."""
    if bits == 8:
        return tuple(16 * 128 * 2 / 128 * x for x in gathers(128, c))
    keys = sum(wavefronts([random.randrange(1024) * 128 + wide_keys(lane, side)
                           for lane in range(32)], 16) for side in (0, 1) for _ in range(32)) / 16
    return keys, 16 * 64 * 2 / 128 * gathers(64, 8)[1]


@functools.lru_cache(maxsize=None)
def slices(c, bits, d):
    """The same of attn_slices.cu, four vectors: of all blocks of a cluster, which wait for the
    slowest of them, so that each counts as that one."""
    w = 64 if bits > 8 else 128
    k, v = (8, 4) if bits > 8 else units(128, c)
    blocks, sides = 2 * d // w, []
    code = 2 if bits > 8 else 1     # loads of codes
    for side, unit, gather_waves in zip(("keys", "values"), (k, v), slice_gathers(c, bits)):
        waves = gather_waves + code * w // 8 // max(unit, c if side == "values" else unit)
        if side == "keys":          # both sides' codes; queries, which come and go; sent
            waves += code * w // 8 // unit + w / 32 * GQA + w / 32 * GQA / 4 + 2 * d // w
            products = {8: w // 16, 4: w // 8, 2: w // 4}[c]
        else:                       # scores come and are read; orders of values
            waves += 2 * 2 * d // w + 4
            products = w // 8 if bits > 8 else w // 4
        waves += 4 + w / c * 80 / 128 / 4       # what is looked up; codes come
        count, alu = (x / 32 for x in counted((side, c, bits)))
        sides.append((waves / 16, count, alu, products / 16))
    most = [blocks * max(x) for x in zip(*sides)]
    return [2 * d / c * bits / 8] + most


@functools.lru_cache(maxsize=None)
def few_bytes(c, vectors=GQA):
    """The same of attn_bytes.cu, whose rows of centroids are half as long; keys turn."""
    size, waves, _, _, mma = few(c, vectors=vectors)
    k, v = units(128, c)
    # a lane has two tokens' keys of both sides, and four tokens' values
    waves += sum(4 * 16 // unit * mean(lambda s, of=of, unit=unit: gather(of, 128, unit, s, 1),
                                       16 // unit)
                 for of, unit in ((key_unit, k), (value_unit, v))) / 16
    waves -= 2 * sum(gathers(128, c))
    count, alu = (x / 16 for x in total((1, ("bytes", c, vectors)), (1 / 12, "look"),
                                        (-1 / 12, ("few", 8, 4))))
    return size, waves, count, alu, mma


@functools.lru_cache(maxsize=None)
def few_rotated(c, vectors=GQA, of=few, name="as they are"):
    """The same, or of attn_bytes.cu, if neither keys nor queries need turning."""
    size, waves, _, _, mma = of(c, vectors=vectors)
    count, alu = (x / 16 for x in counted((name, c, vectors)))
    return size, waves - (4 + vectors * 128 / 32 * 2 / 4) / 16, count, alu, mma


def lut_key(lane, c, two, words, step):
    """The word of a row that a lane looks up: attn_lut.cuh, struct finding."""
    own = 128 // c // (1 if two else 2)
    blocks, n = own // 4, lane // 4
    return (n % blocks ^ step) * 4 + lane % 4 + n // blocks % max(words // own, 1) * own


def lut_unit(lane, c, step):
    """The unit of values that a lane loads at a step: unit_of_lane()."""
    near, n = 16 // c, lane // 4
    z = n // near + 8 // near * step
    return z // 4 * (64 // c) + (lane % 4 ^ z % 4) * near + n % near


def lut_code(lane, group, first):
    """Where a lane has the codes of its tokens: four pieces beside each other, by first byte."""
    return group // 4 * 128 + first // 16 * 64 + group % 4 * 16 + first % 16


@functools.lru_cache(maxsize=None)
def lut(c, vectors=1, words=32):
    """(bytes, wavefronts, instructions, of the ALU, mma) of a token and kv head in attn_lut.cu."""
    two, groups, units_ = vectors > 1, 128 // c, 16 // c
    blocks = groups // 4 if two else groups // 8
    waves = groups * mean(lambda s: wavefronts(
        [random.randrange(256) * words * 4 + lut_key(lane, c, two, words, s) * 4
         for lane in range(32)], 4), blocks)
    waves += groups // 4 * mean(lambda s: wavefronts(
        [lut_code(lane, (lane // 4 % blocks ^ s) * 4 + lane % 4, lane // 4 * 4)
         for lane in range(32)], 4), groups // 4 if two else blocks)
    # tokens of a lane are those of l, each with a code of its own
    waves += units_ * 8 * mean(lambda s: wavefronts(
        [random.randrange(256) * 256 + lut_unit(lane, c, s) * 2 * c
         for lane in range(32)], 2 * c), units_)
    waves += units_ * mean(lambda s: wavefronts(
        [lut_code(lane, lut_unit(lane, c, s), lane % 4 * 8) for lane in range(32)], 8), units_)
    waves = waves / 32 + 2 * groups / 128 + vectors / 32    # codes come; what sums count
    count, alu = (x / 32 for x in counted(("lut", c, vectors)))
    # two products of 8 are one of 16
    return 2 * groups, waves, count, alu, (groups / 2 + 16 * vectors) / 32


def f16(d=128):
    """The same of attn_f16.cu."""
    waves = (2 * 16 * d * 2 / 128 * 2 + 6 + 8) / 16         # written once, read once
    count, alu = (x / 16 for x in total((1, "f16"), (1, "f16 copies")))
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


def crowd(c, vectors):
    """Name, and picoseconds by wall, of attention over codes of so many vectors at once."""
    tiles = -(-vectors // 16)
    codes = 128 / c         # rounds of 128 lookups for 64 tokens
    if vectors <= 64:
        name = "block"
        work = total((codes, "block codes"), (64, "block keys"), (vectors / 2, "block queries"),
                     (4 * tiles, "block scores"), (vectors, "block softmax"),
                     (16 * (1 - (tiles - 1) / 3), "block values"),
                     (16 * (tiles - 1) / 3, "block more"))
    else:
        name = "wide"
        work = total((codes, "wide codes"), (64, "wide keys"), *tiles_work(tiles))
    return name, walls_of(2 * 128 / c, work, tiles, block(c))


def tiles_work(tiles):
    """Rounds for products, softmax and results of 64 tokens, without copies."""
    if tiles <= 8:
        return (tiles, "tile"), (3 * tiles, "products"), (-tiles, "copies")
    return (tiles / 2, "tiles"), (3 * tiles, "products"), (-tiles / 2, "copies")


def walls_of(size, work, tiles, lookups):
    """Picoseconds of a token on an H100 and an H200; @work: of 64 tokens."""
    walls = {"L1": lookups, "issue": work[0] / 64 / 4 / SMS / CLOCK * 1e12,
             "alu": work[1] / 64 / 2 / SMS / CLOCK * 1e12,
             "tensor": 128 * tiles / 64 * MMA_CLOCKS / SMS / CLOCK * 1e12}
    return {device: dict(walls, memory=size / HBM[device] * 1e12) for device in HBM}


def cascade(vectors):
    """The same of base_wide.cu over fp16, and of any fp16 kernel by its bytes and products."""
    tiles = -(-vectors // 16)
    work = total(*tiles_work(tiles), (32, "copies"))
    return walls_of(512, work, tiles, 0)


def eights(c, vectors, device, d=128):
    """Picoseconds of attn_few.cu for so many vectors, each eight of which read the codes."""
    sets = [8] * (vectors // 8) + [-(-(vectors % 8) // 4) * 4] * (vectors % 8 > 0)
    if d == 128:
        return sum(wall(times(few(c, vectors=n), device)[0]) for n in sets)
    # with 64 channels nothing was counted: half of what 128 take, of which 8 are as 4
    works = [few(c, d, n)[:2] + tuple(x / 2 for x in few(min(c, 4), vectors=n)[2:])
             for n in sets]
    return sum(wall(times(work, device)[0]) for work in works)


def wall(walls):
    """The largest."""
    return max(walls.values())


def upto(c, d=128):
    """How many vectors, by fours, are computed sooner eight by eight than at once."""
    vectors = 8
    while all(eights(c, vectors + 4, device, d) <
              wall(crowd(c, vectors + 4)[1][device]) * d / 128 for device in HBM):
        vectors += 4
    return vectors


def book_order(c, thread, step):
    """The group of its unit that a thread takes at a step: books.cuh, book_order()."""
    order = (thread // 8 ^ thread) & 1 | (thread // 8 & 2 if c == 2 else 0)
    return 0 if c == 8 else order ^ step


def book_waves(c, threads):
    """Passes of what a page's keys take in books.cuh over the least there can be.

    Codes, centroids, the tile and cos and sin, each (passes, least) of a warp's loads or stores.
    """
    tokens, size = 64 * 8 // threads, 2 * c
    least = max(32 * size // 128, 1)
    took = {"codes": [0, 0], "centroids": [0, 0], "tile": [0, 0], "turns": [0, 0]}

    def add(what, addresses, bytes_, least_of):
        took[what][0] += wavefronts(addresses, bytes_)
        took[what][1] += least_of

    for warp in range(threads // 32):
        lanes = range(warp * 32, warp * 32 + 32)
        first = [((t // 32 ^ t % 8 // 2) * 4 + t // 8 % 2 * 2 + t // 16 % 2) * tokens
                 for t in lanes]
        for step in range(8 // c):
            groups = [t % 8 * (8 // c) + book_order(c, t, step) for t in lanes]
            for side in range(2):
                add("codes", [g * 64 + t for g, t in zip(groups, first)], tokens, 1)
                add("turns", [g * size for g in groups], size, least)
                for i in range(tokens):
                    add("centroids", [random.randrange(256) * 256 + side * 128 + g * size
                                      for g in groups], size, least)
                    add("tile", [side * 8192 + (t + i) * 128 + g * size // 16 % 8 * 16
                                 ^ (t + i) % 8 * 16 | g * size % 16
                                 for g, t in zip(groups, first)], size, least)
    return took


@functools.lru_cache(maxsize=None)
def book_decode(c, threads):
    """Wavefronts of a token, keys and values, in books.cuh; its codes are written, too."""
    took = {what: passes for what, (passes, _) in book_waves(c, threads).items()}
    return (2 * sum(took.values()) - took["turns"]) / 64 + 2 * 128 / c / 128


def book_clocks(c, vectors):
    """Clocks by wall of attn_books.cu for a token, up to 128 vectors."""
    tiles = -(-vectors // 16)
    count, alu = total((tiles, ("books", c, 16)), (8 - tiles, ("books", c, 0)))
    # a warp reads all keys and values; what vectors see is written and read
    return {"issue": count / 64 / 4, "alu": alu / 64 / 2,
            "shared": book_decode(c, 256) + 4 * tiles + (16 + 4 * tiles) / 64,
            "tensor": 128 * tiles / 64 * MMA_CLOCKS}


def warpgroup_clocks(c, vectors):
    """The same of attn_books_wgmma.cu: one warpgroup decodes, one or two multiply.

    Each of these has 64 vectors and reads keys and values once; its chain is its instructions
    and its products, one after the other.
    """
    groups = -(-vectors // 64)
    count, alu = total((4, ("wgmma", c, 0)), (4 * groups, ("wgmma", c, 16)))
    products = 4 * 128 * MMA_CLOCKS / 2             # of 64 vectors and 64 tokens
    return {"issue": count / 64 / 4, "alu": alu / 64 / 2,
            "shared": book_decode(c, 128) + 4 * groups + 0.5, "tensor": groups * products / 64,
            "chain": (counted(("wgmma", c, 16))[0] + products) / 64}


def by_items(clocks, c, vectors):
    """Picoseconds by wall of so many vectors, each 128 of which are an item."""
    walls = {}
    for first in range(0, vectors, 128):
        for key, n in clocks(c, min(vectors - first, 128)).items():
            walls[key] = walls.get(key, 0) + n / SMS / CLOCK * 1e12
    return walls


def books(c, vectors):
    """Picoseconds by wall of attn_books.cu."""
    return by_items(book_clocks, c, vectors)


def warpgroups(c, vectors):
    """The same of attn_books_wgmma.cu."""
    return by_items(warpgroup_clocks, c, vectors)


def work(c, vectors, device):
    """Pages of a block of threads, times vectors beyond eight, that pay for attn_books.cu.

    It is one more launch, which reads codebooks once more; a page takes it less time than
    attn_few.cu, eight by eight.
    """
    start = LAUNCH + SMS * 2 * 256 * 128 * 2 / L2
    won = (eights(c, vectors, device) - wall(books(c, vectors))) * 1e-12 * 64 * SMS
    return start / won * (vectors - 8)


def join(values, form="{:.0f}"):
    """Numbers of a cell."""
    return ", ".join(form.format(x) for x in values)


def share_table(device):
    """Print the model of shared prefixes."""
    print(f"| sequences ({device}) | `books`, ps at 4, 2, 1 bit | eight by eight | at once |"
          " fp16: ours, mma.sync, wgmma | over mma.sync | over wgmma | `wgmma` | over wgmma |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seqs in (3, 4, 6, 8, 12, 16, 32, 64):
        vectors = seqs * GQA
        codes = (2, 4, 8)
        took, more = ([by(c, vectors) for c in codes] for by in (books, warpgroups))
        once = [wall(crowd(c, vectors)[1][device]) for c in codes]
        fp16 = cascade(vectors)[device]
        bound = [max(fp16["memory"], fp16["tensor"] / by) for by in (1, 2)]
        print("|", " | ".join([
            str(seqs),
            ", ".join(f"{wall(w):.0f} ({max(w, key=w.get)})" for w in took),
            join(eights(c, vectors, device) for c in codes), join(once),
            join([wall(fp16)] + bound),
            join((bound[0] / wall(w) for w in took), "{:.1f}"),
            join((bound[1] / wall(w) for w in took), "{:.1f}"),
            ", ".join(f"{wall(w):.0f} ({max(w, key=w.get)})" for w in more),
            join((bound[1] / wall(w) for w in more), "{:.1f}")]), "|")
    for c in (2, 4, 8):
        print(f"{device} {c}c8b: books are worth their start from these pages of a block, times "
              "vectors beyond eight: " + join(work(c, v, device) for v in (12, 16, 32, 64)))


def count(folder):
    """Count all rounds again."""
    spec = importlib.util.spec_from_file_location(
        "cuda_sass", pathlib.Path(__file__).with_name("cuda-sass.py"))
    sass = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sass)
    kernels, bad = {}, 0
    for key, (image, name, words, instructions, alu) in COUNTED.items():
        if image not in kernels:
            kernels[image] = dict(sass.kernels_of(f"{folder}/{image}.fatbin", "sm_90"))
        want = {w: int(n) for w, n in (x.split("=") for x in words.split(","))}
        part = sass.round_of(kernels[image][name], want) or []
        got = len(part), sum(op.split(".")[0] in sass.ALU for _, op in part)
        same = got == (instructions, alu)
        bad += not same
        print(f"{key!s:20} {name} {words}: {got[0]}, {got[1]}" +
              ("" if same else f", here {instructions}, {alu}"))
    return 1 if bad else 0


def bytes_walls(c, gpu, vectors=GQA):
    """Picoseconds by wall of attn_bytes.cu, and of attn.cu's lookups, on a GPU of OTHERS."""
    sms, clock, bandwidth, mma_clocks = OTHERS[gpu]
    size, waves, count, alu, mma = few_bytes(c, vectors)
    clocks = {"shared": waves, "issue": count / 4, "alu": alu / 2, "tensor": mma * mma_clocks}
    walls = {"memory": size / bandwidth * 1e12}
    walls.update((w, n / sms / clock * 1e12) for w, n in clocks.items())
    return walls, max(walls["memory"], 2 * 128 / c / sms / clock * 1e12)


def bytes_upto(c, gpu):
    """How many vectors attn_bytes.cu computes sooner eight by eight than attn.cu at once."""
    walls, lookups = bytes_walls(c, gpu, 8)
    return min(int(lookups / wall(walls)) * 8, 64)


def bytes_table():
    """Print the model of attn_bytes.cu on GPUs that have less shared memory."""
    print("| GPU | code | memory | shared | issue | alu | tensor | wall | ps | of fp16 | `block` |"
          " eight by eight up to |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    # what there is no room for halves of, and is for bytes
    for gpu, codes in (("A100", (2, 4)), ("L40S", (4, 8)), ("RTX 4090", (4, 8))):
        for c in codes:
            walls, lookups = bytes_walls(c, gpu)
            print("|", " | ".join([gpu, f"{c}c8b"] + [f"{x:.0f}" for x in walls.values()] + [
                max(walls, key=walls.get), f"{wall(walls):.0f}",
                f"{512 / OTHERS[gpu][2] * 1e12 / wall(walls):.1f}", f"{lookups:.0f}",
                str(bytes_upto(c, gpu))]), "|")


def table():
    """Print the model."""
    print("| variant | code | bytes | wavefronts | instructions | of the ALU | mma | memory |"
          " shared | issue | alu | tensor | wall | H100 ps | of fp16 | H200 ps | of fp16 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    cases = [("few", f"{c}c8b", few(c)) for c in (2, 4, 8)] + [("f16", "fp16", f16())]
    cases += [("few, rotated", f"{c}c8b", few_rotated(c)) for c in (2, 4, 8)]
    cases += [("lut", f"{c}c8b", lut(c)) for c in (2, 4, 8)]
    cases += [("lut, two", f"{c}c8b", lut(c, 2)) for c in (4, 8)]
    for name, code, work in cases:
        row = [name, code, f"{work[0]:.0f}"] + [f"{x:.1f}" for x in work[1:]]
        walls, wall = times(work, "H100")
        row += [f"{x:.0f}" for x in walls.values()] + [wall]
        for device in HBM:
            walls, wall = times(work, device)
            fp16 = 512 / HBM[device] * 1e12
            row += [f"{walls[wall]:.0f}", f"{fp16 / walls[wall]:.1f}"]
        print("|", " | ".join(row), "|")
    for c, bits, d in ((8, 10, 128), (2, 8, 256), (4, 8, 256), (8, 8, 256)):
        work = slices(c, bits, d)
        row = ["slices", f"{c}c{bits}b", str(d), f"{work[0]:.0f}"] + [f"{x:.1f}" for x in work[1:]]
        walls, wall = times(work, "H100")
        row += [f"{x:.0f}" for x in walls.values()] + [wall]
        for device in HBM:
            walls, wall = times(work, device)
            row += [f"{walls[wall]:.0f}", f"{4 * d / HBM[device] * 1e12 / walls[wall]:.1f}"]
        print("|", " | ".join(row), "|")
    bytes_table()
    for c in (2, 4, 8):
        print(f"block {c}c8b: {block(c):.0f} ps of lookups in the L1, if one is a clock")
    for d in (64, 128):
        for c in (2, 4, 8):
            print(f"head_dim {d} {c}c8b: eight by eight up to {upto(c, d)} vectors")
    for device in HBM:
        share_table(device)
    for d in (64, 128):
        for c in (2, 4, 8):
            print("gather, head_dim {} {}c8b: K {:.2f}, V {:.2f} of the least there can be"
                  .format(d, c, *gathers(d, c)))


def header():
    """The text of tests/gpu/bench_clocks.h: what items take, as a sum that grows by units."""
    walls = ("shared", "issue", "alu", "tensor", "chain")
    lines = []

    def row(variant, code, turned, unit, most, by_units):
        one, two = (by_units(n) for n in (1, 2 if most > 1 else 1))
        each = [two.get(w, 0) - one.get(w, 0) if most > 1 else 0 for w in walls]
        first = [one.get(w, 0) - x for w, x in zip(walls, each)]
        lines.append(f"\t{{ CQK_CUDA_{variant}, \"{code}\", {turned}, {unit}, {most},\n"
                     f"\t  {{ {join(first, '{:.3f}')} }}, {{ {join(each, '{:.3f}')} }} }},\n")

    def clocks_of(job):
        _, waves, count, alu, mma = job
        return {"shared": waves, "issue": count / 4, "alu": alu / 2, "tensor": mma * MMA_CLOCKS}

    for c in (2, 4, 8):
        code = f"{c}c8b"
        for unit in (4, 8):
            for turned, of in (("true", few), ("false", few_rotated)):
                row("FEW", code, turned, unit, 1,
                    lambda _, of=of, n=unit: clocks_of(of(c, vectors=n)))
        for unit in (1, 2)[:1 if c == 2 else 2]:
            row("LUT", code, "false", unit, 1, lambda _, n=unit: clocks_of(lut(c, n)))
        row("BOOKS", code, "true", 16, 8, lambda n: book_clocks(c, 16 * n))
        row("WGMMA", code, "true", 64, 2, lambda n: warpgroup_clocks(c, 64 * n))
        for turned in ("true", "false"):
            row("BLOCK", code, turned, 256, 1, lambda _: {"chain": 2 * 128 / c})
    for c in (4, 8):
        for unit in (4, 8):
            row("BYTES", f"{c}c8b", "true", unit, 1,
                lambda _, c=c, n=unit: clocks_of(few_bytes(c, n)))
            row("BYTES", f"{c}c8b", "false", unit, 1, lambda _, c=c, n=unit: clocks_of(
                few_rotated(c, n, few_bytes, "bytes as they are")))
    row("SLICES", "8c10b", "true", 4, 1, lambda _: clocks_of(slices(8, 10, 128)))
    return ("/* SPDX-License-Identifier: MIT */\n"
            "/* Made by scripts/gpu-model.py --header: rows of struct clocks, head_dim 128. */\n"
            + "".join(lines))


def check():
    """No conflicts with head_dim 128, but those of codes that books.cuh names."""
    bad = [f"{c}c8b: gathers have conflicts" for c in (2, 4, 8) if max(gathers(128, c)) > 1]
    for c, threads in ((c, threads) for c in (2, 4, 8) for threads in (128, 256)):
        for what, (passes, least) in book_waves(c, threads).items():
            twice = 2 if (c, threads, what) == (2, 256, "codes") else 1
            if passes > twice * least:
                bad.append(f"{c}c8b, {threads} threads: {what} of books.cuh have conflicts")
    random.seed(1)
    if pathlib.Path("tests/gpu/bench_clocks.h").read_text(encoding="utf-8") != header():
        bad.append("tests/gpu/bench_clocks.h is not what --header prints")
    for text in bad:
        print(f"gpu-model: {text}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    random.seed(1)
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    if sys.argv[1:] == ["--header"]:
        sys.stdout.write(header())
        sys.exit()
    if sys.argv[1:2] == ["--count"] and len(sys.argv) == 3:
        sys.exit(count(sys.argv[2]))
    table()
