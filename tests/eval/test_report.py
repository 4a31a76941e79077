# SPDX-License-Identifier: MIT
"""Reading curves off, ablations, what a dump says of a model."""
import itertools
import json
import math
import os

import numpy as np
import torch
from cq import ablate, coders, curves, figures, report, tensors
from small import cq, lines, path
from tap import Skip, refuses

GEOMETRY = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8}


def point(family, bits, kl, **more):
    return {"family": family, "method": f"{family}{bits}", "reader": "attached", "model": "m",
            "effective_bits": bits, "options": {}, "ppl_ratio": 1 + kl, "kl_mean": kl,
            "kl_p99": 9 * kl, "top1": 1 - kl, "retrieval": None, "commit": "c", "seed": 1} | more


CURVES = [point("cq", 1.5, 0.01, retrieval=0.9), point("cq", 2.5, 0.0001), point("int", 1, 0.9),
          point("int", 3, 0.09), point("int", 2, 0.95), point("kivi", 2, 0.03),
          point("kivi", 4, 0.003), point("turbo", 2.5, 0.001),
          point("cq", 2, 1e-9, options={"label": "ablation"}),
          point("kivi", 2, 1e-9, reader="owner")]


def test_a_curve_has_its_best_lines_only():
    own = curves.front(curves.pick(CURVES, family="int"), "kl_mean")
    assert own == [(1, 0.9), (3, 0.09)]


def test_figures_are_read_off_between_points():
    points = [(1.5, 0.01), (2.5, 0.0001)]
    assert math.isclose(curves.read_off(points, 2), 0.001)
    assert math.isclose(curves.read_off(points, 1.5), 0.01)
    assert curves.read_off(points, 1.4) is None and curves.read_off(points, 2.6) is None


def test_the_best_peer_is_found():
    ours, name, best = curves.compare(CURVES, "m", 2, "kl_mean")
    assert math.isclose(ours[0], 0.001) and ours[1] is None and name == "kivi" and math.isclose(best, 0.03)
    assert curves.compare(CURVES, "m", 3, "kl_mean")[0][0] is None
    assert curves.compare(CURVES, "m", 9, "kl_mean") == ([None, None], None, None)


def test_tables_and_plots_are_written():
    with open(path("curves.json"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(x) + "\n" for x in CURVES)
    status, out, said = cq("report", path("curves.json"))
    assert status == 0, said
    assert "| m | 2 | kl_mean | 0.03000 (kivi) | 0.00100 | 0.03 |  |  |" in out
    try:
        import matplotlib
        del matplotlib
    except ImportError as e:
        raise Skip("no matplotlib") from e
    _, out, _ = cq("figures", path("acts.st"), path("4c8b.st"))
    with open(path("figures.json"), "w", encoding="utf-8") as f:
        f.write(out)
    status, _, said = cq("report", path("curves.json"), "--figures", path("figures.json"),
                         "--plots", path("plots"))
    assert status == 0, said
    names = {f"quality-{n}.svg" for n in ("kl-mean", "kl-p99", "ppl-ratio", "retrieval",
                                          "sensitivity", "entropy")}
    assert set(os.listdir(path("plots"))) == names


def test_tables_of_a_document_are_replaced():
    with open(path("doc.md"), "w", encoding="utf-8") as f:
        f.write("head\n<!-- begin ablations -->\nold\n<!-- end ablations -->\ntail\n")
    found = report.parts(CURVES)
    for _ in range(2):
        report.put_into(path("doc.md"), found)
    with open(path("doc.md"), encoding="utf-8") as f:
        got = f.read()
    assert got == "head\n<!-- begin ablations -->\n" + "\n".join(found["ablations"]) + \
        "\n<!-- end ablations -->\ntail\n"
    assert "| cq2 | attached |" in got
    with open(path("doc.md"), "w", encoding="utf-8") as f:
        f.write("<!-- begin ablations -->\n")
    refuses("no <!-- end ablations -->", report.put_into, path("doc.md"), found)
    status, _, said = cq("report", path("nowhere.json"))
    assert status == 1 and "nowhere.json" in said


def test_lines_that_are_none_are_named():
    for text in ("{", "[]\n", '{"options": 5}\n'):
        with open(path("odd.json"), "w", encoding="utf-8") as f:
            f.write(text)
        refuses("odd.json: ", report.load, path("odd.json"))


def test_sensitivity_is_weighted_error():
    dump, _ = tensors.read(path("acts.st"))
    got = figures.sensitivity(dump, coders.Cq(path("4c8b.st")), step=1)
    assert math.isclose(sum(got.values()), 1, rel_tol=1e-6) and len(got) == 12
    status, out, said = cq("figures", path("acts.st"), path("none.st"))
    assert status == 1 and "none.st" in said and not out


def test_joint_entropy_of_copies_is_that_of_one():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20000, 1)).astype(np.float32)
    one = ablate.entropy(np.repeat(x, 4, 1))
    assert np.allclose(one, one[0], atol=1e-6), one
    apart = ablate.entropy(rng.normal(size=(200000, 2)).astype(np.float32), most=2)
    assert abs(apart[1] - 2 * apart[0]) < 0.01, apart


