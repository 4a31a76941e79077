# SPDX-License-Identifier: MIT
"""What commands refuse, and that they leave nothing half done."""
import contextlib
import io
import os
import signal
import subprocess
import sys

import numpy as np
from cq import coders, codec, command, evaluate, hard, models, tensors, turn
from small import DIR, LM, TOP, cq, path
from tap import refuses

IDS = os.path.join(LM, "heldout.u16")
GEOMETRY = {"n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64}


def changed(name, change, **meta):
    """The shared dump as another dump, changed in place."""
    acts, told = tensors.read(path("acts.st"))
    acts = {k: np.array(v) for k, v in acts.items()}
    change(acts)
    tensors.write(path(name), acts, told | meta)
    return path(name)


def test_values_that_are_not_finite_are_not_turned_by():
    def poison(acts):
        acts["layers.2.v.fisher"][1, 300, 5] = np.inf

    refuses("layers.2.v.fisher, head 1, token 300: not a finite", turn.make, LM,
            changed("poison.st", poison), path("x"))
    assert not os.path.exists(path("x/model.safetensors"))
    refuses("has no squared gradients", turn.make, LM,
            changed("bare.st", lambda acts: acts.pop("layers.3.v.fisher")), path("x"))
    refuses("sequence_tokens is '0'", turn.make, LM,
            changed("none.st", lambda acts: None, sequence_tokens="0"), path("x"))
    refuses("no tensor layers.1.k", turn.make, LM,
            changed("keyless.st", lambda acts: acts.pop("layers.1.k")), path("x"))
    refuses("keys before RoPE are wanted, these are 'rotated'", turn.make, LM,
            changed("rotated.st", lambda acts: None, keys="rotated"), path("x"))


def test_a_head_without_weight_or_power_stays():
    def still(acts):
        for kv in "kv":
            acts[f"layers.0.{kv}.fisher"][0] = 0
            acts[f"layers.0.{kv}"][1] = 0

    turn.make(LM, changed("still.st", still), path("still"))
    a, b = (tensors.read(os.path.join(f, "model.safetensors"))[0] for f in (LM, path("still")))
    for kv in "kv":
        for layer in (0, 1):
            name = f"model.layers.{layer}.self_attn.{kv}_proj.weight"
            assert np.allclose(a[name], b[name], atol=1e-3) == (layer == 0), name
    assert all(np.isfinite(x).all() for x in b.values())
    v = np.random.default_rng(1).normal(size=(50, 4))
    assert (turn.turn_of(v, np.zeros((50, 4))) == np.eye(4)).all()
    assert (turn.turn_of(v * 0, np.ones((50, 4))) == np.eye(4)).all()


def test_no_model_with_numbers_that_are_not_finite_is_written():
    def overflow(weights):
        return weights | {"model.norm.weight": weights["model.norm.weight"] * 1e300}

    refuses("model.norm.weight would have numbers", hard.rewrite, LM, path("inf"), overflow)
    assert not os.path.exists(path("inf/model.safetensors"))
    refuses("is the model itself", hard.rewrite, LM, LM, overflow)


def test_files_of_another_model_are_refused():
    hard.make(LM, path("other"))
    for more in (["--codec", path("4c8b.st")], ["--peer", "kvquant2", "--dump", path("acts.st")]):
        status, _, said = cq("eval", path("other"), "--ids", IDS, "--sequences", "1", "--length",
                             "64", "--first", "8", "--no-exact", *more)
        assert status == 1 and "is of another model than" in said, said


def test_numbers_out_of_range_are_refused():
    for more in (["--length", "1"], ["--sequences", "0"], ["--skip", "-1"], ["--first", "-1"],
                 ["--first", "2047"], ["--sinks", "-1"], ["--window", "-1"], ["--seed", "x"]):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                evaluate.main([LM, "--ids", IDS, *more])
        except SystemExit as e:
            assert e.code == 2, more
        else:
            raise AssertionError(more)
    refuses("2049 tokens: the model has 2048", models.check_length, models.load(LM), 2049)
    for spec, want in (("int0-g8", "bits 0"), ("int9-g8", "bits 9"), ("int2-g0", "group 0"),
                       ("int2", "group missing"), ("kivi2-g-4", "group -4"), ("turbo", "bits"),
                       ("turbo99", "bits 99"), ("kivi2-g3", "does not divide 128 channels"),
                       ("kvquant2-60", "outliers 60"), ("coupled3-2", "do not divide head_dim"),
                       ("coupled2-11", "bits 11"), ("coupled2-2-x", "only both")):
        refuses(want, evaluate.peer, spec, {}, GEOMETRY, 4)
    assert evaluate.peer("kivi2-g4096", None, GEOMETRY, 4).group == 4096


def test_the_codec_is_asked_for_what_it_has():
    with codec.Codec(path("4c8b.st")) as c:
        x = np.zeros((1, 64), np.float32)
        for place in ((2 ** 32, 0, 0), (-1, 0, 0), (0, 2, 0), (0, 0, 2 ** 32), (0, 0, -1)):
            refuses("the model has", c.encode, *place, x)
            refuses("the model has", c.decode, *place, np.zeros(64, np.uint8), 1)
    assert coders.Cq(path("4c8b.st")).bits(0, "k") == 2


def test_what_no_check_named_is_one_line():
    for fault in (KeyError("a"), RuntimeError("b\nc"), ZeroDivisionError(), RecursionError()):
        def work(fault=fault):
            raise fault
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert command.run("tests", work, None, "file") == 1
        assert said.getvalue().startswith("tests: file cannot be used: " + type(fault).__name__)
        assert said.getvalue().count("\n") == 1
    with open(path("odd.py"), "w", encoding="utf-8") as f:
        f.write("def recall(:\n")
    refuses("odd.py: SyntaxError", evaluate.load_tasks, path("odd.py"))
    refuses("is not a module of Python", evaluate.load_tasks, IDS)


def test_arrays_and_weights_that_are_none_are_named():
    for i, data in enumerate((b"", b"\x93NUMPY\x01\x00\xff", b"PK\x03\x04junk")):
        with open(path(f"odd{i}.npy"), "wb") as f:
            f.write(data)
        refuses(f"odd{i}.npy", models.read_ids, path(f"odd{i}.npy"), 10)


def test_an_output_is_opened_before_the_work():
    status, out, said = cq("eval", LM, "--ids", IDS, "-o", path("none/x.json"))
    assert status == 1 and "none/x.json" in said and not out


def test_no_git_is_no_failure():
    kept, os.environ["PATH"] = os.environ["PATH"], path("none")
    try:
        assert evaluate.commit() == "unknown"
    finally:
        os.environ["PATH"] = kept


def test_the_folder_one_is_in_brings_no_code():
    if sys.version_info < (3, 11):
        return
    os.makedirs(path("trap/cq"))
    for name in ("__init__", "__main__"):
        with open(path(f"trap/cq/{name}.py"), "w", encoding="utf-8") as f:
            f.write("raise SystemExit(77)\n")
    for name in ("dump", "eval", "figures", "harden", "report", "turn"):
        done = subprocess.run([os.path.join(TOP, "client/python/cq-" + name), "--help"],
                              cwd=path("trap"), env=os.environ | {"PYTHON": sys.executable},
                              capture_output=True, check=False)
        assert done.returncode == 0, (name, done)


def test_a_dump_that_is_terminated_leaves_nothing():
    run = subprocess.Popen([sys.executable, "-m", "cq", "dump", LM, "--ids", IDS, "--length",
                            "64", "--sequences", "999", "-o", path("killed.st")],
                           stderr=subprocess.PIPE)
    try:
        assert b"1 of 999" in run.stderr.readline()
        assert any(f.startswith("killed.st.") for f in os.listdir(DIR))
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
    finally:
        run.kill()
        run.stderr.close()
    assert not [f for f in os.listdir(DIR) if f.startswith("killed.st")]
