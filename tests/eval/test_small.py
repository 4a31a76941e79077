# SPDX-License-Identifier: MIT
"""The small language model through dump, codec and evaluation."""
import hashlib
import itertools
import json
import os
import subprocess

import numpy as np
import torch
from cq import attention, coders, codec, dump, hard, models, peers, score, tensors, turn
from small import LM, OUT, calibrate, cq, heldout, lines, path
from tap import refuses


class Same:
    """A coder that changes nothing."""

    rotated = False

    def code(self, layer, kv, x):
        return x.clone()


def logits(model, ids, tap):
    ids = torch.from_numpy(np.asarray(ids, np.int64))
    with torch.no_grad():
        return model.forward(model.embed(ids[None]), tap, slice(None))[0]


def test_logits_are_those_of_the_reference():
    ref, _ = tensors.read(os.path.join(LM, "reference.safetensors"))
    got = logits(models.load(LM), ref["tokens"], attention.Plain())
    want = torch.from_numpy(ref["logits"].astype(np.float32))
    assert (got[ref["rows"].astype(int)] - want).abs().max() < 2e-4


def test_readers_of_an_exact_cache_change_nothing():
    model = models.load(LM)
    want = logits(model, heldout(600), attention.Plain())
    for name in ("owner", "attached"):
        got = logits(model, heldout(600), attention.Coded(Same(), attention.Reader(name)))
        assert (got - want).abs().max() < 2e-4


class Poison(Same):
    """A coder whose tokens are useless."""

    def code(self, layer, kv, x):
        return torch.full_like(x, 1e4)


def test_a_reader_reads_exactly_what_it_keeps():
    model = models.load(LM)
    want = logits(model, heldout(300), attention.Plain())
    for name, exact in (("owner", 128 + 4), ("attached", 64)):
        got = logits(model, heldout(300), attention.Coded(Poison(), attention.Reader(name)))
        differs = (got - want).abs().amax(-1) > 0.1
        assert not differs[:exact].any() and differs[exact:].all(), name


def test_exact_tokens_are_counted():
    for name in ("owner", "attached"):
        reader = attention.Reader(name, 4, 128)
        for row in (0, 3, 63, 64, 130, 131, 132, 300, 1023):
            kept = int(reader.exact(row, row + 1, 0, row + 1).sum())
            assert reader.exact_tokens(row) == kept, (name, row)
            assert not reader.exact(row, row + 1, 4, max(4, reader.first_exact(row))).any()


def test_codec_is_the_one_of_libcq():
    x = np.random.default_rng(1).normal(size=(150, 64)).astype(np.float32)
    with codec.Codec(path("4c8b.st")) as c:
        assert c.coding(0, 0) == "4c8b" and c.bits(0, 1) == 2 and c.sinks == 4
        codes = c.encode(2, 0, 1, x)
        assert codes.shape == (3 * 64 * 16,)
        got = c.decode(2, 0, 1, codes, 150)
        raw, _ = tensors.read(path("4c8b.st"))
        book = raw["layers.2.k.codebook"].astype(np.float32)[1]
        book *= raw["layers.2.k.scale"][1].reshape(16, 1, 4)
        rows = np.float16(x).astype(np.float32).reshape(150, 16, 1, 4)
        weight = raw.get("layers.2.k.metric", np.ones((2, 64), np.float32))[1]
        near = ((rows - book) ** 2 * weight.reshape(16, 1, 4)).sum(-1).argmin(-1)
        want = book[np.arange(16), near].reshape(150, 64)
        assert (np.abs(got - want).max(-1) < 1e-6).mean() > 0.99     # ties apart
        refuses("rows of shape", c.encode, 0, 0, 0, x[:, :9])
        refuses("head 7", c.encode, 0, 0, 7, x)
        refuses("bytes of codes", c.decode, 0, 0, 0, codes, 999)
        x[70, 3] = np.nan
        refuses("token 70, channel 3 is NaN", c.encode, 0, 0, 0, x)
    refuses("cannot open", codec.Codec, path("none.st"))


