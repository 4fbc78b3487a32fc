"""The whole model, plain and fast: gradients, causality, precision, and what it refuses."""
import copy
import math
import pickle

import numpy as np
import pytest

from simple_llm import optimizer
from simple_llm.engine import fast
from simple_llm.engine.fast import FastLLM, Flat
from simple_llm.errors import UserError
from simple_llm.gradcheck import numerical_gradient, relative_error
from simple_llm.inside import attention_to_self, look_inside
from simple_llm.model import Config, SimpleLLM
from test_layers import arrays_in

V, L = 7, 5
IDS = np.array([[1, 3, 3, 0, 3], [5, 3, 1, 1, 6], [0, 0, 0, 0, 0]])      # 2, 4: never
TARGETS = np.array([[3, 3, 0, 3, 2], [-1, 1, -1, 6, 2], [0, -1, -1, -1, -1]])
each_kind = pytest.mark.parametrize("kind", [SimpleLLM, FastLLM], ids=["plain", "fast"])


def make_model(kind=SimpleLLM, dtype=np.float64, dropout=0.0, seed=0, shake=True, **sizes):
    """A small model; shaken, so that no bias is 0, no gain 1 and nothing is small."""
    sizes = {"vocab_size": V, "context_length": L, "d_model": 4, "n_layers": 2,
             "n_heads": 2, **sizes}
    model = kind(Config(**sizes, dropout=dropout), seed, dtype)
    rng = np.random.default_rng(1)
    for p in model.parameters() if shake else ():
        p.data += rng.normal(0, 0.4, p.data.shape).astype(dtype)
    return model


def learn(model, ids=IDS, targets=TARGETS):
    """A loss and its gradient, added to what is there; all gradients after it."""
    model.loss(ids, targets)
    model.backward()
    return [p.grad.copy() for p in model.parameters()]


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])


# Gradients


@each_kind
@pytest.mark.parametrize(("sizes", "dropout"), [
    ({}, 0.0), ({}, 0.3), ({"n_layers": 1, "n_heads": 1}, 0.0)])
def test_every_parameters_gradient_is_that_of_the_definition(kind, sizes, dropout):
    model = make_model(kind, dropout=dropout, **sizes)
    model.train()

    def loss():
        model.reseed([7])                      # the same dice each time
        return model.loss(IDS, TARGETS)

    for p in model.parameters():
        p.grad[...] = 1.0                      # backward has to add to it
    loss()
    model.backward()
    for name, p in model.named_parameters():
        ours, theirs = p.grad - 1.0, numerical_gradient(loss, p.data)
        assert relative_error(ours, theirs) < 1e-6, name


@each_kind
def test_the_tied_weight_learns_as_the_output_and_as_the_input(kind):
    """Tokens 2 and 4 are never read, yet scored: all their gradient is the output's."""
    model = make_model(kind)
    whole = learn(model)[0]
    h = model.run(IDS).reshape(-1, 4).copy()
    z = h @ model.tokens.weight.data.T
    dz = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    flat = TARGETS.reshape(-1)
    dz[np.flatnonzero(flat >= 0), flat[flat >= 0]] -= 1
    dz[flat < 0] = 0
    as_output = dz.T @ h / (flat >= 0).sum()
    np.testing.assert_allclose(as_output[[2, 4]], whole[[2, 4]], rtol=1e-9, atol=1e-13)
    as_input = whole - as_output
    assert all(np.abs(as_input[token]).max() > 1e-6 for token in (0, 1, 3, 5, 6))


@each_kind
@pytest.mark.parametrize("between", [
    lambda model: model.backward(), lambda model: model.forward(IDS[:1]),
    lambda model: model.run(IDS), lambda model: look_inside(model, [4, 5]),
    lambda model: model.next_logits(IDS[:1, :2], model.make_caches()),
], ids=["backward", "forward", "run", "look_inside", "next_logits"])
def test_backward_is_refused_unless_a_loss_stands_before_it(kind, between):
    """What it needs has been used, or overwritten."""
    model = make_model(kind)
    with pytest.raises(RuntimeError, match="needs a loss"):
        model.backward()
    model.loss(IDS, TARGETS)
    between(model)
    before = [p.grad.copy() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="needs a loss"):
        model.backward()
    assert all(np.array_equal(p.grad, was) for p, was in zip(model.parameters(), before))


