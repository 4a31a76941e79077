# SPDX-License-Identifier: MIT
"""The same model with values that are easier to code.

The values of each kv head are turned to their principal components, weighed by
their squared gradients, and the components dealt out so that each group of
channels has strong and weak ones; what the output projection reads is turned
back. Logits stay as they are, and nothing is to be done at run time. For models
of the Llama family.
"""
import argparse
import sys

import numpy as np

from . import hard, models, tensors


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


def turn_of(v, fisher):
    """A [d][d] of one head's values [token][d] and squared gradients: v A is coded."""
    weight = np.minimum(fisher, np.quantile(fisher, 0.999, axis=0)).mean(0)
    scale = np.sqrt(np.maximum(weight, weight.max() * 1e-6))
    y = v * scale
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


def make(folder, dump, out, sinks=4):
    """Write the turned model of a folder; dump: path of its activations."""
    acts, meta = tensors.read(dump)
    if meta.get("fingerprint") != models.fingerprint(folder):
        raise models.ModelError(f"{dump} is of another model than {folder}: its fingerprint "
                                "differs")
    if "layers.0.v.fisher" not in acts:
        raise models.ModelError(f"{dump} has no squared gradients")
    geometry = models.load(folder).geometry
    keep = np.arange(acts["layers.0.v"].shape[1]) % int(meta["sequence_tokens"]) >= sinks

    def change(weights):
        for layer in range(geometry["n_layers"]):
            name = f"layers.{layer}.v"
            fold(weights, geometry, layer, np.stack([
                turn_of(acts[name][h][keep].astype(np.float64),
                        acts[name + ".fisher"][h][keep].astype(np.float64))
                for h in range(geometry["n_kv_heads"])]))
        return weights

    hard.rewrite(folder, out, change)


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-turn", description=__doc__.splitlines()[0])
    p.add_argument("model", help="folder of a language model")
    p.add_argument("dump", help="its activations with squared gradients")
    p.add_argument("output", help="folder to be made")
    args = p.parse_args(argv)
    try:
        make(args.model, args.dump, args.output)
    except (KeyError, OSError, ValueError) as e:
        print(f"cq-turn: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
