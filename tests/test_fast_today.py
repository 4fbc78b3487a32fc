"""Today's fast layers and model compute what the plain ones do."""
import numpy as np
import pytest

from simple_llm.engine import fast_today
from simple_llm.engine.fast import TILE
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.today import layers as today
from simple_llm.today.model import TodayLLM
from test_fast import assert_gradients_agree, assert_layers_agree, assert_near
from test_today import MAKERS, each_mixture, make_attention, make_model, normal


@pytest.mark.parametrize("make", [make for name, make in MAKERS.items() if name != "mixture"])
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(2, 4, 8), (1, 5, 8), (3, 1, 8), (1, 1, 8)], ids=str)
def test_each_layer_gives_the_same(make, p, shape):
    assert_layers_agree(make, p, shape, (today, fast_today))


def test_arrays_longer_than_a_tile():
    g, u = normal(2, TILE // 2 + 7, 3)
    W = [normal(3, 4, seed=s) for s in (1, 2)] + [normal(4, 3, seed=3)]
    found = []
    for layers in (today, fast_today):
        gate, up, down = (layers.LinearNoBias(w) for w in W)
        layer = layers.SwiGLU(gate, up, down, layers.Dropout(0.0, None))
        found.append([layer.forward(g), layer.backward(u)])
    for ours, theirs in zip(found[1], found[0]):
        assert_near(ours, theirs)


def test_the_weights_can_be_looked_at():
    x, found = normal(2, 4, 8), []
    for layers in (today, fast_today):
        layer = make_attention(layers)
        layer.forward(x)
        found.append(layer.p)
    assert_near(found[1], found[0])


@each_mixture
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_models_have_the_same_gradients(parts, dropout):
    assert_gradients_agree(*(make_model(parts, kind=kind, dropout=dropout)
                             for kind in (TodayLLM, FastTodayLLM)))


@each_mixture
def test_one_token_at_a_time_gives_the_same_logits(parts):
    slow, quick = (make_model(parts, kind=kind) for kind in (TodayLLM, FastTodayLLM))
    ids = np.random.default_rng(1).integers(11, size=(1, 9))
    whole, caches = slow.forward(ids), quick.make_caches()
    for t in range(9):
        assert_near(quick.next_logits(ids[:, t : t + 1], caches), whole[:, t], 1e-9)


@pytest.mark.parametrize("gap", [0, 5], ids=["neighbours", "apart"])
@pytest.mark.parametrize("kind", [fast_today.LinearNoBias, fast_today.Linear], ids=["without", "with a bias"])
def test_neighbours_are_one_product_and_give_the_same(gap, kind):
    room, widths, layers, end = normal(400).astype(np.float32), (4, 8, 3), [], 7
    for O in widths:
        layers.append(kind(room[end : end + 6 * O].reshape(O, 6).T))
        end += 6 * O + gap
        if kind is fast_today.Linear:
            layers[-1].bias.data[...] = O
    x = normal(2, 6).astype(np.float32)
    beside = fast_today.Beside(*layers)
    assert (beside.whole is None) == (gap > 0)
    y = beside.apply(x)
    layers[1].weight.data = layers[1].weight.data * 2      # no neighbour any more
    apart = fast_today.Beside(*layers)
    assert apart.whole is None
    for factor, again in ((2, y), (1, apart.apply(x))):
        parts = np.split(again, np.cumsum(widths)[:-1], axis=1)
        for O, part, layer in zip(widths, parts, layers, strict=True):
            bias = O if kind is fast_today.Linear else 0
            scale = factor if O == 8 else 1
            np.testing.assert_allclose(part, x @ layer.weight.data / scale + bias, atol=1e-5)


def test_scores_that_would_overflow_are_weighed_as_in_plain_attention():
    """Even if the largest of them are those that a row may not see."""
    rng = np.random.default_rng(0)
    slow, quick = (make_model({}, kind=kind) for kind in (TodayLLM, FastTodayLLM))
    for model in (slow, quick):
        for block in model.blocks:
            block.attention.make_k.weight.data *= 3000
    ids = rng.integers(11, size=(1, 9))
    assert_near(quick.next_logits(ids, quick.make_caches()), slow.forward(ids)[:, -1], 1e-9)


def test_it_generates_the_same_text():
    slow, quick = (make_model({}, kind=kind) for kind in (TodayLLM, FastTodayLLM))
    one, two = (list(m.generate([1, 2], 30, 1.0, seed=3)) for m in (slow, quick))
    assert one == two and len(one) == 30


def test_caches_that_another_model_made_will_do():
    one, two = make_model({}, kind=FastTodayLLM), make_model({}, kind=FastTodayLLM)
    ids = np.arange(5)[None]
    found = one.next_logits(ids, two.make_caches())
    assert_near(found, one.next_logits(ids, one.make_caches()), 1e-12)
