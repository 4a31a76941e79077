# SPDX-License-Identifier: MIT
"""Llama in torch, without transformers: enough for the small language model."""
import json
import os

import torch
import torch.nn.functional as F

from . import tensors


def _turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Llama:
    """A folder with config.json and model.safetensors, computed in f32.

    Without RoPE scaling, biases and sliding windows: what has these needs
    transformers (hf.py).
    """

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            self.config = c = json.load(f)
        heads = c["num_attention_heads"]
        self.geometry = {
            "n_layers": c["num_hidden_layers"], "n_heads": heads,
            "n_kv_heads": c.get("num_key_value_heads", heads),
            "head_dim": c.get("head_dim") or c["hidden_size"] // heads,
            "max_position": c["max_position_embeddings"]}
        self.rope_theta = c.get("rope_theta", 10000.0)
        self.rope = {"rope": "half", "rope_dim": str(self.geometry["head_dim"]),
                     "rope_theta": repr(float(self.rope_theta))}
        self.path = os.path.join(folder, "model.safetensors")
        self.vocab = c["vocab_size"]
        raw, _ = tensors.read(self.path)
        self.w = {k: torch.from_numpy(v.astype("float32")) for k, v in raw.items()}

    @staticmethod
    def knows(config):
        """Is this config.json one for this class?"""
        return config.get("model_type") == "llama" and not (
            config.get("rope_scaling") or config.get("attention_bias") or
            config.get("mlp_bias"))

    def _norm(self, x, name):
        return self.w[name + ".weight"] * x * torch.rsqrt(
            x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])

    def _attend(self, layer, h, cos, sin, tap):
        g = self.geometry
        name = f"model.layers.{layer}.self_attn."

        def heads(which, n):
            y = F.linear(h, self.w[name + which + ".weight"])
            return y.view(*h.shape[:2], n, g["head_dim"]).transpose(1, 2)

        q = _turn(heads("q_proj", g["n_heads"]), cos, sin)
        k, v = heads("k_proj", g["n_kv_heads"]), heads("v_proj", g["n_kv_heads"])
        o = tap.attend(layer, q, k, v, lambda x: _turn(x, cos, sin), g["head_dim"] ** -0.5)
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
        d = self.geometry["head_dim"]
        freq = self.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * freq
        cos, sin = angle.cos().float(), angle.sin().float()
        for layer in range(self.geometry["n_layers"]):
            name = f"model.layers.{layer}."
            x = x + self._attend(layer, self._norm(x, name + "input_layernorm"),
                                 cos, sin, tap)
            x = x + self._mlp(layer, self._norm(x, name + "post_attention_layernorm"))
        x = self._norm(x[:, rows], "model.norm")
        return F.linear(x, self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]))
