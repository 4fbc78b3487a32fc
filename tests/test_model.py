"""The whole model: gradients, causality, precision, and what it refuses."""
import copy
import math
import pickle

import numpy as np
import pytest

from simple_llm.checkpoint import UserError
from simple_llm.model import Config, SimpleLLM

V, L = 7, 5
IDS = np.array([[1, 3, 3, 0, 3], [5, 3, 1, 1, 6], [0, 0, 0, 0, 0]])      # 2, 4: never
TARGETS = np.array([[3, 3, 0, 3, 2], [-1, 1, -1, 6, 2], [0, -1, -1, -1, -1]])


def make_model(dtype=np.float64, dropout=0.0, seed=0, shake=True, **sizes):
    """A small model; shaken, so that no bias is 0, no gain 1 and nothing is small."""
    sizes = {"vocab_size": V, "context_length": L, "d_model": 4, "n_layers": 2,
             "n_heads": 2, **sizes}
    model = SimpleLLM(Config(**sizes, dropout=dropout), seed, dtype)
    if shake:
        model.data += np.random.default_rng(1).normal(0, 0.4, model.data.size)
    return model


def slope(model, array, i, step=1e-4):
    middle, values = array[i], []
    for k in (-2, -1, 1, 2):
        array[i] = middle + k * step
        values.append(model.loss(IDS, TARGETS))
    array[i] = middle
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def assert_gradients_agree(model):
    model.grad[...] = 1.0                      # backward has to add to it
    model.loss(IDS, TARGETS)
    model.backward()
    for name, p in model.named_parameters():
        ours = p.grad - 1.0
        theirs = np.zeros_like(ours)
        for i in np.ndindex(theirs.shape):
            theirs[i] = slope(model, p.data, i)
        off = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert off < 1e-8, (name, off)


# Gradients


def test_every_parameters_gradient_is_that_of_the_definition():
    assert_gradients_agree(make_model())


def test_every_parameters_gradient_with_dropout_masks_held_still():
    model = make_model(dropout=0.3)
    model.train()
    model.loss(IDS, TARGETS)
    for dropout in model.dropouts:
        dropout.frozen = True
    assert_gradients_agree(model)


def test_one_head_and_one_layer_too():
    assert_gradients_agree(make_model(n_layers=1, n_heads=1))


def test_the_tied_weight_learns_as_the_output():
    """Tokens 2 and 4 are never read, yet scored: all their gradient is the output's."""
    model = make_model()
    model.loss(IDS, TARGETS)
    model.backward()
    h = model.run(IDS).reshape(-1, 4).copy()
    z = h @ model.tokens.weight.data.T
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    counts = TARGETS.reshape(-1) >= 0
    for token in (2, 4):
        right = TARGETS.reshape(-1) == token
        wanted = ((p[:, token] - right) * counts) @ h / counts.sum()
        np.testing.assert_allclose(model.tokens.weight.grad[token], wanted, rtol=1e-9)


def test_the_tied_weight_learns_as_the_input():
    """What the output alone would give is not the gradient of a token that is read."""
    model = make_model()
    model.loss(IDS, TARGETS)
    model.backward()
    whole = model.tokens.weight.grad.copy()
    h = model.run(IDS).reshape(-1, 4).copy()
    z = h @ model.tokens.weight.data.T
    dz = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    flat = TARGETS.reshape(-1)
    rows = np.flatnonzero(flat >= 0)
    dz[rows, flat[rows]] -= 1
    dz[flat < 0] = 0
    as_input = whole - dz.T @ h / len(rows)
    np.testing.assert_allclose(as_input[[2, 4]], 0, atol=1e-13)
    for token in (0, 1, 3, 5, 6):
        assert np.abs(as_input[token]).max() > 1e-6
    table = model.tokens.weight.data
    wanted = np.zeros(4)
    for c in range(4):                         # token 3, as the input alone
        for sign in (1, -1):
            table[3, c] += sign * 1e-5
            h = model.run(IDS).reshape(-1, 4)
            table[3, c] -= sign * 1e-5
            z = h @ table.T
            losses = np.log(np.exp(z).sum(axis=1))[rows] - z[rows, flat[rows]]
            wanted[c] += sign * losses.mean() / 2e-5
    np.testing.assert_allclose(as_input[3], wanted, rtol=1e-6, atol=1e-9)


