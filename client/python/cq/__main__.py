# SPDX-License-Identifier: MIT
"""python3 -m cq dump|eval|figures|harden|report|turn ..."""
import sys

from . import dump, evaluate, figures, hard, report, turn

COMMANDS = {"dump": dump.main, "eval": evaluate.main, "harden": hard.main,
            "figures": figures.main, "report": report.main,
            "turn": turn.main}

if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
    print(f"usage: python3 -m cq {'|'.join(COMMANDS)} ...", file=sys.stderr)
    sys.exit(2)
sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