@each_kind
def test_backward_is_refused_after_a_pass_that_was_broken_off(kind):
    model = make_model(kind)
    model.loss(IDS, TARGETS)

    def interrupt(stream, attention):
        if attention is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run(IDS[:1], observe=interrupt)
    with pytest.raises(RuntimeError, match="needs a loss"):
        model.backward()


# Loss


@each_kind
def test_loss_is_the_mean_surprise_of_the_logits(kind):
    model = make_model(kind)
    logits, terms = model.forward(IDS), []
    for b, t in np.argwhere(TARGETS >= 0):
        row = logits[b, t].tolist()
        terms.append(math.log(sum(map(math.exp, row))) - row[TARGETS[b, t]])
    loss = model.loss(IDS, TARGETS)
    assert type(loss) is float and loss == pytest.approx(sum(terms) / len(terms), rel=1e-13)
    parts = [model.loss(IDS[i:i + 1], TARGETS[i:i + 1], len(terms)) for i in range(3)]
    assert sum(parts) == pytest.approx(loss, rel=1e-13)        # shares of a batch


def test_a_new_model_expects_every_token_about_equally():
    model = make_model(shake=False, vocab_size=30, d_model=32, n_heads=4)
    loss = model.loss(np.arange(30).reshape(6, 5), np.arange(30)[::-1].reshape(6, 5))
    assert abs(loss - math.log(30)) < 0.5


# One forward pass, which can be watched


def test_an_observer_sees_the_same_streams_and_attentions_in_both_models():
    seen = []
    for kind in (SimpleLLM, FastLLM):
        model, views = make_model(kind, n_layers=3), []
        h = model.run(IDS, observe=lambda *view: views.append(copy.deepcopy(view)))
        streams, attentions = zip(*views)
        assert len(views) == 4 and attentions[0] is None
        assert {p.shape for p in attentions[1:]} == {(3, 2, L, L)}
        np.testing.assert_allclose(model.norm.forward(streams[-1]), h, rtol=1e-12)
        assert np.array_equal(model.run(IDS), h)
        inside = look_inside(model, IDS[1])
        np.testing.assert_allclose(inside.streams, [x[1] for x in streams], rtol=1e-10)
        np.testing.assert_allclose(inside.attention, [p[1] for p in attentions[1:]], atol=1e-12)
        seen.append([*streams, *attentions[1:]])
    for one, other in zip(*seen):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


# Causality and inputs


@each_kind
def test_a_token_changes_no_logits_before_it_and_other_rows_none_at_all(kind):
    model = make_model(kind)
    before = model.forward(IDS)
    for t in range(L):
        changed = IDS.copy()
        changed[0, t] = (changed[0, t] + 1) % V
        moved = np.abs(model.forward(changed) - before).max(axis=2) > 1e-9
        assert moved.tolist() == [[u >= t for u in range(L)], [False] * L, [False] * L]
    for b in range(3):
        np.testing.assert_allclose(model.forward(IDS[b:b + 1])[0], before[b], rtol=1e-11)
    assert all(np.abs(before[2, t] - before[2, 0]).max() > 1e-3 for t in range(1, L))


@each_kind
def test_passes_change_neither_ids_nor_targets_nor_weights_nor_earlier_logits(kind):
    model, ids, targets = make_model(kind), IDS.copy(), TARGETS.copy()
    before, first = weights(model), model.forward(ids)
    kept = first.copy()
    assert not any(np.shares_memory(first, array) for array in arrays_in(model))
    learn(model, ids, targets)
    model.forward(ids[::-1])
    assert np.array_equal(ids, IDS) and np.array_equal(targets, TARGETS)
    assert np.array_equal(weights(model), before) and np.array_equal(first, kept)


