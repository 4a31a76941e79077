# SPDX-License-Identifier: MIT
"""make eval: a run that was ended goes on, and its lines have one order."""
import json
import os

import suite
import work
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
            work.once(path("once"), put("half"))
            raise AssertionError("not raised")
        except Ended:
            assert not os.path.exists(path("once"))
    work.once(path("once"), put("whole"))
    work.once(path("once"), put("half"))
    assert read("once") == "whole" and not os.path.exists(path("once.part"))
    os.makedirs(path("folder.part/old"))
    work.once(path("folder"), os.makedirs)
    assert os.listdir(path("folder")) == []


def test_files_of_other_settings_are_thrown_away():
    assert not work.prepare(path("work"), "a")
    work.once(path("work/x"), put("x"))
    assert work.prepare(path("work"), "a") and read("work/x") == "x"
    assert not work.prepare(path("work"), "b") and os.listdir(path("work")) == ["stamp"]
    assert work.prepare(path("work"), "b")


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
    one = suite.Suite("small", path("model"), path("lm"), path("work"))
    one.pool.shutdown()
    os.makedirs(path("work/small"))
    try:
        for i in range(2):
            found = work.Lines(path("lines.json"), 4)
            try:
                for at in (3, 1, 2, 0):
                    job = "model", f"m{at}", ["--peer", f"p{at}"], False
                    found.gather(at, one.measure(*job))
            except Ended:
                assert i == 0 and [x["model"] for x in lines()] == ["m1", "m3"]
    finally:
        suite.cq = kept
    assert [x["model"] for x in lines()] == ["m0", "m1", "m2", "m3"]
    assert [c[3] for c in calls] == ["m3", "m1", "m2", "m2", "m0"]


def test_groups_of_others_divide_what_a_token_has():
    for channels in (128, 192, 96):
        names = suite.peers(channels)
        assert f"int2-g{channels}" in names and len(set(names)) == len(names)
        assert all(channels % int(n.partition("-g")[2]) == 0 for n in names if "-g" in n)


def lines():
    return [json.loads(x) for x in read("lines.json").splitlines()]
