"""Each layer alone, plain and fast: against the definition, plain Python, and PyTorch."""
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simple_llm import layers as plain
from simple_llm.engine import fast
from simple_llm.gradcheck import (
    check_layer, find_parameters, numerical_gradient, relative_error,
)

FIXTURE = dict(np.load(Path(__file__).with_name("fixture.npz")))
each_kind = pytest.mark.parametrize("layers", [plain, fast], ids=["plain", "fast"])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def make_linear(layers, p=0.0, inputs=6, outputs=6, seed=1):
    layer = layers.Linear(normal(inputs, outputs, seed=seed))
    layer.bias.data[...] = normal(outputs, seed=seed + 50)
    return layer


def make_norm(layers, p=0.0, C=6):
    layer = layers.LayerNorm(C, np.float64)
    layer.weight.data[...], layer.bias.data[...] = normal(2, C, seed=2)
    return layer


def make_gelu(layers, p=0.0):
    return layers.GELU()


def make_head(layers, p=0.0):
    return layers.Head(plain.Parameter(normal(6, 6, seed=4)))


def make_dropout(layers, p=0.0):
    layer = layers.Dropout(p, np.random.default_rng(5))
    layer.training = True
    return layer


def make_attention(layers, p=0.0, H=2):
    return layers.CausalSelfAttention(
        make_linear(layers, 0, 6, 18, 11), make_linear(layers, 0, 6, 6, 12), H,
        plain.causal_mask(5, np.float64), make_dropout(layers, p), make_dropout(layers, p))


def make_feed_forward(layers, p=0.0):
    return layers.FeedForward(make_linear(layers, 0, 6, 24, 21), layers.GELU(),
                              make_linear(layers, 0, 24, 6, 22), make_dropout(layers, p))


def make_block(layers, p=0.0):
    return layers.Block(make_norm(layers), make_attention(layers, p), make_norm(layers),
                        make_feed_forward(layers, p))


MAKERS = {"linear": make_linear, "norm": make_norm, "gelu": make_gelu, "head": make_head,
          "dropout": make_dropout, "feed_forward": make_feed_forward,
          "attention": make_attention, "block": make_block}
each_layer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def parts_of(layer):
    """A layer, and all layers within."""
    yield layer
    for value in vars(layer).values():
        if hasattr(value, "backward"):
            yield from parts_of(value)


class Dice:
    """Layers in a row, whose dropout rolls the same dice in each forward."""

    def __init__(self, *row):
        self.__dict__.update({str(n): layer for n, layer in enumerate(row)})
        self.forward_of, self.backward_of = (
            [getattr(layer, way) for layer in row] for way in ("forward", "backward"))

    def forward(self, x):
        rng = np.random.default_rng(5)
        for part in [*parts_of(self)][1:]:
            part.rng = rng
        for forward in self.forward_of:
            x = forward(x)
        return x

    def backward(self, dy):
        for backward in reversed(self.backward_of):
            dy = backward(dy)
        return dy


