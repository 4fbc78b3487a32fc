"""Our model computes what PyTorch and transformers compute: logits, loss, gradients, training, generation.

The numbers to compare with are in fixture.npz; make_fixture.py, which stands beside it, made them.
An error is measured against the largest number of the array: max|ours - theirs| / max|theirs|.
"""

import functools
import pathlib

import numpy as np
import pytest

from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import AdamW, clip_gradients

EXPECTED = dict(np.load(pathlib.Path(__file__).with_name("fixture.npz")))
NAMES = EXPECTED["names"].tolist()
IDS, TARGETS = EXPECTED["ids"], EXPECTED["targets"]
STRESS = sorted({key.split("/")[1] for key in EXPECTED if key.startswith("stress/")})

# Rounding leaves about 1e-15 in float64 and 1e-6 in float32; a classic mistake leaves about 1e-4 or more.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
both_precisions = pytest.mark.parametrize("precision", TOLERANCE)


def make_model(precision):
    """Our model, holding the fixture's weights."""
    config = Config(
        vocab_size=int(EXPECTED["vocab_size"]),
        context_length=int(EXPECTED["n_positions"]),
        d_model=int(EXPECTED["n_embd"]),
        n_layers=int(EXPECTED["n_layer"]),
        n_heads=int(EXPECTED["n_head"]),
    )
    model = SimpleLLM(config, seed=0, dtype=np.dtype(precision).type)
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


def without_key_bias(name, array):
    """The array, less the bias of the keys.

    It adds the same to all scores of a query, which softmax ignores: its gradient is 0. In float32 that is
    rounding noise instead, and Adam divides noise by its own size. Nothing else depends on this bias.
    """
    if name.endswith("c_attn.bias"):
        query, _, value = np.split(array, 3)
        return np.concatenate([query, value])
    return array


@functools.cache
def gradients_after_one_backward(precision):
    model = make_model(precision)
    model.loss(IDS, TARGETS)
    model.backward()
    return gradients_of(model)


@functools.cache
def ten_steps(precision):
    """The losses, gradient norms and final parameters of ten steps on one batch."""
    model = make_model(precision)
    optimizer = AdamW(model, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(10):
        model.zero_grad()
        losses.append(model.loss(IDS, TARGETS))
        model.backward()
        norms.append(clip_gradients(model, 1.0))
        optimizer.step(1e-2)
    return losses, norms, {name: parameter.data.copy() for name, parameter in model.named_parameters()}


def test_parameters_have_the_names_and_shapes_of_gpt2():
    shapes = {name: parameter.data.shape for name, parameter in make_model("float32").named_parameters()}
    assert shapes == {name: EXPECTED[f"parameters/{name}"].shape for name in NAMES}


# Forward


@both_precisions
def test_logits_match(precision):
    logits = make_model(precision).forward(IDS)
    assert error(logits, EXPECTED["logits64"]) < TOLERANCE[precision]


@both_precisions
def test_logits_have_the_precision_asked_for(precision):
    assert make_model(precision).forward(IDS).dtype == precision


def test_float32_logits_match_those_of_float32_pytorch():
    assert error(make_model("float32").forward(IDS), EXPECTED["logits"]) < TOLERANCE["float32"]


@pytest.mark.parametrize("length", range(1, 12))
def test_logits_of_a_shorter_text_are_the_first_of_a_longer_one(length):
    logits = make_model("float64").forward(IDS[:, :length])
    assert error(logits, EXPECTED["logits64"][:, :length]) < TOLERANCE["float64"]


@both_precisions
def test_loss_matches(precision):
    assert error(make_model(precision).loss(IDS, TARGETS), EXPECTED["loss64"]) < TOLERANCE[precision]


# Backward


@pytest.mark.parametrize("name", NAMES)
@both_precisions
def test_gradient_matches(precision, name):
    gradient = gradients_after_one_backward(precision)[name]
    assert gradient.dtype == precision
    assert error(gradient, EXPECTED[f"gradients64/{name}"]) < TOLERANCE[precision]


def test_a_second_backward_adds_to_the_gradients():
    model = make_model("float64")
    for _ in range(2):
        model.loss(IDS, TARGETS)
        model.backward()
    for name, gradient in gradients_of(model).items():
        assert error(gradient, 2 * EXPECTED[f"gradients64/{name}"]) < TOLERANCE["float64"], name


def test_zero_grad_forgets_the_gradients():
    model = make_model("float32")
    model.loss(IDS, TARGETS)
    model.backward()
    model.zero_grad()
    assert not any(gradient.any() for gradient in gradients_of(model).values())


@pytest.mark.parametrize("case", STRESS)
def test_extreme_values_give_the_same_logits_loss_and_gradient_norm(case):
    model = make_model("float64")
    part, factor = str(EXPECTED[f"stress/{case}/part"]), float(EXPECTED[f"stress/{case}/factor"])
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data[...] *= factor
    # The arithmetic magnifies rounding here, PyTorch's as much as ours.
    assert error(model.forward(IDS), EXPECTED[f"stress/{case}/logits64"]) < 1e-10
    assert error(model.loss(IDS, TARGETS), EXPECTED[f"stress/{case}/loss64"]) < 1e-10
    model.backward()
    assert error(clip_gradients(model, 1.0), EXPECTED[f"stress/{case}/norm64"]) < 1e-10


@pytest.mark.parametrize("case", STRESS)
def test_extreme_values_stay_finite_in_float32(case):
    model = make_model("float32")
    part, factor = str(EXPECTED[f"stress/{case}/part"]), float(EXPECTED[f"stress/{case}/factor"])
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data[...] *= np.float32(factor)
    loss = model.loss(IDS, TARGETS)
    model.backward()
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients_of(model).values())