def test_dump_has_gradients_of_the_loss():
    acts, meta = tensors.read(path("acts.st"))
    assert meta["sequence_tokens"] == "256" and meta["keys"] == "pre-rope"
    digest = hashlib.sha256()
    with open(os.path.join(LM, "model.safetensors"), "rb") as f:
        digest.update(f.read())
    assert meta["fingerprint"] == digest.hexdigest()
    model, at = models.load(LM), (3, 1, 40, 17)      # layer, head, token, channel

    class Nudge(attention.Plain):
        def __init__(self, by, kv):
            self.by, self.kv = by, kv

        def attend(self, layer, q, k, v, *rest):
            if layer == at[0]:
                k, v = k.clone(), v.clone()
                (k if self.kv == "k" else v)[0, at[1], at[2], at[3]] += self.by
            return super().attend(layer, q, k, v, *rest)

    ids = np.fromfile(os.path.join(LM, "calibration.u16"), "<u2", 256).astype(np.int64)
    for kv in "kv":
        loss = [torch.nn.functional.cross_entropy(
            logits(model, ids, Nudge(by, kv))[:-1].double(), torch.from_numpy(ids[1:])).item()
            for by in (0.05, -0.05)]
        want = ((loss[0] - loss[1]) / 0.1 * 256) ** 2
        got = acts[f"layers.3.{kv}.fisher"][at[1], at[2], at[3]]
        assert abs(got - want) < 0.05 * want + 1e-6, (kv, got, want)


def test_dump_agrees_with_the_worker():
    worker = path("worker.st")
    subprocess.run([os.path.join(OUT, "cq-worker"), "dump", "--lm", LM, "--ids",
                    os.path.join(LM, "calibration.u16"), "--sequences", "1", "--length", "256",
                    "--threads", "1", "--out", worker], check=True, capture_output=True)
    theirs, meta = tensors.read(worker)
    ours, our_meta = tensors.read(path("acts.st"))
    for key in set(meta) - {"source"}:
        if key == "rope_theta":
            assert float(meta[key]) == float(our_meta[key])
        else:
            assert meta[key] == our_meta[key], key
    for name, x in theirs.items():
        a, b = x[:, :256].astype(np.float32), ours[name][:, :256].astype(np.float32)
        assert np.abs(a - b).max() < 0.02, name


def test_two_runs_give_the_same_codebooks():
    again = calibrate(path("acts.st"), "again.st", "4c8b", "4c8b")
    with open(again, "rb") as a, open(path("4c8b.st"), "rb") as b:
        assert a.read() == b.read()


def test_a_hard_model_has_the_same_logits():
    hard.make(LM, path("hard"))
    want = logits(models.load(LM), heldout(300), attention.Plain())
    model = models.load(path("hard"))
    got = logits(model, heldout(300), attention.Plain())
    assert (got - want).abs().max() < 2e-3
    k, v = hard.factors(model.geometry, 64, [1, 0])
    for scale in (k, v):
        assert ((scale > 1).sum(-1) >= 20).all() and scale.max() <= 32
    assert (k[:, :32] == k[:, 32:]).all()
    dump.dump(path("hard"), heldout(256).astype(np.int64), path("hard.st"), 256, 1)
    a, b = (tensors.read(path(f))[0]["layers.0.v"].astype(np.float32)[:, :256]
            for f in ("hard.st", "held.st"))
    assert np.allclose(a, b * v[:, None], atol=2e-2, rtol=1e-2)


def test_turned_keys_and_values_give_the_same_logits_and_code_better():
    turn.make(LM, path("acts.st"), path("turned"))
    model = models.load(path("turned"))
    want = logits(models.load(LM), heldout(300), attention.Plain())
    assert (logits(model, heldout(300), attention.Plain()) - want).abs().max() < 2e-3
    ids = np.fromfile(os.path.join(LM, "calibration.u16"), "<u2", 1024).astype(np.int64)
    dump.dump(path("turned"), ids, path("turned.st"), 256, 4)
    share = []
    for name, file in (("acts.st", "4c8b.st"), ("turned.st", None)):
        acts, _ = tensors.read(path(name))
        coder = coders.Cq(file and path(file) or calibrate(path(name), "t4.st", "4c8b", "4c8b"))
        lost = {"k": 0, "v": 0}
        for layer, kv in itertools.product(range(6), "kv"):
            x = torch.from_numpy(acts[f"layers.{layer}.{kv}"].astype(np.float32))
            g = torch.from_numpy(acts[f"layers.{layer}.{kv}.fisher"].copy())
            lost[kv] += ((coder.code(layer, kv, x[None])[0] - x) ** 2 * g).sum().item()
        share.append(lost)
    assert all(share[1][kv] < 0.95 * share[0][kv] for kv in "kv"), share
    refuses("of another model", turn.make, path("hard"), path("acts.st"), path("x"))


def test_int_is_hurt_by_a_hard_model():
    ids = torch.from_numpy(heldout(512).astype(np.int64))[None]
    kl = []
    for folder in (LM, path("hard")):
        model = models.load(folder)
        ref = score.reference(model, ids, 128)
        kl.append(score.text(model, ids, ref, 128, peers.IntToken(3, 64),
                             attention.Reader("attached"))["kl_mean"])
    assert kl[1] > 2 * kl[0], kl


