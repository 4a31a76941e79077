# SPDX-License-Identifier: MIT
"""Any causal language model of transformers whose attention goes by its table.

Keys are met where RoPE is applied to them (after a QK norm), values and
queries where attention is computed: both are functions that a modelling module
looks up by name, so no model needs code of its own here.
"""
import sys
import weakref

import torch

from . import rope

ATTENTION = "cq"


class Unsupported(ValueError):
    """A model that cannot be handled; the text says why."""


def _transformers():
    try:
        import transformers
    except ImportError as e:
        raise Unsupported("this model needs transformers (pip install transformers)") from e
    return transformers


def _load(kind, folder, **given):
    """What transformers makes of a folder; whatever that raises names the folder."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **given)
    except Exception as e:      # those of safetensors, tokenizers and pickle have no base
        raise Unsupported(f"{folder}: {e}") from e


def tokenize(folder, path):
    """The token ids of a text file by the model's own tokenizer."""
    with open(path, encoding="utf-8", errors="replace") as f:
        text = f.read()
    tokenizer = _load(_transformers().AutoTokenizer, folder)
    return tokenizer(text, return_tensors="np", verbose=False)["input_ids"][0].astype("int64")


def _attention(module, query, key, value, attention_mask, **given):
    """What transformers calls instead of its own attention."""
    model = module.cq_model
    if model.rotation is None:
        raise Unsupported(f"{type(module).__name__} uses no apply_rotary_pos_emb of its module")
    k, rotate = model.rotation
    model.rotation = None
    want = model.geometry["head_dim"]
    if not k.shape[-1] == value.shape[-1] == query.shape[-1] == want:
        raise Unsupported(f"{type(module).__name__} rotates {k.shape[-1]} channels of keys on "
                          f"their own and has values of {value.shape[-1]}: heads of {want} are "
                          "wanted whole")
    scale = given.get("scaling") or module.head_dim ** -0.5
    out = model.tap.attend(module.layer_idx, query, k, value, rotate, scale,
                           given.get("softcap"), given.get("sliding_window"))
    return out.transpose(1, 2).contiguous(), None


def _rope(config, head_dim):
    """Metadata of RoPE, as formats.md names it; which channels make pairs is probed."""
    names = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
    try:
        theta, kind, given, share = rope.settings({k: getattr(config, k, None) for k in names})
    except ValueError as e:
        raise Unsupported(f"{config.model_type}: {e}") from e
    out = {"rope": rope.PAIRS[0], "rope_dim": str(int(head_dim * share)),
           "rope_theta": repr(theta)}
    return out | _scaling(kind, given)


def _scaling(kind, given):
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
        try:
            number = float(given[theirs])
        except (KeyError, TypeError, ValueError) as e:
            raise Unsupported(f"RoPE scaling {kind}: no number {theirs}") from e
        out[ours] = str(int(number)) if number.is_integer() else repr(number)
    return out


class Model:
    """A folder that AutoModelForCausalLM can load; f32, eager, on the CPU."""

    def __init__(self, folder):
        transformers = _transformers()
        transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.setdefault(ATTENTION, _attention)
        self.net = _load(transformers.AutoModelForCausalLM, folder, torch_dtype=torch.float32,
                         attn_implementation="eager").eval().requires_grad_(False)
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
        self.rope = _rope(config, self.geometry["head_dim"])
        self.tap = self.rotation = None
        self._probe(folder)

    def _probe(self, folder):
        """Which channels RoPE turns together; refuses a rotation that .rope cannot say."""
        tap = rope.Probe(self.rope)
        tokens = torch.arange(min(rope.PROBE_TOKENS, self.geometry["max_position"]))[None]
        with torch.no_grad():
            self.forward(self.embed(tokens % self.vocab), tap, slice(-1, None))
        if tap.layers != self.geometry["n_layers"]:
            raise Unsupported(f"{folder}: {tap.layers} of {self.geometry['n_layers']} layers "
                              "have an attention that can be met")
        if not tap.pairs:
            raise Unsupported(f"{folder}: {self.net.config.model_type} rotates keys in another "
                              "way than its config.json says; pairs that are halves or "
                              "neighbours are known here")
        self.rope["rope"] = tap.pairs[0]

    def _hook(self, config):
        if not hasattr(self.module, "apply_rotary_pos_emb") or \
                not hasattr(self.module, "ALL_ATTENTION_FUNCTIONS"):
            raise Unsupported(f"{config.model_type}: its module has no apply_rotary_pos_emb, or "
                              "does not choose its attention by name")
        self.original = getattr(self.module, "cq_original", self.module.apply_rotary_pos_emb)
        self.module.cq_original = self.original
        config._attn_implementation = ATTENTION
        hooked = 0
        for part in self.net.modules():
            if hasattr(part, "layer_idx") and hasattr(part, "v_proj"):
                # no cycle: a model goes when its last user does
                part.cq_model = weakref.proxy(self)
                hooked += 1
        if hooked != config.num_hidden_layers:
            raise Unsupported(f"{config.model_type}: {hooked} of {config.num_hidden_layers} "
                              "layers have a v_proj of their own; fused projections are not "
                              "known here")

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
