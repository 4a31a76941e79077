# SPDX-License-Identifier: MIT
"""python3 -m cq dump|eval|figures|harden|report|turn ..."""
import importlib
import signal
import sys

COMMANDS = {"dump": "dump", "eval": "evaluate", "figures": "figures", "harden": "hard",
            "report": "report", "turn": "turn"}

if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
    print(f"usage: python3 -m cq {'|'.join(COMMANDS)} ...", file=sys.stderr)
    sys.exit(2)
try:
    command = importlib.import_module("." + COMMANDS[sys.argv[1]], __package__)
except ModuleNotFoundError as e:
    print(f"cq-{sys.argv[1]}: {sys.executable} has no {e.name}; python3-torch brings torch and "
          f"numpy, PYTHON= names another interpreter", file=sys.stderr)
    sys.exit(1)
# so that what is half done is removed
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
sys.exit(command.main(sys.argv[2:]))
