#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Count the machine instructions of kernels: what Documentation/gpu.md computes with.

    cuda-sass.py [--arch sm_90] [--kernel PATTERN] [--blocks | --round WORD=N,...] FATBIN...

Reads what cuobjdump says of each kernel, by classes of instructions: of the whole
kernel, or with --blocks of each stretch without a branch that has at least 16. With
--round, of the shortest way once around a loop on which each WORD, a class or the first
parts of an instruction's name, is met N times or more: what a round does is known from the
source, and where the compiler puts it does not matter. The loop is the smallest that has such
a way; loops inside of it are gone through once at most. --list prints the instructions, too.
"""
import argparse
import collections
import fnmatch
import re
import shutil
import subprocess
import sys

CLASSES = (
    ("mma", ("HMMA", "MOVM", "HGMMA")),
    ("ldsm", ("LDSM",)),
    ("lds", ("LDS",)),
    ("sts", ("STS", "LDGSTS")),
    ("ldg", ("LDG", "LD", "LDC")),
    ("shfl", ("SHFL", "VOTE", "REDUX")),
    ("sel", ("SEL", "FSEL")),
    ("prmt", ("PRMT",)),
    ("half2", ("HFMA2", "HADD2", "HMUL2")),
    ("float", ("FFMA", "FADD", "FMUL", "FMNMX", "FSETP", "MUFU", "F2FP", "F2F")),
    ("integer", ("IADD3", "IMAD", "LOP3", "LEA", "SHF", "ISETP", "MOV", "IADD", "SGXT",
                 "VIADD", "BFE", "PLOP3", "CS2R", "R2P", "UMOV", "IMNMX", "VIMNMX", "VIMNMX3")),
)
NAMES = [name for name, _ in CLASSES] + ["other", "spill"]
# What the unit of half the width computes; counted once more.
ALU = ("SEL", "FSEL", "PRMT", "FMNMX", "FSETP", "IADD3", "LOP3", "LEA", "SHF", "ISETP", "MOV",
       "SGXT", "VIADD", "PLOP3", "IMNMX", "VIMNMX", "VIMNMX3", "P2R", "R2P", "HSET2")


def class_of(op):
    """The class of an instruction's first word, such as LDS.64."""
    first = op.split(".")[0]
    if first in ("LDL", "STL"):
        return "spill"
    for name, words in CLASSES:
        if first in words:
            return name
    return "other"


def kernels_of(path, arch):
    """Yields (name, [(address, instruction, target or None, unconditional)]) of each kernel."""
    if not shutil.which("cuobjdump"):
        raise SystemExit("cuda-sass: cuobjdump, of the CUDA toolkit, is not on the path")
    for exact in arch, arch + "a":      # sm_90a stands for sm_90 where a file needs it
        said = subprocess.run(["cuobjdump", "-sass", "-arch", exact, path], check=True,
                              capture_output=True, text=True).stdout
        if "Function : " in said:
            break
    name, lines = None, []
    for line in said.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            if name:
                yield name, lines
            name, lines = found[1], []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+ )?([A-Z0-9.]+)(.*);",
                               line):
            # BRA.DIV is for lanes that have parted, which these have not
            jump = found[3].split(".")[0] in ("BRA", "BSSY") and found[3] != "BRA.DIV"
            target = re.search(r"0x([0-9a-f]+)", found[4]) if jump else None
            always = not found[2] and "P" not in found[4]
            lines.append((int(found[1], 16), found[3], int(target[1], 16) if target else None,
                          always))
    if name:
        yield name, lines


def stretches(lines):
    """Instructions between branches and their targets."""
    targets = {t for _, _, t, _ in lines if t is not None}
    part = []
    for at, op, _, _ in lines:
        if at in targets and part:
            yield part
            part = []
        part.append((at, op))
        if op.split(".")[0] in ("BRA", "EXIT", "WARPSYNC", "BRX"):
            yield part
            part = []
    if part:
        yield part


def matches(op, word):
    """Is an instruction of a class, or of that name or one that begins with it?"""
    return class_of(op) == word or (op + ".").startswith(word + ".")


def successors(lines, index, i):
    """Where control goes on from an instruction, but for calls and what ends."""
    _, op, target, always = lines[i]
    word = op.split(".")[0]
    if word in ("EXIT", "RET") and always:
        return []
    if word != "BRA" or target not in index:
        return [i + 1]
    return [index[target]] if always else [index[target], i + 1]


def shortest(lines, index, first, last, want):
    """The shortest way from the head of a loop to its end that has enough of all, or None."""
    # states are counts that are still to be met; each has the shortest way to it
    ways = {first: {tuple(want.values()): (0, None)}}
    for i in range(first, last + 1):
        here = ways.get(i, {})
        done, met = {}, [matches(lines[i][1], w) for w in want]
        for state, (size, _) in here.items():
            left = tuple(max(n - x, 0) for n, x in zip(state, met))
            if left not in done or done[left][0] > size + 1:
                done[left] = (size + 1, state)
        ways[i] = {"in": here, "out": done}
        for k in successors(lines, index, i) if i < last else []:
            if i < k <= last:       # no way back: an inner loop is gone through once
                to = ways.setdefault(k, {})
                for left, (size, _) in done.items():
                    if left not in to or to[left][0] > size:
                        to[left] = (size, (i, left))
    state = tuple(0 for _ in want)
    if state not in ways[last]["out"]:
        return None
    part, i = [], last
    while True:
        part.append(lines[i][:2])
        state = ways[i]["out"][state][1]
        if i == first:
            return part[::-1]
        i, state = ways[i]["in"][state][1]


def round_of(lines, want):
    """The shortest way around the smallest loop that has one with enough of all."""
    index = {at: i for i, (at, _, _, _) in enumerate(lines)}
    loops = sorted((i - index[target], index[target], i) for i, (at, op, target, _)
                   in enumerate(lines) if op.startswith("BRA") and target in index
                   and target < at)
    for _, first, last in loops:
        part = shortest(lines, index, first, last, want)
        if part:
            return part
    return None


def show(label, part):
    """One line of the table."""
    count = collections.Counter(class_of(op) for _, op in part)
    alu = sum(op.split(".")[0] in ALU for _, op in part)
    print(f"{label:30}", f"{len(part):6}", *(f"{count[n]:7}" for n in NAMES), f"{alu:7}")


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--kernel", default="*")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--round", type=lambda x: {w: int(n) for w, n in
                                                   (one.split("=") for one in x.split(","))})
    parser.add_argument("--list", action="store_true")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    print(f"{args.arch:30}", f"{'all':>6}", *(f"{n:>7}" for n in NAMES), f"{'alu':>7}")
    for path in args.files:
        for name, lines in kernels_of(path, args.arch):
            if not fnmatch.fnmatch(name, args.kernel):
                continue
            if args.round:
                part = round_of(lines, args.round)
                if not part:
                    raise SystemExit(f"cuda-sass: {name} has no loop with such a round")
                show(name, part)
                for at, op in part if args.list else ():
                    print(f"  {at:05x} {op}")
                continue
            show(name, [(at, op) for at, op, _, _ in lines])
            for part in stretches(lines) if args.blocks else ():
                if len(part) >= 16:
                    show(f"  {part[0][0]:05x}-{part[-1][0]:05x}", part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
