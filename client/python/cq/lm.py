# SPDX-License-Identifier: MIT
"""Llama in torch, without transformers: enough for the small language model."""
import itertools
import json
import os

import torch
import torch.nn.functional as F

from . import rope, tensors


MOST = 1 << 24              # of any number of a config.json


def _checked(config, path):
    """The numbers of a config.json that a Llama has; refuses what cannot be."""

    def whole(key, default=None):
        n = config.get(key)
        n = default if n is None else n
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST:
            raise tensors.FileError(f"{path}: {key} is {n!r}: a number from 1 to {MOST} is wanted")
        return n

    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    g = {"n_layers": whole("num_hidden_layers"), "n_heads": heads,
         "n_kv_heads": whole("num_key_value_heads", heads),
         "head_dim": whole("head_dim", hidden // heads),
         "max_position": whole("max_position_embeddings")}
    if heads % g["n_kv_heads"]:
        raise tensors.FileError(f"{path}: {heads} heads cannot share {g['n_kv_heads']} kv heads")
    if g["head_dim"] % 2:
        raise tensors.FileError(f"{path}: head_dim {g['head_dim']} is odd")
    eps = config.get("rms_norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise tensors.FileError(f"{path}: rms_norm_eps is {eps!r}")
    return g, hidden, whole("intermediate_size"), whole("vocab_size")


def _shapes(g, hidden, middle, vocab):
    """(name, shape) of every weight."""
    q, kv = g["n_heads"] * g["head_dim"], g["n_kv_heads"] * g["head_dim"]
    yield "model.embed_tokens", (vocab, hidden)
    yield "model.norm", (hidden,)
    for layer in range(g["n_layers"]):
        for name, shape in (("self_attn.q_proj", (q, hidden)), ("self_attn.k_proj", (kv, hidden)),
                            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, q)),
                            ("mlp.gate_proj", (middle, hidden)), ("mlp.up_proj", (middle, hidden)),
                            ("mlp.down_proj", (hidden, middle)), ("input_layernorm", (hidden,)),
                            ("post_attention_layernorm", (hidden,))):
            yield f"model.layers.{layer}.{name}", shape


class Llama:
    """A folder with config.json and model.safetensors, computed in f32.

    Without RoPE scaling, biases and sliding windows: what has these needs
    transformers (hf.py).
    """

    def __init__(self, folder):
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as f:
            self.config = json.load(f)
        self.geometry, *sizes = _checked(self.config, path)
        self.vocab = sizes[-1]
        try:
            theta, *_ = rope.settings(self.config)
        except ValueError as e:
            raise tensors.FileError(f"{path}: {e}") from e
        self.rope = {"rope": "half", "rope_dim": str(self.geometry["head_dim"]),
                     "rope_theta": repr(theta)}
        self.path = os.path.join(folder, "model.safetensors")
        raw, _ = tensors.read(self.path)
        self._check(raw, sizes)
        self.w = {k: torch.from_numpy(v.astype("float32")) for k, v in raw.items()}

    def _check(self, raw, sizes):
        """Refuse weights that are not there or have another shape than the config says."""
        wanted = _shapes(self.geometry, *sizes)
        if "lm_head.weight" in raw:
            wanted = itertools.chain([("lm_head", (self.vocab, sizes[0]))], wanted)
        for name, shape in wanted:
            found = raw.get(name + ".weight")
            if found is None:
                raise tensors.FileError(f"{self.path}: no tensor {name}.weight")
            if found.shape != shape:
                raise tensors.FileError(f"{self.path}: {name}.weight is {list(found.shape)}: "
                                        f"config.json wants {list(shape)}")

    @staticmethod
    def knows(config):
        """Is this config.json one for this class?"""
        if config.get("model_type") != "llama" or config.get("attention_bias") or \
                config.get("mlp_bias") or (config.get("hidden_act") or "silu") != "silu":
            return False
        try:
            _, kind, _, share = rope.settings(config)
        except ValueError:
            return False
        return kind == "default" and share == 1

    def _norm(self, x, name):
        return self.w[name + ".weight"] * x * torch.rsqrt(
            x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])

    def _attend(self, layer, h, cos, sin, tap):
        g = self.geometry
        name = f"model.layers.{layer}.self_attn."

        def heads(which, n):
            y = F.linear(h, self.w[name + which + ".weight"])
            return y.view(*h.shape[:2], n, g["head_dim"]).transpose(1, 2)

        q = rope.turn(heads("q_proj", g["n_heads"]), cos, sin)
        k, v = heads("k_proj", g["n_kv_heads"]), heads("v_proj", g["n_kv_heads"])
        o = tap.attend(layer, q, k, v, lambda x: rope.turn(x, cos, sin),
                       g["head_dim"] ** -0.5)
        o = o.transpose(1, 2).reshape(*h.shape[:2], -1)
        return F.linear(o, self.w[name + "o_proj.weight"])

    def _mlp(self, layer, h):
        name = f"model.layers.{layer}.mlp."
        gate = F.silu(F.linear(h, self.w[name + "gate_proj.weight"]))
        up = F.linear(h, self.w[name + "up_proj.weight"])
        return F.linear(gate * up, self.w[name + "down_proj.weight"])

    def embed(self, ids):
        """[batch][token] -> the first layer's input."""
        return F.embedding(ids, self.w["model.embed_tokens.weight"])

    def forward(self, x, tap, rows):
        """Logits [batch][row][vocab] of the given rows, from embed()'s result."""
        cos, sin = rope.angles(self.rope, x.shape[1])
        for layer in range(self.geometry["n_layers"]):
            name = f"model.layers.{layer}."
            x = x + self._attend(layer, self._norm(x, name + "input_layernorm"),
                                 cos, sin, tap)
            x = x + self._mlp(layer, self._norm(x, name + "post_attention_layernorm"))
        x = self._norm(x[:, rows], "model.norm")
        return F.linear(x, self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]))
