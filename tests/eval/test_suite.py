# SPDX-License-Identifier: MIT
"""make eval: a run that was ended goes on, and its lines have one order."""
import json
import os

import suite
from small import path


class Ended(Exception):
    """What ends a run in these tests."""


def put(text):
    """A call for once() that writes a text and then fails if that is "half"."""
    def call(part):
        with open(part, "w", encoding="ascii") as f:
            f.write(text)
        if text == "half":
            raise Ended
    return call


def read(name):
    with open(path(name), encoding="ascii") as f:
        return f.read()


def test_what_is_half_done_is_done_again():
    for _ in range(2):
        try:
            suite.once(path("once"), put("half"))
            raise AssertionError("not raised")
        except Ended:
            assert not os.path.exists(path("once"))
    suite.once(path("once"), put("whole"))
    suite.once(path("once"), put("half"))
    assert read("once") == "whole" and not os.path.exists(path("once.part"))
    os.makedirs(path("folder.part/old"))
    suite.once(path("folder"), os.makedirs)
    assert os.listdir(path("folder")) == []


def test_files_of_other_settings_are_thrown_away():
    assert not suite.prepare(path("work"), "a")
    suite.once(path("work/x"), put("x"))
    assert suite.prepare(path("work"), "a") and read("work/x") == "x"
    assert not suite.prepare(path("work"), "b") and os.listdir(path("work")) == ["stamp"]
    assert suite.prepare(path("work"), "b")


def fake(kept):
    """A stand-in for suite.cq whose third call fails once; kept: the calls."""
    def call(*args):
        kept.append(args)
        if len(kept) == 3:
            raise Ended
        line = {"model": args[3], "method": args[-1], "kl_mean": 0.1, "retrieval": None}
        return json.dumps(line) + "\n"
    return call


def test_a_run_goes_on_where_it_was():
    kept, calls = suite.cq, []
    suite.cq = fake(calls)
    try:
        for i in range(2):
            one = suite.Suite(path("model"), path("work"), path("lines.json"), path("plots"))
            one.pool.shutdown()
            one.rows = [""] * 4
            try:
                for at in (3, 1, 2, 0):
                    one.job(at, "model", f"m{at}", ["--peer", f"p{at}"], False)
            except Ended:
                assert i == 0 and [x["model"] for x in lines()] == ["m1", "m3"]
    finally:
        suite.cq = kept
    assert [x["model"] for x in lines()] == ["m0", "m1", "m2", "m3"]
    assert [c[3] for c in calls] == ["m3", "m1", "m2", "m2", "m0"]


def lines():
    return [json.loads(x) for x in read("lines.json").splitlines()]
