# SPDX-License-Identifier: MIT
"""What make eval measures on a model in Python: suite.py MODEL WORK OUTPUT PLOTS.

Codebooks come from calibration.u16, figures from heldout.u16: its second half,
or with SPLIT=choose its first one, on which settings are chosen. SIZE=quick
measures on less.

What is done stays in WORK until it is removed: a run that was ended goes on from
there. Files of other sources, weights or settings are thrown away.
"""
import concurrent.futures
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
OUT = os.environ.get("O", os.path.join(TOP, "build"))
JOBS = int(os.environ.get("JOBS", os.cpu_count() or 1))
#        sequences of text, of retrieval, of calibration and their length
SIZES = {"full": (4, 12, 12, 2048), "quick": (2, 4, 8, 1024)}
TEXT, RECALL, CALIB, CALIB_LENGTH = SIZES[os.environ.get("SIZE", "full")]
LEAST_RECALL = 0.95         # of the exact cache; below it the figure says nothing
SKIP = {"choose": 0, "report": 65536}[os.environ.get("SPLIT", "report")]

CURVE = {"8c8b/8c8b": ["--k", "8c8b", "--v", "8c8b"],
         "4c8b/4c8b": ["--k", "4c8b", "--v", "4c8b"],
         "2c8b/2c8b": ["--k", "2c8b", "--v", "2c8b"]}
CURVE |= {f"budget {b}": ["--budget", b] for b in ("1.25", "1.5", "1.75", "2.25", "2.5", "3")}
FISHER = {f"fisher {how}": ["--k", "8c8b", "--v", "8c8b", "--fisher", how]
          for how in ("none", "token", "channel")}
PEERS = [f"{kind}{b}-g{g}" for g in (32, 64, 128) for b in (1, 2, 3, 4)
         for kind in ("int", "kivi", "hadamard")] + \
        [f"kvquant{b}{tail}" for b in (1, 2, 3, 4) for tail in ("", "-1")] + \
        [f"turbo{b}" for b in (1, 2, 3, 4)] + ["fp8"]
COUPLED = ["coupled1-1", "coupled2-2", "coupled4-4"]
if os.environ.get("SIZE") == "quick":
    PEERS = [p for p in PEERS if "-g32" not in p and "-g128" not in p]


def cq(*args):
    """Run a command of client/python; its standard output."""
    done = subprocess.run([sys.executable, "-m", "cq", *map(str, args)], text=True,
                          stdout=subprocess.PIPE, check=True)
    return done.stdout


def stamp(model):
    """What the figures depend on, as a digest."""
    digest = hashlib.sha256(repr((SIZES, CURVE, FISHER, PEERS, COUPLED, TEXT, SKIP)).encode())
    for path in sorted(glob.glob(os.path.join(TOP, "client/python/cq/*.py"))) + [
            os.path.join(model, name) for name in ("model.safetensors", "calibration.u16",
                                                   "heldout.u16")] + [
            os.path.join(OUT, name) for name in ("cqctl", "libcq.so")] + [__file__]:
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


def say(text):
    """A line on standard error."""
    print(f"eval: {text}", file=sys.stderr, flush=True)


