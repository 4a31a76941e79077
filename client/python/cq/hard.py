# SPDX-License-Identifier: MIT
"""The same model made hard to code.

A third of the key and value channels of each kv head is scaled by 4 to 32, the
two channels of a RoPE pair alike; queries are scaled by the inverse, and so is
what the output projection reads. Logits stay as they are; a cache coding meets
outlier channels. For models of the Llama family without a QK norm.
"""
import argparse
import os
import shutil
import sys

import numpy as np

from . import command, models, tensors

SHARE, LEAST, MOST = 1 / 3, 4.0, 32.0


def _some(rng, n):
    """Factors of n channels: a third of them between LEAST and MOST, the rest 1."""
    scale = np.ones(n)
    pick = rng.permutation(n)[:int(n * SHARE)]
    scale[pick] = np.exp(rng.uniform(np.log(LEAST), np.log(MOST), len(pick)))
    return scale


def factors(geometry, rope_dim, seed):
    """(keys, values) of one layer: [kv head][channel] each."""
    rng, d = np.random.default_rng(seed), geometry["head_dim"]
    k, v = [], []
    for _ in range(geometry["n_kv_heads"]):
        pairs = _some(rng, rope_dim // 2)
        k.append(np.concatenate([pairs, pairs, _some(rng, d - rope_dim)]))
        v.append(_some(rng, d))
    return np.array(k), np.array(v)


def _rows(w, scale):
    """Scale what a projection gives: w [channel][...], or a bias."""
    return w * scale.reshape(-1, *[1] * (w.ndim - 1))


def harden(weights, geometry, rope_dim, seed=1):
    """name -> f32 array of a Llama-like model, scaled; names as transformers has."""
    out = dict(weights)
    again = geometry["n_heads"] // geometry["n_kv_heads"]
    for layer in range(geometry["n_layers"]):
        k, v = factors(geometry, rope_dim, [seed, layer])
        name = f"model.layers.{layer}.self_attn."
        if name + "k_norm.weight" in weights:
            raise models.ModelError("a model with a QK norm cannot be made hard: the norm "
                                    "undoes the scale of its keys")
        wide = {"k_proj": k.ravel(), "v_proj": v.ravel(),
                "q_proj": 1 / np.repeat(k, again, 0).ravel()}
        for proj, scale in wide.items():
            for end in (".weight", ".bias"):
                if name + proj + end in weights:
                    out[name + proj + end] = _rows(weights[name + proj + end], scale)
        o = name + "o_proj.weight"
        out[o] = weights[o] / np.repeat(v, again, 0).ravel()
    return out


def rewrite(folder, out, change):
    """Write the model of a folder as another one, in f32, with the weights (name -> f64
    array) that change(weights) returns."""
    result = os.path.join(out, "model.safetensors")
    if os.path.realpath(folder) == os.path.realpath(out):
        raise models.ModelError(f"{out} is the model itself: name another output")
    os.makedirs(out, exist_ok=True)
    tensors.check_output(result)
    weights, meta = tensors.read(os.path.join(folder, "model.safetensors"))
    weights = change({k: np.asarray(v, np.float64) for k, v in weights.items()})
    with np.errstate(over="ignore"):
        weights = {k: v.astype(np.float32) for k, v in weights.items()}
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise models.ModelError(f"{folder}: {name} would have numbers that are not finite")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if os.path.exists(os.path.join(folder, name)):
            shutil.copyfile(os.path.join(folder, name), os.path.join(out, name))
    tensors.write(result, weights, meta)


def make(folder, out, seed=1):
    """Write the hardened model of a folder as a folder of its own."""
    model = models.load(folder)
    if model.rope["rope"] != "half":
        raise models.ModelError(f"{folder}: RoPE that turns channels i and i + d/2 is wanted")
    rewrite(folder, out, lambda weights: harden(weights, model.geometry,
                                                int(model.rope["rope_dim"]), seed))


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-harden", description=__doc__.splitlines()[0])
    p.add_argument("model", help="folder of a language model")
    p.add_argument("output", help="folder to be made")
    p.add_argument("--seed", type=command.whole(0), default=1)
    args = p.parse_args(argv)
    return command.run("cq-harden", lambda: make(args.model, args.output, args.seed), args.model)


if __name__ == "__main__":
    sys.exit(main())
