#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Attention's figures out of build/bench.json: a drawing, and a table for README.md.

    bench-report.py BENCH_JSON SVG [README]

Writes SVG (time per token against context, one line per coding) and, where
README is given, replaces what is between the lines that begin with MARK_FROM and
MARK_TO. Only cases of one row and one thread count; of several runs in one file
the medians. Exits with 1 and a line on stderr if there are none.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

MARK_FROM = "<!-- bench-report"
MARK_TO = "<!-- end of bench-report"
WIDTH, HEIGHT = 780, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 570, 20, 370
LABEL_STEP = 15
COLOURS = {"kfp16-vfp16": "#555555", "k8c8b-v8c8b": "#1b7837", "k4c8b-v4c8b": "#2166ac",
           "k2c8b-v2c8b": "#b2182b", "limit": "#999999", "peer": "#8c6d31"}
NAMES = {"kfp16-vfp16": "fp16", "k8c8b-v8c8b": "8c8b, 1 bit", "k4c8b-v4c8b": "4c8b, 2 bits",
         "k2c8b-v2c8b": "2c8b, 4 bits"}
KEYS = {"none": "no rotation", "pre-rope": "keys before RoPE"}


class Line(NamedTuple):
    """One line of the drawing: points are (context, ns)."""

    name: str
    colour: str
    dash: str
    points: list[tuple[int, float]]


def read(path: Path) -> list[dict[str, Any]]:
    """All objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def attention(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases of one row and thread by the best implementation of the run."""
    found = [r for r in rows if r["bench"] == "attention" and r["rows"] == 1 and
             r["threads"] == 1]
    rank = ("avx512", "avx512vnni", "avx512bw", "avx2", "portable")
    impls = [i for i in rank if any(r["impl"] == i for r in found)]
    cases: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for r in found:
        if r["impl"] == impls[0]:
            cases.setdefault((r["config"], r["keys"], r["context"]), []).append(r)
    return [runs[0] | {key: statistics.median(r[key] for r in runs)
                       for key in ("ns_per_token_head", "vs_bandwidth")}
            for runs in cases.values()]


def limit_ns(row: dict[str, Any]) -> float:
    """Time to read a token's fp16 keys and values, measured beside the case."""
    return row["ns_per_token_head"] * row["vs_bandwidth"]


def lines_of(rows: list[dict[str, Any]]) -> list[Line]:
    """The lines to draw, by coding and kind of keys."""
    own = attention(rows)
    lines = []
    for config, name in NAMES.items():
        for keys, dash in (("pre-rope", ""), ("none", "5 3")):
            points = [(r["context"], r["ns_per_token_head"]) for r in own
                      if r["config"] == config and r["keys"] == keys]
            if points and (config, keys) != ("kfp16-vfp16", "pre-rope"):
                lines.append(Line(f"{name}, {KEYS[keys]}", COLOURS[config], dash,
                                  sorted(points)))
    contexts = sorted({r["context"] for r in own})
    lines.append(Line("limit of fp16: reading it", COLOURS["limit"], "1 3", [
        (c, statistics.median(limit_ns(r) for r in own if r["context"] == c))
        for c in contexts]))
    peers = [(r["context"], r["ns_per_token_head"], r["peer"]) for r in rows
             if r["bench"] == "peer" and r["what"] == "attention, bfloat16"]
    if peers:
        lines.append(Line(f"{peers[0][2].split('+')[0]}, bf16", COLOURS["peer"], "8 2 2 2",
                          sorted((c, ns) for c, ns, _ in peers)))
    return lines


def scales(lines: list[Line]) -> tuple[Any, Any, list[int], list[int]]:
    """Places of a context and of a time on the paper, both logarithmic, and ticks."""
    contexts = sorted({c for line in lines for c, _ in line.points})
    times = [ns for line in lines for _, ns in line.points]
    low, high = math.log(min(times) * 0.85), math.log(max(times) * 1.15)
    first, last = math.log(contexts[0]), math.log(contexts[-1])

    def place_x(context: float) -> float:
        return LEFT + (math.log(context) - first) / (last - first) * (RIGHT - LEFT)

    def place_y(ns: float) -> float:
        return BOTTOM - (math.log(ns) - low) / (high - low) * (BOTTOM - TOP)

    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500)
             if low <= math.log(t) <= high]
    return place_x, place_y, contexts, ticks


