"""Each layer alone: values against plain Python and PyTorch, and what it leaves alone.

Gradients are compared with the definition by the book's sessions, layer for layer, and for
every parameter of a model by test_model.py.
"""
import math
from pathlib import Path

import numpy as np
import pytest

from simple_llm.gradcheck import check_layer, relative_error
from simple_llm.layers import (
    GELU, Block, CausalSelfAttention, CrossEntropy, Dropout, Embedding, FeedForward,
    LayerNorm, Linear, causal_mask, softmax, split_heads,
)

FIXTURE = dict(np.load(Path(__file__).with_name("fixture.npz")))


def expected(name):
    return FIXTURE[name].copy()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def assert_input_untouched(layer, x):
    before = x.copy()
    y = layer.forward(x)
    dy = normal(*y.shape, seed=8).astype(y.dtype)
    dy_before = dy.copy()
    layer.backward(dy)
    assert np.array_equal(x, before)
    assert np.array_equal(dy, dy_before)


def make_linear(inputs, outputs, seed=1):
    layer = Linear(normal(inputs, outputs, seed=seed))
    layer.bias.data[...] = normal(outputs, seed=seed + 50)
    return layer


def make_norm(width):
    layer = LayerNorm(width, np.float64)
    layer.weight.data[...] = normal(width, seed=2)
    layer.bias.data[...] = normal(width, seed=3)
    return layer


def make_dropout(p=0.0):
    return Dropout(p, np.random.default_rng(5))


def make_attention(C=6, H=2, L=5, p=0.0):
    return CausalSelfAttention(
        make_linear(C, 3 * C, 11), make_linear(C, C, 12), H, causal_mask(L, np.float64),
        make_dropout(p), make_dropout(p),
    )


def make_feed_forward(C=6, p=0.0):
    return FeedForward(make_linear(C, 4 * C, 21), make_linear(4 * C, C, 22),
                       make_dropout(p))


def make_block(C=6, p=0.0):
    return Block(make_norm(C), make_attention(C, p=p), make_norm(C),
                 make_feed_forward(C, p))


def freeze(layer):
    """Dropout on, with the mask of the next forward for ever after."""
    def dropouts(part):
        if isinstance(part, Dropout):
            yield part
        elif hasattr(part, "__dict__"):
            for inner in vars(part).values():
                yield from dropouts(inner)

    found = list(dropouts(layer))
    for dropout in found:
        dropout.training = True
    return found


# Linear


def test_linear_is_a_weighted_sum_plus_a_bias():
    layer, x = make_linear(3, 2), normal(4, 3)
    y = layer.forward(x)
    W, b = layer.weight.data, layer.bias.data
    for n in range(4):
        for o in range(2):
            wanted = sum(x[n, i] * W[i, o] for i in range(3)) + b[o]
            assert y[n, o] == pytest.approx(wanted, rel=1e-14)


def test_linear_adds_to_gradients_that_are_there():
    layer, x, dy = make_linear(3, 2), normal(4, 3), normal(4, 2, seed=7)
    layer.forward(x)
    layer.backward(dy)
    once = layer.weight.grad.copy(), layer.bias.grad.copy()
    layer.forward(x)
    layer.backward(dy)
    np.testing.assert_allclose(layer.weight.grad, 2 * once[0], rtol=1e-14)
    np.testing.assert_allclose(layer.bias.grad, 2 * once[1], rtol=1e-14)


# Embedding


def test_embedding_looks_rows_up():
    layer = Embedding(normal(5, 3))
    ids = np.array([[4, 0], [4, 2]])
    assert np.array_equal(layer.forward(ids), layer.weight.data[ids])


def test_gradient_of_embedding_counts_repeated_ids():
    layer, dy = Embedding(normal(5, 3)), normal(2, 4, 3, seed=1)
    ids = np.array([[1, 1, 4, 1], [4, 0, 1, 1]])
    layer.weight.grad[...] = 1.0
    layer.forward(ids)
    layer.backward(dy)
    wanted = np.ones((5, 3))
    for b in range(2):
        for t in range(4):
            wanted[ids[b, t]] += dy[b, t]
    np.testing.assert_allclose(layer.weight.grad, wanted, rtol=1e-13)


# LayerNorm


def test_layer_norm_matches_pytorch():
    layer = LayerNorm(4, np.float64)
    layer.weight.data[...] = expected("layernorm/weight")
    layer.bias.data[...] = expected("layernorm/bias")
    y = layer.forward(expected("layernorm/x"))
    assert error(y, expected("layernorm/y")) < 1e-13
    dx = layer.backward(expected("layernorm/dy"))
    for row in range(4):  # rows differ in size by 1000
        assert error(dx[row], expected("layernorm/dx")[row]) < 1e-9, row
    assert error(layer.weight.grad, expected("layernorm/dweight")) < 1e-13
    assert error(layer.bias.grad, expected("layernorm/dbias")) < 1e-13


