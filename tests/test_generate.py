"""Sampling, the cache, the sliding view, masks, and stopping, with both models."""
import gc
import math

import numpy as np
import pytest

from simple_llm.engine.fast import FastLLM
from simple_llm.errors import UserError
from simple_llm.generate import next_token_probabilities, window_start
from simple_llm.inside import attention_to_self
from simple_llm.model import Config, SimpleLLM
from test_model import each_kind, make_model as make_small

LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 0.5, -np.inf, 2.0])


def make_model(context=8, dropout=0.0, kind=SimpleLLM):
    return make_small(kind, dropout=dropout, vocab_size=11, context_length=context, d_model=8)


class Fixed(SimpleLLM):
    """A model that always gives the same logits."""

    def __init__(self, logits):
        super().__init__(Config(len(logits), 8, 2, 1, 1))
        self.logits = np.asarray(logits, np.float32)

    def next_logits(self, ids, caches):
        return self.logits[None].copy()


def exact(logits, temperature=1.0):
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


# The probabilities


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature):
    logits = LOGITS.copy()
    p = next_token_probabilities(logits, temperature)
    np.testing.assert_allclose(p, exact(LOGITS.tolist(), temperature), rtol=1e-12)
    next_token_probabilities(logits, temperature, 3, 0.8)
    assert np.array_equal(logits, LOGITS)                      # left alone


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("factor", [1, 1e3, 1e12])
@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-300, 1e-6])
def test_temperature_zero_or_nearly_so_is_greedy(temperature, factor):
    p = next_token_probabilities(LOGITS * factor, temperature)
    assert p.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_greedy_takes_the_first_of_equals_and_sums_are_exact():
    p = next_token_probabilities(np.linspace(0, 9, 50_257, dtype=np.float32))
    assert p.dtype == np.float64 and p.sum() == pytest.approx(1, abs=1e-12)
    assert next_token_probabilities(np.array([0.0, 2.0, 2.0]), 0).tolist() == [0, 1, 0]
    np.testing.assert_allclose(next_token_probabilities(LOGITS[:5], 1e6), 0.2, rtol=1e-5)
    p = next_token_probabilities(np.array([1e30, -1e30, 0.0], np.float32))
    assert p.tolist() == [1, 0, 0]


@pytest.mark.parametrize("k", [*range(1, 7), 100])
def test_top_k_keeps_the_k_likeliest_in_proportion(k):
    p = next_token_probabilities(LOGITS, top_k=k)
    whole = np.array(exact(LOGITS.tolist()))
    kept = sorted(range(7), key=lambda i: (-whole[i], i))[:k]
    assert np.flatnonzero(p).tolist() == sorted(i for i in kept if whole[i])
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-12)


@pytest.mark.parametrize(("top_p", "kept"), [
    (0.0, 1), (0.3, 1), (0.49, 1), (0.51, 2), (0.7, 2), (0.74, 2), (0.76, 3),
    (0.9, 4), (1.0, 4), (2.0, 4),
])
def test_top_p_keeps_the_fewest_that_reach_p(top_p, kept):
    p = next_token_probabilities(np.log([0.1, 0.5, 0.15, 0.25]), top_p=top_p)
    wanted = np.zeros(4)
    for i, weight in [(1, 0.5), (3, 0.25), (2, 0.15), (0, 0.1)][:kept]:
        wanted[i] = weight                                     # cumulative 0.5 0.75 0.9 1
    np.testing.assert_allclose(p, wanted / wanted.sum(), rtol=1e-12)


def test_of_equals_only_as_many_are_kept_as_asked_for_and_at_least_one():
    assert next_token_probabilities(LOGITS, top_k=0).tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert next_token_probabilities(np.zeros(5), top_k=2).tolist() == [0.5, 0.5, 0, 0, 0]
    p = next_token_probabilities(np.zeros(4), top_p=0.5)       # exact in binary
    assert p.tolist() == [0.5, 0.5, 0, 0]
    p = next_token_probabilities(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.5)
    assert p.tolist() == [1, 0, 0, 0]                          # 4/7 is enough


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, np.nan], [np.nan, np.nan]])
def test_logits_that_are_no_numbers_are_refused_in_one_sentence(bad, temperature):
    with np.errstate(all="ignore"), pytest.raises(UserError, match="not finite"):
        list(Fixed(bad).generate([0], temperature=temperature))


