#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Strict reader of Prometheus' text format 0.0.4, and what is checked with it.

metrics.py check FILE            the format, line by line
metrics.py names FILE USER...    every metric that the USERs ask for is in FILE
metrics.py get PATH|PORT TARGET  one HTTP request; prints status, then the body
metrics.py value FILE SAMPLE     value of one sample, written as in the file
"""
import json
import math
import re
import socket
import sys

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(rf"^({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)$")
UNITS = ("_seconds", "_bytes")


def fail(line, why):
    sys.exit(f"{why}: {line!r}")


def base_of(name, types):
    for tail in ("_bucket", "_sum", "_count"):
        base = name[: -len(tail)]
        if name.endswith(tail) and types.get(base) == "histogram":
            return base
    return name


def check_histogram(series):
    """Buckets of one label set: cumulative, ascending, +Inf = count."""
    for labels, h in series.items():
        bounds = [b for b, _ in h["bucket"]]
        counts = [c for _, c in h["bucket"]]
        if bounds != sorted(bounds) or bounds[-1] != math.inf:
            fail(labels, "bounds do not ascend to +Inf")
        if counts != sorted(counts):
            fail(labels, "buckets are not cumulative")
        if counts[-1] != h["count"] or "sum" not in h:
            fail(labels, "no sum, or count is not the last bucket")


def parse(path):
    """Families in the order of the file: {name: {sample: value}}."""
    with open(path, "rb") as f:
        raw = f.read()
    text = raw.decode("utf-8")
    if not text.endswith("\n") or "\r" in text:
        fail(text[-20:], "no newline at the end, or a carriage return")
    types, helps, families, samples = {}, set(), {}, {}
    current, hists = None, {}
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            if name in helps:
                fail(line, "a second HELP")
            helps.add(name)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            if name in types or kind not in ("counter", "gauge", "histogram"):
                fail(line, "a second TYPE, or an unknown one")
            types[name], current, families[name] = kind, name, {}
            continue
        m = SAMPLE.match(line)
        if not m:
            fail(line, "no sample")
        name, labels = m.group(1), m.group(2) or ""
        value = float(m.groups()[-1])
        base = base_of(name, types)
        if base != current or base not in helps:
            fail(line, "outside of its family")
        key = line.rsplit(" ", 1)[0]
        if key in samples:
            fail(line, "twice")
        if value < 0 or math.isnan(value):
            fail(line, "below 0")
        samples[key] = value
        families[base][key] = value
        pairs = re.findall(LABEL, labels)
        if len({k for k, _ in pairs}) != len(pairs):
            fail(line, "a label twice")
        if types[base] == "histogram":
            rest = tuple(p for p in pairs if p[0] != "le")
            h = hists.setdefault(base, {}).setdefault(rest, {"bucket": []})
            tail = name[len(base) + 1:]
            if tail == "bucket":
                le = dict(pairs)["le"]
                h["bucket"].append((math.inf if le == "+Inf" else float(le), value))
            else:
                h[tail] = value
        elif (types[base] == "counter") != name.endswith("_total"):
            fail(line, "counters, and only they, end in _total")
    for series in hists.values():
        check_histogram(series)
    return families, samples, types


def check(path):
    families, samples, types = parse(path)
    for name in families:
        if not re.match(r"^(cq|process)_[a-z0-9_]+$", name):
            fail(name, "not a name of ours")
        if types[name] == "histogram" and not name.endswith(UNITS):
            fail(name, "a histogram without its unit")
    print(f"{len(families)} families, {len(samples)} samples")


def names(path, users):
    families, samples, types = parse(path)
    have = set(families)
    for name, kind in types.items():
        if kind == "histogram":
            have |= {name + "_bucket", name + "_sum", name + "_count"}
    for user in users:
        with open(user, encoding="utf-8") as f:
            text = f.read()
        if user.endswith(".json"):
            panels = json.loads(text)["panels"]
            exprs = [t["expr"] for p in panels for t in p["targets"]]
            if len(exprs) < len(panels):
                fail(user, "a panel without a query")
            text = "\n".join(exprs)
        else:	# comments may name anything
            text = re.sub(r"#.*", "", text)
        asked = set(re.findall(r"\b(?:cq|process)_[a-z0-9_]+", text))
        if not asked or asked - have:
            fail(sorted(asked - have), f"{user} asks for what is not there")
        print(f"{user}: {len(asked)} metrics")


def connect(where):
    if where.isdigit():
        return socket.create_connection(("127.0.0.1", int(where)), timeout=10)
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(where)
    return s


def unchunk(body):
    out = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if body[n:n + 2] != b"\r\n":
            fail(size, "a chunk that does not end")
        if n == 0:
            return out
        out, body = out + body[:n], body[n + 2:]


def get(where, target):
    s = connect(where)
    if " " not in target:
        target = f"GET {target} HTTP/1.1\r\nHost: cq\r\n\r\n"
    s.sendall(target.encode("latin-1").decode("unicode_escape").encode("latin-1"))
    raw = b""
    while True:
        piece = s.recv(65536)
        if not piece:
            break
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode()
    if b"chunked" in head:
        body = unchunk(body)
    print(status)
    sys.stdout.write(body.decode())


def main(argv):
    if argv[0] == "check":
        check(argv[1])
    elif argv[0] == "names":
        names(argv[1], argv[2:])
    elif argv[0] == "get":
        get(argv[1], argv[2])
    else:
        print(f"{parse(argv[1])[1][argv[2]]:g}")


main(sys.argv[1:])
