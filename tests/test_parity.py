"""Our models, plain and fast, compute what PyTorch and transformers compute: logits, loss, gradients, training, text.

The numbers to compare with are in fixture.npz; tools/make_fixture.py made them, once.
An error is measured against the largest number of the array: max|ours - theirs| / max|theirs|.
"""
import functools
import pathlib

import numpy as np
import pytest

from simple_llm.engine import fast
from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import AdamW, clip_gradients

EXPECTED = dict(np.load(pathlib.Path(__file__).with_name("fixture.npz")))
NAMES = EXPECTED["names"].tolist()
IDS, TARGETS = EXPECTED["ids"], EXPECTED["targets"]
STRESS = sorted({key.split("/")[1] for key in EXPECTED if key.startswith("stress/")})

# Rounding leaves about 1e-15 in float64 and 1e-6 in float32; a classic mistake leaves about 1e-4 or more.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
each_precision = pytest.mark.parametrize("precision", TOLERANCE)
each_kind = pytest.mark.parametrize("kind", [SimpleLLM, fast.FastLLM], ids=["plain", "fast"])


def both(test):
    return each_kind(each_precision(test))


def make_model(kind, precision):
    """Our model, holding the fixture's weights."""
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    model = kind(Config(*(int(EXPECTED[name]) for name in sizes)), dtype=np.dtype(precision).type)
    for name, parameter in model.named_parameters():
        parameter.data[...] = EXPECTED[f"parameters/{name}"]
    model.zero_grad()
    return model


def error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def gradients_of(model):
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters()}


def after_backward(kind, precision, times=1):
    model = make_model(kind, precision)
    for _ in range(times):
        model.loss(IDS, TARGETS)
        model.backward()
    return model


def assert_near(arrays, prefix, tolerance, factor=1.0):
    """Each of these arrays, by its name, is the fixture's."""
    assert list(arrays) == NAMES
    for name, array in arrays.items():
        theirs = factor * EXPECTED[f"{prefix}/{name}"]
        if prefix == "trained64":
            array, theirs = without_key_bias(name, array), without_key_bias(name, theirs)
        assert error(array, theirs) < tolerance, name


def without_key_bias(name, array):
    """The array, less the bias of the keys.

    It adds the same to all scores of a query, which softmax ignores: its gradient is 0. In float32 that is
    rounding noise instead, and Adam divides noise by its own size. Nothing else depends on this bias.
    """
    if name.endswith("c_attn.bias"):
        query, _, value = np.split(array, 3)
        return np.concatenate([query, value])
    return array


# Forward


@both
def test_logits_and_loss_match(kind, precision):
    model = make_model(kind, precision)
    logits = model.forward(IDS)
    assert logits.dtype == precision
    assert error(logits, EXPECTED["logits64"]) < TOLERANCE[precision]
    assert error(model.loss(IDS, TARGETS), EXPECTED["loss64"]) < TOLERANCE[precision]
    if precision == "float32":
        assert error(logits, EXPECTED["logits"]) < TOLERANCE["float32"]


@each_kind
def test_logits_of_a_shorter_text_are_the_first_of_a_longer_one(kind):
    model = make_model(kind, "float64")
    for length in range(1, 12):
        logits = model.forward(IDS[:, :length])
        assert error(logits, EXPECTED["logits64"][:, :length]) < TOLERANCE["float64"], length


# Backward


@both
def test_gradients_match_and_are_added_until_zero_grad(kind, precision):
    for times in (1, 2):
        model = after_backward(kind, precision, times)
        gradients = gradients_of(model)
        assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(precision)}
        assert_near(gradients, "gradients64", TOLERANCE[precision], times)
    model.zero_grad()
    assert not any(gradient.any() for gradient in gradients_of(model).values())


@both
@pytest.mark.parametrize("case", STRESS)
def test_extreme_values_give_the_same_numbers_and_stay_finite(kind, precision, case):
    """One part is far larger than usual: arithmetic magnifies rounding, PyTorch's as much as ours."""
    model = make_model(kind, precision)
    part, factor = str(EXPECTED[f"stress/{case}/part"]), float(EXPECTED[f"stress/{case}/factor"])
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data[...] *= np.dtype(precision).type(factor)
    found = {"logits64": model.forward(IDS), "loss64": model.loss(IDS, TARGETS)}
    model.backward()
    assert all(np.isfinite(gradient).all() for gradient in gradients_of(model).values())
    found["norm64"] = clip_gradients(model.parameters(), 1.0)
    for name, ours in found.items():
        assert np.isfinite(ours).all()
        assert precision == "float32" or error(ours, EXPECTED[f"stress/{case}/{name}"]) < 1e-10


# Training


@each_kind
def test_clipping_returns_the_norm_before_it_and_keeps_the_direction(kind):
    model = after_backward(kind, "float64")
    norm = clip_gradients(model.parameters(), 1.0)
    assert isinstance(norm, float)
    assert error(norm, EXPECTED["norms64"][0]) < TOLERANCE["float64"]
    assert_near(gradients_of(model), "gradients64", 1e-6, 1 / norm)     # PyTorch divides by norm + 1e-6


def test_clipping_leaves_a_short_gradient_alone():
    model = after_backward(SimpleLLM, "float64")
    before = gradients_of(model)
    clip_gradients(model.parameters(), 100.0)
    for name, gradient in gradients_of(model).items():
        np.testing.assert_array_equal(gradient, before[name], err_msg=name)


@functools.cache
def ten_steps(kind, precision):
    """The losses, gradient norms and final parameters of ten steps on one batch."""
    model = make_model(kind, precision)
    if kind is SimpleLLM:
        parameters, make = model.parameters(), AdamW
    else:
        parameters, make = fast.Flat(model), fast.AdamW
    optimizer = make(parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(10):
        model.zero_grad()
        losses.append(model.loss(IDS, TARGETS))
        model.backward()
        norms.append(clip_gradients(model.parameters(), 1.0))
        optimizer.step(1e-2)
    return losses, norms, {name: parameter.data for name, parameter in model.named_parameters()}


# Adam divides a gradient by its own size, and so magnifies the rounding of small ones with every step. In
# float64 what is left is the 1e-6 that PyTorch adds to the norm when it clips, and that we may leave out.


@each_kind
@pytest.mark.parametrize(("precision", "of_losses", "of_norms", "of_parameters"), [
    ("float64", 1e-7, 1e-6, 1e-6), ("float32", 1e-5, 1e-4, 1e-3)])
def test_ten_adamw_steps_match(kind, precision, of_losses, of_norms, of_parameters):
    losses, norms, parameters = ten_steps(kind, precision)
    assert error(losses, EXPECTED["losses64"]) < of_losses
    assert error(norms, EXPECTED["norms64"]) < of_norms
    assert {array.dtype for array in parameters.values()} == {np.dtype(precision)}
    assert_near(parameters, "trained64", of_parameters)


# Generation


@both
def test_greedy_generation_matches_and_yields_plain_ints(kind, precision):
    prompt, continuation = EXPECTED["generated"][:4].tolist(), EXPECTED["generated"][4:].tolist()
    tokens = list(make_model(kind, precision).generate(prompt, max_new_tokens=8, temperature=0))
    assert tokens == continuation
    assert {type(token) for token in tokens} == {int}
