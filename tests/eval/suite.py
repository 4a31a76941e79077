# SPDX-License-Identifier: MIT
"""What make eval measures in Python: suite.py LM WORK OUTPUT PLOTS [YARDSTICK].

LM is the small language model's folder, with the texts and the retrieval tasks; YARDSTICK
is that of a model with the same vocabulary that can recall. Codebooks come from
calibration.u16, figures from heldout.u16: its second half, or with SPLIT=choose its
first one, on which settings are chosen. SIZE=quick measures on less.

What is done stays in WORK until it is removed: a run that was ended goes on from
there. Files of other sources, weights or settings are thrown away.
"""
import concurrent.futures
import glob
import hashlib
import json
import os
import subprocess
import sys

from work import Lines, once, prepare, say, stamp

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
OUT = os.environ.get("O", os.path.join(TOP, "build"))
JOBS = int(os.environ.get("JOBS", os.cpu_count() or 1))
QUICK = os.environ.get("SIZE") == "quick"
#        sequences of text, of retrieval, of calibration and their length
TEXT, RECALL, CALIB, CALIB_LENGTH = (2, 8, 32, 1024) if QUICK else (4, 24, 48, 2048)
LEAST_RECALL = 0.95         # of the exact cache; below it the figure says nothing
SKIP = {"choose": 0, "report": 65536}[os.environ.get("SPLIT", "report")]

ONE_BIT = {"8c8b/8c8b": ["--k", "8c8b", "--v", "8c8b"]}
CURVE = ONE_BIT | {"4c8b/4c8b": ["--k", "4c8b", "--v", "4c8b"],
                   "2c8b/2c8b": ["--k", "2c8b", "--v", "2c8b"]}
CURVE |= {f"budget {b}": ["--budget", b] for b in ("1.25", "1.5", "1.75", "2.25", "2.5", "3")}
CURVE["8c10b/8c10b"] = ["--k", "8c10b", "--v", "8c10b"]
CURVE |= {f"budget {b} with 8c10b": ["--budget", b, "--choices", "8c8b,8c10b,4c8b,2c8b"]
          for b in ("1.5", "1.625", "1.75", "2")}
FISHER = {f"fisher {how}": ["--k", "8c8b", "--v", "8c8b", "--fisher", how]
          for how in ("none", "token", "channel")}
COUPLED = ["coupled1-1", "coupled2-2", "coupled4-4"]
BOTH, ONE = ["--readers", "owner", "attached"], ["--readers", "attached"]
APART = ["--label", "ablation"]


def peers(channels):
    """The other codings; channels: of a token. int2 with one scale a token is always there."""
    groups = [64] if QUICK else sorted({32, 64, channels})
    found = [f"{kind}{b}-g{g}" for g in groups for b in (1, 2, 3, 4)
             for kind in ("int", "kivi", "hadamard") if not channels % g]
    if f"int2-g{channels}" not in found:
        found.append(f"int2-g{channels}")
    return found + [f"kvquant{b}{tail}" for b in (1, 2, 3, 4) for tail in ("", "-1")] + \
        [f"turbo{b}" for b in (1, 2, 3, 4)] + ["fp8"]


def cq(*args):
    """Run a command of client/python; its standard output."""
    done = subprocess.run([sys.executable, "-m", "cq", *map(str, args)], text=True,
                          stdout=subprocess.PIPE, check=True)
    return done.stdout