def test_layer_norm_of_equal_numbers_is_its_bias():
    layer = make_norm(3)
    y = layer.forward(np.full((2, 3), 7.0))
    np.testing.assert_allclose(y, [layer.bias.data] * 2, atol=1e-10)


# GELU


def test_gelu_matches_pytorch():
    layer, x = GELU(), expected("gelu/x")
    np.testing.assert_allclose(layer.forward(x), expected("gelu/y"),
                               rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(layer.backward(np.ones_like(x)), expected("gelu/dx"),
                               rtol=1e-12, atol=1e-15)


def test_gelu_of_an_array_longer_than_a_piece():
    layer = GELU()
    x = normal(3, layer.piece // 2 + 1)
    y, slope = layer.forward(x).copy(), layer.slope.copy()
    for row in range(3):
        alone = GELU()
        assert np.array_equal(alone.forward(x[row]), y[row])
        assert np.array_equal(alone.slope, slope[row])


# Softmax and cross-entropy


def test_softmax_is_exp_over_the_sum_of_exp():
    z = normal(3, 4)
    wanted = [[math.exp(x) / sum(map(math.exp, row)) for x in row]
              for row in z.tolist()]
    np.testing.assert_allclose(softmax(z), wanted, rtol=1e-14)


def test_softmax_of_huge_logits_is_finite():
    z = np.array([[1000.0, 999.0, -1000.0], [-5000.0, -5000.0, -np.inf]])
    p = softmax(z)
    q = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(p, [[q, 1 - q, 0], [0.5, 0.5, 0]], rtol=1e-14)


def test_cross_entropy_matches_pytorch():
    layer = CrossEntropy()
    loss = layer.forward(expected("crossentropy/x"), expected("crossentropy/targets"))
    assert loss == pytest.approx(float(FIXTURE["crossentropy/loss"]), rel=1e-14)
    assert error(layer.backward(), expected("crossentropy/dx")) < 1e-14


def test_cross_entropy_is_the_mean_over_the_targets_that_count():
    z, targets = normal(2, 3, 4), np.array([[0, -1, 3], [-1, -1, 2]])
    terms = []
    for b, t, target in [(0, 0, 0), (0, 2, 3), (1, 2, 2)]:
        row = z[b, t].tolist()
        terms.append(math.log(sum(map(math.exp, row))) - row[target])
    loss = CrossEntropy().forward(z, targets)
    assert loss == pytest.approx(sum(terms) / 3, rel=1e-14)


def test_cross_entropy_divides_by_a_count_that_is_given():
    z, targets = normal(2, 4), np.array([0, -1])
    once, half = CrossEntropy(), CrossEntropy()
    assert half.forward(z, targets, 2) == pytest.approx(once.forward(z, targets) / 2)
    np.testing.assert_allclose(half.backward(), once.backward() / 2, rtol=1e-14)


def test_cross_entropy_leaves_the_logits_alone():
    z = normal(2, 4)
    before = z.copy()
    layer = CrossEntropy()
    layer.forward(z, np.array([1, -1]))
    layer.backward()
    assert np.array_equal(z, before)


def test_targets_that_are_all_minus_one_are_refused():
    with pytest.raises(ValueError, match="all of them are -1"):
        CrossEntropy().forward(normal(2, 4), np.array([-1, -1]))


# Dropout


def test_dropout_does_nothing_unless_training():
    layer, x = make_dropout(0.5), normal(3, 4)
    assert np.array_equal(layer.forward(x), x)
    assert np.array_equal(layer.backward(x), x)


def test_dropout_zeroes_its_share_and_scales_the_rest():
    layer = make_dropout(0.3)
    layer.training = True
    y = layer.forward(np.ones(100_000))
    zeros = (y == 0).mean()
    assert abs(zeros - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 100_000)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-14)


def test_dropout_draws_a_new_mask_for_each_forward():
    layer = make_dropout(0.5)
    layer.training = True
    first = layer.forward(np.ones(100)).copy()
    assert not np.array_equal(first, layer.forward(np.ones(100)))


def test_dropout_sends_the_gradient_through_the_mask_of_the_forward():
    layer = make_dropout(0.5)
    layer.training = True
    y = layer.forward(np.ones((10, 10))).copy()
    assert np.array_equal(layer.backward(np.ones((10, 10))), y)


# Feed-forward, attention, block


@pytest.mark.parametrize("make", [make_feed_forward, make_attention, make_block])
def test_backward_uses_the_dropout_masks_of_its_forward(make):
    layer, x, dy = make(p=0.5), normal(2, 4, 6), normal(2, 4, 6, seed=3)
    dropouts = freeze(layer)
    layer.forward(x)
    masks = [dropout.mask.copy() for dropout in dropouts]
    dx = layer.backward(dy).copy()
    for dropout, mask in zip(dropouts, masks):
        assert np.array_equal(dropout.mask, mask)
        dropout.frozen = True
    layer.forward(x)
    assert np.array_equal(layer.backward(dy), dx)


def test_split_heads_takes_each_head_its_own_columns():
    x = np.arange(2 * 3 * 12.0).reshape(2, 3, 12)      # B, T, 3 * H * D = 3 * 2 * 2
    heads = split_heads(x, 2, parts=3)
    assert heads.shape == (3, 2, 2, 3, 2)
    for part, b, h, t, d in np.ndindex(heads.shape):
        assert heads[part, b, h, t, d] == x[b, t, part * 4 + h * 2 + d]


def test_causal_mask_by_hand():
    never = -np.inf
    assert causal_mask(3, np.float64).tolist() == [
        [0, never, never], [0, 0, never], [0, 0, 0],
    ]


def test_attention_by_hand():
    B, T, C, H = 2, 4, 6, 2
    D = C // H
    layer, x = make_attention(C, H), normal(B, T, C)
    y = layer.forward(x)
    W, b = layer.qkv.weight.data, layer.qkv.bias.data
    for s in range(B):
        mixed = np.zeros((T, C))
        q, k, v = np.split(x[s] @ W + b, 3, axis=1)
        for h in range(H):
            own = slice(h * D, (h + 1) * D)
            for t in range(T):
                scores = [q[t, own] @ k[u, own] / math.sqrt(D) for u in range(t + 1)]
                total = sum(map(math.exp, scores))
                for u, score in enumerate(scores):
                    mixed[t, own] += math.exp(score) / total * v[u, own]
        wanted = mixed @ layer.project.weight.data + layer.project.bias.data
        np.testing.assert_allclose(y[s], wanted, rtol=1e-12, atol=1e-13)


def test_attention_sees_the_past_and_itself_but_not_the_future():
    layer, x = make_attention(), normal(1, 4, 6)
    before = layer.forward(x).copy()
    for t in range(4):
        changed = x.copy()
        changed[0, t] += 1.0
        moved = np.abs(layer.forward(changed) - before).max(axis=2)[0] > 1e-9
        assert moved.tolist() == [u >= t for u in range(4)]


def test_a_block_adds_to_the_stream():
    block, x = make_block(), normal(1, 3, 6)
    block.attention.project.weight.data[...] = 0
    block.attention.project.bias.data[...] = 0
    block.feed_forward.narrow.weight.data[...] = 0
    block.feed_forward.narrow.bias.data[...] = 0
    assert np.array_equal(block.forward(x), x)


each_layer = pytest.mark.parametrize("make", [
    lambda: make_linear(6, 6), lambda: make_norm(6), GELU, make_feed_forward,
    make_attention, make_block,
], ids=["linear", "norm", "gelu", "feed_forward", "attention", "block"])


@each_layer
def test_layers_change_neither_their_input_nor_the_gradient_given_to_them(make):
    assert_input_untouched(make(), normal(2, 4, 6))


@each_layer
def test_layers_give_the_same_after_an_input_of_another_size(make):
    """The workspaces are kept; nothing of the larger input may be left in them."""
    layer, x, dy = make(), normal(2, 3, 6), normal(2, 3, 6, seed=1)
    y = layer.forward(x).copy()
    dx = layer.backward(dy).copy()
    layer.backward(layer.forward(normal(4, 5, 6, seed=2)).copy())
    assert np.array_equal(layer.forward(x), y)
    assert np.array_equal(layer.backward(dy), dx)


@each_layer
def test_two_layers_of_a_kind_in_a_row_do_not_spoil_each_others_gradients(make):
    """They hand the gradient down in the same scratch array."""
    class Two:
        def __init__(self):
            self.first, self.second = make(), make()

        def forward(self, x):
            return self.second.forward(self.first.forward(x))

        def backward(self, dy):
            return self.first.backward(self.second.backward(dy))

    assert check_layer(Two(), normal(2, 4, 6)) < 1e-6


# The instrument


def test_relative_error_is_a_fraction_of_the_largest_element():
    assert relative_error(np.array([1.0, 10.0]), np.array([2.0, 10.0])) == 0.1


def test_check_layer_rejects_a_wrong_backward():
    class Wrong(Linear):
        def backward(self, dy):
            return 1.01 * super().backward(dy)

    assert check_layer(Wrong(normal(3, 2)), normal(4, 3)) > 1e-3
