# SPDX-License-Identifier: MIT
"""Models of transformers, with random weights; the small language model as Llama."""
import os
import weakref

import numpy as np
import torch
from cq import attention, dump, hard, models, rope, tensors, turn
from small import LM, calibrate, cq, heldout, lines, path
from tap import Skip, refuses

SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
MODELS = {"Llama": {}, "Mistral": {"sliding_window": 90, "head_dim": 32}, "Qwen2": {},
          "Gemma": {"head_dim": 32}, "Olmo2": {},
          "Glm": {"head_dim": 16, "pad_token_id": 0, "eos_token_id": 0}, "Cohere": {},
          "Phi": {}, "Phi3": {"pad_token_id": 0},
          "Gemma2": {"head_dim": 32, "sliding_window": 100, "query_pre_attn_scalar": 24}}


def library():
    try:
        import transformers
        return transformers
    except ImportError as e:
        raise Skip("no transformers") from e


def make(name, **more):
    """A folder with random weights, and the model."""
    lib = library()
    torch.manual_seed(1)
    config = getattr(lib, name + "Config")(**SHAPE, **MODELS[name], **more)
    net = getattr(lib, name + "ForCausalLM")(config).eval()
    for p in net.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.2)
    net.save_pretrained(path(name))
    return path(name), net


def same_logits(name):
    folder, net = make(name)
    ids = torch.randint(0, 300, (1, 200))
    net.config._attn_implementation = "eager"
    with torch.no_grad():
        want = net(ids, use_cache=False).logits
        model = models.load(folder, transformers=True)
        got = model.forward(model.embed(ids), attention.Plain(), slice(None))
        # what is patched is put back
        again = net(ids, use_cache=False).logits
    assert (want - got).abs().max() < 1e-4 * want.abs().max(), (want - got).abs().max()
    assert (want == again).all()


def test_llama():
    same_logits("Llama")


def test_mistral_with_a_sliding_window():
    same_logits("Mistral")


def test_qwen2_with_biases():
    same_logits("Qwen2")


def test_gemma():
    same_logits("Gemma")


def test_gemma2_with_soft_caps_and_sliding_windows():
    same_logits("Gemma2")


def test_olmo2_with_a_norm_of_keys():
    same_logits("Olmo2")


def test_pairs_that_are_neighbours_are_found():
    for name, dim in (("Cohere", "16"), ("Glm", "8")):
        same_logits(name)
        found = models.load(path(name)).rope
        assert found["rope"] == "interleaved" and found["rope_dim"] == dim, found
    refuses("i and i + d/2 is wanted", hard.make, path("Cohere"), path("none"))


def test_attention_in_other_pieces_is_refused():
    for name, want in (("Phi", "heads of 16 are wanted whole"), ("Phi3", "fused projections")):
        folder, _ = make(name)
        refuses(want, models.load, folder)


def test_a_rotation_that_the_config_does_not_say_is_refused():
    folder, _ = make("Llama")
    kept = rope.frequencies
    rope.frequencies = lambda told: kept(told) * 1.01
    try:
        refuses("llama rotates keys in another way", models.load, folder, True)
    finally:
        rope.frequencies = kept


def test_a_model_goes_with_its_last_user():
    folder, _ = make("Llama")
    model = models.load(folder, True)
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_the_small_model_is_a_llama():
    library()
    ids = torch.from_numpy(heldout(300).astype(np.int64))[None]
    with torch.no_grad():
        a, b = (m.forward(m.embed(ids), attention.Plain(), slice(None))
                for m in (models.load(LM), models.load(LM, transformers=True)))
    assert (a - b).abs().max() < 2e-4


def test_keys_of_a_dump_are_behind_the_norm_and_before_rope():
    folder, net = make("Olmo2")
    ids = np.random.default_rng(1).integers(0, 300, 128)
    seen = {}
    net.model.layers[1].self_attn.k_norm.register_forward_hook(
        lambda module, given, out: seen.update(k=out))
    net.model.layers[1].self_attn.v_proj.register_forward_hook(
        lambda module, given, out: seen.update(v=out))
    with torch.no_grad():
        net(torch.from_numpy(ids)[None], use_cache=False)
    dump.dump(folder, ids, path("olmo2.st"), 128, 1, transformers=True)
    got, meta = tensors.read(path("olmo2.st"))
    for kv in "kv":
        want = seen[kv][0].view(128, 2, 16).transpose(0, 1).numpy()
        assert np.allclose(got[f"layers.1.{kv}"], want, atol=5e-3, rtol=2e-3), kv
        fisher = got[f"layers.1.{kv}.fisher"]
        assert (fisher >= 0).all() and fisher.max() > 0
    assert meta["rope_dim"] == "16" and meta["n_kv_heads"] == "2"


def test_turned_models_give_the_same_logits():
    for name in ("Qwen2", "Cohere", "Olmo2"):
        folder, _ = make(name)
        ids, said = np.random.default_rng(1).integers(0, 300, 256), []
        dump.dump(folder, ids, path("turn.st"), 128, 2, transformers=True)
        turn.make(folder, path("turn.st"), path("turned-hf"), say=said.append)
        raw = [tensors.read(os.path.join(f, "model.safetensors"))[0]
               for f in (folder, path("turned-hf"))]
        kept = [np.allclose(*(w[f"model.layers.0.self_attn.{kv}_proj.weight"] for w in raw))
                for kv in "kqv"]
        assert kept == [bool(said)] * 2 + [False] and bool(said) == (name == "Olmo2"), name
        with torch.no_grad():
            want, got = (m.forward(m.embed(torch.from_numpy(ids)[None]), attention.Plain(),
                                   slice(None)) for m in (models.load(folder, True), models.load(
                                       path("turned-hf"), True)))
        assert (want - got).abs().max() < 1e-3 * want.abs().max(), name


def test_dump_calibrate_and_eval_of_a_foreign_model():
    folder, _ = make("Gemma2")
    np.random.default_rng(2).integers(0, 300, 1024).astype("<u4").tofile(path("ids.u32"))
    status, _, said = cq("dump", folder, "--ids", path("ids.u32"), "--length", "256",
                         "--sequences", "4", "-o", path("gemma2.st"))
    assert status == 0, said
    model = calibrate(path("gemma2.st"), "gemma2-4c8b.st", "4c8b", "4c8b")
    status, out, said = cq("eval", folder, "--ids", path("ids.u32"), "--codec", model,
                           "--length", "256", "--first", "100", "--sequences", "2",
                           "--readers", "attached")
    assert status == 0, said
    figures = lines(out)[1]
    assert figures["family"] == "cq" and 0 < figures["kl_mean"] < 10


def test_rope_scaling_is_told():
    library()
    for scaling, want in (
            ({"rope_type": "linear", "factor": 4.0}, {"rope_scaling": "linear", "rope_factor": "4"}),
            ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256,
              "low_freq_factor": 1.0, "high_freq_factor": 4.0},
             {"rope_scaling": "llama3", "rope_factor": "8", "rope_original_max_position": "256",
              "rope_low_freq_factor": "1", "rope_high_freq_factor": "4"})):
        folder, _ = make("Llama", rope_scaling=scaling)
        rope = models.load(folder).rope
        assert {k: v for k, v in rope.items() if "_s" in k or "factor" in k or
                "original" in k} == want, rope
    folder, _ = make("Llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    refuses("RoPE scaling dynamic", models.load, folder)


def test_a_model_without_rope_is_refused():
    lib = library()
    config = lib.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50)
    lib.GPT2LMHeadModel(config).save_pretrained(path("gpt2"))
    refuses("no apply_rotary_pos_emb", models.load, path("gpt2"))
