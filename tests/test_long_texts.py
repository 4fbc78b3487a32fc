"""Long texts: a mask without memory, caches that grow, prompts in pieces."""
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import simple_llm
from simple_llm.engine import fast_today
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.errors import UserError
from simple_llm.inside import attention_to_self
from simple_llm.layers import KVCache, causal_mask
from simple_llm.today import model as today_model
from simple_llm.today.layers import GrowingCache, long_mask
from simple_llm.today.model import TodayConfig, TodayLLM

BUILD = Path(simple_llm.__file__).parent.parent
SIZES = dict(vocab_size=20, context_length=400, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2)
GPT2 = dict(norm="layer", positions="learned", feed_forward="gelu", n_kv_heads=4, bias=True)
each_kind = pytest.mark.parametrize("kind", [TodayLLM, FastTodayLLM], ids=["plain", "fast"])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], shape)


# The mask


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 600])
def test_the_long_mask_is_the_causal_mask(length, dtype):
    mask = long_mask(length, dtype)
    assert mask.dtype == dtype
    np.testing.assert_array_equal(mask, causal_mask(length, dtype))


def test_the_long_mask_takes_two_rows_of_memory():
    tracemalloc.start()
    mask = long_mask(100_000, np.float32)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.nbytes == 4 * 10**10 and kept < 2.1 * 100_000 * 4 and most < 3 * 100_000 * 4


@each_kind
def test_attention_can_be_switched_off_under_a_long_mask_and_on_again(kind):
    model, ids = kind(TodayConfig(**SIZES | {"context_length": 600})), draw(1, 20)
    usual = model.forward(ids)
    with attention_to_self(model):
        alone = model.forward(ids)
        model.mask[...] = np.where(np.eye(600, dtype=bool), 0, -np.inf)
        np.testing.assert_array_equal(alone, model.forward(ids))
    assert not np.allclose(usual[:, 1:], alone[:, 1:], atol=1e-3)
    np.testing.assert_array_equal(model.mask, causal_mask(600, np.float32))
    np.testing.assert_array_equal(model.forward(ids), usual)


# The caches


@pytest.mark.parametrize("lengths", [[1] * 300, [127, 1, 1, 1], [128, 1], [129], [300], [5, 250, 45], [200, 100]],
                         ids=lambda lengths: f"{len(lengths)} pieces, first {lengths[0]}")
def test_a_cache_that_grows_returns_what_one_of_full_size_does(lengths):
    rng, sizes = np.random.default_rng(0), (2, 3, 300, 4, np.float32)
    growing, full = GrowingCache(*sizes), KVCache(*sizes)
    for T in lengths:
        pair = rng.normal(size=(2, 2, 3, T, 4)).astype(np.float32)
        for ours, theirs in zip(growing.append(*pair), full.append(*pair)):
            np.testing.assert_array_equal(ours, theirs)
        assert growing.length == full.length
        assert growing.keys.shape[2] < 2 * max(growing.length, 128) and growing.keys.shape[2] <= 300
        assert growing.keys.shape == growing.values.shape and growing.keys.dtype == np.float32


def test_a_cache_that_was_shortened_forgets_what_it_held_and_grows_again():
    rng, sizes = np.random.default_rng(0), (1, 2, 1000, 4, np.float64)
    growing, full = GrowingCache(*sizes), KVCache(*sizes)
    for length, T in ((0, 400), (100, 50), (150, 1), (0, 130), (120, 880)):
        pair = rng.normal(size=(2, 1, 2, T, 4))
        growing.length = full.length = length
        for ours, theirs in zip(growing.append(*pair), full.append(*pair)):
            np.testing.assert_array_equal(ours, theirs)


def test_a_cache_claims_nothing_for_positions_that_no_text_has_reached():
    cache = GrowingCache(1, 3, 1_000_000_000, 64, np.float32)
    cache.append(*np.zeros((2, 1, 3, 10, 64), np.float32))
    assert cache.keys.nbytes <= 128 * 3 * 64 * 4
    assert GrowingCache(1, 3, 16, 64, np.float32).keys.shape[2] == 16