def arrays_in(thing, seen=None):
    """Every array that can be reached from a thing."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, ModuleType)):
        return
    seen.add(id(thing))
    if isinstance(thing, (np.ndarray, np.floating)):
        yield thing
    inner = vars(thing) if hasattr(thing, "__dict__") else thing
    inner = inner.values() if isinstance(inner, dict) else inner
    for value in inner if isinstance(inner, (list, tuple, type({}.values()))) else ():
        yield from arrays_in(value, seen)


# Every layer


@each_kind
@each_layer
def test_gradients_are_those_of_the_definition(layers, make):
    """Also of two in a row: fast ones hand the gradient down in the same scratch array."""
    assert check_layer(make(layers), normal(2, 3, 6)) < 1e-6
    assert check_layer(Dice(make(layers, 0.4)), normal(1, 1, 6)) < 1e-6
    assert check_layer(Dice(make(layers, 0.4), make(layers, 0.4)), normal(1, 3, 6)) < 1e-6


@each_kind
@each_layer
def test_gradients_are_added_and_what_is_given_is_left_alone(layers, make):
    layer, x, dy = make(layers), normal(2, 4, 6), normal(2, 4, 6, seed=3)
    after = []
    for _ in range(2):
        layer.forward(x)
        layer.backward(dy)
        after.append([p.grad.copy() for p in find_parameters(layer)])
    for once, twice in zip(*after):
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-12)
    assert np.array_equal(x, normal(2, 4, 6))
    assert np.array_equal(dy, normal(2, 4, 6, seed=3))


@each_kind
@each_layer
def test_a_larger_input_between_changes_nothing(layers, make):
    """Workspaces are kept; nothing of the larger input may be left in them."""
    layer, x, dy = Dice(make(layers, 0.3)), normal(2, 3, 6), normal(2, 3, 6, seed=1)
    y, dx = layer.forward(x).copy(), layer.backward(dy).copy()
    layer.backward(layer.forward(normal(4, 5, 6, seed=2)).copy())
    assert np.array_equal(layer.forward(x), y)
    assert np.array_equal(layer.backward(dy), dx)


def test_what_a_plain_layer_returns_is_the_callers_to_keep():
    """It shares memory with nothing, and a second pass does not change it."""
    def passes(layer, x, dy):
        y = layer.forward(x)
        return y, layer.backward(dy)

    def loss(layer, z, targets):
        layer.forward(z, targets)
        return (layer.backward(),)

    ids, targets = np.array([[4, 0], [4, 2]]), np.array([[1, -1], [3, 0]])
    cases = [(passes, make(plain, p), normal(2, 4, 6), normal(2, 4, 6, seed=1))
             for make in MAKERS.values() for p in (0.0, 0.4)]
    cases += [(passes, make_attention(plain, H=1), normal(1, 1, 6), normal(1, 1, 6)),
              (passes, plain.Embedding(normal(5, 3)), ids, normal(2, 2, 3)),
              (loss, plain.CrossEntropy(), normal(2, 2, 4), targets)]
    for run, layer, *inputs in cases:
        before = [array.copy() for array in inputs]
        returned = [array for array in run(layer, *inputs) if array is not None]
        kept = [array.copy() for array in returned]
        for array in returned:
            for other in [*inputs, *arrays_in(layer)]:
                assert not np.shares_memory(array, other), layer
        run(layer, *[array[:, ::-1] for array in inputs])
        for now, then in zip([*returned, *inputs], [*kept, *before]):
            assert np.array_equal(now, then), layer


# Linear and embedding


@each_kind
def test_linear_is_a_weighted_sum_plus_a_bias(layers):
    layer, x = make_linear(layers, inputs=3, outputs=2), normal(4, 3)
    W, b = layer.weight.data, layer.bias.data
    wanted = [[sum(x[n, i] * W[i, o] for i in range(3)) + b[o] for o in range(2)]
              for n in range(4)]
    np.testing.assert_allclose(layer.forward(x), wanted, rtol=1e-13)


@each_kind
def test_embedding_looks_rows_up_and_counts_repeated_ids(layers):
    layer, dy = layers.Embedding(normal(5, 3)), normal(2, 4, 3, seed=1)
    ids = np.array([[1, 1, 4, 1], [4, 0, 1, 1]])
    layer.weight.grad[...] = wanted = np.ones((5, 3))
    assert np.array_equal(layer.forward(ids), layer.weight.data[ids])
    layer.backward(dy)
    for b, t in np.ndindex(ids.shape):
        wanted[ids[b, t]] += dy[b, t]
    np.testing.assert_allclose(layer.weight.grad, wanted, rtol=1e-13)


# LayerNorm and GELU


@each_kind
def test_layer_norm_matches_pytorch(layers):
    layer = layers.LayerNorm(4, np.float64)
    x, y, dy, dx, weight, bias, dweight, dbias = (
        FIXTURE[f"layernorm/{name}"] for name in "x y dy dx weight bias dweight dbias".split())
    layer.weight.data[...], layer.bias.data[...] = weight, bias
    assert error(layer.forward(x), y) < 1e-13
    ours = layer.backward(dy)
    assert all(error(ours[row], dx[row]) < 1e-9 for row in range(4))   # sizes differ by 1000
    assert error(layer.weight.grad, dweight) < 1e-13
    assert error(layer.bias.grad, dbias) < 1e-13


@each_kind
def test_layer_norm_of_equal_numbers_is_its_bias(layers):
    layer = make_norm(layers)
    y = layer.forward(np.full((2, 6), 7.0))
    np.testing.assert_allclose(y, [layer.bias.data] * 2, atol=1e-9)


@each_kind
def test_gelu_matches_pytorch(layers):
    layer, x = layers.GELU(), FIXTURE["gelu/x"]
    same = {"rtol": 1e-12, "atol": 1e-15}
    np.testing.assert_allclose(layer.forward(x), FIXTURE["gelu/y"], **same)
    np.testing.assert_allclose(layer.backward(np.ones_like(x)), FIXTURE["gelu/dx"], **same)


# Softmax and cross-entropy


def test_softmax_is_exp_over_the_sum_of_exp_and_finite():
    z = normal(3, 4)
    wanted = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in z.tolist()]
    np.testing.assert_allclose(plain.softmax(z), wanted, rtol=1e-14)
    z = np.array([[1000.0, 999.0, -1000.0], [-5000.0, -5000.0, -np.inf]])
    q = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(plain.softmax(z), [[q, 1 - q, 0], [0.5, 0.5, 0]], rtol=1e-14)


@each_kind
def test_cross_entropy_matches_pytorch(layers):
    layer = layers.CrossEntropy()
    loss = layer.forward(FIXTURE["crossentropy/x"], FIXTURE["crossentropy/targets"])
    assert loss == pytest.approx(float(FIXTURE["crossentropy/loss"]), rel=1e-14)
    assert error(layer.backward(), FIXTURE["crossentropy/dx"]) < 1e-14


@each_kind
def test_cross_entropy_is_the_mean_over_the_targets_that_count(layers):
    z, targets = normal(2, 3, 4), np.array([[0, -1, 3], [-1, -1, 2]])
    terms = [math.log(sum(map(math.exp, z[b, t]))) - z[b, t, target]
             for b, t, target in [(0, 0, 0), (0, 2, 3), (1, 2, 2)]]
    layer = layers.CrossEntropy()
    assert layer.forward(z, targets) == pytest.approx(sum(terms) / 3, rel=1e-14)
    dz = layer.backward().copy()
    assert not dz[targets < 0].any()
    assert relative_error(dz, numerical_gradient(lambda: layer.forward(z, targets), z)) < 1e-6
    assert layer.forward(z, targets, 6) == pytest.approx(sum(terms) / 6, rel=1e-14)
    np.testing.assert_allclose(layer.backward(), dz / 2, rtol=1e-13)
    assert np.array_equal(z, normal(2, 3, 4))
    with pytest.raises(ValueError, match="all of them are -1"):
        layer.forward(z, np.full((2, 3), -1))


# Dropout


@each_kind
def test_dropout_does_nothing_unless_training(layers):
    layer, x = make_dropout(layers, 0.5), normal(3, 4)
    layer.training = False
    assert np.array_equal(layer.forward(x), x) and np.array_equal(layer.backward(x), x)


@each_kind
def test_dropout_zeroes_its_share_scales_the_rest_and_rolls_anew(layers):
    layer, ones = make_dropout(layers, 0.3), np.ones(100_000)
    y = layer.forward(ones).copy()
    assert abs((y == 0).mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 100_000)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-14)
    assert np.array_equal(layer.backward(ones), y)             # through the same mask
    assert not np.array_equal(layer.forward(ones), y)


# Attention and block


def test_heads_are_split_each_with_its_own_columns_and_merged_again():
    x = np.arange(2 * 3 * 12.0).reshape(2, 3, 12)              # B, T, C; or 3 thirds of 2 * 2
    heads = plain.split_heads(x, 3)
    assert heads.shape == (2, 3, 3, 4)
    assert all(heads[b, h, t, d] == x[b, t, h * 4 + d] for b, h, t, d in np.ndindex(heads.shape))
    assert np.array_equal(plain.merge_heads(heads), x)
    thirds = fast.split_heads(x, 2, 3)
    assert thirds.shape == (3, 2, 2, 3, 2)
    assert all(np.array_equal(ours, plain.split_heads(third, 2))
               for ours, third in zip(thirds, np.split(x, 3, axis=-1)))


def test_causal_mask_by_hand():
    never = -np.inf
    assert plain.causal_mask(3, np.float64).tolist() == [
        [0, never, never], [0, 0, never], [0, 0, 0]]


@each_kind
def test_attention_by_hand(layers):
    B, T, C, H, D = 2, 4, 6, 2, 3
    layer, x = make_attention(layers), normal(B, T, C)
    y = layer.forward(x)
    for s in range(B):
        mixed = np.zeros((T, C))
        q, k, v = np.split(x[s] @ layer.qkv.weight.data + layer.qkv.bias.data, 3, axis=1)
        for h, t in np.ndindex(H, T):
            own = slice(h * D, (h + 1) * D)
            scores = [math.exp(q[t, own] @ k[u, own] / math.sqrt(D)) for u in range(t + 1)]
            for u, score in enumerate(scores):
                assert layer.p[s, h, t, u] == pytest.approx(score / sum(scores), rel=1e-12)
                mixed[t, own] += score / sum(scores) * v[u, own]
        wanted = mixed @ layer.project.weight.data + layer.project.bias.data
        np.testing.assert_allclose(y[s], wanted, rtol=1e-12, atol=1e-13)


@each_kind
def test_a_block_adds_to_the_stream(layers):
    block, x = make_block(layers), normal(1, 3, 6)
    for last in (block.attention.project, block.feed_forward.narrow):
        last.weight.data[...] = last.bias.data[...] = 0
    assert np.array_equal(block.forward(x), x)


def test_a_cache_returns_all_that_was_appended():
    cache, k = plain.KVCache(1, 2, 5, 3, np.float64), normal(1, 2, 4, 3)
    cache.append(k[:, :, :1], -k[:, :, :1])
    keys, values = cache.append(k[:, :, 1:], -k[:, :, 1:])
    assert np.array_equal(keys, k) and np.array_equal(values, -k)


# The instrument


def test_check_layer_rejects_a_wrong_backward():
    class Wrong(plain.Linear):
        def backward(self, dy):
            return 1.01 * super().backward(dy)

    assert relative_error(np.array([1.0, 10.0]), np.array([2.0, 10.0])) == 0.1
    assert check_layer(Wrong(normal(3, 2)), normal(4, 3)) > 1e-3
