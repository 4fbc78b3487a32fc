"""Graders for chapter 7: attention."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    compare_layers, float32, grader, GRADERS, normal, Race, rows_to_one,
    time_backward,
)
from exercises.diagnose import agree, Array, check, Untouched


@grader("causal-mask")
def grade_causal_mask(mine: Module, book: Module) -> Race:
    for dtype in (np.float64, np.float32):
        for length in (4, 1):
            got, right = mine.causal_mask(length, dtype), book.causal_mask(length, dtype)
            ones, inf = np.ones((length, length)), np.full((length, length), -np.inf)
            hidden = np.asarray(got)[np.isneginf(right)] if np.shape(got) == right.shape \
                else np.zeros(0)
            if hidden.size and np.isfinite(hidden).all() and hidden.max() < -10:
                raise Wrong(f"The mask has {hidden[0]:g} where -inf belongs: only e to that "
                            "is exactly 0, whatever is added.")
            check("The mask", got, right, {} if length == 1 else {
                "hides the past and shows the future: row i is who looks, column j what is "
                "looked at": np.tril(inf, k=-1),
                "hides the diagonal: a position may look at itself": np.triu(inf),
                "lets each position look one into the future": np.triu(inf, k=2),
                "hides the past, and the next position besides: it is the other triangle":
                    np.tril(inf, k=1),
                "hides nothing: all positions see the future": 0 * ones,
                "has ones and zeros; what is added to a score must be 0 or -inf":
                    np.tril(ones),
                "has ones where -inf belongs": np.triu(ones, k=1),
                "has +inf where -inf belongs": -np.triu(inf, k=1)})
    return lambda module: lambda: module.causal_mask(64, np.float32)


@grader("split-heads")
def grade_split_heads(mine: Module, book: Module) -> Race:
    B, T, H, D = 2, 3, 4, 5
    for parts in (3, 1):
        x = np.arange(B * T * parts * H * D, dtype=np.float64).reshape(B, T, -1)
        with Untouched(x=x):
            got = mine.split_heads(x, H, parts) if parts > 1 else mine.split_heads(x, H)
        check("The result", got, book.split_heads(x, H, parts), {
            "has the right shape and the wrong numbers: it was reshaped where a transpose "
            "is meant": x.reshape(parts, B, H, T, D),
            "has heads and parts interleaved: in a row, all of q stands before all of k":
                x.reshape(B, T, H, parts, D).transpose(3, 0, 2, 1, 4),
            "has the heads' elements interleaved: each head is D neighbours":
                x.reshape(B, T, parts, D, H).transpose(2, 0, 4, 1, 3),
            "has time and head mixed up": x.reshape(B, T, parts, H, D).transpose(
                2, 0, 1, 3, 4).reshape(parts, B, H, T, D)})
        if not np.shares_memory(got, x):
            raise Wrong("The result is right, but a copy: it must be a view, since the "
                        "results are written through it.")
    rows = normal(8, 64, 192, dtype=np.float32)
    return lambda module: lambda: module.split_heads(rows, 4, 3)


B, T, H, D = 4, 5, 2, 9  # of the attention that is graded: √D is 3
FACTORS = {"√D": 3.0, "D": 9.0, "the number of heads H": 2.0, "T": 5.0, "B": 4.0}


def make_attention(module: Module, dtype: Any = np.float64, drop: float = 0.0) -> Any:
    qkv, project = (module.Linear(0.4 * normal(H * D, n * H * D, seed=n, dtype=dtype))
                    for n in (3, 1))
    qkv.bias.data[...] = 0.1 * normal(3 * H * D, seed=5)
    dropouts = [module.Dropout(drop, np.random.default_rng(seed)) for seed in (6, 7)]
    for dropout in dropouts:
        dropout.training = True
    return module.CausalSelfAttention(qkv, project, H, book_mask(8, dtype), *dropouts)


def book_mask(length: int, dtype: Any) -> Array:
    return np.triu(np.full((length, length), -np.inf, dtype), k=1)


def heads(x: Array) -> Array:
    return x.reshape(B, T, -1, H, D).transpose(2, 0, 3, 1, 4)


def grade_forward(mine: Module, book: Module, weights_only: bool) -> Race:
    """Of weigh-the-positions (the weights) or blend-the-values (the output)."""
    x = normal(B, T, H * D)
    ours, right = make_attention(mine), make_attention(book)
    y, right_y = ours.forward(x), right.forward(x).copy()
    saved = getattr(ours, "saved", None)
    if not isinstance(saved, tuple) or len(saved) != 7:
        raise Wrong("self.saved must be (q, k, v, e, dropped, sums, o) for `backward`.")
    q, k, v, e, _, sums, o = saved
    p = right.saved[3] / right.saved[5]
    scores = q @ k.transpose(0, 1, 3, 2)
    mask = right.mask[:T, :T]
    check("sums", np.zeros(np.shape(sums)), np.zeros((B, H, T, 1)))
    check("e", np.zeros(np.shape(e)), np.zeros((B, H, T, T)))
    if not weights_only:
        mistakes = {
            "is not divided by the sums of the weights": o_to_y(right, e @ v),
            "is multiplied by the sums, not divided": o_to_y(right, e @ v * sums),
            "is divided by the sums twice": o_to_y(right, e @ v / sums**2),
            "has its heads joined with a reshape where a transpose is meant":
                right.project.forward((p @ v).reshape(B, T, H * D)).copy(),
            "is the plain mean of the values": o_to_y(
                right, np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape)),
            "blends the keys, not the values": o_to_y(right, p @ k),
            "blends the queries, not the values": o_to_y(right, p @ q)}
        check("The output", y, right_y, mistakes, FACTORS)
        check("o in self.saved", o, p @ v, {"is not divided by the sums": e @ v}, FACTORS)
    else:
        total = e.sum(axis=-1, keepdims=True)
        if not agree(total, sums):
            if agree(total, np.ones_like(total)):
                raise Wrong("The rows of e are divided by their sums here already; o is "
                            "divided by `sums` later, so that would be twice.")
            check("sums", sums, total, {
                "is of the columns: each row has its sum": np.broadcast_to(
                    e.sum(axis=-2)[..., None], total.shape)})
        check("e / sums", e / sums, p, {
            "lacks the mask: each position sees the future": rows_to_one(scores),
            "is scaled twice: q was multiplied by 1/√D before":
                rows_to_one(scores / 3 + mask),
            "is scaled by √D twice": rows_to_one(scores * 3 + mask),
            "has the mask transposed: each position sees only the future":
                rows_to_one(scores + mask.T),
            "has queries and keys exchanged":
                rows_to_one(scores.transpose(0, 1, 3, 2) + mask),
            "is not exponentiated: weights are e to the score": scores / sums}, FACTORS)
    check_more_of_forward(mine, book, x)
    rows = normal(8, 64, 64, dtype=np.float32)

    def race(module: Module) -> Callable[[], object]:
        layer = time_attention(module)
        return lambda: layer.forward(rows)
    return race


def o_to_y(layer: Any, o: Array) -> Array:
    """What the layer's projection makes of the heads' outputs, (B, H, T, D)."""
    return layer.project.forward(o.transpose(0, 2, 1, 3).reshape(B, T, -1)).copy()


def time_attention(module: Module) -> Any:
    none = module.Dropout(0.0, np.random.default_rng(0))
    return module.CausalSelfAttention(
        module.Linear(0.1 * normal(64, 192, dtype=np.float32)),
        module.Linear(0.1 * normal(64, 64, dtype=np.float32)),
        4, book_mask(64, np.float32), none, none)


def check_more_of_forward(mine: Module, book: Module, x: Array) -> None:
    """The future, the cache, large scores, dropout, and float32."""
    layer = make_attention(mine)
    before, later = layer.forward(x).copy(), x.copy()
    later[:, -1] += 1
    if not agree(layer.forward(later)[:, :-1], before[:, :-1]):
        raise Wrong("The outputs before change with the last position's input: it looks "
                    "into the future.")
    cached = make_attention(mine)
    cache = Everything()
    try:
        parts = [cached.forward(x[:, :3], cache).copy(),
                 cached.forward(x[:, 3:], cache).copy()]
    except ValueError as error:
        raise Wrong("With a cache there are more keys than queries (S > T), and it fails: "
                    f"{error}.") from None
    if not agree(np.concatenate(parts, axis=1), before):
        raise Wrong("With a cache it differs: the T queries are the last of the S "
                    "positions, so they need the last T rows of the mask up to S.")
    with np.errstate(all="ignore"):
        large = make_attention(mine).forward(60 * x)
    if not np.isfinite(large).all():
        raise Wrong("With large scores the exponential overflows: take the largest of each "
                    "row away first.")
    check("The output with large scores", large, make_attention(book).forward(60 * x))
    for sign in (1, -1):
        layers = [make_attention(module) for module in (mine, book)]
        for layer in layers:
            layer.qkv.bias.data[: H * D] += 20
            layer.qkv.bias.data[H * D : 2 * H * D] += 20 * sign
        with np.errstate(all="ignore"):
            got, right = (layer.forward(x) for layer in layers)
        if not np.isfinite(got).all():
            raise Wrong(f"If all scores are near {sign * 1200:+}, it fails: take the largest "
                        "of each row away first.")
        check(f"The output if all scores are near {sign * 1200:+}", got, right)
    ours, right = (make_attention(m, drop=0.5).forward(x) for m in (mine, book))
    if not agree(ours, right):
        raise Wrong("With dropout it differs: the weights e go through "
                    "self.drop_weights.forward once, and `sums` is of what they were before.")
    x32 = x.astype(np.float32)
    ours, right = (make_attention(module, np.float32).forward(x32)
                   for module in (mine, book))
    check("The output for float32", ours, right)


class Everything:
    """A cache that remembers by concatenation."""

    def __init__(self) -> None:
        self.kv: list[Array] = []

    def append(self, k: Array, v: Array) -> list[Array]:
        new = [k.copy(), v.copy()]
        self.kv = [np.concatenate(pair, axis=2) for pair in zip(self.kv or new, new)] \
            if self.kv else new
        return self.kv


@grader("weigh-the-positions")
def grade_weights(mine: Module, book: Module) -> Race:
    return grade_forward(mine, book, weights_only=True)


@grader("blend-the-values")
def grade_blend(mine: Module, book: Module) -> Race:
    return grade_forward(mine, book, weights_only=False)


def grade_attention_gradients(mine: Module, book: Module) -> Race:
    """What arrives at qkv.backward, part by part, and then the whole layer."""
    x, dy = normal(B, T, H * D), normal(B, T, H * D, seed=1)
    ours, right = spy_on(make_attention(mine)), spy_on(make_attention(book))
    for layer in (ours, right):
        layer.forward(x)
    q, k, v, e, _, sums, _ = right.saved
    p, scaled = e / sums, q.copy()
    with Untouched(dy=dy):
        got_dx = ours.backward(dy)
        right.backward(dy)
    if not ours.seen:
        raise Wrong("self.qkv.backward is never called, so nothing reaches x.")
    check("What is passed to self.qkv.backward", 0 * ours.seen[0], 0 * right.seen[0])
    got, wanted = heads(ours.seen[0]), heads(right.seen[0])
    do = heads(dy @ right.project.weight.data.T)[0]
    dp = do @ v.transpose(0, 1, 3, 2)

    def lower(da: Array) -> dict[str, Array]:
        return {"dq": da @ k / 3, "dk": da.transpose(0, 1, 3, 2) @ scaled}

    inner = (dp * p).sum(axis=-1, keepdims=True)
    usual = {
        "lacks what softmax takes away: from each row of dp its mean under p": p * dp,
        "lacks the factor p of softmax": dp - inner,
        "lacks the factor e of softmax": (dp - inner) / sums,
        "has a plain sum of dp where the sum of dp · p belongs":
            p * (dp - dp.sum(axis=-1, keepdims=True)),
        "has what softmax takes away before the factor p: both terms have it":
            p * dp - inner,
        "has what softmax takes away before the factor e: both terms have it":
            p * dp - inner / sums,
        "is divided by the sums twice": p * (dp - inner) / sums,
        "has the sum of dp · e where that of dp · p belongs": p * dp - e * inner,
        "goes past softmax, as if p were the scores": dp,
        "goes past softmax, as if e were the scores": dp / sums,
        "has the wrong sign before what softmax takes away": p * (dp + inner),
        "has the wrong axis in the sum of dp · p: it goes along a row":
            p * (dp - (dp * p).sum(axis=-2, keepdims=True))}
    wrong_v = {
        "lacks the division by the sums": e.transpose(0, 1, 3, 2) @ do,
        "has the weights untransposed: a value gets from all who looked at it": p @ do,
        "has e untransposed: a value gets from all who looked at it": e @ (do / sums),
        "does not go back through self.project": p.transpose(0, 1, 3, 2) @ heads(dy)[0],
        "is do itself: it must be blended by the weights": do}
    da = p * (dp - inner)
    wrong_q = {"has da transposed": da.transpose(0, 1, 3, 2) @ k / 3,
               "has the queries where the keys belong": da @ scaled / 3}
    wrong_k = {"has da untransposed": da @ scaled,
               "has the keys where the queries belong": da.transpose(0, 1, 3, 2) @ k}
    check("dv", got[2], wanted[2], wrong_v, FACTORS)
    for name, i, more in (("dq", 0, wrong_q), ("dk", 1, wrong_k)):
        cases = {sentence: lower(wrong)[name] for sentence, wrong in usual.items()}
        check(name, got[i], wanted[i], {**cases, **more}, FACTORS)
    if got_dx is None:
        raise Wrong("`backward` returns None: is a `return` missing?")
    dropped = [spy_on(make_attention(module, drop=0.5)) for module in (mine, book)]
    for layer in dropped:
        layer.forward(x)
        layer.backward(dy)
    if not agree(dropped[0].seen[0], dropped[1].seen[0]):
        raise Wrong("With dropout it differs: gradients go back through drop_output and "
                    "drop_weights, too.")
    compare_layers(make_attention, mine, book, [(x, dy)])
    compare_layers(lambda module: make_attention(module, np.float32), mine, book,
                   [float32(x, dy), float32(x[:, :3], dy[:, :3])])
    return time_backward(time_attention, *(
        normal(8, 64, 64, dtype=np.float32) for _ in range(2)))


def spy_on(layer: Any) -> Any:
    """The same attention; its `seen` gathers what its qkv is given going back."""
    layer.seen, backward = [], layer.qkv.backward

    def remember(dqkv: Array) -> Array:
        layer.seen.append(dqkv.copy())
        return backward(dqkv)
    layer.qkv.backward = remember
    return layer


for _name in ("gradient-of-the-scores", "attention-backward"):
    GRADERS[_name] = grade_attention_gradients