def test_gradients_of_two_batches_add_up():
    model = make_model()
    model.loss(IDS[:1], TARGETS[:1])
    model.backward()
    first = model.grad.copy()
    model.loss(IDS[1:], TARGETS[1:])
    model.backward()
    both = model.grad.copy()
    model.zero_grad()
    model.loss(IDS[1:], TARGETS[1:])
    model.backward()
    np.testing.assert_allclose(both, first + model.grad, rtol=1e-12, atol=1e-15)


def test_a_second_backward_raises():
    model = make_model()
    model.loss(IDS, TARGETS)
    model.backward()
    before = model.grad.copy()
    with pytest.raises(RuntimeError, match="loss"):
        model.backward()
    assert np.array_equal(model.grad, before)


def test_backward_without_a_loss_raises():
    with pytest.raises(RuntimeError, match="loss"):
        make_model().backward()


def test_backward_after_another_forward_raises():
    """forward() has overwritten what backward() needs."""
    model = make_model()
    model.loss(IDS, TARGETS)
    model.forward(IDS[:1])
    with pytest.raises(RuntimeError, match="loss"):
        model.backward()


# Loss


def test_loss_is_the_mean_surprise_of_the_logits():
    model = make_model()
    logits, total, count = model.forward(IDS), 0.0, 0
    for b, t in np.ndindex(TARGETS.shape):
        if TARGETS[b, t] >= 0:
            row = logits[b, t].tolist()
            total += math.log(sum(map(math.exp, row))) - row[TARGETS[b, t]]
            count += 1
    assert model.loss(IDS, TARGETS) == pytest.approx(total / count, rel=1e-13)


def test_loss_with_no_target_is_refused_and_leaves_no_gradient():
    model = make_model()
    with pytest.raises(ValueError, match="-1"):
        model.loss(IDS, np.full_like(TARGETS, -1))
    with pytest.raises(RuntimeError):
        model.backward()


def test_a_new_model_expects_every_token_about_equally():
    model = make_model(shake=False, vocab_size=30, d_model=32, n_heads=4)
    loss = model.loss(np.arange(30).reshape(6, 5), np.arange(30)[::-1].reshape(6, 5))
    assert abs(loss - math.log(30)) < 0.5


def test_shares_of_a_batch_with_the_whole_count_add_up_to_its_loss():
    model = make_model()
    count = int((TARGETS >= 0).sum())
    parts = [model.loss(IDS[i:i + 1], TARGETS[i:i + 1], count) for i in range(3)]
    assert sum(parts) == pytest.approx(model.loss(IDS, TARGETS), rel=1e-13)


# Causality and inputs


def test_a_token_changes_no_logits_before_it():
    model = make_model()
    ids = IDS[:1].copy()
    before = model.forward(ids)
    for t in range(L):
        changed = ids.copy()
        changed[0, t] = (changed[0, t] + 1) % V
        moved = np.abs(model.forward(changed) - before).max(axis=2)[0] > 1e-9
        assert moved.tolist() == [u >= t for u in range(L)]


def test_rows_of_a_batch_do_not_see_each_other():
    model = make_model()
    together = model.forward(IDS)
    for b in range(3):
        np.testing.assert_allclose(model.forward(IDS[b:b + 1])[0], together[b],
                                   rtol=1e-12, atol=1e-14)


def test_the_same_token_scores_differently_at_another_position():
    logits = make_model().forward(IDS[2:])[0]
    assert all(np.abs(logits[t] - logits[0]).max() > 1e-3 for t in range(1, L))


def test_forward_and_loss_change_neither_ids_nor_targets_nor_weights():
    model, ids, targets = make_model(), IDS.copy(), TARGETS.copy()
    weights = model.data.copy()
    model.forward(ids)
    model.loss(ids, targets)
    model.backward()
    assert np.array_equal(ids, IDS) and np.array_equal(targets, TARGETS)
    assert np.array_equal(model.data, weights)


def test_logits_are_not_overwritten_by_the_next_forward():
    model = make_model()
    first = model.forward(IDS)
    kept = first.copy()
    model.forward(IDS[::-1])
    model.loss(IDS, TARGETS)
    assert np.array_equal(first, kept)


# Precision


