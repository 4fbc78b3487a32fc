"""Muon: what it does to a matrix, plain and fast, and as PyTorch does it."""
import numpy as np
import pytest

from simple_llm.engine import fast as quick
from simple_llm.engine.fast import FastLLM, Flat
from simple_llm.model import Config, SimpleLLM
from simple_llm.today import muon as plain

SIZES = Config(vocab_size=11, context_length=7, d_model=12, n_layers=2, n_heads=2)
IDS = np.random.default_rng(0).integers(11, size=(2, 4, 7))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shape", [(20, 20), (12, 48), (48, 12), (1, 5), (5, 1)], ids=str)
def test_the_directions_stay_and_the_singular_values_come_near_one(shape):
    U, s, Vt = np.linalg.svd(normal(*shape), full_matrices=False)
    s = np.geomspace(1, 0.01, len(s))
    turned = U.T @ plain.orthogonalize(U * s @ Vt) @ Vt.T
    values = np.diagonal(turned)
    assert np.abs(turned - np.diag(values)).max() < 1e-8
    assert values.min() > 0.68 and values.max() < 1.14


def test_the_scale_of_a_matrix_has_no_say():
    G = normal(6, 9)
    np.testing.assert_allclose(plain.orthogonalize(1e4 * G), plain.orthogonalize(G), atol=1e-9)


def test_a_gradient_of_zero_gives_no_step():
    assert (plain.orthogonalize(np.zeros((3, 4))) == 0).all()


def take_steps(model, optimizer, steps=10):
    for _ in range(steps):
        model.zero_grad()
        model.loss(*IDS)
        model.backward()
        optimizer.step(4e-3)
    return {name: p.data.copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [SimpleLLM, FastLLM])   # matrices by rows, and by columns
def test_ten_fast_steps_give_the_same_weights(kind):
    slow, fast = SimpleLLM(SIZES, dtype=np.float64), kind(SIZES, dtype=np.float64)
    ours = take_steps(slow, plain.Muon(slow))
    theirs = take_steps(fast, quick.Muon(Flat(fast)))
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("cuts", [[500], [100, 3000, 3001], [0, 4000]], ids=str)
def test_steps_in_parts_give_the_same_bytes(cuts):
    found = []
    for ends in ([], cuts):
        model = FastLLM(SIZES)
        optimizer = quick.Muon(Flat(model))
        P = optimizer.flat.data.size
        for _ in range(3):
            model.zero_grad()
            model.loss(*IDS)
            model.backward()
            optimizer.step_count += 1
            for start, stop in zip([0, *ends], [*ends, P]):
                optimizer.step_count -= 1
                optimizer.step(4e-3, range(start, stop))
        found.append(optimizer.flat.data.tobytes())
    assert found[0] == found[1]


def test_queries_keys_and_values_are_orthogonalized_each_for_itself():
    model = SimpleLLM(SIZES, dtype=np.float64)
    optimizer = plain.Muon(model, weight_decay=0.0, ratio=1.0)
    p = model.blocks[0].attention.qkv.weight
    before = p.data.copy()
    take_steps(model, optimizer, 1)
    for third in np.split((before - p.data) / 4e-3, 3, axis=1):
        values = np.linalg.svd(third)[1]
        assert values.max() < 1.2 and values[:6].min() > 0.5