# Precision


@each_kind
def test_nothing_in_a_float32_model_is_ever_float64(kind):
    model = make_model(kind, np.float32, dropout=0.2)
    rule = fast.AdamW(Flat(model)) if kind is FastLLM else optimizer.AdamW(model.parameters())
    model.train()
    for _ in range(2):
        learn(model)
        optimizer.clip_gradients(model.parameters(), 1.0)
        rule.step(1e-3)
    list(model.generate([1, 2], max_new_tokens=8, seed=0))
    found = {array.dtype for array in arrays_in([model, rule])}
    assert np.dtype(np.float32) in found and np.dtype(np.float64) not in found
    logits = model.forward(IDS), model.next_logits(IDS[:1], model.make_caches())
    assert {array.dtype for array in logits} == {np.dtype(np.float32)}


# Parameters


@each_kind
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(kind):
    one, same, other = (weights(make_model(kind, seed=s)) for s in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(one, weights(make_model(seed=3)))            # plain or fast


def test_the_number_of_parameters_is_that_of_gpt2():
    c, n = 4, 2
    block = (2 * c) + (c * 3 * c + 3 * c) + (c * c + c) + (2 * c)
    block += (c * 4 * c + 4 * c) + (4 * c * c + c)
    model = make_model()
    assert weights(model).size == V * c + L * c + n * block + 2 * c == model.config.n_parameters


@each_kind
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_learns_by_itself(kind, clone):
    model = make_model(kind)
    twin, before = clone(model), weights(model)
    for one, other in zip(learn(twin), learn(model)):
        assert np.array_equal(one, other)
    for p in twin.parameters():
        p.data -= p.grad
    assert np.array_equal(weights(model), before)
    with attention_to_self(twin):              # its layers obey its own mask
        assert not np.allclose(twin.forward(IDS), model.forward(IDS))
        assert not np.triu(look_inside(twin, [1, 2, 3]).attention.sum(axis=1), k=1).any()
        assert not np.tril(look_inside(twin, [1, 2, 3]).attention, k=-1).any()


# What it refuses


@each_kind
def test_ids_that_it_cannot_read_are_refused(kind):
    model = make_model(kind)
    for ids in ([[0, V]], [[-1, 0]], [[V]], [[-1]]):
        for read in (model.forward, lambda ids: model.next_logits(ids, model.make_caches())):
            with pytest.raises(UserError, match="outside 0..6"):
                read(np.array(ids))
    with pytest.raises(UserError, match="context holds 5"):
        model.forward(np.zeros((1, L + 1), int))
    for shape in [(3,), (0, 3), (2, 0), (1, 2, 3)]:
        with pytest.raises(ValueError, match="shape"):
            model.forward(np.zeros(shape, int))
    with pytest.raises(ValueError, match="-1"):
        model.loss(IDS, np.full_like(TARGETS, -1))
    with pytest.raises(RuntimeError):
        model.backward()                       # there is no gradient of that


@pytest.mark.parametrize("sizes", [
    {"n_heads": 3}, {"n_layers": 0}, {"vocab_size": 0}, {"context_length": -1},
    {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")},
])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError):
        Config(**{"vocab_size": 5, "context_length": 5, "d_model": 4, **sizes})


# Dropout


@each_kind
def test_train_and_eval_switch_dropout_and_reseed_rolls_the_same_dice(kind):
    model = make_model(kind, dropout=0.5)
    quiet = model.forward(IDS)
    assert np.array_equal(model.forward(IDS), quiet)
    model.train()
    loud = []
    for numbers in ([1, 2], [1, 3], [1, 2]):
        model.reseed(numbers)
        loud.append(model.forward(IDS))
    assert np.array_equal(loud[0], loud[2])
    assert not np.array_equal(loud[0], loud[1]) and not np.array_equal(loud[0], quiet)
    assert not np.array_equal(model.forward(IDS), loud[2])
    model.eval()
    assert np.array_equal(model.forward(IDS), quiet)