def arrays_in(thing, seen):
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (np.ndarray, np.floating)):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from arrays_in(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from arrays_in(value, seen)
    elif hasattr(thing, "__dict__"):
        yield from arrays_in(vars(thing), seen)


def test_nothing_in_a_float32_model_is_ever_float64():
    from simple_llm.optimizer import AdamW, clip_gradients
    model = make_model(np.float32, dropout=0.2)
    model.train()
    optimizer = AdamW(model)
    for _ in range(2):
        model.loss(IDS, TARGETS)
        model.backward()
        clip_gradients(model, 1.0)
        optimizer.step(1e-3)
    list(model.generate([1, 2], max_new_tokens=8, seed=0))
    found = {array.dtype for array in arrays_in(optimizer, set())}
    assert np.dtype(np.float32) in found
    assert np.dtype(np.float64) not in found


def test_logits_and_gradients_of_a_float32_model_are_float32():
    model = make_model(np.float32)
    assert model.forward(IDS).dtype == np.float32
    model.loss(IDS, TARGETS)
    model.backward()
    assert {p.grad.dtype for _, p in model.named_parameters()} == {np.dtype(np.float32)}
    assert model.next_logits(IDS[:1], model.make_caches(1)).dtype == np.float32


def test_the_loss_is_a_plain_float():
    assert type(make_model(np.float32).loss(IDS, TARGETS)) is float


# Parameters


def test_parameters_are_views_into_one_vector():
    model = make_model()
    for _, p in model.named_parameters():
        assert np.shares_memory(p.data, model.data)
        assert np.shares_memory(p.grad, model.grad)
    assert sum(p.data.size for _, p in model.named_parameters()) == model.data.size


def test_moving_the_parameters_into_one_vector_changes_none(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SimpleLLM, "flatten", lambda self: None)
        apart = make_model(shake=False)
    for (name, p), (_, before) in zip(
            make_model(shake=False).named_parameters(), apart.named_parameters(), strict=True):
        assert np.array_equal(p.data, before.data), name


def test_weights_lie_by_columns_and_tables_by_rows_in_copies_too():
    model = make_model()
    model.loss(IDS, TARGETS)
    model.backward()
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(each.forward(IDS), model.forward(IDS))
        for name, p in each.named_parameters():
            by_columns = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")
            assert np.shares_memory(p.data, each.data) and p.grad.flags == p.data.flags
            if p.data.ndim == 2:
                assert p.data.flags.f_contiguous == by_columns, name


def test_the_matrices_slice_holds_all_matrices_and_nothing_else():
    model = make_model()
    model.data[...] = 0
    model.data[model.matrices] = 1
    for name, p in model.named_parameters():
        assert (p.data == (p.data.ndim == 2)).all(), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    assert np.array_equal(make_model(seed=3).data, make_model(seed=3).data)
    assert not np.array_equal(make_model(seed=3).data, make_model(seed=4).data)


def test_the_number_of_parameters_is_that_of_gpt2():
    c, n = 4, 2
    block = (2 * c) + (c * 3 * c + 3 * c) + (c * c + c) + (2 * c)
    block += (c * 4 * c + 4 * c) + (4 * c * c + c)
    assert make_model().data.size == V * c + L * c + n * block + 2 * c


def test_two_models_can_share_their_weights_but_not_their_gradients():
    model, twin = make_model(), make_model()
    twin.attach(model.data, twin.grad)
    model.data += 0.1
    assert np.array_equal(twin.forward(IDS), model.forward(IDS))
    twin.loss(IDS, TARGETS)
    twin.backward()
    assert twin.grad.any() and not model.grad.any()


# What it refuses


@pytest.mark.parametrize("ids", [[[0, V]], [[-1, 0]]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(UserError, match="outside 0..6"):
        make_model().forward(np.array(ids))


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match="context holds 5"):
        make_model().forward(np.zeros((1, L + 1), int))


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0), (1, 2, 3)])
def test_ids_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        make_model().forward(np.zeros(shape, int))


@pytest.mark.parametrize("sizes", [
    {"n_heads": 3}, {"n_layers": 0}, {"vocab_size": 0}, {"context_length": -1},
    {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")},
])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError):
        Config(**{"vocab_size": 5, "context_length": 5, "d_model": 4, **sizes})


# Dropout in the model


def test_train_and_eval_switch_dropout():
    model = make_model(dropout=0.5)
    quiet = model.forward(IDS)
    assert np.array_equal(model.forward(IDS), quiet)
    model.train()
    assert not np.array_equal(model.forward(IDS), quiet)
    model.eval()
    assert np.array_equal(model.forward(IDS), quiet)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_learns_by_itself(clone):
    model = make_model()
    twin = clone(model)
    before = model.data.copy()
    for one in (model, twin):
        one.zero_grad()
        one.loss(IDS, IDS)
        one.backward()
    np.testing.assert_array_equal(twin.grad, model.grad)
    twin.data -= twin.grad
    assert np.array_equal(model.data, before)
    assert not np.array_equal(twin.forward(IDS), model.forward(IDS))
