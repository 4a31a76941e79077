# SPDX-License-Identifier: MIT
"""Measures a model: writes figures.json and reference.safetensors beside its weights.

Everything in f32. INT2 is what the comparison calls a naive cache: each
token's 64 numbers of a kv head, keys before RoPE, rounded to four equal steps
from their least to their greatest, every token of the sequence.
"""
import argparse
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import model
import tasks

LM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
REFERENCE_ROWS = (0, 1, 2, 3, 63, 127, 255)
LENGTHS = (512, 1024, 1500)


def int2(_, keys, values):
    """A hook for model.Net: keys and values through 2 bits per number."""
    def coded(x):
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        size = ((high - low) / 3).clamp_min(1e-12)
        return ((x - low) / size).round() * size + low
    return coded(keys), coded(values)


def ids_of(array):
    """ids as a batch of one."""
    return torch.from_numpy(array.astype(np.int64))[None]


def perplexity(net, text, length, hook=None):
    """Per token of text, cut into windows of length."""
    total = count = 0
    for start in range(0, len(text) - length + 1, length):
        x = ids_of(text[start:start + length])
        total += F.cross_entropy(net(x, hook=hook)[:-1], x[0, 1:], reduction="sum").item()
        count += length - 1
    return math.exp(total / count)


def accuracy(net, made, hook=None):
    """Share of (ids, positions, answers) whose answers are the most likely tokens.

    An answer of several words counts when all of them are right.
    """
    right = total = 0
    for ids, at, answers in made:
        said = net(ids_of(ids), torch.from_numpy(at.ravel()), hook).argmax(-1).numpy()
        right += (said == answers.ravel()).reshape(len(answers), -1).all(-1).sum()
        total += len(answers)
    return round(float(right / total), 4)


def recall(net, name, length, texts, hook=None):
    """Accuracy at a preset of tasks.py; 3,000,000 is the seed that training never has."""
    made = (tasks.preset(name, [3_000_000, i], length) for i in range(texts))
    return accuracy(net, made, hook)


def figures(net, texts, tokens):
    """What figures.json holds."""
    held = tasks.held_out()[:tokens]
    out = {f"ppl_{n}": round(perplexity(net, held, n), 3) for n in (512, 1024, 2048)}
    out["ppl_2048_int2"] = round(perplexity(net, held[:32768], 2048, int2), 3)
    out["copy_accuracy"] = {str(n): accuracy(net, (tasks.repeated([3_000_000, i], 2 * n, n)
                                                   for i in range(4))) for n in (32, 128, 512)}
    for kind, hook in (("fp16", None), ("int2", int2)):
        out["recall_" + kind] = {
            name: {str(n): recall(net, name, n, texts * (4 if name == "single" else 1), hook)
                   for n in LENGTHS} for name in tasks.PRESETS}
    return out


def reference(net):
    """What cq-worker verify compares its logits with."""
    ids = tasks.held_out()[:256]
    rows = torch.tensor(REFERENCE_ROWS)
    return {"tokens": ids, "logits": net(ids_of(ids), rows).numpy(),
            "rows": rows.numpy().astype(np.int32)}


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", default=LM, help="folder of the weights")
    args.add_argument("--texts", type=int, default=8, help="texts a length, 4 times for single")
    args.add_argument("--tokens", type=int, default=131072, help="of text for perplexities")
    args.add_argument("--dry", action="store_true", help="writes nothing")
    args = args.parse_args()
    with open(os.path.join(args.model, "config.json")) as f:
        net = model.Net(json.load(f), lowp=torch.float32)
    model.load(net, os.path.join(args.model, "model.safetensors"))
    with torch.no_grad():
        found = figures(net, args.texts, args.tokens)
        print(json.dumps(found, indent=1))
        if not args.dry:
            with open(os.path.join(args.model, "figures.json"), "w") as f:
                f.write(json.dumps(found, indent=1) + "\n")
            model.write_tensors(os.path.join(args.model, "reference.safetensors"),
                                reference(net))


if __name__ == "__main__":
    main()
