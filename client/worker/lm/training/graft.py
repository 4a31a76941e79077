# SPDX-License-Identifier: MIT
"""Gives a model trained on text the first shape of a circuit that recalls.

Induction (Olsson et al., arXiv 2209.11895) needs two things at once: keys that say what
the previous token was, and queries that ask for the present one. From
text alone a small model finds neither, and on few cores the search takes
hours. Here both are laid into directions of the residual stream that the
model hardly uses (the bus), and training makes them sharp:

1. the bus is silenced: no layer but the first attention reads it, none writes
   it, so that only the token's embedding is left on it;
2. one head of layer 1 copies that code of the previous token, another that
   of the token itself, to two further parts of the bus;
3. heads of the last layers compare the query's own code with the keys'
   previous one, in the slow RoPE pairs, which hold at any distance,
   and add the word that decodes the code found.
"""
import math

import torch
import torch.nn.functional as F

from model import norm
import tasks

BUS = 192               # directions, a third each: raw code, previous, own
CODE_LAYER, CODE_KV = 1, 1
RECALL = ((4, 0), (4, 1), (5, 0), (5, 1))      # (layer, kv head)
GAIN = 2.0              # size of a code on the bus
SLOW = 19               # first RoPE pair that recall uses
SHARP, WEIGHT = 14.0, (1, 1, 1, .8, .7, .6, .5, .4, .3, .2)
MATCH, ANSWER = 0.8, 12.0


