"""The fast layers, model and optimizer compute what the plain ones do."""
import copy
import pickle

import numpy as np
import pytest

from simple_llm import layers as plain, optimizer
from simple_llm.engine import fast
from simple_llm.engine.fast import FastLLM, Flat
from simple_llm.gradcheck import find_parameters
from simple_llm.model import Config, SimpleLLM
from simple_llm.world import StoryCorpus, World
from test_layers import Dice, each_layer, make_attention, normal
from test_model import make_model

PAIR = (SimpleLLM, FastLLM)


def assert_near(ours, theirs, tolerance=1e-10):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-3)


# Layers


def assert_layers_agree(make, p, shape, kinds):
    """Forward and backward, and the parameters' gradients."""
    x, dy, found = normal(*shape), normal(*shape, seed=1), []
    for layers in kinds:
        layer = make(layers, p)
        y, dx = Dice(layer).forward(x), layer.backward(dy)
        found.append([y, dx, *(p.grad for p in find_parameters(layer))])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_near(ours, theirs)


@each_layer
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 6), (3, 1, 6), (1, 1, 6)], ids=str)
def test_each_layer_gives_the_same(make, p, shape):
    assert_layers_agree(make, p, shape, (plain, fast))


def test_arrays_longer_than_a_tile():
    x, (slow, quick) = normal(3, fast.TILE // 2 + 1), (plain.GELU(), fast.GELU())
    assert_near(quick.forward(x), slow.forward(x))
    assert_near(quick.backward(x), slow.backward(x))


@pytest.mark.parametrize("factor", [1, 30, 1e4])
def test_scores_that_would_overflow_are_shifted_first(factor):
    x = factor * normal(2, 4, 6)
    slow, quick = make_attention(plain), make_attention(fast)
    assert_near(quick.forward(x), slow.forward(x))
    assert_near(quick.p, slow.p)


# The model


def gradients(model, ids, targets):
    """The loss, and every gradient, with dropout that depends on nothing else."""
    model.zero_grad()
    model.train()
    model.reseed([1, 2])
    loss = model.loss(ids, targets)
    model.backward()
    model.eval()
    return [np.array(loss), *(p.grad.copy() for p in model.parameters())]


def assert_gradients_agree(slow, quick):
    """For one token, one row, many rows of targets and few: again and again, in one workspace."""
    rng = np.random.default_rng(0)
    for B, T in [(3, 5), (1, 1), (1, 5), (4, 2), (3, 5)]:
        ids, targets = rng.integers(7, size=(2, B, T))
        targets[rng.random((B, T)) < 0.4] = -1
        targets[0, 0] = 3
        pairs = zip(gradients(quick, ids, targets), gradients(slow, ids, targets), strict=True)
        for ours, theirs in pairs:
            assert_near(ours, theirs, 1e-9)


@pytest.mark.parametrize("sizes", [
    {}, {"n_heads": 1, "n_layers": 1}, {"d_model": 12, "n_heads": 4, "n_layers": 3}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_models_have_the_same_gradients(sizes, dropout):
    assert_gradients_agree(*(make_model(kind, dropout=dropout, **sizes) for kind in PAIR))


def test_a_hundred_steps_have_the_same_losses():
    corpus = StoryCorpus(World(), batch_size=4, steps_per_epoch=100, held_out=2)
    config = Config(corpus.tokenizer.vocab_size, corpus.longest, 16, 2, 2, dropout=0.1)
    slow, quick = (kind(config, dtype=np.float64) for kind in PAIR)
    first, second = optimizer.AdamW(slow.parameters()), fast.AdamW(Flat(quick))
    batches = list(corpus.batches(1))
    losses = np.empty((2, len(batches)))
    for n, batch in enumerate(batches):
        for k, (model, rule) in enumerate([(slow, first), (quick, second)]):
            losses[k, n] = gradients(model, batch.ids, batch.targets)[0]
            optimizer.clip_gradients(model.parameters(), 1.0)
            rule.step(4e-3)
    assert losses[0, -10:].mean() < losses[0, :10].mean() - 0.5
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


def test_what_the_fast_model_returns_is_the_callers_to_keep():
    model = make_model(FastLLM)
    ids, caches = np.array([[1, 2, 3]]), model.make_caches(1)
    returned = [model.forward(ids), model.next_logits(ids, caches),
                model.next_logits(ids[:, :1], caches)]
    kept = [array.copy() for array in returned]
    model.forward(ids[:, ::-1])
    model.next_logits(ids[:, ::-1], model.make_caches(1))
    assert all(np.array_equal(now, then) for now, then in zip(returned, kept))


# One vector


def test_the_parameters_become_views_of_one_vector_matrices_first():
    model, apart = (make_model(FastLLM, shake=False) for _ in range(2))
    flat = Flat(model)
    assert flat.data.size == sum(p.data.size for p in apart.parameters())
    for (name, p), before in zip(model.named_parameters(), apart.parameters(), strict=True):
        assert np.shares_memory(p.data, flat.data) and np.shares_memory(p.grad, flat.grad)
        assert np.array_equal(p.data, before.data) and p.data.strides == before.data.strides, name
    flat.data[: flat.n_matrices], flat.data[flat.n_matrices :] = 1, 0
    assert all((p.data == p.decays).all() for p in model.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_weights_lie_by_columns_and_tables_by_rows_in_copies_too(clone):
    model = make_model(FastLLM)
    Flat(model)
    for each in (model, clone(model)):
        for name, p in each.named_parameters():
            if p.data.ndim == 2:
                by_columns = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")
                assert p.data.flags.f_contiguous == by_columns, name


def test_a_twin_attached_to_the_weights_has_a_gradient_of_its_own():
    model, twin = (make_model(FastLLM) for _ in range(2))
    flat, other = Flat(model), Flat(twin)
    other.attach(flat.data, other.grad)
    flat.data += 0.1
    ids = np.array([[1, 2]])
    assert np.array_equal(twin.forward(ids), model.forward(ids))
    twin.loss(ids, ids)
    twin.backward()
    assert other.grad.any() and not flat.grad.any()


@pytest.mark.parametrize("tile", [50, 1 << 16])
def test_adamw_on_one_vector_makes_the_steps_of_the_plain_one(tile, monkeypatch):
    """Whatever is a tile, and whether it ends within a matrix or not."""
    monkeypatch.setattr(fast, "TILE", tile)
    settings = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3}
    slow, quick = (make_model(kind) for kind in PAIR)
    flat = Flat(quick)
    rules = optimizer.AdamW(slow.parameters(), **settings), fast.AdamW(flat, **settings)
    for n, rate in enumerate((0.1, 0.05, 0.2)):
        for rule, model in zip(rules, (slow, quick)):
            for k, p in enumerate(model.parameters()):
                p.grad[...] = np.sin(k + n + np.arange(p.grad.size)).reshape(p.grad.shape)
            before = [p.grad.copy() for p in model.parameters()]
            rule.step(rate)
            assert all(np.array_equal(p.grad, g) for p, g in zip(model.parameters(), before))
        for ours, theirs in zip(quick.parameters(), slow.parameters()):
            assert_near(ours.data, theirs.data, 1e-13)
