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

from . import ablate, coders, command, models, peers, score, tensors
from .attention import Coded, Plain, Reader

READERS = ("owner", "attached")


def commit():
    """The commit of the working tree that this file is in, or "unknown"."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        git = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"],
                             capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def _number(text, least, most, what):
    if not (text.isascii() and text.isdigit()) or not least <= int(text[:9]) <= most:
        raise ValueError(f"{what} {text or 'missing'}: {least} to {most} are known")
    return int(text)


def peer(spec, dump, geometry, sinks):
    """A coder by its name: int2-g64, kivi2-g32, hadamard3-g64, turbo2, kvquant2-1, fp8.

    kvquant2 keeps no outliers, kvquant2-1 keeps 1 %.
    """
    head, _, tail = spec.partition("-")
    kind = head.rstrip("0123456789")
    d = geometry["head_dim"]
    channels = geometry["n_kv_heads"] * d
    if spec == "fp8":
        return peers.Fp8()
    if kind not in ("int", "hadamard", "kivi", "turbo", "kvquant", "coupled"):
        raise models.ModelError(f"{spec}: no such coding; see cq-eval --help")
    if kind in ("kvquant", "coupled") and dump is None:
        raise models.ModelError(f"{spec}: needs --dump")
    try:
        bits = _number(head[len(kind):], 1, d if kind == "coupled" else 8,
                       "channels" if kind == "coupled" else "bits")
        if kind == "turbo":
            return peers.Turbo(bits, d)
        if kind == "coupled":
            if d % bits:
                raise ValueError(f"{bits} channels do not divide head_dim {d}")
            width, _, how = tail.partition("-")
            if how not in ("", "both"):
                raise ValueError(f"{how}: only both is known")
            return ablate.Coupled(bits, _number(width, 1, 10, "bits"), dump, geometry, sinks,
                                  how == "both")
        if kind == "kvquant":
            share = _number(tail or "0", 0, 50, "outliers") / 100
            return peers.KvQuant(bits, dump, geometry, share, sinks)
        group = _number(tail.removeprefix("g"), 1, 1 << 20, "group")
        if channels % group and not (kind == "kivi" and group > channels):
            raise ValueError(f"group {group} does not divide {channels} channels")
        if kind == "kivi":
            return peers.Kivi(bits, group, sinks)
        return (peers.IntToken if kind == "int" else peers.HadamardInt)(bits, group)
    except ValueError as e:
        raise models.ModelError(f"{spec}: {e}") from e


def load_tasks(path):
    """The module that makes the retrieval tasks; its recall() is documented there."""
    spec = importlib.util.spec_from_file_location("tasks", path)
    if spec is None:
        raise models.ModelError(f"{path} is not a module of Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:      # whatever the code of a module raises
        raise models.ModelError(f"{path}: {type(e).__name__}: {e}") from e
    if not callable(getattr(module, "recall", None)):
        raise models.ModelError(f"{path} has no recall()")
    return module


class Bench:
    """A model, texts and tasks, with what the exact cache gives on them."""

    def __init__(self, folder, args):
        self.folder, self.model = folder, models.load(folder, args.transformers)
        for length in [args.length] + [args.recall_tokens] * bool(args.tasks):
            models.check_length(self.model, length)
        self.name = os.path.basename(os.path.normpath(args.name or folder))
        ids = models.read_ids(args.ids, self.model.vocab)
        self.seqs = models.sequences(ids, args.sequences, args.length, args.skip)
        self.first, self.end = args.first, args.length - 1
        self.ref = score.reference(self.model, self.seqs, self.first)
        self.seed, self.commit, self.fingerprint = args.seed, commit(), None
        self.tasks, self.asks = [], args.recall_readers
        self.label = {"label": args.label} if args.label else {}
        if args.tasks:
            recall = load_tasks(args.tasks).recall
            self.tasks = [recall([args.seed, i], args.recall_tokens, args.recall_pairs,
                                 args.recall_queries, args.recall_words)
                          for i in range(args.recall)]

    def check(self, path, fingerprint):
        """Refuse a file that was made for other weights than those measured."""
        self.fingerprint = self.fingerprint or models.fingerprint(self.folder)
        models.check_fingerprint(path, fingerprint, self.fingerprint, self.folder)

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
               "(C channels, B bits), coupledC-B-both (weights as cqctl calibrate has)")
    p.add_argument("model", help="folder of a Hugging Face causal language model")
    p.add_argument("--codec", nargs="+", default=[], metavar="FILE",
                   help="model files of cqctl calibrate; NAME=FILE gives one a name")
    p.add_argument("--peer", nargs="+", default=[], metavar="NAME")
    p.add_argument("--ids", required=True, help="token ids to measure on: .u16, .u32, .npy")
    p.add_argument("--dump", help="activations with gradients, for kvquant")
    p.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    p.add_argument("--skip", type=command.whole(0), default=0,
                   help="tokens of the text to leave out")
    p.add_argument("--sequences", type=command.whole(1), default=4)
    p.add_argument("--length", type=command.whole(2), default=2048)
    p.add_argument("--first", type=command.whole(0), default=512, help="first row that counts")
    p.add_argument("--sinks", type=command.whole(0), default=4, help="of the peers' readers")
    p.add_argument("--window", type=command.whole(0), default=128, help="of the peers' owner")
    p.add_argument("--owner-windows", type=command.whole(0), nargs="+", default=None, metavar="N",
                   help="windows of --codec's owner, instead of the files' own")
    p.add_argument("--family", help="of --codec's lines, instead of cq")
    p.add_argument("--label", default="", help="goes into every line's options")
    p.add_argument("--tasks", help="module with recall(); without it no retrieval")
    p.add_argument("--recall", type=command.whole(1), default=16, help="retrieval sequences")
    p.add_argument("--recall-readers", nargs="+", choices=READERS, default=list(READERS))
    p.add_argument("--recall-tokens", type=command.whole(2), default=1500)
    p.add_argument("--recall-pairs", type=command.whole(1), default=62)
    p.add_argument("--recall-queries", type=command.whole(1), default=16)
    p.add_argument("--recall-words", type=command.whole(1), default=4,
                   help="of an answer, all of which must be right")
    p.add_argument("--no-exact", action="store_true", help="no line of the exact cache")
    p.add_argument("--seed", type=command.whole(0), default=1)
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
        bench.check(path, coder.codec.fingerprint.hex())
        for reader in args.readers:
            windows = args.owner_windows if reader == "owner" and args.owner_windows else \
                [coder.window]
            for window in windows:
                yield coder, Reader(reader, coder.sinks, window), \
                    coder.options() | {"window": window}
    dump = None
    if args.dump:
        dump, meta = tensors.read(args.dump)
        bench.check(args.dump, meta.get("fingerprint"))
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


def _write(args):
    with open(args.output or os.devnull, "a", encoding="utf-8") as f:
        for line in run(args):
            try:
                text = json.dumps(line, allow_nan=False)
            except ValueError as e:
                raise models.ModelError(f"{line['method']}: a figure is not a number") from e
            print(text, flush=True)
            print(text, file=f, flush=True)


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.first >= args.length - 1:
        p.error(f"--first {args.first}: no row is left of {args.length} tokens")
    return command.run("cq-eval", lambda: _write(args), args.model, args.ids, args.dump,
                       args.tasks, *args.codec)


if __name__ == "__main__":
    sys.exit(main())
