"""The graders: each compares a reader's chunk with the book's, and says what differs.

A grader is given two modules, the one with the reader's chunk and the one with the
book's. It raises Wrong with one sentence, or returns the race: a function that takes a
module and returns the call to be timed. Beside the right result each knows what the usual
mistakes lead to, and so can name them.
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.diagnose import (
    Array, Mistakes, Untouched, agree, check, check_cases, check_gradient,
)
from simple_llm.gradcheck import find_parameters

Race = Callable[[Module], Callable[[], object]]
Grader = Callable[[Module, Module], Race]
GRADERS: dict[str, Grader] = {}


def grader(name: str) -> Callable[[Grader], Grader]:
    def remember(function: Grader) -> Grader:
        GRADERS[name] = function
        return function
    return remember


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def compare_layers(make: Callable[[Module], Any], mine: Module, book: Module,
                   runs: list[tuple[Array, Array]], mistakes: dict[str, Mistakes] = {},
                   factors: dict[str, float] = {}) -> None:
    """Run two layers forward and backward on each pair (x, dy), and compare them."""
    layers = make(mine), make(book)
    parameters = [dict(find_parameters(layer)) for layer in layers]
    for number, (x, dy) in enumerate(runs):
        if number:
            mistakes = {}          # they were computed for the first
        for p in (*parameters[0].values(), *parameters[1].values()):
            p.grad[...] = 1
        before = {name: p.grad for name, p in parameters[0].items()}
        with Untouched(x=x):
            y, right_y = (layer.forward(x) for layer in layers)
        check("The output", y, right_y, mistakes.get("y", {}), factors)
        with Untouched(x=x, dy=dy):
            dx, right_dx = (layer.backward(dy) for layer in layers)
        for name, p in parameters[0].items():
            check_gradient(f"{name}.grad", p, before[name], parameters[1][name].grad - 1,
                           mistakes.get(name, {}), factors)
        if right_dx is not None:
            check("dx", dx, right_dx, mistakes.get("dx", {}), factors)


def float32(*arrays: Array) -> tuple[Array, ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def time_backward(make: Callable[[Module], Any], x: Array, dy: Array) -> Race:
    def race(module: Module) -> Callable[[], object]:
        layer = make(module)
        layer.forward(x)
        return lambda: layer.backward(dy)
    return race


# Chapter 3

@grader("pad-the-rows")
def grade_pad_rows(mine: Module, book: Module) -> Race:
    rows = [[5, 6, 7, 2], [8, 2], [9, 4, 2]]
    copy = [list(row) for row in rows]
    got, right = mine.pad_rows(rows), book.pad_rows(rows)
    if got is None:
        raise Wrong("pad_rows returns None: is a `return` missing?")
    if rows != copy:
        raise Wrong("It changes the rows that it was given.")
    ids, targets = right
    length = [len(row) for row in rows]
    late, early, last, padded = ids.copy(), targets.copy(), ids.copy(), targets.copy()
    for b, row in enumerate(rows):
        late[b, : len(row)] = row
        early[b, : len(row)] = [*row[1:], -1]
        last[b, len(row) : len(row) + 1] = 2
        padded[b, len(row) :] = 0
    check("ids", got.ids, ids, {
        "has no <bos> in front: position 0 sees <bos>, and all else moves by one": late,
        "has <eos> in it, which has nothing to predict": last,
        "is padded with -1, which is no token": np.where(
            np.arange(max(length)) < np.array(length)[:, None], ids, -1)})
    check("targets", got.targets, targets, {
        "is moved by one: the target at t is what follows the input at t, and <bos> "
        "stands before the row already": early,
        "is <pad> behind the end, so that the model is graded on it; put -1": padded,
        "is the input: every position would only have to copy":
            np.where(targets < 0, -1, ids)})
    return lambda module: lambda: module.pad_rows(rows)


# Chapter 4

@grader("ngram")
def grade_ngram(mine: Module, book: Module) -> Race:
    text = [1, 5, 6, 5, 6, 7, 5, 2]
    models = [module.NGram(3, 9) for module in (mine, book)]
    for model in models:
        model.learn(text)
    ours, right = models
    if sum(ours.counts.values()) == 0 or sum(ours.totals.values()) == 0:
        raise Wrong("`learn` leaves `counts` or `totals` empty.")
    if max(map(len, ours.counts)) > 3:
        raise Wrong("`counts` has contexts that are too long: at most n - 1 tokens, and "
                    "the one that follows.")
    if any(len(key) == 1 and key[0] == 1 for key in ours.counts):
        raise Wrong("`learn` counts <bos> as if it had been predicted: begin with the "
                    "token behind it.")
    if ours.counts and () not in ours.totals:
        raise Wrong("`totals` lacks the empty context, which the unigram counts in.")
    for key in right.counts:
        if ours.counts[key] != right.counts[key]:
            raise Wrong(f"`counts[{key}]` is {ours.counts[key]}, not "
                        f"{right.counts[key]}, after learning {text}.")
    for key in right.totals:
        if ours.totals[key] != right.totals[key]:
            raise Wrong(f"`totals[{key}]` is {ours.totals[key]}, not "
                        f"{right.totals[key]}, after learning {text}.")
    for context in [(), (5,), (5, 6), (8, 8)]:
        got = [ours.probability(context, token) for token in range(9)]
        wanted = [right.probability(context, token) for token in range(9)]
        seen = np.array([right.counts[(*context, token)] for token in range(9)])
        total = right.totals[context]
        check(f"The probability after {context}", np.array(got), np.array(wanted), {
            "is of counts alone: blend in that of the shorter context": seen / max(total, 1),
            "lacks that of the shorter context, though the divisor has it": seen / (total + 1),
            "leaves off the wrong token of the context: the first is the farthest away":
                np.array([nearest_left_off(right, context, t) for t in range(9)]),
            **({} if context else {"takes 1 where 1/V belongs": (seen + 1) / (total + 1)}),
            "takes 1/V for the shorter context, which itself has counts":
                (seen + 1 / 9) / (total + 1),
            "forgets that the blended one counts as an observation: divide by one more":
                (seen + np.array([right.probability(context[1:], t) if context else 1 / 9
                                  for t in range(9)])) / max(total, 1)})
    return lambda module: lambda: module.NGram(3, 9).learn(text)


def nearest_left_off(model: Any, context: tuple[int, ...], token: int) -> float:
    """The probability if contexts are shortened at the wrong end."""
    shorter = nearest_left_off(model, context[:-1], token) if context else 1 / 9
    return (model.counts[(*context, token)] + shorter) / (model.totals[context] + 1)


# Chapter 5

@grader("numerical-gradient")
def grade_numerical_gradient(mine: Module, book: Module) -> Race:
    x = normal(4, 5)
    x[0] *= 1e-7
    before = x.copy()

    def loss() -> float:
        return float((x**3).sum())

    got, right = mine.numerical_gradient(loss, x), book.numerical_gradient(loss, x)
    if not np.array_equal(x, before):
        raise Wrong("x is not put back to exactly what it was.")
    h = 1e-3
    got = mine.numerical_gradient(loss, x, h)
    right = book.numerical_gradient(loss, x, h)
    plus, minus = (x + h) ** 3, (x - h) ** 3
    check("The gradient", got, right, {
        "comes from one side only: the error of (f(x + h) - f(x)) / h is far larger":
            (plus - x**3) / h,
        "comes from one side only, and is halved": (plus - x**3) / (2 * h),
        "comes from one side only, the lower": (x**3 - minus) / h,
        "is twice too large: the two points are 2 steps apart": (plus - minus) / h,
        "has the wrong sign": (minus - plus) / (2 * h),
        "ignores `step`": ((x + 1e-5) ** 3 - (x - 1e-5) ** 3) / 2e-5})
    if not np.array_equal(x, before):
        raise Wrong("x is not put back to exactly what it was.")
    return lambda module: lambda: module.numerical_gradient(loss, x)


# Chapter 6

@grader("linear-backward")
def grade_linear(mine: Module, book: Module) -> Race:
    x, dy = normal(2, 3, 4), normal(2, 3, 5, seed=1)
    small = float32(normal(7, 4, seed=2), normal(7, 5, seed=3))
    weight = normal(4, 5, seed=4)

    def make(module: Module, dtype: Any = np.float64) -> Any:
        return module.Linear(weight.astype(dtype))

    last = {"is that of the last story only": dy[-1].sum(axis=0)}
    factors = {"the number of rows N": 6, "the batch size B": 2, "the length T": 3}
    compare_layers(make, mine, book, [(x, dy)], {"bias": last}, factors)
    compare_layers(lambda module: make(module, np.float32), mine, book,
                   [small, float32(x, dy)])
    big = float32(normal(512, 64), normal(512, 256))
    return time_backward(
        lambda module: module.Linear(normal(64, 256, dtype=np.float32)), *big)


@grader("embedding-backward")
def grade_embedding(mine: Module, book: Module) -> Race:
    ids, dy = np.array([[4, 1, 4], [0, 4, 1]]), normal(2, 3, 4)
    flat, rows = ids.reshape(-1), dy.reshape(6, 4)
    last, first = np.zeros((5, 4)), np.zeros((5, 4))
    last[flat], first[flat[::-1]] = rows, rows[::-1]
    total = np.zeros((5, 4))
    np.add.at(total, flat, rows)
    counts = np.maximum(np.bincount(flat, minlength=5), 1)[:, None]
    once = "has, for an id that occurs several times, only its {} gradient: they add up"
    mixed = np.zeros((5, 4))
    np.add.at(mixed, np.sort(flat), rows)
    mistakes = {once.format("last"): last, once.format("first"): first,
                "is overwritten, and has for an id that occurs several times only its last "
                "gradient: all are added": np.where(last != 0, last - 1, 0),
                "has its rows at the wrong ids: if the ids are sorted, the rows of dy must "
                "be brought into the same order": mixed,
                "has the mean over an id's occurrences; it is the sum": total / counts}
    unique = np.array([[3, 1]])
    for dtype in (np.float64, np.float32):
        compare_layers(lambda module: module.Embedding(normal(5, 4, dtype=dtype)),
                       mine, book, [(ids, dy.astype(dtype)),
                                    (unique, normal(1, 2, 4, dtype=dtype))],
                       {"weight": mistakes})
    big = np.random.default_rng(0).integers(0, 27, (8, 64))
    return time_backward(
        lambda module: module.Embedding(normal(27, 64, dtype=np.float32)),
        big, normal(8, 64, 64, dtype=np.float32))


@grader("layer-norm-backward")
def grade_layer_norm(mine: Module, book: Module) -> Race:
    x, dy = 3 * normal(2, 3, 5) + 1, normal(2, 3, 5, seed=1)
    gain = normal(5, seed=2)

    def make(module: Module, dtype: Any = np.float64) -> Any:
        layer = module.LayerNorm(5, dtype)
        layer.weight.data[...] = gain
        return layer

    centred = x - x.mean(axis=-1, keepdims=True)
    s = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    n, d = centred * s, dy * gain

    def mean(a: Array) -> Array:
        return a.mean(axis=-1, keepdims=True)

    dx = {
        "lacks both terms with means: n depends on the mean and on the variance, too": s * d,
        "lacks the term with the mean of d, which comes through the mean of x":
            s * (d - n * mean(d * n)),
        "lacks the term n · mean(d n), which comes through the variance": s * (d - mean(d)),
        "lacks the gain: d is dy times the gain": s * (dy - mean(dy) - n * mean(dy * n)),
        "lacks the factor `scale`": d - mean(d) - n * mean(d * n),
        "has sums where means belong": s * (d - 5 * mean(d) - n * 5 * mean(d * n)),
        "has a sum where mean(d n) belongs": s * (d - mean(d) - n * 5 * mean(d * n)),
        "has a sum where mean(d) belongs": s * (d - 5 * mean(d) - n * mean(d * n)),
        "has means over the rows, not along each row":
            s * (d - d.mean(axis=(0, 1)) - n * (d * n).mean(axis=(0, 1))),
        "has a wrong sign before a mean": s * (d + mean(d) + n * mean(d * n)),
        "has mean(d n) without its factor n": s * (d - mean(d) - mean(d * n))}
    weight = {"lacks the factor n": dy.sum(axis=(0, 1)),
              "has x where n belongs": (dy * x).sum(axis=(0, 1)),
              "has the gain in it": (d * n).sum(axis=(0, 1))}
    bias = {"has the gain in it": d.sum(axis=(0, 1))}
    compare_layers(make, mine, book, [(x, dy)],
                   {"dx": dx, "weight": weight, "bias": bias},
                   {"the number of rows N": 6, "the width C": 5})
    compare_layers(lambda module: make(module, np.float32), mine, book,
                   [float32(x, dy), float32(x[0], dy[0])])
    return time_backward(lambda module: module.LayerNorm(64, np.float32),
                         normal(512, 64, dtype=np.float32),
                         normal(512, 64, dtype=np.float32))


@grader("gelu-piece")
def grade_gelu(mine: Module, book: Module) -> Race:
    x = 2 * normal(50)
    c, a = (2 / np.pi) ** 0.5, 0.044715
    t = np.tanh(c * (x + a * x**3))
    phi, slope_u = 0.5 * (1 + t), c * (1 + 3 * a * x * x)

    def run(module: Module, dtype: Any) -> tuple[Array, Array]:
        given = x.astype(dtype)
        y, slope = (np.full(50, np.nan, dtype) for _ in range(2))
        with Untouched(x=given):
            module.gelu(given, np.full(50, np.nan, dtype), y, slope)
        for name, array in (("y", y), ("slope", slope)):
            if np.isnan(array).all():
                raise Wrong(f"{name} is not written: results go into the arrays that are "
                            "given, as with out= or [...].")
        return y, slope

    for dtype in (np.float64, np.float32):
        (y, slope), (right_y, right_slope) = run(mine, dtype), run(book, dtype)
        check("y", y, right_y, {
            "lacks the cubic term 0.044715 x³": x * 0.5 * (1 + np.tanh(c * x)),
            "lacks the 1 in 1 + tanh": x * 0.5 * t,
            "lacks the one half": x * (1 + t),
            "holds an intermediate result, 1 - tanh u: was y bound to a new array at the "
            "end?": 1 - t,
            "lacks the factor x: it is only Φ": phi,
            "is the approximation with a sigmoid; GPT-2's has tanh":
                x / (1 + np.exp(-1.702 * x)),
            "lacks √(2/π) within the tanh": x * 0.5 * (1 + np.tanh(x + a * x**3)),
            "has √(2/π) squared": x * 0.5 * (1 + np.tanh(c * c * (x + a * x**3)))})
        check("slope", slope, right_slope, {
            "is Φ alone; the product rule has a second term, x Φ'": phi,
            "lacks the first term, Φ": 0.5 * x * (1 - t * t) * slope_u,
            "lacks the factor x in the second term": phi + 0.5 * (1 - t * t) * slope_u,
            "lacks the inner derivative u'": phi + 0.5 * x * (1 - t * t),
            "has in u' only √(2/π): the cubic term has a slope, too":
                phi + 0.5 * x * (1 - t * t) * c,
            "lacks the 3 in the derivative of the cube":
                phi + 0.5 * x * (1 - t * t) * c * (1 + a * x * x),
            "lacks the one half in the second term": phi + x * (1 - t * t) * slope_u,
            "has 1 - tanh where 1 - tanh² belongs": phi + 0.5 * x * (1 - t) * slope_u})
    rows = [normal(65536, dtype=np.float32) for _ in range(4)]
    return lambda module: lambda: module.gelu(*rows)


@grader("softmax")
def grade_softmax(mine: Module, book: Module) -> Race:
    for dtype in (np.float64, np.float32):
        z = normal(2, 3, 4, dtype=dtype)
        e, s = np.exp(z), np.exp(z - z.max(axis=-1, keepdims=True))
        flat = z.reshape(-1, 4)
        mine_z, right = z.copy(), book.softmax(z.copy())
        got = mine.softmax(mine_z)
        check("The result", got, right, {
            "is not divided by its sum": e,
            "is not divided by its sum, only shifted": s,
            **{f"sums to 1 {where}": weights / weights.sum(axis=axis, keepdims=True)
               for weights in (e, s) for where, axis in (
                   ("over the whole array: each row (the last axis) must", None),
                   ("along the first axis, not the last", 0),
                   ("along axis 1, not along the last", 1))},
            "has the sign of the exponent wrong":
                book.softmax(-z.copy()),
            "is the logarithm of the probabilities": np.log(right)})
        if not agree(mine_z, right):
            raise Wrong("The result is right, but z itself is not overwritten with it: the "
                        "callers rely on `in place`.")
        huge = np.array([[1000.0, 1001.0, 999.0], [-1000.0, -1001.0, -999.0]], dtype)
        with np.errstate(all="ignore"):
            got = mine.softmax(huge.copy())
        if not np.isfinite(got[0]).all():
            raise Wrong("For logits near 1000 it overflows: take the maximum of each row "
                        "away first.")
        if not np.isfinite(got[1]).all() or not agree(got[1].sum(), 1.0):
            raise Wrong("If one row is much larger than another, the smaller one becomes "
                        "0/0: take from each row its own maximum.")
        check("The result for large logits", got, book.softmax(huge.copy()))
        hidden = np.array([[0.5, -np.inf, 1.5]], dtype)
        check("The result where a logit is -inf", mine.softmax(hidden.copy()),
              book.softmax(hidden.copy()))
        check("The result for two rows", mine.softmax(flat[:2].copy()),
              book.softmax(flat[:2].copy()))
    big = normal(512, 64, dtype=np.float32)
    return lambda module: lambda: module.softmax(big)


@grader("cross-entropy-backward")
def grade_cross_entropy(mine: Module, book: Module) -> Race:
    targets = np.array([[3, -1, 0], [2, 2, -1]])
    for dtype in (np.float64, np.float32):
        z = normal(2, 3, 5, dtype=dtype)
        layers = [module.CrossEntropy() for module in (mine, book)]
        for count in (4, 7):
            for layer in layers:
                layer.forward(z, targets, None if count == 4 else count)
            p = layers[1].p.copy()
            right = layers[1].backward().copy()
            with Untouched(logits=z, targets=targets):
                got = layers[0].backward()
            flat = targets.reshape(-1)
            hot = np.zeros_like(p)
            hot[flat >= 0, flat[flat >= 0]] = 1
            every, last = p - hot, p.copy()
            last[np.arange(6), flat] -= 1
            used = (flat >= 0)[:, None]
            check("dz", got, right, {sentence: wrong.reshape(z.shape) for sentence, wrong in {
                "is not zero where the target is -1: what does not count has no gradient":
                    every / count,
                "treats a target of -1 as the last token: -1 is an index to NumPy":
                    last / count,
                "is that of the sum: the loss is the mean over the targets that count":
                    every * used,
                "lacks the 1 that is taken from the right token": p * used / count,
                "lacks p: only the 1 of the right token is in it": -hot / count,
                "is divided by all positions, not by those that count": every * used / 6,
                "is divided by the number of targets, not by `count`":
                    every * used / 4,
                "is divided by V": every * used / 5,
                "has the whole 1 taken away, which is to be divided by `count`, too":
                    p * used / count - hot,
                "has p undivided": p * used - hot / count,
                "has 1 added at the right token, where it is taken away":
                    (p + hot) * used / count}.items()})
    big, aims = normal(512, 27, dtype=np.float32), np.arange(512) % 27

    def race(module: Module) -> Callable[[], object]:
        layer = module.CrossEntropy()

        def both() -> object:
            layer.forward(big, aims)
            return layer.backward()
        return both
    return race


# Chapter 7

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


def rows_to_one(e: Array) -> Array:
    e = np.exp(e - e.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


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


# Chapter 8

class Half:
    """A part of a block: bends going forward; going back it is a plain product."""

    def __init__(self, width: int, seed: int) -> None:
        self.W, self.caches = 0.5 * normal(width, width, seed=seed), []

    def forward(self, x: Array, cache: Any = None) -> Array:
        self.caches.append(cache)
        return np.tanh(x @ self.W)

    def backward(self, dy: Array) -> Array:
        return dy @ self.W.T


@grader("block")
def grade_block(mine: Module, book: Module) -> Race:
    x, dy = normal(2, 3, 4), normal(2, 3, 4, seed=9)
    one, att, two, feed = parts = [Half(4, seed) for seed in range(4)]
    f = [part.forward for part in parts]
    b = [part.backward for part in parts]
    middle = x + f[1](f[0](x))
    block = mine.Block(*parts)
    att.caches.clear()
    with Untouched(x=x):
        y = block.forward(x, "a cache")
    if "a cache" not in att.caches:
        raise Wrong("The attention is not given the cache.")
    check("The output", y, middle + f[3](f[2](middle)), {
        "lacks the residual around attention": f[1](f[0](x)) + f[3](f[2](f[1](f[0](x)))),
        "lacks the residual around feed-forward": f[3](f[2](middle)),
        "lacks both residuals": f[3](f[2](f[1](f[0](x)))),
        "lacks the feed-forward": middle,
        "feeds x to the feed-forward, not the stream with attention in it":
            middle + f[3](f[2](x)),
        "adds x a second time, not the stream after attention": x + f[3](f[2](middle)),
        "lacks the first norm": (m := x + f[1](x)) + f[3](f[2](m)),
        "lacks the second norm": middle + f[3](middle),
        "normalizes after adding: GPT-2 does so before each part":
            f[2]((m := f[0](x + f[1](x))) + f[3](m)),
        "normalizes after adding: GPT-2 does so before attention":
            (m := f[0](x + f[1](x))) + f[3](f[2](m)),
        "uses norm_1 twice": middle + f[3](f[0](middle)),
        "has the two norms exchanged": (m := x + f[1](f[2](x))) + f[3](f[0](m))})
    dm = dy + b[2](b[3](dy))
    with Untouched(dy=dy):
        dx = block.backward(dy)
    check("dx", dx, dm + b[0](b[1](dm)), {
        "lacks the gradient that skips the feed-forward":
            (m := b[2](b[3](dy))) + b[0](b[1](m)),
        "lacks the gradient that skips attention": b[0](b[1](dm)),
        "lacks both gradients that skip": b[0](b[1](b[2](b[3](dy)))),
        "sends dy back through attention, not what the feed-forward has added to it":
            dm + b[0](b[1](dy)),
        "sends only dy past attention": dy + b[0](b[1](dm)),
        "goes through the parts in the order of `forward`":
            (m := dy + b[1](b[0](dy))) + b[3](b[2](m)),
        "lacks the norms": (m := dy + b[3](dy)) + b[1](m),
        "goes through each norm before its part":
            (m := dy + b[3](b[2](dy))) + b[1](b[0](m)),
        "goes through norm_2 before the feed-forward: going back, it comes after":
            (m := dy + b[3](b[2](dy))) + b[0](b[1](m)),
        "goes through norm_1 before attention: going back, it comes after":
            dm + b[1](b[0](dm)),
        "stops after the feed-forward": dm})

    def make(module: Module, dtype: Any = np.float32) -> Any:
        none = module.Dropout(0.0, np.random.default_rng(0))
        feed = module.FeedForward(
            *(module.Linear(0.1 * normal(*s, dtype=dtype)) for s in ((64, 256), (256, 64))),
            none)
        return module.Block(module.LayerNorm(64, dtype), time_attention(module),
                            module.LayerNorm(64, dtype), feed)

    big, dbig = (normal(8, 64, 64, dtype=np.float32, seed=seed) for seed in (0, 1))
    compare_layers(make, mine, book, [(big, dbig), (big[:2, :9], dbig[:2, :9])])

    def race(module: Module) -> Callable[[], object]:
        block = make(module)
        return lambda: (block.forward(big), block.backward(dbig))
    return race


@grader("go-all-the-way-back")
def grade_model_backward(mine: Module, book: Module) -> Race:
    ids, targets = np.array([[3, 1, 3], [0, 4, 2]]), np.array([[1, 3, -1], [4, 2, 2]])

    def make(module: Module, dtype: Any = np.float64, dropout: float = 0.0) -> Any:
        config = module.Config(vocab_size=6, context_length=5, d_model=8, n_layers=2,
                               n_heads=2, dropout=dropout)
        model = module.SimpleLLM(config, dtype=dtype)
        model.loss(ids, targets)
        model.grad[...] = 1
        return model

    ours, right, output, forward, alone = (
        make(module) for module in (mine, book, book, book, book))
    seen: list[Array] = []
    output.tokens.backward = lambda dx: seen.append(dx.copy())
    forward.blocks = forward.blocks[::-1]
    for block in alone.blocks:
        block.backward = lambda dx, backward=block.backward: (backward(dx), dx)[1]
    for model in (ours, right, output, forward, alone):
        model.backward()
    head = output.tokens.weight.grad - 1
    table = right.tokens.weight.grad - 1
    if agree(ours.grad, right.grad - 1):
        raise Wrong("Every gradient is overwritten: gradients are added.")
    if agree(ours.grad, forward.grad):
        raise Wrong("The gradient goes through the blocks in the order of `run`: the last "
                    "block comes first.")
    if agree(ours.grad, alone.grad):
        raise Wrong("What a block returns is not passed on: each block gets the gradient "
                    "that came from the one above it.")
    first = np.zeros((2, 5, 8))
    first[:, :3] = seen[0]
    mistakes = {"transformer.wte.weight": {
        "lacks what comes through the output: the table is used at both ends": table - head,
        "lacks what comes through the input: the table is used at both ends": head},
        "transformer.wpe.weight": {"is that of the first story only: all use the same "
                                   "positions, so their gradients are added": first[0]}}
    names = [name for name, _ in right.named_parameters()]
    grads = [dict(model.named_parameters()) for model in (ours, right)]
    for name in sorted(names, key=lambda n: (not n.startswith("transformer.ln_f"),
                                             "wpe" in n or "wte" in n)):
        check_gradient(f"The gradient of {name}", grads[0][name], grads[0][name].grad,
                       grads[1][name].grad - 1, mistakes.get(name, {}),
                       {"the batch size B": 2, "the length T": 3,
                        "the number of targets": 5})
    try:
        ours.backward()
    except Exception as error:
        if not isinstance(error, RuntimeError):
            raise
    else:
        raise Wrong("A second backward() without a loss() between is not refused: it would "
                    "add gradients that are no longer true; test and clear self.ready.")
    dropped = [make(module, dropout=0.5) for module in (mine, book)]
    for model in dropped:
        model.reseed([1])
        model.train()
        model.loss(ids, targets)
        model.backward()
    if not agree(dropped[0].grad, dropped[1].grad):
        raise Wrong("With dropout it differs: the gradient goes back through self.drop, too.")
    small, right_small = make(mine, np.float32), make(book, np.float32)
    small.backward(), right_small.backward()
    check("The gradient for float32", small.grad, right_small.grad)

    def race(module: Module) -> Callable[[], object]:
        model = module.SimpleLLM(module.Config(27, 64))
        batch = np.arange(512).reshape(8, 64) % 27

        def both() -> None:
            model.loss(batch, batch)
            model.backward()
        return both
    return race


# Chapter 9

def stand_in(size: int = 10, dtype: Any = np.float64) -> Any:
    """What an optimizer needs of a model."""
    return SimpleNamespace(data=normal(size, dtype=dtype),
                           grad=normal(size, seed=1, dtype=dtype), matrices=slice(size // 2))


def steps(optimizer: Any, model: Any, rates: tuple[float, ...]) -> Array:
    """The parameters after some steps, with a new gradient before each."""
    data, grad = model.data, model.grad
    for number, rate in enumerate(rates):
        grad[...] = normal(grad.size, seed=number + 1)
        with Untouched(**{"model.grad": grad}):
            optimizer.step(rate)
        if model.data is not data:
            raise Wrong("model.data is bound to a new array: change the one that is there, "
                        "with -=, for every parameter is a view into it.")
    return model.data - normal(grad.size, dtype=data.dtype)


@grader("sgd")
def grade_sgd(mine: Module, book: Module) -> Race:
    rates = (0.1, 0.3, 0.2)
    g = [normal(10, seed=number + 1) for number in range(3)]

    def by_hand(keep: float, take: float, late: bool = True) -> Array:
        v, moved = 0 * g[0], 0 * g[0]
        for rate, each in zip(rates, g):
            v = keep * v + take * each * (1 if late else rate)
            moved = moved - (v * rate if late else v)
        return moved

    nesterov, v = 0 * g[0], 0 * g[0]
    for rate, each in zip(rates, g):
        v = 0.5 * v + each
        nesterov = nesterov - rate * (each + 0.5 * v)
    for momentum in (0.0, 0.5):
        ours, right = (steps(module.SGD(model := stand_in(), momentum), model, rates)
                       for module in (mine, book))
        check("The movement of the parameters", ours, right, {
            "goes uphill: a step is against the gradient": -right,
            "lacks the learning rate": -sum(g),
            "keeps the whole of v: it decays by μ": by_hand(1, 1),
            **({} if not momentum else {
                "ignores the momentum: v keeps μ times what it was": by_hand(0, 1),
                "weighs the gradient with 1 - μ; here v = μ v + g": by_hand(0.5, 0.5),
                "has the learning rate within v: it belongs to the step":
                    by_hand(0.5, 1, late=False),
                "is Nesterov's variant, not the plain one": nesterov})})
    small = [steps(module.SGD(model := stand_in(dtype=np.float32), 0.5), model, rates)
             for module in (mine, book)]
    check("The movement for float32", *small)
    return time_step("SGD")


def time_step(name: str) -> Race:
    def race(module: Module) -> Callable[[], object]:
        optimizer = getattr(module, name)(stand_in(106_496, np.float32))
        return lambda: optimizer.step(1e-6)
    return race


@grader("adamw-step-piece")
def grade_adamw(mine: Module, book: Module) -> Race:
    rates, b1, b2, eps = (0.1, 0.3, 0.2), 0.8, 0.95, 1e-3
    start, g = normal(10), [normal(10, seed=number + 1) for number in range(3)]

    def by_hand(mc: bool = True, vc: bool = True, square: bool = True, out: bool = True,
                swap: bool = False, inside: bool = False, sign: float = -1,
                root: bool = True, lazy: bool = False) -> Array:
        beta1, beta2 = (b2, b1) if swap else (b1, b2)
        m, v, x = 0 * start, 0 * start, start.copy()
        for t, (rate, each) in enumerate(zip(rates, g), 1):
            x[:5] *= 1 - rate * 0.1
            m = beta1 * m + (1 - beta1) * each if not lazy else beta1 * m + each
            v = beta2 * v + (1 - beta2) * (each**2 if square else np.abs(each))
            mh = m / (1 - beta1**t) if mc else m
            vh = v / (1 - beta2**t) if vc else v
            low = np.sqrt(vh + eps) if inside else (np.sqrt(vh) if root else vh) + eps * out
            x += sign * rate * mh / low
        return x - start

    def run(module: Module, dtype: Any = np.float64, piece: int = 4) -> Array:
        module.AdamW.piece, old = piece, module.AdamW.piece
        model = stand_in(dtype=dtype)
        optimizer = module.AdamW(model, (b1, b2), eps)
        module.AdamW.piece = old
        optimizer.piece = piece
        return steps(optimizer, model, rates)

    if not isinstance(getattr(mine.AdamW, "piece", None), int):
        raise Wrong("The class needs `piece`, the number of elements in a piece.")
    for piece in (10, 5, 4):
        got, right = run(mine, piece=piece), run(book, piece=piece)
        if piece < 10 and not agree(got, right):
            raise Wrong("In one piece it is right, but in several it is not: only the "
                        "elements of `piece` may be changed, of m and v as well.")
        check("The movement of the parameters", got, right, {
            "lacks the correction of m at the beginning, 1 - β₁ᵗ": by_hand(mc=False),
            "lacks the correction of v at the beginning, 1 - β₂ᵗ": by_hand(vc=False),
            "lacks both corrections at the beginning": by_hand(mc=False, vc=False),
            "has v of the gradient's absolute value: it is of its square":
                by_hand(square=False),
            "lacks ε": by_hand(out=False),
            "has ε within the root; it is added to the root": by_hand(inside=True),
            "has β₁ and β₂ exchanged": by_hand(swap=True),
            "goes uphill: a step is against the gradient": by_hand(sign=1),
            "lacks the root over v": by_hand(root=False),
            "lacks the factor 1 - β₁ of the new gradient": by_hand(lazy=True)})
    check("The movement for float32", run(mine, np.float32), run(book, np.float32))
    return time_step("AdamW")


@grader("clip-gradients")
def grade_clip(mine: Module, book: Module) -> Race:
    for start, limit, case in ((3 * normal(10), 2.0, "a gradient longer than the limit"),
                               (3 * normal(10), 99.0, "a gradient shorter than the limit"),
                               (0 * normal(10), 1.0, "a gradient of zero"),
                               (normal(10, dtype=np.float32), 1.0, "float32")):
        models = [SimpleNamespace(grad=start.copy(), data=start.copy()) for _ in range(2)]
        grad = models[0].grad
        with Untouched(**{"model.data": models[0].data}), np.errstate(all="ignore"):
            norm = mine.clip_gradients(models[0], limit)
            right = book.clip_gradients(models[1], limit)
        if models[0].grad is not grad:
            raise Wrong("model.grad is bound to a new array: change the one that is there, "
                        "with *=, for every parameter's gradient is a view into it.")
        length = right or 1.0
        check(f"For {case}, the gradient", grad, models[1].grad, {
            "is cut element by element: its direction must not change":
                np.clip(start, -limit, limit),
            "is brought to length 1, whatever the limit": start / length,
            "is brought to the limit though it is shorter: it is to stay as it is":
                start * limit / length,
            "is not shortened": start,
            "is divided by its squared length: the root is missing":
                start * limit / length**2})
        if norm is None:
            raise Wrong("It returns None: it is to return the length that the gradient had.")
        if not isinstance(norm, (float, np.floating)):
            raise Wrong(f"It returns a {type(norm).__name__}, not a float.")
        check("The length that is returned", norm, right, {
            "is that of the shortened gradient: return what it was before":
                min(right, limit),
            "is the sum of squares: the root is missing": right**2,
            "is the largest element": np.abs(start).max(),
            "is the sum of the absolute values": np.abs(start).sum(),
            "is divided by the number of elements": right / 10**0.5})
    big = SimpleNamespace(grad=normal(106_496, dtype=np.float32))
    return lambda module: lambda: module.clip_gradients(big, 1e9)


@grader("learning-rate")
def grade_learning_rate(mine: Module, book: Module) -> Race:
    check_cases(mine.learning_rate, book.learning_rate, {
        "step 0 is the first, and must move already: (step + 1) / warmup": (0, 100, 1.0, 10),
        "it rises in a straight line to the peak": (4, 100, 1.0, 10),
        "the warm-up ends at the peak": (9, 100, 1.0, 10),
        "the cosine begins where the warm-up ends, at the peak": (10, 100, 1.0, 10),
        "half-way down it is in the middle between the peak and a twentieth of it":
            (55, 100, 1.0, 10),
        "it is half a cosine, no straight line": (30, 100, 1.0, 10),
        "the end is a twentieth of the peak, not zero": (100, 100, 1.0, 10),
        "behind the end it stays there, and does not rise again": (130, 100, 1.0, 10),
        "it is in proportion to the peak": (30, 100, 0.004, 10),
        "there may be no warm-up at all": (0, 100, 1.0, 0),
        "the warm-up may be as long as the training": (10, 10, 1.0, 10)})
    return lambda module: lambda: module.learning_rate(300, 1000, 0.004, 100)


# Chapter 10

@grader("next-token-probabilities")
def grade_probabilities(mine: Module, book: Module) -> Race:
    z = np.log(np.array([0.15, 0.5, 0.05, 0.3], np.float32))
    ours, right = mine.next_token_probabilities, book.next_token_probabilities
    one = np.exp(z.astype(np.float64))

    def power(t: float) -> Array:
        return one**t / (one**t).sum()

    def keep(*tokens: int) -> Array:
        kept = np.isin(np.arange(4), tokens) * one
        return kept / kept.sum()

    cases: list[tuple[dict[str, Any], Mistakes]] = [
        ({}, {"is not divided by its sum": np.exp(z - z.max())}),
        ({"temperature": 0.5}, {
            "is multiplied by the temperature: divide the logits": power(0.5),
            "ignores the temperature": one,
            "has the temperature applied to probabilities, not to logits":
                rows_to_one(one / 0.5)}),
        ({"temperature": 0}, {"is drawn, though temperature 0 is greedy": one}),
        ({"top_k": 2}, {"keeps the first k of the vocabulary, not the likeliest": keep(0, 1),
                        "keeps the least likely tokens": keep(0, 2),
                        "keeps one token too many": keep(0, 1, 3),
                        "keeps one token too few": keep(1),
                        "is not divided by what is left": np.where(keep(1, 3) > 0, one, 0)}),
        ({"top_p": 0.7}, {
            "lacks the token with which the sum reaches top_p: keep that, too": keep(1),
            "keeps one token too many": keep(0, 1, 3),
            "keeps the least likely tokens": keep(0, 2),
            "is not divided by what is left": np.where(keep(1, 3) > 0, one, 0)}),
        ({"top_p": 0.1}, {}), ({"top_p": 0.0}, {}), ({"top_k": 9}, {}), ({"top_k": 0}, {}), ({"top_p": 1.0}, {}),
        ({"top_k": 2, "top_p": 0.6}, {
            "takes top_p of what there was before top_k: it is a share of what is left":
                keep(1, 3)}),
        ({"temperature": 0.01}, {}), ({"temperature": 1e-9}, {}),
    ]
    for options, mistakes in cases:
        with Untouched(logits=z), np.errstate(all="ignore"):
            got, wanted = ours(z, **options), right(z, **options)
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        check(f"With {given or 'no options'}, the result", got, wanted, mistakes)
    with np.errstate(all="ignore"):
        check("For logits near 1000, the result", ours(z + 1000), right(z + 1000))
    check("For equal logits and top_k=2, the result", ours(np.zeros(4, np.float32), top_k=2),
          right(np.zeros(4, np.float32), top_k=2),
          {"keeps all that are as likely as the k-th: k tokens, no more": np.full(4, 0.25)})
    big = normal(50257, dtype=np.float32)
    return lambda module: lambda: module.next_token_probabilities(big, 0.8, 40, 0.9)


@grader("kv-cache")
def grade_cache(mine: Module, book: Module) -> Race:
    ours = mine.KVCache(2, 3, 8, 4, np.float32)
    k, v = normal(2, 3, 7, 4, dtype=np.float32), normal(2, 3, 7, 4, seed=1, dtype=np.float32)
    done = 0
    for count in (3, 1, 2):
        new = slice(done, done + count)
        with Untouched(k=k, v=v):
            got = ours.append(k[:, :, new].copy(), v[:, :, new].copy())
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong("append is to return the keys and the values, two arrays.")
        done += count
        for name, array, whole, other in (("keys", got[0], k, v), ("values", got[1], v, k)):
            if array.shape[2] == 8:
                raise Wrong(f"The {name} that are returned include room that is still "
                            "empty: return the first S only.")
            if array.shape[2] == count and done > count:
                raise Wrong(f"Only the new {name} are returned: attention wants all of "
                            "them so far.")
            check(f"The array of {name} that is returned", array, whole[:, :, :done], {
                f"is not that of the {name}: keys and values are exchanged": other[:, :, :done]})
        if ours.length != done:
            raise Wrong(f"After {done} positions, length is {ours.length}.")
    first, second = mine.KVCache(1, 1, 4, 2, np.float32), mine.KVCache(1, 1, 4, 2, np.float32)
    first.append(np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32))
    if second.length:
        raise Wrong("Two caches share their contents: each layer has its own.")
    given = np.ones((1, 1, 1, 2), np.float32)
    second.append(given, given.copy())
    given[...] = 5
    keys, _ = second.append(np.zeros_like(given), np.zeros_like(given))
    if keys[0, 0, 0, 0] == 5:
        raise Wrong("The cache keeps the array that it was given, not a copy: attention "
                    "overwrites its workspace at the next token.")

    def race(module: Module) -> Callable[[], object]:
        one = np.ones((1, 4, 1, 16), np.float32)

        def fill() -> None:
            cache = module.KVCache(1, 4, 256, 16, np.float32)
            for _ in range(256):
                cache.append(one, one)
        return fill
    return race


@grader("window-start")
def grade_window(mine: Module, book: Module) -> Race:
    name = mine.window_start.__name__
    for context in (8, 7, 1):
        for length in range(1, 40):
            got, right = mine.window_start(length, context), book.window_start(length, context)
            if got is None:
                raise Wrong(f"{name} returns None: is a `return` missing?")
            if got == right and isinstance(got, (int, np.integer)):
                continue
            call = f"window_start({length}, {context}) is {got}"
            if not isinstance(got, (int, np.integer)):
                raise Wrong(f"{call}, a {type(got).__name__}: a place is a whole number.")
            if length <= context:
                raise Wrong(f"{call}, not 0, though the whole text fits into the context.")
            if length - got > context:
                raise Wrong(f"{call}, so {length - got} tokens are in view, more than the "
                            "context holds: round up.")
            if got >= length:
                raise Wrong(f"{call}, so nothing of the text is in view.")
            if got == length - context:
                raise Wrong(f"{call}, not {right}: if the window slides with every token, "
                            "the cache is worthless; move it by half a context at a time.")
            raise Wrong(f"{call}, not {right}: the view moves by half a context at a time, "
                        "and no sooner than it must.")
    return lambda module: lambda: module.window_start(1000, 73)


# Chapter 12

@grader("write-safetensors")
def grade_safetensors(mine: Module, book: Module) -> Race:
    tensors = {"b": normal(3, 2).T, "a": normal(4, dtype=np.float32),
               "é": np.arange(6).reshape(1, 2, 3)}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        with Untouched(**tensors):
            mine.save_safetensors(path, dict(tensors))
        if not path.is_file():
            raise Wrong("No file is written.")
        check_bytes(path.read_bytes())
        size, count = header_and_data(path.read_bytes())
        if count != 4 * sum(array.size for array in tensors.values()):
            raise Wrong(f"Behind the header of {size} bytes there are {count}, not "
                        f"{4 * sum(array.size for array in tensors.values())}: float32 has "
                        "4 bytes a number.")
        try:
            back = book.load_safetensors(path)
        except book.UserError as error:
            raise Wrong(f"Reading it back: {str(error).replace(str(path), 'the file')}.") \
                from None
        if back.keys() != tensors.keys():
            raise Wrong(f"The file has the names {sorted(back)}, not {sorted(tensors)}.")
        for name, array in tensors.items():
            right = array.astype(np.float32)
            check(f"The array {name!r}, read back,", back[name], right, {
                "has its elements in the order of memory: make it contiguous first":
                    right.ravel(order="K").reshape(right.shape)})
        before = path.stat().st_ino
        mine.save_safetensors(path, {"one": np.float32([1.0])})
        if path.stat().st_ino == before:
            raise Wrong("It writes over the old file: with `write_atomically` that one is "
                        "whole until the new one is.")
        check_bytes(path.read_bytes())
        if b'"format":"pt"' not in path.read_bytes().replace(b" ", b""):
            raise Wrong('The header lacks "__metadata__": {"format": "pt"}, without which '
                        "transformers refuses the file.")
    one = normal(106_496, dtype=np.float32)

    def race(module: Module) -> Callable[[], object]:
        def save() -> None:
            with tempfile.TemporaryDirectory() as directory:
                module.save_safetensors(Path(directory) / "x.safetensors", {"x": one})
        return save
    return race


def header_and_data(data: bytes) -> tuple[int, int]:
    """How many bytes are in the header, and how many behind it."""
    length = int.from_bytes(data[:8], "little")
    return length, len(data) - 8 - length


def check_bytes(data: bytes) -> None:
    """The outer form of a safetensors file."""
    length, big = (int.from_bytes(data[:8], order) for order in ("little", "big"))
    if length > len(data) >= big + 8:
        raise Wrong("The length of the header is big-endian: it must be little-endian.")
    if data[:1] == b"{":
        raise Wrong("The file begins with the header: its length, in eight bytes, comes "
                    "first.")
    if length > len(data) - 8 or data[8:9] != b"{":
        raise Wrong("The first eight bytes are not the length of the header, which is to "
                    "follow them.")
    if data[7 + length : 8 + length] not in (b" ", b"}"):
        raise Wrong("The length of the header is not the number of bytes that it has.")
    if length % 8:
        raise Wrong(f"The header has {length} bytes: fill it up with spaces to a multiple "
                    "of 8, so that the numbers are aligned.")
