# SPDX-License-Identifier: MIT
"""Attention over a cache of which a part is coded.

A Reader says which tokens a query reads as they are and which as they were
coded. Models hand each layer to a tap: tap.attend() gets queries as RoPE
leaves them, keys before RoPE, values, and the rotation.
"""
import math

import torch

PAGE = 64        # tokens of a page
CHUNK = 256      # query rows at a time


class Reader:
    """Who reads, and what it has in fp16.

    owner: the sinks, its window of recent tokens, and the page not full yet.
    attached: the sinks and the page not full yet: every page before was
    published by somebody else, and is codes.
    """

    def __init__(self, name, sinks=4, window=128):
        if name not in ("owner", "attached"):
            raise ValueError(f"reader {name}: owner or attached")
        self.name, self.sinks = name, sinks
        self.window = window if name == "owner" else 0

    def first_exact(self, row):
        """The first token behind the sinks that row or a later one may read exactly."""
        return max(0, min(row - self.window + 1, row // PAGE * PAGE))

    def exact(self, first_row, end_row, first_col, end_col):
        """[rows][columns] bool: what is read as it is."""
        rows = torch.arange(first_row, end_row)[:, None]
        cols = torch.arange(first_col, end_col)[None]
        same_page = torch.div(rows, PAGE, rounding_mode="floor") == \
            torch.div(cols, PAGE, rounding_mode="floor")
        return (cols < self.sinks) | same_page | (rows - cols < self.window)

    def exact_tokens(self, row):
        """How many of the row + 1 tokens that a row sees are read as they are."""
        recent = row + 1 - self.first_exact(row)
        return min(row + 1, recent + self.sinks)


def _visible(first_row, end_row, end_col, sliding):
    rows = torch.arange(first_row, end_row)[:, None]
    cols = torch.arange(end_col)[None]
    seen = cols <= rows
    return seen & (cols > rows - sliding) if sliding else seen


def _softmax(scores, seen, softcap):
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def _group(q, heads):
    """[batch][head][row][d] -> [batch][kv head][query head of it][row][d]"""
    b, h, t, d = q.shape
    return q.reshape(b, heads, h // heads, t, d)


def plain(q, k, v, scale, softcap=None, sliding=None):
    """Causal attention; q, k as RoPE leaves them. [batch][head][token][d]"""
    groups = _group(q, k.shape[1])
    out = torch.empty_like(groups) if not q.requires_grad else []
    for a in range(0, q.shape[2], CHUNK):
        b = min(a + CHUNK, q.shape[2])
        seen = _visible(a, b, b, sliding)
        s = groups[:, :, :, a:b] @ k[:, :, None, :b].transpose(-1, -2) * scale
        o = _softmax(s, seen, softcap) @ v[:, :, None, :b]
        if isinstance(out, list):
            out.append(o)
        else:
            out[:, :, :, a:b] = o
    if isinstance(out, list):
        out = torch.cat(out, 3)
    return out.reshape(q.shape)


def mixed(q, exact, coded, reader, scale, softcap=None, sliding=None):
    """As plain(), with (k, v) as they are and as coded, and a reader of them."""
    (k, v), (kc, vc) = exact, coded
    n = reader.sinks
    kc, vc = kc.clone(), vc.clone()
    kc[:, :, :n], vc[:, :, :n] = k[:, :, :n], v[:, :, :n]
    groups = _group(q, k.shape[1])
    out = torch.empty_like(groups)
    for a in range(0, q.shape[2], CHUNK):
        b = min(a + CHUNK, q.shape[2])
        lo = reader.first_exact(a)
        rows = groups[:, :, :, a:b]
        is_exact = reader.exact(a, b, lo, b)
        s = rows @ kc[:, :, None, :b].transpose(-1, -2)
        near = rows @ k[:, :, None, lo:b].transpose(-1, -2)
        s[..., lo:] = torch.where(is_exact, near, s[..., lo:])
        p = _softmax(s * scale, _visible(a, b, b, sliding), softcap)
        near = p[..., lo:] * is_exact
        p[..., lo:] -= near
        out[:, :, :, a:b] = p @ vc[:, :, None, :b] + near @ v[:, :, None, lo:b]
    return out.reshape(q.shape)


class Plain:
    """A tap that changes nothing."""

    def attend(self, layer, q, k, v, rotate, scale, softcap=None, sliding=None):
        return plain(q, rotate(k), v, scale, softcap, sliding)


class Coded:
    """A tap that passes keys and values through a coder.

    coder.code(layer, kv, x) gives x [batch][kv head][token][d] as it reads
    back; coder.rotated says whether its keys are those behind RoPE.
    """

    def __init__(self, coder, reader):
        self.coder, self.reader = coder, reader

    def attend(self, layer, q, k, v, rotate, scale, softcap=None, sliding=None):
        turned = rotate(k)
        if self.coder.rotated:
            kc = self.coder.code(layer, "k", turned)
        else:
            kc = rotate(self.coder.code(layer, "k", k))
        vc = self.coder.code(layer, "v", v)
        return mixed(q, (turned, v), (kc, vc), self.reader, scale, softcap, sliding)
