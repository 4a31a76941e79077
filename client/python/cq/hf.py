# SPDX-License-Identifier: MIT
"""Any causal language model of transformers whose attention goes by its table.

Keys are met where RoPE is applied to them (after a QK norm), values and
queries where attention is computed: both are functions that a modelling module
looks up by name, so no model needs code of its own here.
"""
import sys

import torch

ATTENTION = "cq"


class Unsupported(ValueError):
    """A model that cannot be handled; the text says why."""


def _transformers():
    try:
        import transformers
    except ImportError as e:
        raise Unsupported("this model needs transformers (pip install transformers)") from e
    return transformers


def tokenize(folder, path):
    """The token ids of a text file by the model's own tokenizer."""
    with open(path, encoding="utf-8", errors="replace") as f:
        text = f.read()
    tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer(text, return_tensors="np", verbose=False)["input_ids"][0].astype("int64")


def _attention(module, query, key, value, attention_mask, **given):
    """What transformers calls instead of its own attention."""
    model = module.cq_model
    if model.rotation is None:
        raise Unsupported(f"{type(module).__name__} uses no apply_rotary_pos_emb of its module")
    k, rotate = model.rotation
    model.rotation = None
    scale = given.get("scaling") or module.head_dim ** -0.5
    out = model.tap.attend(module.layer_idx, query, k, value, rotate, scale,
                           given.get("softcap"), given.get("sliding_window"))
    return out.transpose(1, 2).contiguous(), None


def _scaling(config):
    """Metadata of RoPE scaling, as formats.md names it."""
    given = getattr(config, "rope_scaling", None) or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return {}
    names = {"linear": {"factor": "rope_factor"},
             "llama3": {"factor": "rope_factor",
                        "original_max_position_embeddings": "rope_original_max_position",
                        "low_freq_factor": "rope_low_freq_factor",
                        "high_freq_factor": "rope_high_freq_factor"}}
    if kind not in names:
        raise Unsupported(f"RoPE scaling {kind}: linear and llama3 are known here")
    out = {"rope_scaling": kind}
    for theirs, ours in names[kind].items():
        number = given[theirs]
        out[ours] = str(int(number)) if float(number).is_integer() else repr(float(number))
    return out


class Model:
    """A folder that AutoModelForCausalLM can load; f32, eager, on the CPU."""

    def __init__(self, folder):
        transformers = _transformers()
        transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.setdefault(ATTENTION, _attention)
        self.net = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="eager",
            local_files_only=True).eval().requires_grad_(False)
        config = self.net.config
        self.module = sys.modules[type(self.net).__module__]
        self._hook(config)
        heads = config.num_attention_heads
        self.vocab = config.vocab_size
        self.geometry = {
            "n_layers": config.num_hidden_layers, "n_heads": heads,
            "n_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "max_position": config.max_position_embeddings}
        turned = int(self.geometry["head_dim"] *
                     (getattr(config, "partial_rotary_factor", None) or 1))
        self.rope = {"rope": "half", "rope_dim": str(turned),
                     "rope_theta": repr(float(config.rope_theta)), **_scaling(config)}
        self.tap = self.rotation = None

    def _hook(self, config):
        if not hasattr(self.module, "apply_rotary_pos_emb") or \
                not hasattr(self.module, "ALL_ATTENTION_FUNCTIONS"):
            raise Unsupported(f"{config.model_type}: its module has no apply_rotary_pos_emb, or "
                              "does not choose its attention by name")
        self.original = getattr(self.module, "cq_original", self.module.apply_rotary_pos_emb)
        self.module.cq_original = self.original
        config._attn_implementation = ATTENTION
        for part in self.net.modules():
            if hasattr(part, "layer_idx") and hasattr(part, "v_proj"):
                part.cq_model = self

    def _rotary(self, q, k, *args, **kwargs):
        turned, _ = self.original(q, k, *args, **kwargs)

        def rotate(x):
            return self.original(q, x, *args, **kwargs)[1]

        self.rotation = (k, rotate)
        return turned, k

    def embed(self, ids):
        """[batch][token] -> the first layer's input."""
        return self.net.get_input_embeddings()(ids)

    def forward(self, x, tap, rows):
        """Logits [batch][row][vocab] of the given rows, from embed()'s result."""
        self.tap = tap
        self.module.apply_rotary_pos_emb = self._rotary
        try:
            out = self.net(inputs_embeds=x, use_cache=False)
        finally:
            self.module.apply_rotary_pos_emb = self.original
            self.tap = self.rotation = None
        return out.logits[:, rows]
