"""Sampling, the cache, the sliding view, and stopping."""
import gc
import math
from types import SimpleNamespace

import numpy as np
import pytest

from simple_llm.checkpoint import UserError
from simple_llm.generate import KVCache, next_token_probabilities, window_start
from simple_llm.generate import generate_ids
from simple_llm.model import Config, SimpleLLM

LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 0.5, -np.inf, 2.0])


def make_model(context=8, dropout=0.0, dtype=np.float64, V=11):
    config = Config(V, context, d_model=8, n_layers=2, n_heads=2, dropout=dropout)
    model = SimpleLLM(config, 0, dtype)
    model.data += np.random.default_rng(1).normal(0, 0.3, model.data.size)
    return model


class Fixed:
    """A model that always gives the same logits."""

    config = SimpleNamespace(context_length=8)

    def __init__(self, logits):
        self.logits = np.asarray(logits, np.float32)

    def make_caches(self, batch):
        return []

    def next_logits(self, ids, caches):
        return self.logits[None].copy()


def exact(logits, temperature=1.0):
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


# The probabilities


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature):
    p = next_token_probabilities(LOGITS, temperature)
    np.testing.assert_allclose(p, exact(LOGITS.tolist(), temperature), rtol=1e-12)


def test_temperature_zero_is_greedy():
    assert next_token_probabilities(LOGITS, 0).tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_a_tiny_temperature_is_greedy_and_finite():
    for temperature in (1e-6, 1e-300, 5e-324):
        with np.errstate(over="raise"):
            p = next_token_probabilities(LOGITS * 1000, temperature)
        assert p.tolist() == [0, 0, 0, 1, 0, 0, 0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_huge_logits_at_a_tiny_temperature_are_greedy():
    p = next_token_probabilities(LOGITS * 1e12, 1e-300)
    assert p.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_a_huge_temperature_makes_all_equal():
    p = next_token_probabilities(LOGITS[:5], 1e6)
    np.testing.assert_allclose(p, 0.2, rtol=1e-5)


def test_greedy_takes_the_first_of_equals():
    p = next_token_probabilities(np.array([0.0, 2.0, 2.0]), 0)
    assert p.tolist() == [0, 1, 0]


def test_huge_logits_are_finite():
    p = next_token_probabilities(np.array([1e30, -1e30, 0.0], np.float32))
    assert p.tolist() == [1, 0, 0]


@pytest.mark.parametrize("k", range(1, 7))
def test_top_k_keeps_the_k_likeliest_in_proportion(k):
    p = next_token_probabilities(LOGITS, top_k=k)
    whole = np.array(exact(LOGITS.tolist()))
    kept = sorted(range(7), key=lambda i: (-whole[i], i))[:k]
    assert np.flatnonzero(p).tolist() == sorted(kept)
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-12)


def test_top_k_beyond_the_vocabulary_changes_nothing():
    p = next_token_probabilities(LOGITS, top_k=100)
    np.testing.assert_allclose(p, next_token_probabilities(LOGITS), rtol=1e-14)


def test_top_k_of_nothing_keeps_one():
    assert next_token_probabilities(LOGITS, top_k=0).tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_the_sum_is_exact_though_the_logits_are_float32():
    p = next_token_probabilities(np.linspace(0, 9, 50_257, dtype=np.float32))
    assert p.dtype == np.float64 and p.sum() == pytest.approx(1, abs=1e-12)


def test_top_k_keeps_no_more_than_k_of_equals():
    p = next_token_probabilities(np.zeros(5), top_k=2)
    assert p.tolist() == [0.5, 0.5, 0, 0, 0]


@pytest.mark.parametrize(("top_p", "kept"), [
    (0.0, 1), (0.3, 1), (0.49, 1), (0.51, 2), (0.7, 2), (0.74, 2), (0.76, 3),
    (0.9, 4), (1.0, 4), (2.0, 4),
])
def test_top_p_keeps_the_fewest_that_reach_p(top_p, kept):
    logits = np.log([0.1, 0.5, 0.15, 0.25])                # cumulative 0.5 0.75 0.9 1
    p = next_token_probabilities(logits, top_p=top_p)
    wanted = np.zeros(4)
    for i, weight in [(1, 0.5), (3, 0.25), (2, 0.15), (0, 0.1)][:kept]:
        wanted[i] = weight
    np.testing.assert_allclose(p, wanted / wanted.sum(), rtol=1e-12)


def test_top_p_that_is_reached_exactly_needs_no_more():
    p = next_token_probabilities(np.zeros(4), top_p=0.5)   # exact in binary
    assert p.tolist() == [0.5, 0.5, 0, 0]


