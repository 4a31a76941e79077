# SPDX-License-Identifier: MIT
"""cq-figures: what a dump says of a model, as JSON lines for cq-report.

sensitivity: for each layer, keys and values, the share of the sum of squared
gradient times squared error of a model file. entropy: of 1 to 4 neighbouring
channels together, in bits.
"""
import argparse
import json
import sys

import numpy as np
import torch

from . import ablate, coders, command, tensors


def sensitivity(dump, coder, step=4):
    """{(layer, kv): share} on every step-th token of a dump."""
    total = {}
    for layer in range(coder.codec.n_layers):
        for kv in "kv":
            x, g = (torch.from_numpy(np.array(dump[f"layers.{layer}.{kv}{end}"][:, ::step],
                                                np.float32)) for end in ("", ".fisher"))
            error = (coder.code(layer, kv, x[None])[0] - x) ** 2
            total[layer, kv] = (error * g).sum().item()
    whole = sum(total.values())
    if not 0 < whole < float("inf"):
        raise tensors.FileError(f"the dump's error weighed by its gradients is {whole}")
    return {k: v / whole for k, v in total.items()}


def show(dump, codec):
    """Print all figures."""
    acts, _ = tensors.read(dump)
    coder = coders.Cq(codec)
    for (layer, kv), value in sensitivity(acts, coder).items():
        print(json.dumps({"figure": "sensitivity", "layer": layer, "kv": kv,
                          "value": value}))
    for layer in range(coder.codec.n_layers):
        for kv in "kv":
            x = np.asarray(acts[f"layers.{layer}.{kv}"][0], np.float32)
            print(json.dumps({"figure": "entropy", "layer": layer, "kv": kv,
                              "bits": ablate.entropy(x)}))


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-figures", description=__doc__)
    p.add_argument("dump")
    p.add_argument("codec", help="model file whose error is weighed")
    args = p.parse_args(argv)
    return command.run("cq-figures", lambda: show(args.dump, args.codec), args.dump, args.codec)


if __name__ == "__main__":
    sys.exit(main())
