# SPDX-License-Identifier: MIT
"""What config.json and the weights of a folder have to say, without transformers."""
import json
import os
import shutil

import torch
from cq import lm, models, rope
from small import LM, path
from tap import refuses


def config(**change):
    """The small language model's, changed; None takes a key out."""
    with open(os.path.join(LM, "config.json"), encoding="utf-8") as f:
        found = json.load(f) | change
    return {k: v for k, v in found.items() if v is not None}


def folder(name, told):
    """A folder with this config.json and the small language model's weights."""
    os.makedirs(path(name), exist_ok=True)
    shutil.copyfile(os.path.join(LM, "model.safetensors"), path(name + "/model.safetensors"))
    with open(path(name + "/config.json"), "w", encoding="utf-8") as f:
        f.write(told if isinstance(told, str) else json.dumps(told))
    return path(name)


def test_what_the_class_does_not_compute_is_left_to_others():
    knows = lm.Llama.knows
    assert knows(config()) and knows(config(hidden_act=None))
    assert knows(config(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    for change in ({"hidden_act": "gelu"}, {"partial_rotary_factor": 0.5},
                   {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"mlp_bias": True},
                   {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
                   {"rope_parameters": {"partial_rotary_factor": 0.5}}, {"rope_scaling": [1]},
                   {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}):
        assert not knows(config(**change)), change


def test_theta_is_read_where_newer_configs_have_it():
    told = config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert models.load(folder("newer", told)).rope["rope_theta"] == "500000.0"


def test_a_config_that_cannot_be_is_refused():
    for told, want in (
            ("[]", "not an object"), ("[" * 99999, "config.json"),
            (config(num_attention_heads=None), "num_attention_heads is None"),
            (config(num_attention_heads=0), "num_attention_heads is 0"),
            (config(num_hidden_layers="6"), "num_hidden_layers is '6'"),
            (config(num_key_value_heads=3), "cannot share 3 kv heads"),
            (config(num_key_value_heads=4), "k_proj.weight is [128, 256]"),
            (config(head_dim=63), "head_dim 63 is odd"), (config(head_dim=32), "q_proj.weight is"),
            (config(num_hidden_layers=7), "no tensor model.layers.6"),
            (config(vocab_size=4095), "embed_tokens.weight is"),
            (config(rms_norm_eps=None), "rms_norm_eps is None")):
        refuses(want, models.load, folder("odd", told))


def test_turns_are_those_of_complex_numbers():
    told = {"rope_dim": "4", "rope_theta": "100", "rope_scaling": "linear", "rope_factor": "2"}
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    angle = torch.arange(5.)[:, None] * torch.tensor([0.5, 0.05])
    for pairs, a, b in (("half", [0, 1], [2, 3]), ("interleaved", [0, 2], [1, 3])):
        got = rope.turn(x, *rope.angles(told, 5), pairs)
        want = torch.complex(x[:, a], x[:, b]) * torch.exp(1j * angle)
        assert torch.allclose(torch.complex(got[:, a], got[:, b]), want, atol=1e-5), pairs
        assert (got[:, 4:] == x[:, 4:]).all()