def test_top_p_applies_to_what_top_k_has_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    p = next_token_probabilities(logits, top_k=2, top_p=0.5)       # 4/7 is enough
    assert p.tolist() == [1, 0, 0, 0]


def test_the_logits_are_left_alone():
    logits = LOGITS.copy()
    next_token_probabilities(logits, 0.7, 3, 0.8)
    assert np.array_equal(logits, LOGITS)


def test_logits_that_are_no_numbers_are_refused_in_one_sentence():
    for bad in ([np.nan, 0.0], [np.inf, np.nan], [np.nan, np.nan]):
        for temperature in (0, 1.0):
            with np.errstate(all="ignore"), pytest.raises(UserError):
                list(generate_ids(Fixed(bad), [0], temperature=temperature))


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
    if "top_p" in options:                                 # 0.61 + 0.22 reach 0.8
        assert p[order[0]] < 0.8 < p[order[:2]].sum()
        p[order[2:]] = 0
    p /= p.sum()
    drawn = list(generate_ids(Fixed(LOGITS), [0], max_new_tokens=n, seed=3, **options))
    seen = np.bincount(drawn, minlength=7)
    assert not seen[p == 0].any()
    counts, wanted = seen[p > 0], n * p[p > 0]
    freedom = len(wanted) - 1
    chi = ((counts - wanted) ** 2 / wanted).sum()
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


def test_the_same_seed_gives_the_same_tokens():
    model = make_model()
    one, two, other = (list(model.generate([1], max_new_tokens=30, seed=s))
                       for s in (5, 5, 6))
    assert one == two != other