def sample(text, count, length):
    """Half text, half random words: ids [count, length]."""
    rows = [torch.from_numpy(text[i * length:(i + 1) * length].astype("int64"))
            for i in range(count // 2)]
    rows += [torch.from_numpy(tasks.repeated([78, i], length, length)[0].astype("int64"))
             for i in range(count - len(rows))]
    return torch.stack(rows)


def spare_directions(net, ids):
    """The BUS directions of least variance over the residual streams behind layer 0's attention."""
    total = 0
    for i, x in enumerate(net.residuals(ids)):
        if i >= 2:
            x = x.flatten(0, 1)
            centred = x - x.mean(0)
            total = total + centred.T @ centred / len(x) / x.pow(2).mean()
    return torch.linalg.eigh(total)[1][:, :BUS]


def unread(weight, gain, bus):
    """weight, behind a norm of this gain, no longer sees the bus."""
    weight -= (weight * gain @ bus @ bus.T) / gain


def silence(net, bus):
    """Step 1."""
    for i in range(net.layers):
        if i:
            unread(net.qkv[i], net.n1[i], bus)
        unread(net.gu[i], net.n2[i], bus)
        net.o[i] -= bus @ (bus.T @ net.o[i])
        net.dn[i] -= bus @ (bus.T @ net.dn[i])


def constant(net, ids, layer):
    """(vector whose product with the layer's input is nearly 1, rms of that input)."""
    x = list(net.residuals(ids))[2 * layer].flatten(0, 1)
    h = norm(x, net.n1[layer], net.config["rms_norm_eps"])
    square = h.T @ h / len(h)
    square += torch.eye(len(square)) * square.diagonal().mean() * 1e-5
    return torch.linalg.solve(square, h.mean(0)), x.pow(2).mean().sqrt().item()


def whitener(rows):
    """W such that rows @ W has unit second moment."""
    value, vector = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vector / value.sqrt() @ vector.T


def slots(net, group):
    """Rows of net.qkv for a kv head: its queries (one slice a head), keys, values."""
    share = net.heads // net.kv
    at = [slice((group * share + r) * net.dim, (group * share + r + 1) * net.dim)
          for r in range(share)]
    key = net.heads + group
    return at, slice(key * net.dim, (key + 1) * net.dim), \
        slice((key + net.kv) * net.dim, (key + net.kv + 1) * net.dim)


def code_heads(net, ids, parts, white):
    """Step 2: queries that peak one token back and at the token itself."""
    layer = CODE_LAYER
    one, rms = constant(net, ids, layer)
    half, count = net.dim // 2, len(WEIGHT)
    freq = net.config["rope_theta"] ** (-torch.arange(0, net.dim, 2).float() / net.dim)[:count]
    size = (SHARP * net.dim ** 0.5 * torch.tensor(WEIGHT)).sqrt()
    queries, key, value = slots(net, CODE_KV)
    net.qkv[layer][key] = 0
    net.qkv[layer][key][:count] = size[:, None] * one
    raw = parts[0]
    net.qkv[layer][value] = 0
    net.qkv[layer][value][:raw.shape[1]] = white @ (raw.T / net.n1[layer]) * rms
    for back, rows, part in ((1, queries[0], parts[1]), (0, queries[1], parts[2])):
        net.qkv[layer][rows] = 0
        net.qkv[layer][rows][:count] = (size * (freq * back).cos())[:, None] * one
        net.qkv[layer][rows][half:half + count] = -(size * (freq * back).sin())[:, None] * one
        net.o[layer][:, rows] = 0
        net.o[layer][:, rows][:, :raw.shape[1]] = part * GAIN


def decoder(net, code, words, steps=100):
    """The matrix that turns a word's code into what makes the model say that word."""
    mean = code.mean(0)
    mean = mean / mean.norm()
    e = net.e.detach()
    with torch.enable_grad():
        out = torch.linalg.lstsq(code - code.mean(0), e[words] - e[words].mean(0)).solution.T * 30
        out = out.clone().requires_grad_(True)
        step = torch.optim.Adam([out], lr=0.05)
        for _ in range(steps):
            y = code @ out.T
            y = 8 * y / (1 + y.pow(2).mean().sqrt())
            loss = F.cross_entropy((y.to(net.lowp) @ e.to(net.lowp).T).float(), words)
            step.zero_grad()
            loss.backward()
            step.step()
    out = out.detach()
    out = out / (code @ out.T).pow(2).mean().sqrt()
    return out - torch.outer(out @ mean, mean)


def recall_head(net, place, parts, pick, say, rms):
    """Step 3 for one kv head and the query heads that share it."""
    layer, group = place
    previous, own = parts[1], parts[2]
    queries, key, value = slots(net, group)
    half = net.dim // 2
    slow = list(range(SLOW, half)) + list(range(half + SLOW, net.dim))
    size = math.sqrt(MATCH * net.dim ** 0.5) / GAIN * rms / net.n1[layer]
    for rows, part in [(key, previous)] + [(rows, own) for rows in queries]:
        net.qkv[layer][rows] = 0
        net.qkv[layer][rows][slow] = part[:, pick].T * size
    net.qkv[layer][value] = 0
    net.qkv[layer][value][:own.shape[1]] = own.T / net.n1[layer] * rms / GAIN
    share = ANSWER / len(queries) / len(RECALL)
    for rows in queries:
        net.o[layer][:, rows] = 0
        net.o[layer][:, rows][:, :own.shape[1]] = say / net.n[:, None] * share


@torch.no_grad()
def graft(net, text):
    """All three steps, in place; returns the bus. text: token ids, 10,000 or more."""
    ids = sample(text, 16, 256)
    bus = spare_directions(net, ids)
    silence(net, bus)
    parts = bus.chunk(3, 1)
    words = torch.arange(tasks.FIRST_WORD, net.config["vocab_size"])
    raw = net.e[words] @ parts[0]
    white = whitener(raw)
    code_heads(net, ids, parts, white)
    code = raw @ white.T
    say = decoder(net, code, words)
    sizes = [x.pow(2).mean().sqrt().item() for x in net.residuals(ids)]
    wide = 2 * (net.dim // 2 - SLOW)
    for i, place in enumerate(RECALL):
        pick = [(j + i * wide) % code.shape[1] for j in range(wide)]
        recall_head(net, place, parts, pick, say, sizes[2 * place[0]])
    return bus
