# SPDX-License-Identifier: MIT
"""Curves of error against bits: the lines of eval.json, and what they say at a size."""
import json
import math

# what the plots and the comparison leave out
APART = ("ablation", "window", "cqd")
OURS = ("cq", "cq-turned")
PEERS = ("int", "kivi", "hadamard", "turbo", "kvquant")


def load(path):
    """The lines of eval.json."""
    try:
        with open(path, encoding="utf-8") as f:
            found = [json.loads(line) for line in f]
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    if not all(isinstance(x, dict) and isinstance(x.get("options", {}), dict) for x in found):
        raise ValueError(f"{path}: a line that is no line of figures")
    return found


def pick(lines, **want):
    """The lines of curves whose fields are as wanted."""
    return [x for x in lines if x["options"].get("label") not in APART and
            all(x[k] == v for k, v in want.items())]


def front(lines, field):
    """Points (bits, figure) of the best lines: none has more bits and no less error."""
    out = []
    for bits, value in sorted((x["effective_bits"], x[field]) for x in lines):
        if not out or value < out[-1][1]:
            out.append((bits, value))
    return out


def read_off(points, bits):
    """The figure at a size: the logarithm between two points; None outside of them."""
    for (b0, y0), (b1, y1) in zip(points, points[1:]):
        if b0 <= bits <= b1:
            t = (bits - b0) / (b1 - b0)
            return math.exp((1 - t) * math.log(y0) + t * math.log(y1))
    return None


def compare(lines, model, bits, field, reader="attached"):
    """(ours, the best peer's name and figure) at a size; None where no curve reaches.

    ours: a figure for each family of OURS.
    """
    mine = pick(lines, model=model, reader=reader)
    found = {}
    for family in PEERS + OURS:
        points = front([x for x in mine if x["family"] == family], field)
        value = read_off(points, bits)
        if value is not None:
            found[family] = value
    ours = [found.pop(family, None) for family in OURS]
    best = min(found, key=found.get) if found else None
    return ours, best, found.get(best)
