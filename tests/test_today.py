"""The layers and the model of today: against the definition, and against transformers."""
import json

import numpy as np
import pytest

from simple_llm import layers as elder
from simple_llm.checkpoint import load_safetensors
from simple_llm.errors import UserError
from simple_llm.gradcheck import check_layer, numerical_gradient, relative_error
from simple_llm.model import Config, SimpleLLM
from simple_llm.today import layers as today
from simple_llm.today.layers import evens_first, rotary_angles, rotate
from simple_llm.today.model import TodayConfig, TodayLLM

SIZES = dict(vocab_size=11, context_length=9, d_model=8, n_layers=2, n_heads=4)
GPT2 = dict(norm="layer", positions="learned", feed_forward="gelu", n_kv_heads=4, bias=True)
MIXTURES = [{}, {"n_kv_heads": 1}, {"n_kv_heads": 4}, GPT2, GPT2 | {"norm": "rms"},
            GPT2 | {"positions": "rotary"}, GPT2 | {"feed_forward": "swiglu"},
            GPT2 | {"n_kv_heads": 2}, GPT2 | {"bias": False},
            {"qkv_bias": True, "rms_epsilon": 1e-6, "rope_scaling": (8.0, 1.0, 2.0, 5)},
            {"qk_norm": True, "head_dim": 6, "rope_scaling": (8.0, 1.0, 4.0, 32)}]
each_mixture = pytest.mark.parametrize("parts", MIXTURES, ids=str)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def make_dropout(layers, p=0.0):
    layer = layers.Dropout(p, np.random.default_rng(5))
    layer.training = True
    return layer


def make_norm(layers, p=0.0):
    layer = layers.RMSNorm(8, np.float64)
    layer.weight.data[...] = normal(8, seed=2)
    return layer


def make_linear(layers, p=0.0, inputs=8, outputs=8, seed=1):
    return layers.LinearNoBias(normal(inputs, outputs, seed=seed))


def make_swiglu(layers, p=0.0):
    gate, up = (make_linear(layers, 0, 8, 12, seed) for seed in (21, 22))
    return layers.SwiGLU(gate, up, make_linear(layers, 0, 12, 8, 23),
                         make_dropout(layers, p))


def make_attention(layers, p=0.0, H=4, K=2, rope=True, L=6, norms=False):
    D = 8 // H
    if norms:
        norms = [layers.RMSNorm(D, np.float64) for _ in range(2)]
        for seed, norm in enumerate(norms):
            norm.weight.data[...] = normal(D, seed=51 + seed)
    return layers.GroupedQueryAttention(
        make_linear(layers, 0, 8, 8, 11), make_linear(layers, 0, 8, K * D, 12),
        make_linear(layers, 0, 8, K * D, 13), make_linear(layers, 0, 8, 8, 14), H, K,
        elder.causal_mask(L, np.float64), rotary_angles(L, D, 10.0) if rope else None,
        make_dropout(layers, p), make_dropout(layers, p), norms or None)


def make_mixture(layers, p=0.0, E=3):
    experts = [make_swiglu(layers, p) for _ in range(E)]
    for e, expert in enumerate(experts):
        expert.down.weight.data += normal(12, 8, seed=30 + e)
    return layers.MixtureOfExperts(make_linear(layers, 0, 8, E, 41), experts)


def test_only_the_chosen_expert_has_a_say():
    layer, x = make_mixture(today), normal(1, 6, 8, seed=4)
    y = layer.forward(x)
    assert len(set(layer.chosen)) > 1
    for t in range(6):
        p = elder.softmax(x[0, t] @ layer.router.weight.data)
        said = layer.experts[p.argmax()].forward(x[:, t : t + 1])
        np.testing.assert_allclose(y[0, t], p.max() * said[0, 0])


MAKERS = {"linear": make_linear, "norm": make_norm, "mixture": make_mixture,
          "swiglu": make_swiglu, "attention": make_attention,
          "norms of queries and keys": lambda layers, p=0.0: make_attention(layers, p, norms=True),
          "one kv head": lambda layers, p=0.0: make_attention(layers, p, K=1),
          "without rope": lambda layers, p=0.0: make_attention(layers, p, rope=False)}
each_layer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_layer
def test_each_layer_against_the_definition(make):
    assert check_layer(make(today), normal(2, 5, 8)) < 1e-6


# Rotary positions


