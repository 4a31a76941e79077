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

from . import ablate, coders, tensors


def sensitivity(dump, coder, step=4):
    """{(layer, kv): share} on every step-th token of a dump."""
    total = {}
    for layer in range(coder.codec.n_layers):
        for kv in "kv":
            x, g = (torch.from_numpy(np.array(dump[f"layers.{layer}.{kv}{end}"][:, ::step],
                                                np.float32)) for end in ("", ".fisher"))
            error = (coder.code(layer, kv, x[None])[0] - x) ** 2
            total[layer, kv] = (error * g).sum().item()
    return {k: v / sum(total.values()) for k, v in total.items()}


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-figures", description=__doc__)
    p.add_argument("dump")
    p.add_argument("codec", help="model file whose error is weighed")
    args = p.parse_args(argv)
    try:
        dump, _ = tensors.read(args.dump)
        coder = coders.Cq(args.codec)
        for (layer, kv), value in sensitivity(dump, coder).items():
            print(json.dumps({"figure": "sensitivity", "layer": layer, "kv": kv,
                              "value": value}))
        for layer in range(coder.codec.n_layers):
            for kv in "kv":
                x = np.asarray(dump[f"layers.{layer}.{kv}"][0], np.float32)
                print(json.dumps({"figure": "entropy", "layer": layer, "kv": kv,
                                  "bits": ablate.entropy(x)}))
    except (KeyError, OSError, ValueError) as e:
        print(f"cq-figures: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
