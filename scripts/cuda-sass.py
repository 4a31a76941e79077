#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Count the machine instructions of kernels: what Documentation/gpu.md computes with.

    cuda-sass.py [--arch sm_90] [--kernel PATTERN] [--blocks | --path AT,AT...] FATBIN...

Reads what cuobjdump says of each kernel, by classes of instructions: of the whole
kernel, or with --blocks of each stretch without a branch that has at least 16. With
--path, of one round of the loop that begins at the first address (hexadecimal): at the
other addresses are the conditional branches that are taken, all others are not.
"""
import argparse
import collections
import fnmatch
import re
import subprocess
import sys

CLASSES = (
    ("mma", ("HMMA", "MOVM")),
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
                 "VIADD", "BFE", "PLOP3", "CS2R", "R2P", "UMOV")),
)
NAMES = [name for name, _ in CLASSES] + ["other", "spill"]
# What the unit of half the width computes; counted once more.
ALU = ("SEL", "FSEL", "PRMT", "FMNMX", "FSETP", "IADD3", "LOP3", "LEA", "SHF", "ISETP", "MOV",
       "SGXT", "VIADD", "PLOP3", "IMNMX", "VIMNMX", "P2R", "R2P")


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
    said = subprocess.run(["cuobjdump", "-sass", "-arch", arch, path], check=True,
                          capture_output=True, text=True).stdout
    name, lines = None, []
    for line in said.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            if name:
                yield name, lines
            name, lines = found[1], []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+ )?([A-Z0-9.]+)(.*);",
                               line):
            jump = found[3].split(".")[0] in ("BRA", "BSSY")
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


def walk(lines, path):
    """Instructions of one round through a loop; path[0] is where it begins."""
    index = {at: i for i, (at, _, _, _) in enumerate(lines)}
    part, i = [], index[path[0]]
    while len(part) < len(lines):
        at, op, target, always = lines[i]
        part.append((at, op))
        jump = op.split(".")[0] == "BRA" and (always or at in path[1:])
        i = index[target] if jump else i + 1
        if lines[i][0] == path[0]:
            return part
        if op.startswith("BRA") and not always and not jump and target == path[0]:
            return part
    raise SystemExit("cuda-sass: the path does not lead back to where it began")


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
    parser.add_argument("--path", type=lambda x: [int(at, 16) for at in x.split(",")])
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    print(f"{args.arch:30}", f"{'all':>6}", *(f"{n:>7}" for n in NAMES), f"{'alu':>7}")
    for path in args.files:
        for name, lines in kernels_of(path, args.arch):
            if not fnmatch.fnmatch(name, args.kernel):
                continue
            if args.path:
                show(name, walk(lines, args.path))
                continue
            show(name, [(at, op) for at, op, _, _ in lines])
            for part in stretches(lines) if args.blocks else ():
                if len(part) >= 16:
                    show(f"  {part[0][0]:05x}-{part[-1][0]:05x}", part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