def text(x: float, y: float, what: str, extra: str = "") -> str:
    """One piece of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" {extra}>{what}</text>'


def draw(lines: list[Line]) -> str:
    """The SVG."""
    place_x, place_y, contexts, ticks = scales(lines)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for t in ticks:
        y = place_y(t)
        out.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#dddddd"/>')
        out.append(text(LEFT - 8, y + 4, str(t), 'text-anchor="end"'))
    for c in contexts:
        out.append(text(place_x(c), BOTTOM + 18, f"{c // 1024}K", 'text-anchor="middle"'))
    out.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, "tokens of context",
                    'text-anchor="middle"'))
    out.append(text(16, (TOP + BOTTOM) / 2, "ns per token and kv head", 'text-anchor="middle" '
                    f'transform="rotate(-90 16 {(TOP + BOTTOM) // 2})"'))
    label = -math.inf
    for line in sorted(lines, key=lambda l: -l.points[-1][1]):
        path = "L".join(f"{place_x(c):.1f} {place_y(ns):.1f}" for c, ns in line.points)
        out.append(f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="2" '
                   f'stroke-dasharray="{line.dash or "none"}"/>')
        label = max(label + LABEL_STEP, place_y(line.points[-1][1]) + 4)
        out.append(text(RIGHT + 6, label, line.name, f'fill="{line.colour}"'))
    return "\n".join(out + ["</svg>", ""])


def table(rows: list[dict[str, Any]], context: int) -> list[str]:
    """Rows of a table in Markdown for one context."""
    out = ["| keys and values | bytes | keys before RoPE, ns | over the limit of fp16 | "
           "no rotation, ns | over the limit of fp16 |", "|---|---|---|---|---|---|"]
    own = [r for r in attention(rows) if r["context"] == context]
    for config, name in NAMES.items():
        cells = []
        for keys in ("pre-rope", "none"):
            for r in own:
                if r["config"] == config and r["keys"] == keys:
                    cells += [f"{r['ns_per_token_head']:.1f}", f"{r['vs_bandwidth']:.2f}x"]
        size = own[0]["head_dim"] * 4
        part = {"kfp16-vfp16": 1, "k8c8b-v8c8b": 16, "k4c8b-v4c8b": 8, "k2c8b-v2c8b": 4}
        out.append(f"| {name} | {size // part[config]} | " + " | ".join(cells) + " |")
    return out


def replace(readme: Path, rows: list[dict[str, Any]]) -> bool:
    """The lines between the marks anew; false if there are no marks."""
    lines = readme.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(MARK_FROM)]
    ends = [i for i, line in enumerate(lines) if line.startswith(MARK_TO)]
    if len(starts) != 1 or len(ends) != 1 or starts[0] > ends[0]:
        return False
    own = attention(rows)
    context = max((r["context"] for r in own if r["context"] <= 16384), default=0)
    limit = statistics.median(limit_ns(r) for r in own if r["context"] == context)
    new = ["", f"Per token and kv head of {own[0]['head_dim']} channels, {own[0]['gqa']} query "
           f"heads, {context:,} tokens, one thread, {own[0]['impl']}; reading",
           f"the same in fp16 takes {limit:.1f} ns on this machine.", ""]
    new += table(rows, context) + [""]
    readme.write_text("\n".join(lines[:starts[0] + 1] + new + lines[ends[0]:]) + "\n")
    return True


def main() -> int:
    """See the head of this file."""
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 1
    rows = read(Path(sys.argv[1]))
    if not attention(rows):
        print(f"{sys.argv[1]}: no lines of attention, one row, one thread: run make bench",
              file=sys.stderr)
        return 1
    Path(sys.argv[2]).write_text(draw(lines_of(rows)))
    if len(sys.argv) == 4 and not replace(Path(sys.argv[3]), rows):
        print(f'{sys.argv[3]}: no lines that begin with "{MARK_FROM}" and "{MARK_TO}"',
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
