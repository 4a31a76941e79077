# SPDX-License-Identifier: MIT
"""Gathers the training text of a Debian machine: tok.bin, uint16 ids of ../merges.json.

Manual pages, package documentation, Python and Perl libraries; ASCII only.
Text within 256 tokens of 32 that heldout.u16 has too is left out.
"""
import argparse
import gzip
import os
import random
import re
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
from tokenizer import Tokenizer, _PIECES    # noqa: E402

ROOTS = ["/usr/share/man/man%d" % n for n in (1, 2, 3, 5, 7, 8)] + [
    "/usr/share/doc", "/usr/share/info", "/usr/lib/python3", "/usr/lib/python3.11",
    "/usr/share/perl", "/usr/lib/x86_64-linux-gnu/perl"]
ENDS = (".py", ".pm", ".pod", ".txt", ".md", ".rst", ".html", ".gz")
LONGEST = 150_000       # bytes taken of one file
GRAM, AROUND = 32, 256  # tokens
REQUEST = re.compile(r"[.'](?:B|I|BR|IR|RB|RI|BI|IB|SH|SS|TP|IP|Nm|Sh|Ss)\s+(.*)")


def manual(roff):
    """A manual page without its roff requests."""
    out = []
    for line in roff.split("\n"):
        if line.startswith(("'", ".")):
            match = REQUEST.match(line)
            if not match:
                continue
            line = match.group(1).replace('"', "")
        line = re.sub(r"\\f[A-Z]|\\f\(..|\\&|\\,|\\/|\\\||\\c", "", line)
        for escape, plain in (("\\-", "-"), ("\\(aq", "'"), ("\\e", "\\"), ("\\(bu", "*")):
            line = line.replace(escape, plain)
        out.append(line)
    return "\n".join(out)


def read(path):
    """The text of a file, "" where it is none."""
    with open(path, "rb") as f:
        raw = f.read()
    if path.endswith(".gz"):
        raw = gzip.decompress(raw)
    raw = raw[:LONGEST]
    text = raw.decode("ascii", "ignore")
    if len(raw) < 300 or b"\0" in raw[:1000] or len(text) < 0.97 * len(raw):
        return ""
    if "/man/" in path:
        text = manual(text)
    if path.endswith(".html"):
        text = re.sub(r"<[^>]*>", "", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def texts(limit):
    """Different texts, shuffled by file, up to limit bytes."""
    paths = [os.path.join(d, f) for root in ROOTS for d, _, names in os.walk(root)
             for f in names if "/test" not in d and (f.endswith(ENDS) or "/man/" in d)]
    random.Random(1).shuffle(paths)
    seen, total = set(), 0
    for path in paths:
        try:
            text = read(path)
        except (OSError, EOFError):
            continue
        if text and text[:400] not in seen and total < limit:
            seen.add(text[:400])
            total += len(text)
            yield text


def encode(parts):
    """Token ids of the parts, a blank line behind each."""
    tokenizer, known, out = Tokenizer(), {}, []
    for text in parts:
        for piece in _PIECES.findall(text + "\n\n"):
            if piece not in known:
                known[piece] = tokenizer.encode(piece) if len(piece) <= 200 else []
            out.extend(known[piece])
    return np.array(out, dtype=np.uint16)


def grams(ids):
    """A hash of the GRAM tokens from each position on."""
    odd = np.random.default_rng(5).integers(1, 2**63, GRAM, dtype=np.uint64) | np.uint64(1)
    total = np.zeros(len(ids) - GRAM + 1, dtype=np.uint64)
    for j in range(GRAM):
        total += ids[j:len(total) + j].astype(np.uint64) * odd[j]
    return total


def without(ids, other):
    """ids without what stands near GRAM tokens that other has too."""
    edge = np.zeros(len(ids) + 1, dtype=np.int64)
    for i in np.flatnonzero(np.isin(grams(ids), grams(other))):
        edge[max(0, i - AROUND)] += 1
        edge[min(len(ids), i + GRAM + AROUND)] -= 1
    return ids[np.cumsum(edge)[:-1] == 0]


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--bytes", type=float, default=48e6, help="text to gather")
    args.add_argument("--out", default="tok.bin")
    args = args.parse_args()
    held = np.fromfile(os.path.join(HERE, "..", "heldout.u16"), dtype="<u2")
    ids = without(encode(texts(args.bytes)), held)
    ids.tofile(args.out)
    print(len(ids), "tokens")


if __name__ == "__main__":
    main()