class Suite:
    """One model's files, and its jobs: (folder, name in the lines, options, with retrieval)."""

    def __init__(self, name, model, lm, work):
        self.name, self.model = name, model
        self.work = os.path.join(work, name)
        self.pool = concurrent.futures.ThreadPoolExecutor(JOBS)
        self.ids, self.calibration = (os.path.join(lm, n + ".u16")
                                      for n in ("heldout", "calibration"))
        self.tasks = os.path.join(lm, "training", "tasks.py")
        self.recalls = False

    def path(self, name):
        return os.path.join(self.work, name)

    def mark(self):
        """What this model's figures depend on."""
        sources = sorted(glob.glob(os.path.join(TOP, "client/python/cq/*.py")))
        return stamp((TEXT, RECALL, CALIB, CALIB_LENGTH, SKIP), sources + [
            os.path.join(self.model, "model.safetensors"), self.calibration, self.ids, self.tasks,
            os.path.join(OUT, "cqctl"), os.path.join(OUT, "libcq.so"), __file__])

    def dump(self, name, folder, *more):
        """Activations of the calibration text."""
        once(self.path(name + ".st"), lambda part: cq(
            "dump", folder, "--ids", self.calibration, "--sequences", CALIB, "--length",
            CALIB_LENGTH, "-o", part, *more))
        say(f"activations: {self.name}, {name}")

    def calibrate(self, acts, name, options):
        """One model file of a dump; NAME=FILE for cq-eval."""
        out = self.path(f"{acts}-{name.replace('/', '-').replace(' ', '-')}.st")
        once(out, lambda part: subprocess.run(
            [os.path.join(OUT, "cqctl"), "calibrate", self.path(acts + ".st"), *options,
             "--threads", "1", "-o", part], check=True, capture_output=True))
        return f"{name}={out}"

    def codings(self, acts, options):
        """{name: NAME=FILE} of a dump's model files."""
        made = self.each(self.calibrate, [(acts, n, o) for n, o in options.items()])
        say(f"{len(made)} model files: {self.name}, {acts}")
        return dict(zip(options, made))

    def measure(self, folder, name, options, recall):
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

    def each(self, call, jobs):
        """call(*job) for all jobs, JOBS at a time; the results in order."""
        return [f.result() for f in [self.pool.submit(call, *job) for job in jobs]]

    def exact(self):
        """The job of the exact cache. A model that cannot recall is not asked again."""
        job = (self.model, self.name, [], True)
        self.recalls = os.path.exists(self.tasks)
        line = json.loads(self.measure(*job))
        self.recalls = (line["retrieval"] or 0) >= LEAST_RECALL
        return job

    def curves(self):
        """Jobs of ours and of the others: plain, turned and made hard."""
        if prepare(self.work, self.mark()):
            say(f"going on from {self.work}")
        exact, hard, turned = self.exact(), self.path("hard"), self.path("turned")
        once(hard, lambda part: cq("harden", self.model, part))
        self.each(self.dump, [("plain", self.model), ("hard", hard)])
        once(turned, lambda part: cq("turn", self.model, self.path("plain.st"), part))
        self.dump("turned", turned)
        with open(os.path.join(self.model, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        return [exact, *self.ours(hard, turned),
                *self.others(hard, config["num_key_value_heads"] * config["head_dim"])]

    def ours(self, hard, turned):
        for acts, folder, name, more in (
                ("plain", self.model, self.name, BOTH),
                ("turned", turned, self.name, ["--family", "cq-turned", *BOTH]),
                ("hard", hard, self.name + "-hard", ONE)):
            for file in self.codings(acts, CURVE).values():
                yield folder, name, ["--codec", file, *more], True

    def others(self, hard, channels):
        for spec in peers(channels):
            yield self.model, self.name, ["--peer", spec, "--dump", self.path("plain.st"),
                                          *BOTH], True
            yield hard, self.name + "-hard", ["--peer", spec, "--dump", self.path("hard.st"),
                                              *ONE], False

    def ablations(self):
        """Jobs of what is measured apart, behind curves()."""
        self.dump("rope", self.model, "--rotated")
        files = self.codings("plain", FISHER | ONE_BIT)
        files["rope"] = self.calibrate("rope", "keys behind RoPE", ONE_BIT["8c8b/8c8b"])
        for name in [*FISHER, "rope"]:
            yield self.model, self.name, ["--codec", files[name], *ONE, *APART], False
        for spec in COUPLED:
            yield self.model, self.name, ["--peer", spec, "--dump", self.path("plain.st"), *ONE,
                                          *APART], False
        yield self.model, self.name, ["--codec", files["8c8b/8c8b"], "--readers", "owner",
                                      "--owner-windows", 0, 32, 128, "--label", "window"], False


def report(small, output, plots):
    """Tables and plots."""
    os.makedirs(plots, exist_ok=True)
    figures = os.path.join(plots, "figures.json")
    with open(figures, "w", encoding="utf-8") as f:
        f.write(cq("figures", small.path("plain.st"), small.path("plain-4c8b-4c8b.st")))
    with open(os.path.join(plots, "tables.md"), "w", encoding="utf-8") as f:
        f.write(cq("report", output, "--figures", figures, "--plots", plots))


def measure(jobs, output):
    """All (suite, job), JOBS at a time."""
    lines = Lines(output, len(jobs))
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        made = [pool.submit(lambda at, suite, job: lines.gather(at, suite.measure(*job)),
                            at, suite, job) for at, (suite, job) in enumerate(jobs)]
        for f in made:
            f.result()


def main(lm, work, output, plots, yardstick=None):
    small = Suite("small", lm, lm, work)
    jobs = [(small, job) for job in [*small.curves(), *small.ablations()]]
    if yardstick:
        recall = Suite("recall", yardstick, lm, work)
        jobs += [(recall, job) for job in recall.curves()]
    measure(jobs, output)
    report(small, output, plots)


if __name__ == "__main__":
    main(*sys.argv[1:])
