# SPDX-License-Identifier: MIT
"""Work that goes on after it was ended: files made once, lines in the order of their jobs."""
import hashlib
import json
import os
import shutil
import sys
import threading
import time


def say(text):
    """A line on standard error."""
    print(f"eval: {text}", file=sys.stderr, flush=True)


def stamp(settings, paths):
    """What figures depend on, as a digest: settings and the contents of files."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        with open(path, "rb") as f:
            digest.update(hashlib.sha256(f.read()).digest())
    return digest.hexdigest()


def prepare(folder, mark):
    """Make a folder for files of this mark, without others; whether it was there."""
    path = os.path.join(folder, "stamp")
    try:
        with open(path, encoding="ascii") as f:
            if f.read() == mark:
                return True
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(path, "w", encoding="ascii") as f:
        f.write(mark)
    return False


def once(path, call):
    """call(path) unless that is there: a file or folder that is whole or not there."""
    if os.path.exists(path):
        return
    part = path + ".part"
    if os.path.isdir(part):
        shutil.rmtree(part)
    call(part)
    os.replace(part, path)


class Lines:
    """The lines of a number of jobs, in a file as far as they are there."""

    def __init__(self, path, count):
        self.path, self.rows, self.done = path, [""] * count, 0
        self.lock, self.start = threading.Lock(), time.monotonic()

    def gather(self, at, lines):
        """Keep the lines of job at, write those that are there, in the order of the jobs."""
        with self.lock:
            self.rows[at] = lines
            self.done += 1
            left = (time.monotonic() - self.start) / self.done * (len(self.rows) - self.done)
            with open(self.path + ".part", "w", encoding="utf-8") as f:
                f.writelines(self.rows)
            os.replace(self.path + ".part", self.path)
            last = json.loads(lines.splitlines()[-1])
            say(f"{self.done} of {len(self.rows)}, {left / 60:.0f} min left: {last['model']}, "
                f"{last['method']}, KL {last['kl_mean']:.5f}")