@each_kind
def test_a_model_with_growing_caches_says_what_one_with_caches_of_full_size_does(kind, monkeypatch):
    def write():
        return list(model.generate(draw(100), max_new_tokens=160, temperature=0))
    model = kind(TodayConfig(**SIZES), dtype=np.float64)
    c, found = model.config, write()
    monkeypatch.setattr(kind, "make_caches", lambda self, batch=1: [
        KVCache(batch, c.n_kv_heads, c.context_length, c.head_width, self.dtype) for _ in self.blocks])
    assert write() == found and len(set(found)) > 3


# Prompts in pieces


@each_kind
@pytest.mark.parametrize("parts", [{}, GPT2, {"qkv_bias": True}, {"qk_norm": True, "head_dim": 6}], ids=str)
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(kind, parts, monkeypatch):
    monkeypatch.setattr(today_model, "PIECE", 16)
    monkeypatch.setattr(fast_today, "PIECE", 16)
    model = kind(TodayConfig(**SIZES | {"context_length": 100} | parts), dtype=np.float64)
    for T in (1, 15, 16, 17, 32, 33, 100):
        for B in (1, 2):
            ids, caches = draw(B, T), model.make_caches(B)
            found = model.next_logits(ids, caches)
            np.testing.assert_allclose(found, model.forward(ids)[:, -1], rtol=1e-9, atol=1e-9)
            assert {cache.length for cache in caches} == {T}


@each_kind
def test_a_prompt_after_a_text_that_was_read_gives_the_logits_of_both(kind):
    model, ids = kind(TodayConfig(**SIZES | {"context_length": 700}), dtype=np.float64), draw(1, 700)
    caches, sizes, run = model.make_caches(), [], model.run
    model.run = lambda ids, caches=None: sizes.append(ids.shape[1]) or run(ids, caches)
    whole = run(ids)[:, [49, 649, 699]] @ model.head.weight.data.T
    for n, piece in enumerate(np.split(ids, [50, 650], axis=1)):
        np.testing.assert_allclose(model.next_logits(piece, caches), whole[:, n], rtol=1e-9, atol=1e-9)
    assert kind is FastTodayLLM or sizes == [50, 512, 88, 50]


@each_kind
def test_a_text_that_is_too_long_is_refused(kind):
    model = kind(TodayConfig(**SIZES | {"context_length": 600}))
    with pytest.raises(UserError, match="601 tokens, but the context holds 600"):
        model.next_logits(draw(1, 601), model.make_caches())
    caches = model.make_caches()
    model.next_logits(draw(1, 600), caches)
    with pytest.raises(UserError, match="601 tokens, but the context holds 600"):
        model.next_logits(draw(1, 1), caches)


@each_kind
def test_the_memory_of_a_prompt_does_not_grow_with_its_square(kind, monkeypatch):
    monkeypatch.setattr(today_model, "PIECE", 64)
    monkeypatch.setattr(fast_today, "PIECE", 64)

    def peak(T):
        tracemalloc.start()
        try:
            model.next_logits(draw(1, T), model.make_caches())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    model = kind(TodayConfig(**SIZES | {"context_length": 1024, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}))
    assert peak(1024) < min(2 * 1024 * 1024 * 4, 3 * peak(512))  # the scores of all pairs alone are the first


CHILD = """
import json, resource, sys
import numpy as np
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.today.model import TodayConfig, TodayLLM
from pathlib import Path
status = Path("/proc/self/status")
most = lambda: (int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists()
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
before = most()
model = FastTodayLLM(TodayConfig(50, 131072, 128, 1, 2, n_kv_heads=1), seed=0)
ids = np.random.default_rng(0).integers(0, 50, 600).tolist()
answer = list(model.generate(ids, max_new_tokens=5, temperature=0))
short = FastTodayLLM(TodayConfig(50, 2048, 128, 1, 2, n_kv_heads=1), seed=0)
print(json.dumps([most() - before, answer, list(short.generate(ids, max_new_tokens=5, temperature=0))]))
"""


def test_a_model_of_131072_positions_answers_in_bounded_memory_as_one_of_2048():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(BUILD), "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    claimed, answer, short = json.loads(done.stdout)
    assert len(answer) == 5 and answer == short
    assert claimed < 300e6, f"{claimed / 1e6:.0f} MB"           # its mask in full were 69 GB, its tables are 34 MB
