# SPDX-License-Identifier: MIT
"""client/worker/lm/training: the first shape of what recalls."""
import json
import os
import sys

import numpy as np
import torch

from small import LM

sys.path.insert(0, os.path.join(LM, "training"))
import measure          # noqa: E402
import model            # noqa: E402
import pack             # noqa: E402
import tasks            # noqa: E402
import widen            # noqa: E402


def small_net():
    with open(os.path.join(LM, "config.json"), encoding="utf-8") as f:
        net = model.Net(json.load(f), lowp=torch.float32)
    model.load(net, os.path.join(LM, "model.safetensors"))
    return net


def test_a_widened_model_recalls_before_it_has_learnt():
    net = widen.widen(small_net(), 5e5, tasks.held_out())
    with torch.no_grad():
        found = measure.accuracy(net, [tasks.recall([5, i], 300, 20, 8) for i in range(4)])
    assert found > 0.4, found


def test_text_is_as_before_while_the_new_heads_are_silent():
    old = small_net()
    net = widen.widen(old, old.config["rope_theta"], tasks.held_out())
    ids = torch.from_numpy(tasks.held_out()[20000:20200].astype(np.int64))[None]
    with torch.no_grad():
        for o in net.o:
            o[:, old.heads * old.dim:] = 0
        a, b = (n(ids).log_softmax(-1) for n in (old, net))
    assert (a.exp() * (a - b)).sum(-1).mean() < 0.07


def test_packed_weights_are_near_and_packed_again_the_same():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(50, 150)).astype(np.float16)
    a[1, 64:128] = 0                    # a block without a scale
    a[2, :64] *= 10                     # large beside small ones
    a[3:] *= 1e-4                       # scales of few bits
    tensors = {"m": a, "n": np.arange(7, dtype=np.float16)}
    packed = pack.pack(tensors)
    back = pack.unpack(packed)
    assert packed["m"].dtype == np.int8 and packed["m"].shape == a.shape
    assert (back["n"] == tensors["n"]).all() and set(back) == set(tensors)
    most = np.abs(pack.blocks(a.astype(np.float32))).max(-1, keepdims=True)
    off = np.abs(pack.blocks((back["m"] - a).astype(np.float32)))
    assert (off <= most / 127 * 0.51 + most * 2.0 ** -11 + 2.0 ** -18).all()
    again = pack.unpack(pack.pack(back))
    assert all((again[k] == back[k]).all() for k in back)