# Drawing


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.8},
], ids=str)
def test_tokens_are_drawn_as_often_as_their_probability_says(options):
    n = 20_000
    p = np.array(exact(LOGITS.tolist(), options.get("temperature", 1.0)))
    order = sorted(range(7), key=lambda i: (-p[i], i))
    if "top_k" in options:
        p[order[3:]] = 0
    if "top_p" in options:                                     # 0.61 + 0.22 reach 0.8
        assert p[order[0]] < 0.8 < p[order[:2]].sum()
        p[order[2:]] = 0
    p /= p.sum()
    drawn = list(Fixed(LOGITS).generate([0], max_new_tokens=n, seed=3, **options))
    seen = np.bincount(drawn, minlength=7)
    assert not seen[p == 0].any()
    counts, wanted = seen[p > 0], n * p[p > 0]
    freedom = len(wanted) - 1
    chi = ((counts - wanted) ** 2 / wanted).sum()
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


@each_kind
def test_a_seed_decides_how_many_plain_ints_are_drawn_and_which(kind):
    model, prompt = make_model(kind=kind), np.array([1, 2])
    one, two, other = (list(model.generate(prompt, max_new_tokens=30, seed=s)) for s in (5, 5, 6))
    assert one == two != other and len(one) == 30
    assert {type(token) for token in one} == {int} and prompt.tolist() == [1, 2]
    greedy = list(model.generate(prompt, max_new_tokens=3, temperature=0))
    assert {type(token) for token in greedy} == {int}
    assert list(model.generate(prompt, max_new_tokens=0)) == []
    free = Fixed(np.zeros(50))
    assert len({tuple(free.generate([0], max_new_tokens=20)) for _ in range(2)}) == 2


def test_the_stop_is_a_token_or_several_ends_generation_and_is_not_yielded():
    model = make_model()
    free = list(model.generate([1], max_new_tokens=40, seed=2, stop=None))
    assert len(free) == 40
    for stop in (free[12], np.int64(free[12]), {free[12]}, [free[12], 10**6]):
        until = list(model.generate([1], max_new_tokens=40, seed=2, stop=stop))
        assert until == free[:free.index(free[12])]
    zero = Fixed([9.0, 0, 0])
    assert list(zero.generate([1], temperature=0, stop=0)) == []
    assert list(zero.generate([2], max_new_tokens=3, temperature=0, stop=2)) == [0, 0, 0]
    for prompt in ([], (), np.array([], int)):
        with pytest.raises(UserError, match="token to start from"):
            list(model.generate(prompt))


# The view


def brute_window_start(length, context):
    half, start = max(1, context // 2), 0
    while length - start > context:
        start += half
    return start


def test_the_view_moves_by_half_a_context_only_when_it_is_full():
    for context in range(1, 20):
        for length in range(1, 100):
            wanted = brute_window_start(length, context)
            assert window_start(length, context) == wanted, (length, context)


def logits_while_generating(model, prompt, n, **options):
    """The logits before each new token, the tokens, and how many each pass has read."""
    collected, lengths, real = [], [], model.next_logits

    def spy(ids, caches):
        lengths.append(ids.shape[1])
        collected.append(real(ids, caches).copy())
        return collected[-1]

    model.next_logits = spy
    try:
        tokens = list(model.generate(prompt, max_new_tokens=n, seed=1, **options))
    finally:
        del model.next_logits
    return np.concatenate(collected), tokens, lengths


def window(model):
    """Each position sees itself and the two before it."""
    model.mask[np.tril(np.ones(model.mask.shape, bool), k=-3)] = -np.inf


def penalty(model):
    """Each position looks far back with less liking: a mask that is finite."""
    L = len(model.mask)
    model.mask -= np.tril(0.7 * (np.arange(L)[:, None] - np.arange(L)))


MASKS = {"causal": lambda model: None, "window": window, "penalty": penalty}


@pytest.mark.parametrize("context", [1, 2, 7, 8])
@pytest.mark.parametrize("prompt", [1, 5, 20])
@pytest.mark.parametrize("mask", [*MASKS, "self"])
def test_generation_obeys_the_mask_and_agrees_with_forward_at_every_length(context, prompt, mask):
    """With a cache and without, a token at a time and many, past the context's end."""
    start, found = (np.arange(prompt) * 3 % 11).tolist(), []
    for kind in (SimpleLLM, FastLLM):
        model = make_model(context, kind=kind)
        if mask == "self":
            with attention_to_self(model):
                found.append(check_against_forward(model, start))
                for last in range(1, context + 1):     # nothing but the token itself is seen
                    row = model.forward(np.array([[3] * (last - 1) + [5]]))[0, -1]
                    other = model.forward(np.array([[8] * (last - 1) + [5]]))[0, -1]
                    assert np.array_equal(row, other)
        else:
            MASKS[mask](model)
            found.append(check_against_forward(model, start))
    assert found[0][1] == found[1][1]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-9, atol=1e-11)


