# SPDX-License-Identifier: MIT
"""cq-dump: keys, values and squared gradients of a model over some text.

Written as Documentation/formats.md says, one sequence at a time: memory is
that of one forward and backward pass.
"""
import argparse
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from . import command, hf, models, tensors
from .attention import plain


class Recorder:
    """A tap that keeps keys and values, for their gradients after the pass."""

    def __init__(self, rotated=False):
        self.kept, self.rotated = {}, rotated

    def attend(self, layer, q, k, v, rotate, scale, softcap=None, sliding=None):
        turned = rotate(k)
        kept = {"k": turned if self.rotated else k, "v": v}
        for x in kept.values():
            if x.requires_grad:
                x.retain_grad()
        self.kept[layer] = kept
        return plain(q, turned, v, scale, softcap, sliding)


def metadata(model, folder, length, source, rotated):
    """What formats.md wants to be known of a dump."""
    meta = {"format": "cq-activations-1", "keys": "rotated" if rotated else "pre-rope",
            "sequence_tokens": str(length), "source": source,
            "fingerprint": models.fingerprint(folder)}
    meta.update({k: str(v) for k, v in model.geometry.items()})
    meta.update(model.rope)
    return meta


def shapes(geometry, total, fisher):
    """name -> (dtype, shape) of a dump's tensors."""
    shape = (geometry["n_kv_heads"], total, geometry["head_dim"])
    out = {}
    for layer in range(geometry["n_layers"]):
        for kv in "kv":
            out[f"layers.{layer}.{kv}"] = (np.float16, shape)
            if fisher:
                out[f"layers.{layer}.{kv}.fisher"] = (np.float32, shape)
    return out


def _put(out, name, value, at):
    value = value.detach()[0].float().numpy()
    if np.abs(value).max() > 65504 or not np.isfinite(value).all():
        raise models.ModelError(f"{name}: a value that fp16 cannot hold")
    out[name][:, at:at + value.shape[1]] = value


def record(model, ids, out, at, fisher, rotated=False):
    """One sequence [token] into the tensors of out, from token at on."""
    tap = Recorder(rotated)
    x = model.embed(ids[None]).detach().requires_grad_(fisher)
    with torch.set_grad_enabled(fisher):
        logits = model.forward(x, tap, slice(None))
        if fisher:
            F.cross_entropy(logits[0, :-1].float(), ids[1:]).backward()
    for layer, kept in tap.kept.items():
        for kv, value in kept.items():
            name = f"layers.{layer}.{kv}"
            _put(out, name, value, at)
            if fisher:
                # of the sum of losses, so that small ones stay away from 0
                square = (value.grad[0].float().numpy() * len(ids)) ** 2
                if not np.isfinite(square).all():
                    raise models.ModelError(f"{name}: a gradient whose square is not finite")
                out[name + ".fisher"][:, at:at + len(ids)] = square


def dump(folder, ids, path, length=2048, count=16, skip=0, fisher=True, source="",
         transformers=False, rotated=False, say=lambda text: None):
    """Write the dump of count sequences of length tokens of ids, from skip on.

    ids: token ids, or the path of a file of them.
    """
    tensors.check_output(path)
    model = models.load(folder, transformers)
    if isinstance(ids, str):
        ids = models.read_ids(ids, model.vocab)
    models.check_length(model, length)
    ids = models.sequences(ids, count, length, skip)
    start = time.monotonic()
    with tensors.Writer(path, shapes(model.geometry, count * length, fisher),
                        metadata(model, folder, length, source, rotated)) as writer:
        for i, seq in enumerate(ids):
            record(model, seq, writer.tensors, i * length, fisher, rotated)
            left = (time.monotonic() - start) / (i + 1) * (count - i - 1)
            say(f"{i + 1} of {count} sequences, {left:.0f} s left")


def _run(args):
    tensors.check_output(args.output)
    dump(args.model, args.ids or hf.tokenize(args.model, args.text), args.output, args.length,
         args.sequences, args.skip, not args.no_fisher,
         f"{args.model} over {args.ids or args.text}", args.transformers, args.rotated,
         lambda text: print(f"cq-dump: {text}", file=sys.stderr))


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-dump", description="keys, values and squared "
                                "gradients of a model over a text, for cqctl calibrate")
    p.add_argument("model", help="folder of a Hugging Face causal language model")
    text = p.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="a text file, cut by the model's own tokenizer")
    text.add_argument("--ids", help="token ids: .u16, .u32 or .npy")
    p.add_argument("-o", "--output", required=True)
    p.add_argument("--length", type=command.whole(2), default=2048, help="tokens of a sequence")
    p.add_argument("--sequences", type=command.whole(1), default=16)
    p.add_argument("--skip", type=command.whole(0), default=0,
                   help="tokens of the text to leave out")
    p.add_argument("--no-fisher", action="store_true", help="no gradients")
    p.add_argument("--rotated", action="store_true", help="keys as RoPE leaves them")
    p.add_argument("--transformers", action="store_true",
                   help="use transformers where this package could do without")
    args = p.parse_args(argv)
    return command.run("cq-dump", lambda: _run(args), args.model, args.ids or args.text)


if __name__ == "__main__":
    sys.exit(main())