def test_without_a_seed_the_tokens_differ():
    drawn = [list(generate_ids(Fixed(np.zeros(50)), [0], max_new_tokens=20))
             for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_only_plain_ints_are_yielded(temperature):
    drawn = make_model().generate(np.array([1, 2]), max_new_tokens=12,
                                  temperature=temperature, seed=0)
    assert {type(token) for token in drawn} == {int}


def test_as_many_tokens_as_asked_for():
    model = make_model()
    for n in (0, 1, 25):
        assert len(list(model.generate([1], max_new_tokens=n, seed=0))) == n


def test_the_stop_token_ends_generation_and_is_not_yielded():
    model = make_model()
    free = list(model.generate([1], max_new_tokens=40, seed=2))
    stop = free[12]
    until = free[:free.index(stop)]
    assert list(model.generate([1], max_new_tokens=40, seed=2, stop=stop)) == until
    assert list(model.generate([1], max_new_tokens=40, seed=2, stop=[stop])) == until


def test_token_0_can_be_the_stop():
    stopped = list(generate_ids(Fixed([9.0, 0, 0]), [1], temperature=0, stop=0))
    assert stopped == []


def test_a_stop_token_in_the_prompt_does_not_stop():
    model = Fixed([9.0, 0, 0])
    drawn = list(generate_ids(model, [2], max_new_tokens=3, temperature=0, stop=2))
    assert drawn == [0, 0, 0]


@pytest.mark.parametrize("prompt", [[], (), np.array([], int)])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(UserError, match="token to start from"):
        list(make_model().generate(prompt))


def test_a_stop_may_be_none_an_id_or_several():
    model = make_model()
    said = list(model.generate([1], max_new_tokens=20, seed=3, stop=None))
    assert len(said) == 20
    for stop in (said[5], np.int64(said[5]), {said[5]}, [said[5], 10**6]):
        cut = list(model.generate([1], max_new_tokens=20, seed=3, stop=stop))
        assert cut == said[: said.index(said[5])]


def test_the_prompt_is_left_alone():
    prompt = [1, 2, 3]
    list(make_model().generate(prompt, max_new_tokens=5, seed=0))
    assert prompt == [1, 2, 3]


def test_tokens_come_as_they_are_drawn():
    model = make_model()
    calls = []
    real = model.next_logits
    model.next_logits = lambda *args: calls.append(1) or real(*args)
    tokens = model.generate([1], max_new_tokens=10, seed=0)
    next(tokens)
    assert len(calls) == 1


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
    """The logits before each new token."""
    collected, real = [], model.next_logits

    def spy(ids, caches):
        collected.append(real(ids, caches).copy())
        return collected[-1]

    model.next_logits = spy
    try:
        tokens = list(model.generate(prompt, max_new_tokens=n, seed=1, **options))
    finally:
        model.next_logits = real
    return np.concatenate(collected), tokens


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("prompt", [1, 3, 20])
def test_cached_and_uncached_logits_agree_at_every_length(context, prompt):
    model = make_model(context)
    start = (np.arange(prompt) * 3 % 11).tolist()
    cached, tokens = logits_while_generating(model, start, 40)
    plain, same = logits_while_generating(model, start, 40, use_cache=False)
    assert tokens == same and len(tokens) == 40
    np.testing.assert_allclose(cached, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prompt", [1, 5, 30])
def test_logits_are_those_of_forward_on_the_tokens_in_view(prompt):
    model = make_model(8)
    start = (np.arange(prompt) * 3 % 11).tolist()
    logits, tokens = logits_while_generating(model, start, 30)
    for n, row in enumerate(logits):
        text = start + tokens[:n]
        start_of_view = brute_window_start(len(text), 8)
        view = text[:1] + text[start_of_view + 1:]         # the first token stays
        wanted = model.forward(np.array([view]))[0, -1]
        np.testing.assert_allclose(row, wanted, rtol=1e-10, atol=1e-12)


def test_with_a_cache_only_the_new_token_is_read():
    model = make_model(8)
    lengths, real = [], model.next_logits
    model.next_logits = lambda ids, c: lengths.append(ids.shape[1]) or real(ids, c)
    list(model.generate([1, 2, 3], max_new_tokens=8, seed=0))
    assert lengths == [3, 1, 1, 1, 1, 1, 5, 1]     # at 9 tokens the view moves by 4


@pytest.mark.parametrize("chunks", [[8], [1] * 8, [3, 5], [5, 3], [2, 1, 4, 1], [1, 6]])
def test_a_text_read_in_chunks_gives_the_same_as_in_one(chunks):
    model = make_model(8)
    ids = np.array([[1, 5, 5, 2, 9, 0, 3, 7], [4, 4, 4, 4, 1, 2, 3, 10]])
    whole = model.run(ids).copy()
    caches, at = model.make_caches(2), 0
    for size in chunks:
        part = model.run(ids[:, at:at + size], caches)
        np.testing.assert_allclose(part, whole[:, at:at + size], rtol=1e-10, atol=1e-12)
        at += size
        assert [cache.length for cache in caches] == [at, at]


def test_a_full_cache_refuses_more():
    model = make_model(8)
    caches = model.make_caches(1)
    model.run(np.array([[1, 2, 3, 4, 5, 6]]), caches)
    with pytest.raises(UserError, match="context holds 8"):
        model.run(np.array([[1, 2, 3]]), caches)


def test_a_cache_returns_all_that_was_appended():
    cache = KVCache(1, 2, 5, 3, np.float32)
    k = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    cache.append(k[:, :, :1], -k[:, :, :1])
    keys, values = cache.append(k[:, :, 1:], -k[:, :, 1:])
    assert np.array_equal(keys, k) and np.array_equal(values, -k)


# Dropout


def training(model):
    return [dropout.training for dropout in model.dropouts]


def test_dropout_is_off_while_generating():
    model = make_model(dropout=0.5)
    quiet, tokens = logits_while_generating(model, [1], 20)
    model.train()
    loud, same = logits_while_generating(model, [1], 20)
    assert np.array_equal(loud, quiet) and tokens == same


@pytest.mark.parametrize("on", [True, False])
def test_training_goes_on_as_before_after_generating(on):
    model = make_model(dropout=0.5)
    model.train(on)
    list(model.generate([1], max_new_tokens=3))
    assert set(training(model)) == {on}


def test_training_goes_on_as_before_when_generation_is_abandoned():
    model = make_model(dropout=0.5)
    model.train()
    for token in model.generate([1], max_new_tokens=30):
        break
    gc.collect()
    assert set(training(model)) == {True}


def test_two_generations_at_once_do_not_turn_dropout_on_for_each_other():
    model = make_model(dropout=0.5)
    wanted = list(model.generate([1], max_new_tokens=20, temperature=0))
    model.train()
    one = model.generate([2], max_new_tokens=3)
    next(one)
    two = model.generate([1], max_new_tokens=20, temperature=0)
    first = next(two)
    one.close()
    assert [first, *two] == wanted
    assert set(training(model)) == {True}


def test_training_goes_on_as_before_when_generation_fails():
    model = make_model(dropout=0.5)
    model.train()
    with pytest.raises(UserError):
        list(model.generate([99]))
    assert set(training(model)) == {True}


def test_generating_between_loss_and_backward_is_noticed():
    model = make_model()
    ids = np.array([[1, 2, 3]])
    model.loss(ids, ids)
    list(model.generate([1, 2], max_new_tokens=1))
    with pytest.raises(RuntimeError):
        model.backward()


def test_generating_token_by_token_leaves_a_loss_and_its_gradient_alone():
    model, grads = make_model(), []
    ids = np.array([[1, 2, 3]])
    for tokens in (0, 2):
        model.zero_grad()
        model.loss(ids, ids)
        list(model.generate([1], max_new_tokens=tokens, temperature=0))
        model.backward()
        grads.append(model.grad.copy())
    assert grads[0].any() and np.array_equal(*grads)