def check_against_forward(model, start):
    L = model.config.context_length
    cached, tokens, _ = logits_while_generating(model, start, 24)
    afresh, same, _ = logits_while_generating(model, start, 24, use_cache=False)
    assert tokens == same and len(tokens) == 24
    np.testing.assert_allclose(cached, afresh, rtol=1e-9, atol=1e-11)
    for n, row in enumerate(cached):
        text = start + tokens[:n]
        view = text[:1] + text[brute_window_start(len(text), L) + 1:]      # the first stays
        wanted = model.forward(np.array([view]))[0, -1]
        np.testing.assert_allclose(row, wanted, rtol=1e-9, atol=1e-11)
    return cached, tokens


@each_kind
def test_attention_to_self_is_undone_and_changed_what_was_generated(kind):
    model = make_model(kind=kind)
    before, mask = logits_while_generating(model, [1, 2, 3], 5)[0], model.mask.copy()
    with pytest.raises(KeyboardInterrupt), attention_to_self(model):
        alone = logits_while_generating(model, [1, 2, 3], 5)[0]
        raise KeyboardInterrupt
    assert np.array_equal(model.mask, mask) and not np.allclose(alone, before)
    assert np.array_equal(logits_while_generating(model, [1, 2, 3], 5)[0], before)


@each_kind
def test_with_a_cache_only_the_new_token_is_read_and_tokens_come_as_they_are_drawn(kind):
    model = make_model(8, kind=kind)
    lengths = logits_while_generating(model, [1, 2, 3], 8)[2]
    assert lengths == [3, 1, 1, 1, 1, 1, 5, 1]                 # at 9 tokens the view moves by 4
    calls, real = [], model.next_logits
    model.next_logits = lambda *args: calls.append(1) or real(*args)
    next(model.generate([1], max_new_tokens=10, seed=0))
    assert len(calls) == 1


@each_kind
@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5], [2, 1, 4, 1], [1, 6]], ids=str)
def test_a_text_read_in_several_passes_gives_the_same_as_in_one(sizes, kind):
    model = make_model(8, kind=kind)
    ids = np.array([[1, 5, 5, 2, 9, 0, 3, 7], [4, 4, 4, 4, 1, 2, 3, 10]])
    for rows in (ids, ids[:1]):
        whole, caches, read = model.forward(rows), model.make_caches(len(rows)), 0
        for size in sizes:
            logits = model.next_logits(rows[:, read:read + size], caches)
            read += size
            np.testing.assert_allclose(logits, whole[:, read - 1], rtol=1e-9, atol=1e-11)
            assert [cache.length for cache in caches] == [read, read]
    for more in (ids[:1, :1], ids[:1, :3]):
        if read + more.size > 8:
            with pytest.raises(UserError, match="context holds 8"):
                model.next_logits(more, caches)


# Dropout


@each_kind
def test_dropout_is_off_while_generating_and_then_as_it_was(kind):
    model = make_model(dropout=0.5, kind=kind)
    quiet, tokens, _ = logits_while_generating(model, [1, 2], 20)
    for on in (False, True):
        model.train(on)
        logits, same, _ = logits_while_generating(model, [1, 2], 20)
        assert np.array_equal(logits, quiet) and tokens == same
        with pytest.raises(UserError):
            list(model.generate([99, 1]))                      # fails
        for token in model.generate([1, 2], max_new_tokens=30):
            break                                              # is abandoned
        gc.collect()
        assert {dropout.training for dropout in model.dropouts} == {on}


@each_kind
def test_two_generations_at_once_do_not_disturb_each_other(kind):
    model = make_model(dropout=0.5, kind=kind)
    wanted = list(model.generate([1], max_new_tokens=20, temperature=0))
    model.train()
    one, two = model.generate([2], max_new_tokens=3), model.generate([1], 20, temperature=0)
    next(one)
    first = next(two)
    one.close()
    assert [first, *two] == wanted


def test_reading_token_by_token_with_the_fast_model_leaves_a_loss_and_its_gradient_alone():
    model, grads = make_model(kind=FastLLM), []
    ids = np.array([[1, 2, 3]])
    for tokens in (0, 2):
        model.zero_grad()
        model.loss(ids, ids)
        list(model.generate([1], max_new_tokens=tokens, temperature=0))
        model.backward()
        grads.append([p.grad.copy() for p in model.parameters()])
    assert all(g.any() and np.array_equal(g, same) for g, same in zip(*grads))