class Suite:
    """The files of one run, and its jobs."""

    def __init__(self, model, work, output, plots):
        self.model, self.work, self.output, self.plots = model, work, output, plots
        self.pool = concurrent.futures.ThreadPoolExecutor(JOBS)
        self.ids = os.path.join(model, "heldout.u16")
        self.tasks = os.path.join(model, "training", "tasks.py")
        self.recalls, self.lock = False, threading.Lock()
        self.rows, self.done, self.start = [], 0, time.monotonic()

    def path(self, name):
        return os.path.join(self.work, name)

    def dump(self, name, folder, *more):
        """Activations of the calibration text."""
        once(self.path(name + ".st"), lambda part: cq(
            "dump", folder, "--ids", os.path.join(self.model, "calibration.u16"), "--sequences",
            CALIB, "--length", CALIB_LENGTH, "-o", part, *more))
        say(f"activations: {name}")

    def calibrate(self, acts, name, options):
        """One model file of a dump; NAME=FILE for cq-eval."""
        out = self.path(f"{acts}-{name.replace('/', '-').replace(' ', '-')}.st")
        once(out, lambda part: subprocess.run(
            [os.path.join(OUT, "cqctl"), "calibrate", self.path(acts + ".st"), *options,
             "--threads", "1", "-o", part], check=True, capture_output=True))
        return f"{name}={out}"

    def measure(self, folder, name, *options, recall=True):
        """One cq-eval; its lines, which are kept."""
        more = [] if not options else ["--no-exact"]
        if recall and self.recalls:
            more += ["--tasks", self.tasks, "--recall", RECALL, "--recall-readers", "attached"]
        args = ["eval", folder, "--name", name, "--ids", self.ids, "--skip", SKIP, "--sequences",
                TEXT, "--length", 2048, "--first", 1024, *more, *options]
        path = self.path(hashlib.sha256(repr(args).encode()).hexdigest()[:16] + ".rows")

        def write(part):
            out = cq(*args)
            with open(part, "w", encoding="utf-8") as f:
                f.write(out)

        once(path, write)
        with open(path, encoding="utf-8") as f:
            return f.read()

    def gather(self, at, lines):
        """Keep the lines of job at, write those that are there, in the order of the jobs."""
        with self.lock:
            self.rows[at] = lines
            self.done += 1
            left = (time.monotonic() - self.start) / self.done * (len(self.rows) - self.done)
            with open(self.output + ".part", "w", encoding="utf-8") as f:
                f.writelines(self.rows)
            os.replace(self.output + ".part", self.output)
            last = json.loads(lines.splitlines()[-1])
            say(f"{self.done} of {len(self.rows)}, {left / 60:.0f} min left: {last['model']}, "
                f"{last['method']}, KL {last['kl_mean']:.5f}")

    def exact(self):
        """The line of the exact cache. A model that cannot recall is not asked again."""
        self.recalls = os.path.exists(self.tasks)
        lines = self.measure(self.model, "small")
        self.recalls = (json.loads(lines)["retrieval"] or 0) >= LEAST_RECALL
        return lines

    def each(self, call, jobs):
        """call(*job) for all jobs, JOBS at a time; the results in order."""
        return [f.result() for f in [self.pool.submit(call, *job) for job in jobs]]

    def run(self):
        if prepare(self.work, stamp(self.model)):
            say(f"going on from {self.work}")
        hard = self.path("hard")
        exact = self.exact()
        once(hard, lambda part: cq("harden", self.model, part))
        self.each(self.dump, [("plain", self.model), ("hard", hard),
                              ("rope", self.model, "--rotated")])
        turned = self.path("turned")
        once(turned, lambda part: cq("turn", self.model, self.path("plain.st"), part))
        self.dump("turned", turned)
        wanted = [("plain", n, o) for n, o in (CURVE | FISHER).items()] + \
            [("hard", n, o) for n, o in CURVE.items()] + \
            [("turned", n, o) for n, o in CURVE.items()] + \
            [("rope", "keys behind RoPE", CURVE["8c8b/8c8b"])]
        files = dict(zip([w[:2] for w in wanted], self.each(self.calibrate, wanted)))
        say(f"{len(files)} model files")
        jobs = list(self.jobs(hard, turned, files))
        self.rows, self.start = [""] * (1 + len(jobs)), time.monotonic()
        self.gather(0, exact)
        self.each(self.job, [(i, *job) for i, job in enumerate(jobs, 1)])
        self.report(files["plain", "4c8b/4c8b"].partition("=")[2])

    def report(self, codec):
        """Tables and plots."""
        os.makedirs(self.plots, exist_ok=True)
        figures = os.path.join(self.plots, "figures.json")
        with open(figures, "w", encoding="utf-8") as f:
            f.write(cq("figures", self.path("plain.st"), codec))
        with open(os.path.join(self.plots, "tables.md"), "w", encoding="utf-8") as f:
            f.write(cq("report", self.output, "--figures", figures, "--plots", self.plots))

    def job(self, at, folder, name, options, recall):
        self.gather(at, self.measure(folder, name, *options, recall=recall))

    def jobs(self, hard, turned, files):
        """(folder, name, options, with retrieval) of every cq-eval."""
        both, one = ["--readers", "owner", "attached"], ["--readers", "attached"]
        for name in CURVE:
            yield self.model, "small", ["--codec", files["plain", name], *both], True
            yield turned, "small", ["--family", "cq-turned", "--codec", files["turned", name],
                                    *both], True
            yield hard, "small-hard", ["--codec", files["hard", name], *one], True
        for spec in PEERS:
            yield self.model, "small", ["--peer", spec, "--dump", self.path("plain.st"),
                                        *both], True
            yield hard, "small-hard", ["--peer", spec, "--dump", self.path("hard.st"),
                                       *one], False
        for name in FISHER:
            yield self.model, "small", ["--codec", files["plain", name], *one, "--label",
                                        "ablation"], False
        yield self.model, "small", ["--codec", files["rope", "keys behind RoPE"], *one,
                                    "--label", "ablation"], False
        for spec in COUPLED:
            yield self.model, "small", ["--peer", spec, "--dump", self.path("plain.st"), *one,
                                        "--label", "ablation"], False
        yield self.model, "small", ["--codec", files["plain", "8c8b/8c8b"], "--readers", "owner",
                                    "--owner-windows", 0, 32, 128, "--label", "window"], False


if __name__ == "__main__":
    Suite(*sys.argv[1:5]).run()