def test_figures_of_an_exact_cache():
    model = models.load(LM)
    ids = torch.from_numpy(heldout(400).astype(np.int64))[None]
    ref = score.reference(model, ids, 100)
    got = score.text(model, ids, ref, 100, Same(), attention.Reader("attached"))
    assert got["kl_mean"] < 1e-6 and got["top1"] > 0.99 and got["positions"] == 299
    assert abs(got["ppl_ratio"] - 1) < 1e-4


def test_bits_count_everything():
    reader = attention.Reader("attached", 4, 128)
    coder = peers.IntToken(2, 64)
    geometry = models.load(LM).geometry
    got = coders.effective_bits(coder, geometry, reader, 100, 101)
    assert abs(got - (2.5 * 60 + 16 * 41) / 101) < 1e-9      # 4 sinks, tokens 64..100
    own = coders.Cq(path("4c8b.st"))
    got = coders.effective_bits(own, geometry, reader, 100, 101)
    once = os.path.getsize(path("4c8b.st")) * 8 / (1e6 * 2 * 6 * 2 * 64)
    assert abs(got - (2.0 * 60 + 16 * 41) / 101 - once) < 1e-9


def test_eval_writes_its_lines():
    with open(path("tasks.py"), "w", encoding="utf-8") as f:
        f.write("import numpy as np\ndef recall(seed, n, pairs, queries, words):\n"
                "    at = np.arange(n - queries * words, n).reshape(queries, words)\n"
                "    return np.arange(n), at, np.zeros_like(at)\n")
    status, out, said = cq("eval", LM, "--codec", path("4c8b.st"), "--peer", "int2-g64",
                           "kivi2-g32", "kvquant2-1", "turbo2", "hadamard2-g64", "fp8",
                           "--dump", path("acts.st"), "--ids", os.path.join(LM, "heldout.u16"),
                           "--sequences", "1", "--length", "320", "--first", "128", "--readers",
                           "attached", "--tasks", path("tasks.py"), "--recall", "1",
                           "--recall-tokens", "200", "--recall-queries", "4", "-o",
                           path("out.json"))
    assert status == 0, said
    got = {line["family"]: line for line in lines(out)}
    assert set(got) == {"fp16", "cq", "int", "kivi", "kvquant", "turbo", "hadamard", "fp8"}
    want = ("family method reader model effective_bits options ppl_ratio kl_mean kl_p99 top1 "
            "retrieval commit seed").split()
    assert all(set(want) <= set(line) for line in got.values())
    assert got["fp8"]["kl_mean"] < got["cq"]["kl_mean"] < got["int"]["kl_mean"]
    with open(path("out.json"), encoding="utf-8") as f:
        assert [json.loads(line) for line in f] == lines(out)


def test_bad_input_is_named():
    ids = os.path.join(LM, "heldout.u16")
    for args, want in (
            (["eval", LM, "--ids", ids, "--peer", "abacus3"], "abacus3: no such coding"),
            (["eval", LM, "--ids", ids, "--peer", "int2-g7"], "group 7 does not divide"),
            (["eval", LM, "--ids", ids, "--peer", "kvquant2"], "kvquant2: needs --dump"),
            (["eval", LM, "--ids", ids, "--sequences", "999"], "999 sequences of 2048 tokens"),
            (["eval", LM, "--ids", path("none.u16")], "none.u16"),
            (["eval", path("none"), "--ids", ids], "config.json"),
            (["eval", LM, "--ids", ids, "--codec", ids], "heldout.u16"),
            (["dump", LM, "--ids", ids, "-o", path("none/x.st"), "--sequences", "1",
              "--length", "64"], "none/x.st"),
            (["harden", path("none"), path("x")], "config.json")):
        status, _, said = cq(*args)
        assert status == 1 and want in said and "Traceback" not in said, (args, said)
    np.array([5, 4096], "<u2").tofile(path("wrong.u16"))
    status, _, said = cq("eval", LM, "--ids", path("wrong.u16"))
    assert status == 1 and "id 4096, but the model has 4096 words" in said


def prepare():
    """The files that the tests share."""
    ids = np.fromfile(os.path.join(LM, "calibration.u16"), "<u2", 1024).astype(np.int64)
    dump.dump(LM, ids, path("acts.st"), 256, 4, source="tests")
    dump.dump(LM, heldout(256).astype(np.int64), path("held.st"), 256, 1)
    calibrate(path("acts.st"), "4c8b.st", "4c8b", "4c8b")