# Training


def test_clipping_returns_the_norm_before_it():
    model = make_model("float64")
    model.loss(IDS, TARGETS)
    model.backward()
    norm = clip_gradients(model, 1.0)
    assert isinstance(norm, float)
    assert error(norm, EXPECTED["norms64"][0]) < TOLERANCE["float64"]


def test_clipping_shortens_the_gradient_and_keeps_its_direction():
    model = make_model("float64")
    model.loss(IDS, TARGETS)
    model.backward()
    clip_gradients(model, 1.0)
    for name, gradient in gradients_of(model).items():  # PyTorch divides by norm + 1e-6; we need not
        assert error(gradient, EXPECTED[f"gradients64/{name}"] / EXPECTED["norms64"][0]) < 1e-6, name


def test_clipping_leaves_a_short_gradient_alone():
    model = make_model("float64")
    model.loss(IDS, TARGETS)
    model.backward()
    before = gradients_of(model)
    clip_gradients(model, 100.0)
    for name, gradient in gradients_of(model).items():
        np.testing.assert_array_equal(gradient, before[name], err_msg=name)


# Adam divides a gradient by its own size, and so magnifies the rounding of small ones with every step. In
# float64 what is left is the 1e-6 that PyTorch adds to the norm when it clips, and that we may leave out.


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-7), ("float32", 1e-5)])
def test_losses_of_ten_adamw_steps_match(precision, tolerance):
    losses, _, _ = ten_steps(precision)
    assert error(losses, EXPECTED["losses64"]) < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-6), ("float32", 1e-4)])
def test_gradient_norms_of_ten_adamw_steps_match(precision, tolerance):
    _, norms, _ = ten_steps(precision)
    assert error(norms, EXPECTED["norms64"]) < tolerance


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
def test_parameters_after_ten_adamw_steps_match(precision, tolerance, name):
    _, _, parameters = ten_steps(precision)
    ours, theirs = parameters[name], EXPECTED[f"trained64/{name}"]
    assert ours.dtype == precision
    assert error(without_key_bias(name, ours), without_key_bias(name, theirs)) < tolerance


# Generation


@both_precisions
def test_greedy_generation_matches(precision):
    prompt, continuation = EXPECTED["generated"][:4].tolist(), EXPECTED["generated"][4:].tolist()
    tokens = list(make_model(precision).generate(prompt, max_new_tokens=8, temperature=0))
    assert tokens == continuation


def test_generation_yields_plain_ints():
    prompt = EXPECTED["generated"][:4].tolist()
    tokens = make_model("float32").generate(prompt, max_new_tokens=2, temperature=0)
    assert [type(token) for token in tokens] == [int, int]
