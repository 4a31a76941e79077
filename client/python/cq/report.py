# SPDX-License-Identifier: MIT
"""What eval.json says: tables, plots, and the tables of a document."""
import argparse
import os
import sys

from . import command
from .curves import OURS, PEERS, compare, load, pick


def _number(x, digits=4):
    return "" if x is None else f"{x:.{digits}f}"


def table(lines, reader, model):
    """A Markdown table of one reader."""
    out = ["| coding | effective bits | KL mean | KL p99 | same top token | perplexity ratio | "
           "recall |", "|---|---|---|---|---|---|---|"]
    order = {f: i for i, f in enumerate(("fp16", "fp8") + OURS + PEERS)}
    rows = sorted(pick(lines, reader=reader, model=model),
                  key=lambda x: (order.get(x["family"], 99), x["effective_bits"]))
    for x in rows:
        turned = ", turned" if x["family"] == "cq-turned" else ""
        out.append(f"| {x['method']}{turned} | {x['effective_bits']:.2f} | {x['kl_mean']:.5f} | "
                   f"{x['kl_p99']:.4f} | {x['top1']:.4f} | {x['ppl_ratio']:.4f} | "
                   f"{_number(x['retrieval'], 3)} |")
    return out


def verdict(lines):
    """What is asked of the codec, line by line."""
    models = sorted({x["model"] for x in lines})
    out = ["| model | effective bits | figure | best peer | cq | ratio | cq-turned | ratio |",
           "|---|---|---|---|---|---|---|---|"]
    for model in models:
        for bits in (2, 2.5, 3, 4):
            for field in ("kl_mean", "kl_p99"):
                ours, name, best = compare(lines, model, bits, field)
                row = f"| {model} | {bits} | {field} | {_number(best, 5)} ({name}) |"
                for value in ours:
                    ratio = value / best if value and best else None
                    row += f" {_number(value, 5)} | {_number(ratio, 2)} |"
                out.append(row)
    return out


def ablations(lines):
    """A table of what was measured apart."""
    out = ["| what | reader | window | KL mean | KL p99 |", "|---|---|---|---|---|"]
    for x in lines:
        if x["options"].get("label") in ("ablation", "window"):
            out.append(f"| {x['method']} | {x['reader']} | {x['options'].get('window', '')} | "
                       f"{x['kl_mean']:.5f} | {x['kl_p99']:.4f} |")
    return out


def on_cqd(lines):
    """A table of what workers on a real cqd lose."""
    out = ["| coding | reader | positions | KL mean | KL p99 | same top token | perplexity |",
           "|---|---|---|---|---|---|---|"]
    for x in lines:
        if x["options"].get("label") == "cqd":
            out.append(f"| {x['method']} | {x['reader']} | {x['positions']} | "
                       f"{x['kl_mean']:.5f} | {x['kl_p99']:.4f} | {x['top1']:.4f} | "
                       f"{x['ppl']:.2f} |")
    return out


def parts(lines):
    """name -> lines of Markdown: a table for each model and reader, and what follows."""
    out = {}
    for model in sorted({x["model"] for x in lines}):
        for reader in sorted({x["reader"] for x in pick(lines, model=model)}):
            out[f"{model}, {reader} reader"] = table(lines, reader, model)
    return out | {"read off, attached reader": verdict(lines), "ablations": ablations(lines),
                  "on a real cqd": on_cqd(lines)}


def put_into(path, found):
    """Replace the tables of a document, each between the comments that name it."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    for name, rows in found.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin not in text:
            continue
        head, _, rest = text.partition(begin)
        if end not in rest:
            raise ValueError(f"{path}: no {end}")
        text = head + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2]
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def draw(lines, figures, folder):
    """The plots, where matplotlib is there."""
    try:
        from . import plot
    except ImportError:
        print("cq-report: no matplotlib, no plots", file=sys.stderr)
        return
    os.makedirs(folder, exist_ok=True)
    plot.curves(lines, folder)
    if figures:
        plot.figures(load(figures), folder)


def show(args):
    """Print the tables; plots and document as asked for."""
    lines = load(args.lines)
    found = parts(lines)
    for name, rows in found.items():
        print(f"{name}\n", *rows, "", sep="\n")
    if args.plots:
        draw(lines, args.figures, args.plots)
    if args.into:
        put_into(args.into, found)


def main(argv=None):
    p = argparse.ArgumentParser(prog="cq-report", description=__doc__)
    p.add_argument("lines", help="eval.json")
    p.add_argument("--figures", help="figures.json: sensitivity and entropy")
    p.add_argument("--plots", metavar="FOLDER", help="write plots there (needs matplotlib)")
    p.add_argument("--into", metavar="DOCUMENT", help="replace the tables of this one")
    args = p.parse_args(argv)
    return command.run("cq-report", lambda: show(args), args.lines, args.figures, args.into)


if __name__ == "__main__":
    sys.exit(main())
