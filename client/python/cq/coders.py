# SPDX-License-Identifier: MIT
"""Coders: what a cache does to keys and values, and what that costs in bits.

code(layer, kv, x) takes x [batch][kv head][token][d] and gives what is read
back; bits(layer, kv) is bits of a channel, with all that is stored for each
token or group; model_bits() is what is stored once. rotated: keys are coded
behind RoPE.
"""
import torch

from .codec import Codec

POOL_TOKENS = 1_000_000      # that share one set of codebooks


class Cq:
    """A model file of cqctl calibrate, through libcq."""

    family, rotated = "cq", False

    def __init__(self, path, name=None):
        self.codec = Codec(path)
        self.rotated = bool(self.codec.rotated)
        self.name = name or "/".join(self.codec.coding(0, kv) for kv in (0, 1))
        self.sinks, self.window = self.codec.sinks, self.codec.window

    def code(self, layer, kv, x):
        kv = "kv".index(kv)
        out = torch.empty_like(x)
        for b in range(x.shape[0]):
            for h in range(x.shape[1]):
                rows = x[b, h].float().numpy()
                codes = self.codec.encode(layer, kv, h, rows)
                out[b, h] = torch.from_numpy(self.codec.decode(layer, kv, h, codes,
                                                               len(rows)))
        return out

    def options(self):
        """What the file says of itself, layer by layer."""
        k, v = (",".join(self.codec.coding(i, kv) for i in range(self.codec.n_layers))
                for kv in (0, 1))
        return {"k": k, "v": v, "sinks": self.sinks, "window": self.window}

    def bits(self, layer, kv):
        return self.codec.bits(layer, "kv".index(kv))

    def model_bits(self):
        return self.codec.file_bytes * 8


def effective_bits(coder, geometry, reader, first, end):
    """Bits of a channel, all told, averaged over the contexts of rows first..end-1.

    Codes and scales; what the reader has in fp16 (sinks, window, the page not
    full yet) at 16; what is stored once, over POOL_TOKENS tokens.
    """
    layers = range(geometry["n_layers"])
    coded = sum(coder.bits(i, kv) for i in layers for kv in "kv") / (2 * len(layers))
    exact = sum(reader.exact_tokens(row) for row in range(first, end))
    total = sum(row + 1 for row in range(first, end))
    values = 2 * len(layers) * geometry["n_kv_heads"] * geometry["head_dim"]
    once = coder.model_bits() / (POOL_TOKENS * values)
    return (exact * 16 + (total - exact) * coded) / total + once