def noise(tokens=300):
    x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(1))
    x[:, :, 1] = x[:, :, 0] + 0.1 * x[:, :, 1]
    return x


def test_coupled_channels_take_the_nearest_of_their_centroids():
    x = noise()
    dump = {f"layers.0.{kv}": x.numpy() for kv in "kv"} | \
        {f"layers.0.{kv}.fisher": np.ones(x.shape, np.float32) for kv in "kv"}
    error = []
    for c in (1, 2):
        coder = ablate.Coupled(c, 2 * c, dump, GEOMETRY, sinks=0)
        got = coder.code(0, "k", x[None])[0]
        book, _ = coder.books[0, "k"]
        assert book.shape == (2 * 8 // c, 4 ** c, c) and coder.bits(0, "k") == 2
        for head, token, group in itertools.product((0, 1), (0, 299), range(8 // c)):
            part = slice(group * c, group * c + c)
            all_of_them = (book[head * 8 // c + group] - x[head, token, part]).pow(2).sum(-1)
            chosen = (got[head, token, part] - x[head, token, part]).pow(2).sum()
            assert torch.isclose(chosen, all_of_them.min(), atol=1e-6)
        error.append((got - x).pow(2).mean().item())
    assert error[1] < 0.8 * error[0], error


def test_coupled_channels_with_a_weight_each_lose_less_where_it_counts():
    x, weight = noise(), np.ones((2, 300, 8), np.float32)
    weight[:, :, ::4] = 100
    weight[:, 5] = 1e9      # and is clipped
    dump = {f"layers.0.{kv}": x.numpy() for kv in "kv"} | \
        {f"layers.0.{kv}.fisher": weight for kv in "kv"}
    lost, most = [], []
    learn = ablate.learn

    def seen(x, w, n):
        most.append(w.max().item())
        return learn(x, w, n)

    for both in (False, True):
        ablate.learn = seen
        try:
            coder = ablate.Coupled(4, 4, dump, GEOMETRY, sinks=0, both=both)
        finally:
            ablate.learn = learn
        error = (coder.code(0, "k", x[None])[0] - x).pow(2)
        lost.append((error * torch.from_numpy(weight).clamp(max=100)).mean().item())
        _, root = coder.books[0, "k"]
        assert torch.allclose(root.pow(2).mean(-1), torch.ones(4, 1))
        assert both == (root[0, 0, 0] > 5 * root[0, 0, 1])
    assert lost[1] < 0.7 * lost[0], lost
    assert most[0] > 1e8 and most[-1] < 1e4, most


def test_many_distances_are_made_in_pieces():
    x, centres = torch.randn(2, 100, 4), torch.randn(2, 16, 4)
    want, kept = ablate.assign(x, centres), ablate.AT_ONCE
    ablate.AT_ONCE = 7 * 2 * 16
    try:
        assert (ablate.assign(x, centres) == want).all()
    finally:
        ablate.AT_ONCE = kept


def test_weights_pull_centroids():
    x = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])[None]
    w = torch.cat([torch.ones(50), 9 * torch.ones(50)])[None]
    assert torch.allclose(ablate.learn(x, w, 1), torch.tensor([[[0.9]]]))


def test_eval_codes_coupled_channels():
    from small import LM
    status, out, said = cq("eval", LM, "--peer", "coupled2-2", "--dump", path("acts.st"),
                           "--ids", os.path.join(LM, "heldout.u16"), "--sequences", "1",
                           "--length", "200", "--first", "128", "--no-exact", "--label", "x")
    assert status == 0, said
    assert [x["reader"] for x in lines(out)] == ["owner", "attached"]
    assert all(x["options"]["label"] == "x" and x["method"] == "2c2b" for x in lines(out))
