# SPDX-License-Identifier: MIT
"""cq-eval: what codings cost a model, for its owner and for who attaches.

One JSON line for each coding and reader. Documentation/quality.md says what the
fields mean.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys

from . import ablate, coders, models, peers, score, tensors
from .attention import Coded, Plain, Reader

READERS = ("owner", "attached")


def commit():
    """The commit of the working tree that this file is in, or "unknown"."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"],
                         capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def peer(spec, dump, geometry, sinks):
    """A coder by its name: int2-g64, kivi2-g32, hadamard3-g64, turbo2, kvquant2-1, fp8.

    kvquant2 keeps no outliers, kvquant2-1 keeps 1 %.
    """
    head, _, tail = spec.partition("-")
    kind, bits = head.rstrip("0123456789"), head[len(head.rstrip("0123456789")):]
    try:
        if spec == "fp8":
            return peers.Fp8()
        if kind in ("int", "hadamard"):
            make = peers.IntToken if kind == "int" else peers.HadamardInt
            return make(int(bits), int(tail.removeprefix("g")))
        if kind == "kivi":
            return peers.Kivi(int(bits), int(tail.removeprefix("g")), sinks)
        if kind == "turbo":
            return peers.Turbo(int(bits), geometry["head_dim"])
        if kind in ("kvquant", "coupled") and dump is None:
            raise models.ModelError(f"{spec}: needs --dump")
        if kind == "coupled":
            return ablate.Coupled(int(bits), int(tail), dump, geometry, sinks)
        if kind == "kvquant":
            return peers.KvQuant(int(bits), dump, geometry, int(tail or 0) / 100, sinks)
    except ValueError as e:
        raise models.ModelError(f"{spec}: {e}") from e
    raise models.ModelError(f"{spec}: no such coding; see cq-eval --help")


