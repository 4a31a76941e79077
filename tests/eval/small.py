# SPDX-License-Identifier: MIT
"""Where tests find things, and model files for them."""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
OUT = os.environ.get("O", os.path.join(TOP, "build"))
LM = os.path.join(TOP, "client/worker/lm")
DIR = tempfile.mkdtemp(prefix="cq-python.", dir=os.environ.get("TMPDIR"))


def path(name):
    """A file of this run."""
    return os.path.join(DIR, name)


def calibrate(acts, out, k, v, *more):
    """Run cqctl calibrate; the path of the model file."""
    subprocess.run([os.path.join(OUT, "cqctl"), "calibrate", acts, "--k", k, "--v", v,
                    "--iterations", "4", "--threads", "1", "-o", path(out), *more],
                   check=True, capture_output=True)
    return path(out)


def cq(*args):
    """(exit status, lines of JSON or text, what was said on standard error)."""
    done = subprocess.run([sys.executable, "-m", "cq", *args], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout, done.stderr


def heldout(n):
    """The first n held-out tokens of the small language model."""
    return np.fromfile(os.path.join(LM, "heldout.u16"), "<u2", n)


def lines(text):
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
