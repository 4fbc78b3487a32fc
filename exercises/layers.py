"""Graders for chapters 5 and 6: gradients and layers."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    compare_layers, float32, grader, normal, Race, time_backward,
)
from exercises.diagnose import agree, Array, check, Untouched


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
    big = float32(normal(128, 64), normal(128, 64))
    return time_backward(
        lambda module: module.Linear(normal(64, 64, dtype=np.float32)), *big)


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
    fewer = np.where(np.arange(5)[:, None] == flat.min(), 0, total)
    early, order = np.zeros((5, 4)), np.argsort(flat, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(flat[order])))
    early[flat[order][starts]] += np.add.reduceat(rows[order], starts)
    mistakes = {once.format("last"): last, once.format("first"): first,
                "is overwritten, and has for an id that occurs several times only its last "
                "gradient: all are added": np.where(last != 0, last - 1, 0),
                "has its rows at the wrong ids: if the ids are sorted, the rows of dy must "
                "be brought into the same order": mixed,
                "lacks the smallest id: its run starts at 0, where no id changes": fewer,
                "has runs that start one too early: where ids[1:] differs, the new id is "
                "one further on": early,
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