def load_tasks(path):
    """The module that makes the retrieval tasks; its recall() is documented there."""
    spec = importlib.util.spec_from_file_location("tasks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """A model, texts and tasks, with what the exact cache gives on them."""

    def __init__(self, folder, args):
        self.model = models.load(folder, args.transformers)
        self.name = os.path.basename(os.path.normpath(args.name or folder))
        ids = models.read_ids(args.ids, self.model.vocab)
        self.seqs = models.sequences(ids, args.sequences, args.length, args.skip)
        self.first, self.end = args.first, args.length - 1
        self.ref = score.reference(self.model, self.seqs, self.first)
        self.seed, self.commit = args.seed, commit()
        self.tasks, self.asks = [], args.recall_readers
        self.label = {"label": args.label} if args.label else {}
        if args.tasks:
            recall = load_tasks(args.tasks).recall
            self.tasks = [recall([args.seed, i], args.recall_tokens, args.recall_pairs,
                                 args.recall_queries) for i in range(args.recall)]

    def exact(self):
        """The line of the exact cache."""
        right = score.retrieval(self.model, self.tasks, Plain()) if self.tasks else None
        return {"family": "fp16", "method": "fp16", "reader": "owner", "model": self.name,
                "effective_bits": 16.0, "options": self.label, "ppl_ratio": 1.0, "kl_mean": 0.0,
                "kl_p99": 0.0, "top1": 1.0, "retrieval": right, "commit": self.commit,
                "seed": self.seed}

    def line(self, coder, reader, options):
        """Figures of one coder, read by one reader."""
        out = {"family": coder.family, "method": coder.name, "reader": reader.name,
               "model": self.name, "effective_bits": round(coders.effective_bits(
                   coder, self.model.geometry, reader, self.first, self.end), 4),
               "options": options | self.label}
        found = score.text(self.model, self.seqs, self.ref, self.first, coder, reader)
        out.update({k: found[k] for k in ("ppl_ratio", "kl_mean", "kl_p99", "top1")})
        out["retrieval"] = score.retrieval(self.model, self.tasks, Coded(coder, reader)) \
            if self.tasks and reader.name in self.asks else None
        return out | {"commit": self.commit, "seed": self.seed,
                      "positions": found["positions"], "ppl": found["ppl"]}


def parser():
    p = argparse.ArgumentParser(
        prog="cq-eval", description="quality of coded caches, as JSON lines",
        epilog="peers: intB-gG, kivB-gG, hadamardB-gG (G channels or tokens share a "
               "scale), turboB, kvquantB, kvquantB-1 (1 %% outliers apart), fp8, coupledC-B "
               "(C channels, B bits)")
    p.add_argument("model", help="folder of a Hugging Face causal language model")
    p.add_argument("--codec", nargs="+", default=[], metavar="FILE",
                   help="model files of cqctl calibrate; NAME=FILE gives one a name")
    p.add_argument("--peer", nargs="+", default=[], metavar="NAME")
    p.add_argument("--ids", required=True, help="token ids to measure on: .u16, .u32, .npy")
    p.add_argument("--dump", help="activations with gradients, for kvquant")
    p.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    p.add_argument("--skip", type=int, default=0, help="tokens of the text to leave out")
    p.add_argument("--sequences", type=int, default=4)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--first", type=int, default=512, help="first row that counts")
    p.add_argument("--sinks", type=int, default=4, help="of the peers' readers")
    p.add_argument("--window", type=int, default=128, help="of the peers' owner")
    p.add_argument("--owner-windows", type=int, nargs="+", default=None, metavar="N",
                   help="windows of --codec's owner, instead of the files' own")
    p.add_argument("--family", help="of --codec's lines, instead of cq")
    p.add_argument("--label", default="", help="goes into every line's options")
    p.add_argument("--tasks", help="module with recall(); without it no retrieval")
    p.add_argument("--recall", type=int, default=16, help="retrieval sequences")
    p.add_argument("--recall-readers", nargs="+", choices=READERS, default=list(READERS))
    p.add_argument("--recall-tokens", type=int, default=1500)
    p.add_argument("--recall-pairs", type=int, default=125)
    p.add_argument("--recall-queries", type=int, default=16)
    p.add_argument("--no-exact", action="store_true", help="no line of the exact cache")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--name", help="of the model, in the lines")
    p.add_argument("--transformers", action="store_true",
                   help="use transformers where this package could do without")
    p.add_argument("-o", "--output", help="append to this file, too")
    return p


def jobs(bench, args):
    """(coder, reader, options) of every line."""
    for text in args.codec:
        name, _, path = text.rpartition("=")
        coder = coders.Cq(path, name or None)
        coder.family = args.family or coder.family
        if (coder.codec.n_layers, coder.codec.n_kv_heads, coder.codec.head_dim) != tuple(
                bench.model.geometry[k] for k in ("n_layers", "n_kv_heads", "head_dim")):
            raise models.ModelError(f"{path}: layers, kv heads or head_dim are not the model's")
        for reader in args.readers:
            windows = args.owner_windows if reader == "owner" and args.owner_windows else \
                [coder.window]
            for window in windows:
                yield coder, Reader(reader, coder.sinks, window), \
                    coder.options() | {"window": window}
    dump = tensors.read(args.dump)[0] if args.dump else None
    for spec in args.peer:
        coder = peer(spec, dump, bench.model.geometry, args.sinks)
        for reader in args.readers:
            yield coder, Reader(reader, args.sinks, args.window), \
                {"sinks": args.sinks, "window": args.window}


def run(args):
    """All lines, as they are done."""
    bench = Bench(args.model, args)
    if not args.no_exact:
        yield bench.exact()
    for coder, reader, options in jobs(bench, args):
        yield bench.line(coder, reader, options)


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        for line in run(args):
            text = json.dumps(line)
            print(text, flush=True)
            if args.output:
                with open(args.output, "a", encoding="utf-8") as f:
                    f.write(text + "\n")
    except (OSError, ValueError) as e:
        print(f"cq-eval: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
