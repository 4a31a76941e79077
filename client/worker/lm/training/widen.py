# SPDX-License-Identifier: MIT
"""Gives a model trained on text room for a circuit that recalls, and its first shape.

Induction (Olsson et al., arXiv 2209.11895) needs two things at once: keys that say
what the previous token was, and queries that ask for the present one. From text
alone a small model finds neither, and on few cores the search takes hours. Here the
residual stream gets BUS more directions and each layer one more kv head, so that nothing
that text taught is in the way:

1. each word has a random code on the bus;
2. a new head of CODE_LAYER copies the code of the previous token to a second part
   of the bus, and its twin clears a third part, where the answer will stand;
3. new heads of RECALL_LAYERS compare the present token's code with the keys'
   previous one, in the slow RoPE pairs, which hold at any distance, and add
   the code of the token found to the third part, which the output reads.

Nothing else reads or writes the bus at first. Training then makes the
heads speak only where they have something to say, and may use all weights.
"""
import math

import torch

import model

CODE = 63                   # directions of a word's code
BUS = 3 * CODE + 3          # raw code, previous code, answer; a constant; the rest is empty
CODE_LAYER, RECALL_LAYERS = 0, (3, 4, 5)
SIZE = 10.0                 # of a code, in lengths of an embedding's text part
SLOW = 19                   # first RoPE pair that recall uses
SHARP, WEIGHT = 14.0, (1, 1, 1, .8, .7, .6, .5, .4, .3, .2)
MATCH, ANSWER = 20.0, 12.0  # scores: of the code that is asked for, of the answer's logit
READ = 8.0                  # length of a code behind a norm: that of CODE numbers of size 1


class Bus:
    """The new directions of a stream whose first `width` carry text."""

    def __init__(self, width):
        self.text = slice(0, width)
        self.raw, self.previous, self.answer = (
            slice(width + i * CODE, width + (i + 1) * CODE) for i in range(3))
        self.one = width + 3 * CODE


def shape(config, theta):
    """config with a wider residual stream, a kv head more, and RoPE's theta."""
    kv = config["num_key_value_heads"]
    return dict(config, hidden_size=config["hidden_size"] + BUS, rope_theta=theta,
                num_key_value_heads=kv + 1,
                num_attention_heads=config["num_attention_heads"] // kv * (kv + 1))


def text_part(net, old):
    """Every weight of old in its place in net, whose other weights are 0."""
    width, q, kv = old.config["hidden_size"], old.heads * old.dim, old.kv * old.dim
    net.e[:, :width] = old.e
    for i in range(old.layers):
        at = 0
        for part, size in zip(old.qkv[i].split([q, kv, kv]), (net.heads, net.kv, net.kv)):
            net.qkv[i][at:at + len(part), :width] = part
            at += size * net.dim
        net.o[i][:width, :q] = old.o[i]
        net.gu[i][:, :width] = old.gu[i]
        net.dn[i][:width] = old.dn[i]


def gains(net, old, bus, size, ids):
    """Gains of the norms: text as before, a code of this size of length READ."""
    rms = [x.pow(2).mean().sqrt().item() for x in old.residuals(ids)]
    width = old.config["hidden_size"]
    for i, level in enumerate(rms):
        codes = (2.25 + (i > 2 * min(RECALL_LAYERS))) * size ** 2
        wide = math.sqrt((width * level ** 2 + codes) / (width + BUS))
        if i == len(rms) - 1:
            net.n[bus.text] = old.n * (wide / level)
            net.n[bus.answer] = 2 * wide / size ** 2
            break
        gain, before = (n[i // 2] for n in ((net.n2, old.n2) if i % 2 else (net.n1, old.n1)))
        gain[bus.text] = before * (wide / level)
        gain[bus.raw] = gain[bus.previous] = READ * wide / size
        gain[bus.one] = wide / size


def new_heads(net):
    """Rows of net.qkv of the last kv head: its two first query heads, keys, values."""
    share, dim = net.heads // net.kv, net.dim
    starts = [net.heads - share, net.heads - share + 1, net.heads + net.kv - 1,
              net.heads + 2 * net.kv - 1]
    return [slice(s * dim, (s + 1) * dim) for s in starts]


def code_heads(net, bus, size):
    """Step 2: queries that peak one token back, and at the token itself."""
    qkv, o = net.qkv[CODE_LAYER], net.o[CODE_LAYER]
    back, own, key, value = new_heads(net)
    half, count = net.dim // 2, len(WEIGHT)
    freq = net.config["rope_theta"] ** (-torch.arange(0, net.dim, 2).float() / net.dim)[:count]
    level = (SHARP * net.dim ** 0.5 * torch.tensor(WEIGHT)).sqrt()
    qkv[key][:count, bus.one] = qkv[own][:count, bus.one] = level
    qkv[back][:count, bus.one] = level * freq.cos()
    qkv[back][half:half + count, bus.one] = -level * freq.sin()
    qkv[value][:CODE, bus.raw] = torch.eye(CODE)
    o[bus.previous, back][:, :CODE] = torch.eye(CODE) * size / READ
    o[bus.answer, own][:, :CODE] = -torch.eye(CODE) * size / 2 / READ


def spare_heads(net, layer, rng):
    """Something to learn from where a layer's new heads have no work: they add nothing yet."""
    for rows in new_heads(net):
        net.qkv[layer][rows] = torch.randn(net.dim, net.e.shape[1], generator=rng) * 0.02


def recall_heads(net, layer, bus, size, rng):
    """Step 3 for one layer; both query heads do the same at first."""
    qkv, o = net.qkv[layer], net.o[layer]
    first, second, key, value = new_heads(net)
    half = net.dim // 2
    slow = list(range(SLOW, half)) + list(range(half + SLOW, net.dim))
    look = torch.linalg.qr(torch.randn(CODE, CODE, generator=rng))[0][:, :len(slow)].T
    look *= math.sqrt(MATCH * net.dim ** 0.5 * CODE / len(slow)) / READ
    for rows, part in (key, bus.previous), (first, bus.raw), (second, bus.raw):
        qkv[rows][slow, part] = look
    qkv[value][:CODE, bus.raw] = torch.eye(CODE)
    for rows in first, second:
        o[bus.answer, rows][:, :CODE] = \
            torch.eye(CODE) * size * ANSWER / READ / 2 / len(RECALL_LAYERS)


@torch.no_grad()
def widen(old, theta, text, seed=1):
    """A model.Net with all that old can, and the circuit. text: token ids, 4,096 or more."""
    net = model.Net(shape(old.config, theta), lowp=old.lowp)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.from_numpy(text[:4096].astype("int64")).view(8, 512)
    bus = Bus(old.config["hidden_size"])
    for p in net.parameters():
        p.zero_()
    text_part(net, old)
    code = torch.nn.functional.normalize(torch.randn(len(net.e), CODE, generator=rng), dim=1)
    length = old.e.norm(dim=1, keepdim=True) * SIZE
    size = (old.e[ids].pow(2).sum(-1).mean().sqrt() * SIZE).item()
    net.e[:, bus.raw], net.e[:, bus.answer] = code * length, code * length / 2
    net.e[:, bus.one] = length[:, 0]
    gains(net, old, bus, size, ids)
    code_heads(net, bus, size)
    for layer in range(net.layers):
        if layer in RECALL_LAYERS:
            recall_heads(net, layer, bus, size, rng)
        elif layer != CODE_LAYER:
            spare_heads(net, layer, rng)
    return net
