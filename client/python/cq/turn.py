# SPDX-License-Identifier: MIT
"""The same model with keys and values that are easier to code.

The values of each kv head are turned to their principal components, weighed by
their squared gradients, and the components dealt out so that each group of
channels has strong and weak ones; what the output projection reads is turned
back. Keys and queries are turned within the pairs of RoPE (phase.py), unless they
have a norm, which no turn passes. Logits stay as they are, and nothing is to be
done at run time. For models of the Llama family.
"""
import argparse
import itertools
import sys

import numpy as np

from . import command, hard, models, phase, tensors


def spread(d):
    """Order of d components, strongest first: aligned groups get some of each strength."""
    place = np.zeros(d)
    step, i = 0.5, np.arange(d)
    while i.any():
        place += step * (i & 1)
        i, step = i >> 1, step / 2
    rank = np.empty(d, np.int64)
    rank[np.argsort(place, kind="stable")] = np.arange(d)
    return rank


def weight_of(fisher):
    """Mean squared gradient of each channel, of one head's [token][d]."""
    return np.minimum(fisher, np.quantile(fisher, 0.999, axis=0)).mean(0)


def turn_of(v, fisher):
    """A [d][d] of one head's values [token][d] and squared gradients: v A is coded.

    A head that is 0, or that nothing depends on, stays as it is.
    """
    weight = weight_of(fisher)
    scale = np.sqrt(np.maximum(weight, weight.max() * 1e-6))
    y = v * scale
    if not weight.max() > 0 or not (y ** 2).sum() > 0:
        return np.eye(v.shape[1])
    power, axes = np.linalg.eigh(np.cov(y.T))
    axes = axes[:, np.argsort(-power)][:, spread(len(power))]
    # values of the size they had
    return scale[:, None] * axes * np.sqrt((v ** 2).sum() / (y ** 2).sum())


def fold(weights, geometry, layer, turns):
    """Turn the values of a layer by A [kv head][d][d] of each head, in place."""
    name = f"model.layers.{layer}.self_attn."
    d = geometry["head_dim"]
    again = geometry["n_heads"] // geometry["n_kv_heads"]
    for end in (".weight", ".bias"):
        w = weights.get(name + "v_proj" + end)
        if w is not None:
            w = w.reshape(len(turns), d, -1)
            weights[name + "v_proj" + end] = np.einsum("hij,hik->hjk", turns, w).reshape(
                weights[name + "v_proj" + end].shape)
    o = weights[name + "o_proj.weight"]
    back = np.repeat(np.linalg.inv(turns), again, 0)
    o = np.einsum("ohj,hij->ohi", o.reshape(len(o), -1, d), back)
    weights[name + "o_proj.weight"] = o.reshape(len(o), -1)


def _kept(dump, acts, meta, geometry, sinks):
    """Which tokens count; refuses a dump without what is turned by."""
    shape = None
    for layer in range(geometry["n_layers"]):
        for kv, end in itertools.product("kv", ("", ".fisher")):
            x = acts.get(f"layers.{layer}.{kv}{end}")
            if x is None:
                raise models.ModelError(f"{dump} has no squared gradients" if end else
                                        f"{dump} has no tensor layers.{layer}.{kv}")
            shape = shape or x.shape
            if x.shape != shape or len(shape) != 3 or \
                    (shape[0], shape[2]) != (geometry["n_kv_heads"], geometry["head_dim"]):
                raise models.ModelError(f"{dump}: layers.{layer}.{kv}{end} has shape {x.shape}")
    if meta.get("keys") != "pre-rope":
        raise models.ModelError(f"{dump}: keys before RoPE are wanted, these are "
                                f"{meta.get('keys')!r}")
    length = meta.get("sequence_tokens", "")
    if not length.isdecimal() or not 0 < int(length) <= 1 << 24:
        raise models.ModelError(f"{dump}: sequence_tokens is {length!r}")
    keep = np.arange(shape[1]) % int(length) >= sinks
    if keep.sum() < 2:
        raise models.ModelError(f"{dump} has fewer than 2 tokens behind the sinks")
    return keep


def _head(dump, acts, name, head, keep):
    """One kv head's [token][d] in f64; refuses what is not finite."""
    x = acts[name][head].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise models.ModelError(f"{dump}: {name}, head {head}, token {bad[0]}: not a finite "
                                "number")
    return x[keep]


def make(folder, dump, out, sinks=4, say=lambda text: None):
    """Write the turned model of a folder; dump: path of its activations."""
    acts, meta = tensors.read(dump)
    models.check_fingerprint(dump, meta.get("fingerprint"), models.fingerprint(folder), folder)
    model = models.load(folder)
    geometry = model.geometry
    keep = _kept(dump, acts, meta, geometry, sinks)
    first, second = phase.channels(model.rope)

    def heads(layer, kv, call):
        """call(activations, squared gradients) of each kv head."""
        return np.stack([call(*(_head(dump, acts, f"layers.{layer}.{kv}{end}", h, keep)
                                for end in ("", ".fisher")))
                         for h in range(geometry["n_kv_heads"])])

    def change(weights):
        normed = any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in weights)
        if normed:
            say("keys stay as they are: they have a norm")
        for layer in range(geometry["n_layers"]):
            fold(weights, geometry, layer, heads(layer, "v", turn_of))
            if not normed:
                phase.fold(weights, geometry, model.rope, layer, heads(
                    layer, "k", lambda k, f: phase.angles_of(k, weight_of(f), first, second)))
        return weights

    hard.rewrite(folder, out, change)


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-turn", description=__doc__.splitlines()[0])
    p.add_argument("model", help="folder of a language model")
    p.add_argument("dump", help="its activations with squared gradients")
    p.add_argument("output", help="folder to be made")
    args = p.parse_args(argv)
    return command.run("cq-turn", lambda: make(
        args.model, args.dump, args.output,
        say=lambda text: print(f"cq-turn: {text}", file=sys.stderr)), args.model, args.dump)


if __name__ == "__main__":
    sys.exit(main())