def rotate_neighbours(x, cos, sin):
    """Turn element 2i with 2i + 1, as the paper does, and Meta (Su et al., 2021)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("turn", [rotate, rotate_neighbours])
@pytest.mark.parametrize("base", [10.0, 100.0, 10_000.0])
def test_a_score_depends_on_the_distance_alone(turn, base):
    q, k = normal(2, 8)
    cos, sin = rotary_angles(120, 8, base)
    q, k = turn(np.tile(q, (120, 1)), cos, sin), turn(np.tile(k, (120, 1)), cos, sin)
    scores = q @ k.T
    for distance in (-3, 0, 2, 17):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-12)
    assert abs(scores[5, 3] - scores[3, 5]) > 0.01       # and before is not after


def test_slowed_hands_by_hand():
    """Of hands that turn 8, 4, 2.5, 1 and 0.5 times in a length, those between 1 and 4 times partly."""
    speeds = 2 * np.pi / 32 * np.array([8, 4, 2.5, 1, 0.5])
    np.testing.assert_allclose(today.slow_down(speeds, 8.0, 1.0, 4.0, 32) / speeds,
                               [1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8])
    slow, usual = (rotary_angles(8, 4, 100.0, scaling) for scaling in ((4.0, 1.0, 2.0, 1.0), ()))
    np.testing.assert_allclose(slow[0][4], usual[0][1])      # what was at 1 is now at 4


def test_a_turn_keeps_the_length_and_goes_the_way_of_the_clock_hand_by_hand():
    cos, sin = rotary_angles(3, 4, 100.0)
    x = np.tile([1.0, 2.0, 0.0, 0.0], (3, 1))
    y = rotate(x, cos, sin)
    np.testing.assert_allclose(y[0], x[0])
    np.testing.assert_allclose(y[2], [np.cos(2), 2 * np.cos(0.2), np.sin(2), 2 * np.sin(0.2)])


def test_both_pairings_agree_once_the_columns_and_biases_are_in_their_order():
    W, b, x, (cos, sin) = normal(8, 12), normal(12, seed=1), normal(2, 5, 8), rotary_angles(5, 6, 100.0)
    theirs = rotate_neighbours(elder.split_heads(x @ W + b, 2), cos, sin)
    ours = rotate(elder.split_heads(x @ evens_first(W, 2) + evens_first(b, 2), 2), cos, sin)
    np.testing.assert_allclose(ours @ ours.swapaxes(-1, -2), theirs @ theirs.swapaxes(-1, -2))
    np.testing.assert_allclose(ours, np.concatenate([theirs[..., ::2], theirs[..., 1::2]], -1))


# The model


def make_model(parts, dtype=np.float64, kind=TodayLLM, **more):
    model = kind(TodayConfig(**{**SIZES, **parts, **more}), seed=1, dtype=dtype)
    rng = np.random.default_rng(3)
    for p in model.parameters():                         # no symmetry, no zero bias
        p.data += rng.normal(0, 0.1, p.data.shape).astype(dtype)
    return model


IDS = np.array([[1, 2, 1, 6, 1], [0, 0, 5, 4, 3]])
TARGETS = np.array([[2, 1, 6, 1, -1], [0, 5, 4, 3, 2]])


@each_mixture
def test_every_gradient_of_the_model_against_the_definition(parts):
    layers = 1 if parts else 2                           # few parameters to be moved
    model = make_model(parts, dropout=0.2, d_ff=3, n_layers=layers)
    model.train()

    def loss():
        model.reseed([0])
        return model.loss(IDS, TARGETS)

    loss()
    model.backward()
    for name, p in model.named_parameters():
        found = numerical_gradient(loss, p.data)
        none = max(np.abs(found).max(), np.abs(p.grad).max()) < 1e-9    # a bias of all keys
        assert none or relative_error(p.grad, found) < 1e-6, name


@each_mixture
def test_cached_logits_are_the_uncached_at_every_length(parts):
    model = make_model(parts)
    ids = np.random.default_rng(1).integers(11, size=(2, 9))
    whole = model.forward(ids)
    for first in range(1, 9):
        caches = model.make_caches(2)
        found = [model.next_logits(ids[:, :first], caches)]
        found += [model.next_logits(ids[:, t : t + 1], caches) for t in range(first, 9)]
        np.testing.assert_allclose(np.stack(found, 1), whole[:, first - 1 :], atol=1e-12)


@each_mixture
def test_the_parameters_are_counted_right(parts):
    model = make_model(parts)
    assert sum(p.data.size for p in model.parameters()) == model.config.n_parameters


def test_the_cache_of_shared_heads_is_smaller():
    caches = make_model({"n_kv_heads": 1}).make_caches()
    assert caches[0].keys.shape == (1, 1, 9, 2)


def test_all_parts_of_gpt2_are_gpt2():
    new, old = make_model(GPT2), SimpleLLM(Config(**SIZES), dtype=np.float64)
    parameters = dict(new.named_parameters())
    for name, p in old.named_parameters():
        name = name.replace("transformer.h.", "model.layers.")
        for theirs, ours in [("transformer.wte", "model.embed_tokens"), ("ln_f", "norm"),
                             ("transformer.wpe", "model.embed_positions"),
                             ("transformer.", "model."),
                             ("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm"),
                             ("attn.c_proj", "self_attn.o_proj"), ("c_fc", "up_proj"),
                             ("mlp.c_proj", "mlp.down_proj")]:
            name = name.replace(theirs, ours)
        if "c_attn" in name:
            names = [name.replace("attn.c_attn", f"self_attn.{x}_proj") for x in "qkv"]
            p.data[...] = np.concatenate([parameters[n].data for n in names], axis=-1)
        else:
            p.data[...] = parameters[name].data
    np.testing.assert_allclose(old.forward(IDS), new.forward(IDS), atol=1e-12)


def test_it_starts_as_unsure_as_its_elder():
    model = TodayLLM(TodayConfig(27, 73))
    ids = np.random.default_rng(0).integers(0, 27, (32, 74))
    assert abs(model.loss(ids[:, :-1], ids[:, 1:]) - np.log(27)) < 0.1
    assert model.config.feed_width == 168 and model.config.n_parameters == 91136


@pytest.mark.parametrize("parts, word", [
    ({"n_kv_heads": 3}, "evenly"),
    ({"n_kv_heads": 0}, "evenly"), ({"n_heads": 8, "n_kv_heads": 8}, "pairs"),
    ({"rope_base": 1.0}, "rope_base"), ({"d_ff": -1}, "d_ff"), ({"head_dim": -2}, "head_dim"),
    ({"head_dim": 3}, "pairs"), ({"rms_epsilon": 0}, "rms_epsilon"),
    ({"rope_scaling": (-8, 1, 4, 32)}, "rope_scaling"),
    ({"n_heads": 3, "n_kv_heads": 3}, "share")])
def test_sizes_that_do_not_fit_are_refused(parts, word):
    with pytest.raises(UserError, match=word):
        TodayConfig(**{**SIZES, **parts})


# On disk


def test_a_mixture_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="mixture"):
        make_model(GPT2 | {"norm": "rms"}).save_pretrained(tmp_path)


def test_llamas_files_have_each_matrix_the_other_way_round(tmp_path):
    model = make_model({}, np.float32)
    model.save_pretrained(tmp_path)
    theirs = load_safetensors(tmp_path / "model.safetensors")
    up = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"].data
    assert up.shape == (8, 24) and np.array_equal(theirs["model.layers.0.mlp.up_proj.weight"], up.T)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_is_saved_and_read(tied, tmp_path):
    model = make_model({"tied": tied}, np.float32)
    model.save_pretrained(tmp_path)
    again = TodayLLM.from_pretrained(tmp_path)
    assert again.config.tied == tied and np.array_equal(again.forward(IDS), model.forward(IDS))


def test_what_was_saved_comes_back(tmp_path):
    model = make_model({}, np.float32, dropout=0.1)
    model.save_pretrained(tmp_path)
    again = TodayLLM.from_pretrained(tmp_path)
    assert again.config == TodayConfig(**SIZES, dropout=0.1, d_ff=model.config.feed_width, head_dim=2)
    for (name, p), (other, q) in zip(model.named_parameters(), again.named_parameters()):
        assert name == other and (p.data == q.data).all()


@pytest.mark.parametrize("change, word", [
    ({"hidden_act": "gelu"}, "hidden_act"), ({"rope_scaling": {"factor": 2}}, "rotary.*None"),
    ({"tie_word_embeddings": False}, "lm_head"), ({"num_key_value_heads": "2"}, "proper"),
    *[({"rope_scaling": {"type": kind, "factor": 2.0}}, f"rotary positions of the type '{kind}'")
      for kind in ("linear", "yarn", "dynamic", "longrope")],
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "no proper number factor"),
    ({"rope_parameters": [1]}, "rotary"), ({"rope_parameters": {"rope_type": "default", "rope_theta": "1"}}, "proper number rope_theta"),
    ({"rms_norm_eps": None}, "proper number rms_norm_eps"), ({"attention_dropout": "0"}, "dropout"),
    ({"tie_word_embeddings": 1}, "tie_word"), ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"), ({"use_sliding_window": True}, "use_sliding_window"),
    ({"head_dim": 64}, "q_proj.weight has the shape"), ({"model_type": "gpt2"}, "model_type"),
    ({"model_type": "mistral"}, "'mistral', not llama, qwen2, qwen3")], ids=str)
def test_other_kinds_of_llama_are_refused(tmp_path, change, word):
    make_model({}, np.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=word):
        TodayLLM.from_pretrained(tmp_path)
