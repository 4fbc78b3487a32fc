"""Graders for chapters 5 and 6: gradients and layers."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    check_owned, compare_layers, float32, grader, in_other_memory, left_by_forward, normal,
    Race, time_backward,
)
from exercises.diagnose import agree, Array, check, Untouched


# Chapter 5

@grader("numerical-gradient")
def grade_numerical_gradient(mine: Module, book: Module) -> Race:
    rows = normal(4, 5)
    rows[0] *= 1e-7
    whole = normal(2, 3, 6, seed=1)

    def loss_of(x: Array) -> Callable[[], float]:
        return lambda: float((x**3).sum())

    kinds = {"": rows, "a row": normal(5), "one number": np.array(1.5),
             "an x in Fortran order": np.asfortranarray(rows),
             "an x that is a view": whole[:, :, ::2],
             "an x of float32": np.float32([[1, 2, -1]])}
    for h in (1e-3, None):
        for kind, x in kinds.items():
            if h is None and x.dtype == np.float32:
                continue  # too small a step for so few digits
            before, loss, given = x.copy(), loss_of(x), () if h is None else (h,)
            got = mine.numerical_gradient(loss, x, *given)
            right = book.numerical_gradient(loss, x, *given)
            if not np.array_equal(x, before):
                raise Wrong("x is not put back to exactly what it was.")
            what = f"For {kind}, the gradient" if kind else "The gradient"
            plus, minus = (x + (h or 1e-5)) ** 3, (x - (h or 1e-5)) ** 3
            check(what, got, right, {} if h is None else {
                "comes from one side only: the error of (f(x + h) - f(x)) / h is far larger":
                    (plus - x**3) / h,
                "comes from one side only, and is halved": (plus - x**3) / (2 * h),
                "comes from one side only, the lower": (x**3 - minus) / h,
                "comes from one side only, the lower, and is halved": (x**3 - minus) / (2 * h),
                "has the two losses added, not subtracted": (
                    2 * np.sum(x**3) - 2 * x**3 + plus + minus) / (2 * h),
                "has the loss above alone, from which that below is to be taken":
                    (np.sum(x**3) - x**3 + plus) / (2 * h),
                "has the loss below alone, which is to be taken from that above":
                    (np.sum(x**3) - x**3 + minus) / (2 * h),
                "moves to `step`, and not by it: it is added to x":
                    (float(h or 1e-5) ** 3 - minus) / (2 * h),
                "is twice too large: the two points are 2 steps apart": (plus - minus) / h,
                "has the wrong sign": (minus - plus) / (2 * h),
                "ignores `step`": ((x + 1e-5) ** 3 - (x - 1e-5) ** 3) / 2e-5,
                "is zero: x itself is never moved, only a copy, as reshape(-1) makes one of "
                "an array in this order": 0 * x})
    return lambda module: lambda: module.numerical_gradient(loss_of(rows), rows)


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
                   [small, float32(x, dy), float32(x[0, 0], dy[0, 0])])
    big = float32(normal(128, 64), normal(128, 64))
    return time_backward(
        lambda module: module.Linear(normal(64, 64, dtype=np.float32)), *big)


@grader("embedding-backward")
def grade_embedding(mine: Module, book: Module) -> Race:
    ids, dy = np.array([[4, 1, 4], [0, 4, 1]]), normal(2, 3, 4)
    flat, rows = ids.reshape(-1), dy.reshape(6, 4)
    last, first = np.zeros((5, 4)), np.zeros((5, 4))
    last[flat], first[flat[::-1]] = rows, rows[::-1]
    total, mixed = np.zeros((5, 4)), np.zeros((5, 4))
    np.add.at(total, flat, rows)
    np.add.at(mixed, np.sort(flat), rows)
    counts = np.maximum(np.bincount(flat, minlength=5), 1)[:, None]
    once = "has, for an id that occurs several times, only its {} gradient: they add up"
    mistakes = {once.format("last"): last, once.format("first"): first,
                "is overwritten, and has for an id that occurs several times only its last "
                "gradient: all are added": np.where(last != 0, last - 1, 0),
                "has its rows at the wrong ids: if the ids are sorted, the rows of dy must "
                "be brought into the same order": mixed,
                "has the mean over an id's occurrences; it is the sum": total / counts}
    for dtype in (np.float64, np.float32):
        compare_layers(lambda module: module.Embedding(normal(5, 4, dtype=dtype)),
                       mine, book, [(ids, dy.astype(dtype)),
                                    (np.array([[3, 1]]), normal(1, 2, 4, dtype=dtype)),
                                    (np.array([2, 2, 0]), normal(3, 4, dtype=dtype))],
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
        **{"has for means sums that are divided by 64, a width C that is another here" + which:
            s * (d - a / 64 * mean(d) - n * b / 64 * mean(d * n)) for a, b, which in (
                (5, 5, ""), (5, 64, ": in mean(d)"), (64, 5, ": in mean(d n)"))},
        "has means over the rows, not along each row":
            s * (d - d.mean(axis=(0, 1)) - n * (d * n).mean(axis=(0, 1))),
        "has wrong signs before both means": s * (d + mean(d) + n * mean(d * n)),
        "has the wrong sign before mean(d)": s * (d + mean(d) - n * mean(d * n)),
        "has the wrong sign before n · mean(d n)": s * (d - mean(d) + n * mean(d * n)),
        "is divided by `scale`, where it is multiplied":
            (d - mean(d) - n * mean(d * n)) / s,
        "has the sign of d wrong": s * (mean(d) - d - n * mean(d * n)),
        "lacks d itself: means alone are left": s * (mean(d) - n * mean(d * n)),
        "has only what is taken away, and not d itself": -s * (mean(d) + n * mean(d * n)),
        "is divided by the gain; d is dy times the gain":
            s * (dy / gain - mean(dy / gain) - n * mean(dy / gain * n)),
        "lacks the factor mean(d n) of n": s * (d - mean(d) - n),
        "lacks the factor n within mean(d n)": s * (d - mean(d) - n * mean(d)),
        **{f"has {which} over {axes}: it goes along each row": wrong
           for axes, axis in {"the stories": 0, "the positions": 1, "everything": None}.items()
           for which, wrong in (
               ("mean(d)", s * (d - d.mean(axis=axis, keepdims=True) - n * mean(d * n))),
               ("mean(d n)", s * (d - mean(d) - n * (d * n).mean(axis=axis, keepdims=True))),
           )},
        "has mean(d n) without its factor n": s * (d - mean(d) - mean(d * n))}
    weight = {"lacks the factor n": dy.sum(axis=(0, 1)),
              "has x where n belongs": (dy * x).sum(axis=(0, 1)),
              "has the gain in it": (d * n).sum(axis=(0, 1))}
    bias = {"has the gain in it": d.sum(axis=(0, 1))}
    compare_layers(make, mine, book, [(x, dy)],
                   {"dx": dx, "weight": weight, "bias": bias},
                   {"the number of rows N": 6, "the width C": 5})
    compare_layers(lambda module: make(module, np.float32), mine, book,
                   [float32(x, dy), float32(x[0], dy[0]), float32(x[0, 0], dy[0, 0])])

    def wider(module: Module) -> Any:
        layer = module.LayerNorm(7, np.float64)
        layer.weight.data[...] = normal(7, seed=5)
        return layer
    try:
        compare_layers(wider, mine, book, [(normal(2, 7), normal(2, 7, seed=1))])
    except Wrong as wrong:
        raise Wrong(f"For another width C it differs (5 is right, 7 is not): {wrong}") \
            from None
    return time_backward(lambda module: module.LayerNorm(64, np.float32),
                         normal(512, 64, dtype=np.float32),
                         normal(512, 64, dtype=np.float32))


@grader("gelu-backward")
def grade_gelu(mine: Module, book: Module) -> Race:
    x, dy = 2 * normal(2, 3, 8), normal(2, 3, 8, seed=1)
    c, a = (2 / np.pi) ** 0.5, 0.044715
    t = np.tanh(c * (x + a * x**3))
    phi, du = 0.5 * (1 + t), c * (1 + 3 * a * x * x)
    bend = 0.5 * x * (1 - t * t)

    compare_layers(lambda module: module.GELU(), mine, book, [(x, dy)], {"dx": {
        "is the slope alone: it is times dy, the gradient that comes from above":
            phi + bend * du,
        "is dy divided by the slope; it is multiplied": dy / (phi + bend * du),
        "is Φ alone, times dy; the product rule has a second term, x Φ'": dy * phi,
        "lacks the first term, Φ": dy * bend * du,
        "lacks 1 - t² and u' in the second term": dy * (phi + 0.5 * x),
        "has u' alone as its second term": dy * (phi + du),
        "has the factor 1 - t² without its half and x": dy * (phi + (1 - t * t) * du),
        "lacks the factor x in the second term": dy * (phi + 0.5 * (1 - t * t) * du),
        "lacks the inner derivative u'": dy * (phi + bend),
        "has in u' only √(2/π): the cubic term has a slope, too": dy * (phi + bend * c),
        "lacks the 3 in the derivative of the cube":
            dy * (phi + bend * c * (1 + a * x * x)),
        "has x where x² belongs in the derivative of the cube":
            dy * (phi + bend * c * (1 + 3 * a * x)),
        "lacks √(2/π) in the inner derivative": dy * (phi + bend * (1 + 3 * a * x * x)),
        "lacks the one half in the second term": dy * (phi + 2 * bend * du),
        "lacks the one half in the first term": dy * (2 * phi + bend * du),
        "lacks the 1 in 1 + t": dy * (0.5 * t + bend * du),
        "has the wrong sign before the second term": dy * (phi - bend * du),
        "lacks the factor 1 - t² in the second term": dy * (phi + 0.5 * x * du),
        "has t² where 1 - t² belongs": dy * (phi + 0.5 * x * t * t * du),
        "has 1 + t² where 1 - t² belongs": dy * (phi + 0.5 * x * (1 + t * t) * du),
        "has 1 - t where 1 + t belongs, in the first term": dy * (1 - phi + bend * du),
        "lacks t in the first term": dy * (0.5 + bend * du),
        "lacks the 1 in u': its linear term has a slope, too":
            dy * (phi + bend * c * 3 * a * x * x),
        "lacks 0.044715 in u'": dy * (phi + bend * c * (1 + 3 * x * x)),
        "lacks x² in u'": dy * (phi + bend * c * (1 + 3 * a)),
        "has a wrong sign in u'": dy * (phi + bend * c * (1 - 3 * a * x * x)),
        "has 2 where 3 belongs in the derivative of the cube":
            dy * (phi + bend * c * (1 + 2 * a * x * x)),
        "has 1 - t where 1 - t² belongs": dy * (phi + 0.5 * x * (1 - t) * du),
        "has dy where x belongs": dy * (phi + 0.5 * dy * (1 - t * t) * du),
        "is the function's value, times dy; it is the slope": dy * x * phi,
        "goes through GELU as if it were a straight line": dy}})
    compare_layers(lambda module: module.GELU(), mine, book, [
        float32(x, dy), float32(x[0, 0], dy[0, 0]), float32(x[:, :, None], dy[:, :, None])])
    return time_backward(lambda module: module.GELU(), normal(65536, dtype=np.float32),
                         normal(65536, seed=1, dtype=np.float32))


@grader("softmax")
def grade_softmax(mine: Module, book: Module) -> Race:
    for dtype in (np.float64, np.float32):
        z = normal(2, 3, 4, dtype=dtype)
        e, s = np.exp(z), np.exp(z - z.max(axis=-1, keepdims=True))
        with Untouched(z=z):
            got, right = mine.softmax(z), book.softmax(z)
        check("The result", got, right, {
            "is not divided by its sum": e,
            "is not divided by its sum, only shifted": s,
            **{f"sums to 1 {where}{how}": weights / weights.sum(axis=axis, keepdims=True)
               for weights, how in ((e, ""), (s, ", after each row's largest was taken away"))
               for where, axis in (
                   ("over the whole array: each row (the last axis) must", None),
                   ("along the first axis, not the last", 0),
                   ("along axis 1, not along the last", 1))},
            **{f"has the largest of {which} taken away: it must be that of each row":
               (shifted := np.exp(z - z.max(axis=axis, keepdims=True))) / shifted.sum(
                   axis=-1, keepdims=True)
               for axis, which in ((0, "the first axis"), (1, "axis 1"))},
            "has the sign of the exponent wrong": book.softmax(-z),
            "is not exponentiated": z - z.max(axis=-1, keepdims=True),
            **{"is not exponentiated, only divided by its sum" + how:
               a / a.sum(axis=-1, keepdims=True) for a, how in (
                   (z, ""), (np.log(s), ", after each row's largest was taken away"))},
            "is multiplied by its sum, not divided": s * s.sum(axis=-1, keepdims=True),
            "is the logarithm of the probabilities": np.log(right)})
        kept = got.copy()
        check("The result for one row", mine.softmax(2 * z[0, 0]), book.softmax(2 * z[0, 0]))
        check("The result for five axes", mine.softmax(z[None, :, None]), right[None, :, None])
        for kind, [other] in in_other_memory(z):
            with Untouched(z=other):
                check(f"For a z {kind[5:] if kind[:4] == 'that' else kind}, the result",
                      mine.softmax(other), right)
        mine.softmax(-z)
        if not agree(got, kept):
            raise Wrong("A second call overwrites what the first one returned: that was the "
                        "caller's to keep.")
        check_owned("The result", got, z=z)
        huge = np.array([[1000.0, 1001.0, 999.0], [-1000.0, -1001.0, -999.0]], dtype)
        with np.errstate(all="ignore"):
            got = mine.softmax(huge)
        if not np.isfinite(got[0]).all():
            raise Wrong("For logits near 1000 it overflows: take the maximum of each row "
                        "away first.")
        if not np.isfinite(got[1]).all() or not agree(got[1].sum(), 1.0):
            raise Wrong("If one row is much larger than another, the smaller one becomes "
                        "0/0: take from each row its own maximum.")
        check("For logits near 1000, the result", got, book.softmax(huge), {
            "is as if the logits were cut off at a limit: take away the maximum of each row, "
            "which changes nothing": np.full((2, 3), 1 / 3)})
        hidden = np.array([[0.5, -np.inf, 1.5]], dtype)
        check("The result where a logit is -inf", mine.softmax(hidden), book.softmax(hidden))
    big = normal(512, 64, dtype=np.float32)
    return lambda module: lambda: module.softmax(big)


def check_other_batches(mine: Module, book: Module) -> None:
    """Of the cross-entropy: one story, one position, all targets, one target."""
    for shape, targets in (((1, 1, 3), [[2]]), ((1, 4, 2), [[0, 1, 1, 0]]),
                           ((3, 2, 4), [[-1, -1], [-1, 3], [-1, -1]])):
        layers = mine.CrossEntropy(), book.CrossEntropy()
        for layer in layers:
            layer.forward(normal(*shape), np.array(targets))
        check(f"For logits of the shape {shape}, dz", *(layer.backward() for layer in layers))


@grader("cross-entropy-backward")
def grade_cross_entropy(mine: Module, book: Module) -> Race:
    targets = np.array([[3, -1, 0], [2, 2, -1]])
    hot = np.eye(5)[targets] * (targets >= 0)[..., None]
    used = (targets >= 0)[..., None]
    for dtype in (np.float64, np.float32):
        z = normal(2, 3, 5, dtype=dtype)
        ours, right = (module.CrossEntropy() for module in (mine, book))
        for n in (4, 7):
            for layer in (ours, right):
                layer.forward(z, targets, None if n == 4 else n)
            p, wanted = right.p, right.backward()
            with Untouched(logits=z, targets=targets, **left_by_forward(ours)):
                got = ours.backward()
            last = p - np.eye(5)[targets]
            check("dz", got, wanted, {
                "is not zero where the target is -1: what does not count has no gradient":
                    (p - hot) / n,
                "treats a target of -1 as the last token: -1 is an index to NumPy": last / n,
                "is that of the sum: the loss is the mean over the targets that count":
                    (p - hot) * used,
                "lacks the 1 that is taken from the right token": p * used / n,
                "lacks p: only the 1 of the right token is in it": -hot / n,
                "is divided by all positions, not by those that count":
                    (p - hot) * used / 6,
                "is divided by the number of targets, not by self.n_targets":
                    (p - hot) * used / 4,
                "is divided by V": (p - hot) * used / 5,
                "has the whole 1 taken away, which is to be divided, too":
                    p * used / n - hot,
                "has p undivided": p * used - hot / n,
                "has 1 added at the right token, where it is taken away":
                    (p + hot) * used / n,
                "is 1 at the right token, where 1 is taken away": np.where(hot > 0, 1, p * used) / n,
                "is -1 at the right token, where 1 is taken away from what is there":
                    np.where(hot > 0, -1, p * used) / n,
                "has 2 taken away at the right token, and not 1": (p - 2 * hot) * used / n})
            kept = got.copy()
            for kind, arrays in in_other_memory(z, targets):
                for layer in (ours, right):
                    layer.forward(*arrays, None if n == 4 else n)
                check(f"For logits and targets {kind}, dz", ours.backward(), wanted)
            again = ours.backward()
            if not agree(again, kept) or not agree(got, kept):
                raise Wrong("A second call of `backward` gives something else, or overwrites "
                            "what the first returned: nothing may be left over.")
    check_other_batches(mine, book)
    big, aims = normal(8, 64, 27, dtype=np.float32), np.arange(512).reshape(8, 64) % 27

    def race(module: Module) -> Callable[[], object]:
        layer = module.CrossEntropy()
        layer.forward(big, aims)
        return layer.backward
    return race
