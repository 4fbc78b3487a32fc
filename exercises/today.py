"""Graders for chapter 16: the layers of today, and Muon's matrices."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    check_owned, compare_layers, float32, grader, in_other_memory, normal, Race,
    time_backward,
)
from exercises.diagnose import agree, Array, check, Mistakes, Untouched

Named = dict[str, Array]


def others(when: str, *arguments: Any) -> None:
    """Compare two layers once more, and say in which case they differ."""
    try:
        compare_layers(*arguments)
    except Wrong as wrong:
        raise Wrong(f"{when}: {wrong}") from None


# RMSNorm

@grader("rms-norm")
def grade_rms_norm(mine: Module, book: Module) -> Race:
    x, dy, gain = 3 * normal(2, 3, 5) + 1, normal(2, 3, 5, seed=1), normal(5, seed=2)
    x[0, 0] *= 1e-3  # a row so short that it matters where epsilon is

    def make(module: Module, dtype: Any = np.float64, width: int = 5) -> Any:
        layer = module.RMSNorm(width, dtype)
        if not agree(layer.weight.data, np.ones(width)):
            raise Wrong("The gain does not begin as ones.")
        layer.weight.data[...] = np.resize(gain, width)
        return layer

    compare_layers(make, mine, book, [(x, dy)], wrong_rms_norms(x, dy, gain),
                   {"the number of rows N": 6, "the width C": 5, "the root of C": 5**0.5})
    others("If a row is all zeros, it differs", make, mine, book,
           [(x * [[[1], [0], [1]]], dy)])
    others("For float32 it differs", lambda module: make(module, np.float32), mine, book,
           [float32(x, dy), float32(x[0], dy[0]), float32(x[0, 1], dy[0, 0])])
    others("For another width C it differs (5 is right, 7 is not)",
           lambda module: make(module, width=7), mine, book,
           [(normal(2, 7), normal(2, 7, seed=1)),
            (normal(1, 2, 2, 7), normal(1, 2, 2, 7, seed=1))])
    return time_backward(lambda module: module.RMSNorm(64, np.float32),
                         normal(512, 64, dtype=np.float32),
                         normal(512, 64, dtype=np.float32))


def wrong_rms_norms(x: Array, dy: Array, gain: Array) -> dict[str, Mistakes]:
    """What the usual mistakes make of the output, of the gain's gradient, and of dx."""
    def mean(a: Array) -> Array:
        return a.mean(axis=-1, keepdims=True)

    square = mean(x * x)
    s = 1 / np.sqrt(square + 1e-5)
    n, d = x * s, dy * gain
    centred = x - mean(x)
    layer_norm = centred / np.sqrt(mean(centred**2) + 1e-5)
    y = {
        "is LayerNorm's: nothing is subtracted in RMSNorm": gain * layer_norm,
        "has the mean subtracted from x before it is divided: RMSNorm subtracts nothing":
            gain * centred * s,
        "is divided by the deviation; it is by the root of the mean square":
            gain * x / np.sqrt(mean(centred**2) + 1e-5),
        "has epsilon outside of the root": gain * x / (np.sqrt(square) + 1e-5),
        "lacks epsilon under the root": gain * x / np.sqrt(square),
        "lacks the gain": n,
        "has the gain added, where it is multiplied": n + gain,
        "is divided by the mean square, and not by its root": gain * x / (square + 1e-5),
        "is multiplied by the root of the mean square, where it is divided": gain * x / s,
        "has a sum of squares where their mean belongs":
            gain * x / np.sqrt(5 * square + 1e-5),
        "is divided by the mean of the absolute values; it is by the root of the mean square":
            gain * x / np.sqrt(mean(np.abs(x)) ** 2 + 1e-5),
        "is x times the gain: it is never divided": gain * x,
        **{f"has the mean square of {what}: each row has its own":
           gain * x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + 1e-5)
           for what, axes in {"all rows together": None, "each column": (0, 1),
                              "each column over the stories": 0,
                              "each column over the positions": 1}.items()}}
    dx = {
        "lacks the term n · mean(d n): a longer row makes all of n shorter": s * d,
        "lacks the gain: d is dy times the gain": s * (dy - n * mean(dy * n)),
        "lacks the gain in mean(d n)": s * (d - n * mean(dy * n)),
        "lacks the gain in its first term": s * (dy - n * mean(d * n)),
        "lacks the factor 1/rms": d - n * mean(d * n),
        "has the factor 1/rms in its first term only": s * d - n * mean(d * n),
        "is multiplied by the rms, where it is divided": (d - n * mean(d * n)) / s,
        "has the mean of d taken away, too: that is LayerNorm's":
            s * (d - mean(d) - n * mean(d * n)),
        "has a sum where mean(d n) belongs": s * (d - 5 * n * mean(d * n)),
        "has the wrong sign before n · mean(d n)": s * (d + n * mean(d * n)),
        "lacks the factor n before mean(d n)": s * (d - mean(d * n)),
        "lacks the factor n within mean(d n)": s * (d - n * mean(d)),
        "has x where n belongs": s * (d - x * mean(d * x)),
        "has x where n belongs, before mean(d n)": s * (d - x * mean(d * n)),
        "has x where n belongs, within mean(d n)": s * (d - n * mean(d * x)),
        "lacks d itself": -s * n * mean(d * n),
        **{f"has mean(d n) over {what}: it goes along each row":
           s * (d - n * (d * n).mean(axis=axes, keepdims=True))
           for what, axes in {"everything": None, "the rows": (0, 1), "the stories": 0,
                              "the positions": 1}.items()}}
    weight = {"lacks the factor n": dy.sum(axis=(0, 1)),
              "has x where n belongs": (dy * x).sum(axis=(0, 1)),
              "has the gain in it": (d * n).sum(axis=(0, 1)),
              "has n without dy": n.sum(axis=(0, 1)),
              "is that of the last story only": (dy * n)[-1].sum(axis=0)}
    return {"y": y, "weight": weight, "dx": dx}


# RoPE

@grader("rotary-positions")
def grade_rotary(mine: Module, book: Module) -> Race:
    for length, D, base in ((6, 8, 60.0), (9, 4, 10_000.0), (1, 6, 50.0), (5, 2, 10.0),
                            (4, 12, 7)):
        check_angles(mine, book, length, D, base)
    tables = book.rotary_angles(5, 8, 10.0)
    x = normal(2, 3, 5, 8)
    check_turn("The turned x", mine, book, x, tables, wrong_turns(x, *tables))
    for what, part in (("without axes for stories and heads", x[0, 0]),
                       ("of one head", x[:1, :1])):
        check_turn(f"For an x {what}, the turned x", mine, book, part, tables)
    check_turn("For one vector, the turned x", mine, book, x[0, 0, 3],
               tuple(table[3] for table in tables))
    check_turn("For two elements, the turned x", mine, book, normal(4, 5, 2),
               book.rotary_angles(5, 2, 10.0))
    check_turn("For float32, the turned x", mine, book, x.astype(np.float32),
               float32(*tables))
    for kind, [other, *both] in in_other_memory(x, *tables):
        check_turn(f"For arrays {kind}, the turned x", mine, book, other, tuple(both))
    big = normal(8, 4, 64, 16, dtype=np.float32)
    cos, sin = float32(*book.rotary_angles(64, 16, 100.0))
    return lambda module: lambda: module.rotate(big, cos, sin)


def check_angles(mine: Module, book: Module, length: int, D: int, base: float) -> None:
    """The two tables, and what their angles are if they are not the book's."""
    got = mine.rotary_angles(length, D, base)
    if got is None or not hasattr(got, "__len__") or len(got) != 2:
        raise Wrong("`rotary_angles` does not return two arrays: cosines, then sines.")
    wrong, found = wrong_angles(length, D, base), book.rotary_angles(length, D, base)
    for name, table, right, bend, other in zip(
            ("cosines", "sines"), got, found, (np.cos, np.sin), (np.sin, np.cos)):
        check(f"For {length} positions, D = {D} and base {base:g}, the table of {name}",
              table, right, {
                  **{sentence: bend(angles) for sentence, angles in wrong.items()},
                  "has cosines and sines exchanged": other(wrong["is right"]),
                  "holds the angles themselves": wrong["is right"]})


def wrong_angles(length: int, D: int, base: float) -> Named:
    """Angles by what is to be said of them; the first are right, and so never said."""
    at, even, pair = np.arange(length)[:, None], np.arange(0, D, 2), np.arange(D // 2)
    speeds = float(base) ** (-even / D)
    return {
        "is right": at * speeds,
        "has positions that count from 1: the first, 0, is not turned": (at + 1) * speeds,
        "has base to the power of + in place of -: the hands get faster, not slower":
            at / speeds,
        "has speeds as for D hands; there are D/2, so the powers go in steps of 2/D":
            at * float(base) ** (-pair / D),
        "has powers in steps of 4/D; they go in steps of 2/D":
            at * float(base) ** (-2 * even / D),
        "has powers that end at exactly 1; they go in steps of 2/D":
            at * float(base) ** (-pair / max(1, D // 2 - 1)),
        "has odd powers, (2i + 1)/D; the first speed is 1": at * float(base) ** (-(even + 1) / D),
        "has powers that begin at 2/D; the first speed is 1": at * float(base) ** (-(even + 2) / D),
        "has its speeds from the slowest to the fastest": at * speeds[::-1],
        "has the same speed for all hands": at * np.ones(D // 2),
        "has base where a power of it belongs": at * float(base) * np.ones(D // 2),
        "ignores `base`": at * 10_000.0 ** (-even / D),
        "is in degrees; NumPy wants radians": np.degrees(at * speeds),
        "takes the angles for degrees: a speed of 1 is one radian a position":
            np.radians(at * speeds),
        "has a factor 2π: a speed of 1 is one radian a position": 2 * np.pi * at * speeds,
        "has positions as a part of the length": at / length * speeds,
        "has the wrong sign of its angles": -at * speeds}


def check_turn(what: str, mine: Module, book: Module, x: Array, tables: tuple[Array, ...],
               mistakes: Mistakes = {}) -> None:
    cos, sin = tables
    with Untouched(x=x, cos=cos, sin=sin):
        got = mine.rotate(x, cos, sin)
    check(what, got, book.rotate(x, cos, sin), mistakes)
    check_owned(what, got, x=x)


def wrong_turns(x: Array, cos: Array, sin: Array) -> Named:
    def join(*halves: Array) -> Array:
        return np.concatenate(halves, axis=-1)

    def mesh(*halves: Array) -> Array:
        return np.stack(halves, axis=-1).reshape(x.shape)

    (a, b), (even, odd) = np.split(x, 2, axis=-1), (x[..., 0::2], x[..., 1::2])
    turned = a * cos - b * sin, b * cos + a * sin
    apart = even * cos - odd * sin, odd * cos + even * sin
    return {
        "is turned the wrong way": join(a * cos + b * sin, b * cos - a * sin),
        "pairs neighbours, 2i and 2i + 1; here i goes with i + D/2": mesh(*apart),
        "pairs neighbours, and then puts the halves side by side": join(*apart),
        "has its two halves interleaved: they belong side by side": mesh(*turned),
        "has its two halves exchanged": join(*turned[::-1]),
        "is turned by cosine and sine exchanged": join(a * sin - b * cos, b * sin + a * cos),
        "has two plus signs: then the length of a pair changes":
            join(a * cos + b * sin, b * cos + a * sin),
        "has two minus signs: then the length of a pair changes":
            join(a * cos - b * sin, b * cos - a * sin),
        "has its second half made of the first one that was turned already":
            join(turned[0], b * cos + turned[0] * sin),
        "has only its first half turned": join(turned[0], b),
        "has only its second half turned": join(a, turned[1]),
        "has cosines only": join(a * cos, b * cos),
        "has each half multiplied by cosine and sine of its own elements":
            join(a * cos - a * sin, b * cos + b * sin),
        "pairs i with D - 1 - i; here i goes with i + D/2": join(
            a * cos - b[..., ::-1] * sin, (b[..., ::-1] * cos + a * sin)[..., ::-1])}


# Heads that share

@grader("share-keys-and-values")
def grade_sharing(mine: Module, book: Module) -> Race:
    check_sharing("", mine, book, normal(2, 2, 5, 3), normal(2, 6, 5, 3, seed=1), named=True)
    for what, B, H, K, S, D in (
            ("four heads in two groups", 3, 4, 2, 2, 4), ("one group", 2, 4, 1, 3, 2),
            ("as many groups as heads", 2, 3, 3, 4, 2), ("one story and position", 1, 6, 3, 1, 2)):
        check_sharing(f"For {what}, ", mine, book, normal(B, K, S, D),
                      normal(B, H, S, D, seed=1))
    x, d = normal(2, 2, 5, 3), normal(2, 4, 5, 3, seed=1)
    check_sharing("For float32, ", mine, book, *float32(x, d))
    for kind, arrays in in_other_memory(x, d):
        check_sharing(f"For arrays {kind}, ", mine, book, *arrays)
    few, many = normal(8, 2, 64, 16, dtype=np.float32), normal(8, 4, 64, 16, dtype=np.float32)

    def race(module: Module) -> Callable[[], object]:
        layer = make_sharing(module, 4, 2)
        return lambda: (layer.share(few), layer.collect(many))
    return race


def make_sharing(module: Module, heads: int, groups: int) -> Any:
    """Attention that has no layers within, and only shares and collects."""
    return module.GroupedQueryAttention(
        None, None, None, None, heads, groups, None, None, None, None)


def check_sharing(when: str, mine: Module, book: Module, x: Array, d: Array,
                  named: bool = False) -> None:
    (_, K, _, _), (B, H, S, D) = x.shape, d.shape
    ours, right = (make_sharing(module, H, K) for module in (mine, book))
    shared = right.share(x)
    with Untouched(x=x):
        got = ours.share(x)
    check(f"{when}the result of `share`", got, shared, {
        "has the groups one after the other, again and again: the heads of a group are "
        "neighbours, as np.repeat makes them and np.tile does not":
            np.tile(x, (1, H // K, 1, 1)),
        "has its groups in the opposite order": shared[:, ::-1],
        "is divided by the number of heads in a group": shared / (H // K)} if named else {})
    groups, tiled = d.reshape(B, K, -1, S, D), d.reshape(B, -1, K, S, D)
    with Untouched(d=d):
        got = ours.collect(d)
    check(f"{when}the result of `collect`", got, right.collect(d), {
        "is the mean of each group; gradients that come together are added":
            groups.mean(axis=2),
        "has only the first head of each group": groups[:, :, 0],
        "has only the last head of each group": groups[:, :, -1],
        "has only the first heads": d[:, :K],
        "adds heads that do not share: the heads of a group are neighbours, and so the axis "
        "of groups comes before that of the heads within": tiled.sum(axis=1),
        "has its groups in the opposite order": groups.sum(axis=2)[:, ::-1],
        "has the largest of each group; they are added": groups.max(axis=2),
        } if named else {}, {"the number of heads in a group": H / K})


# SwiGLU

@grader("swiglu")
def grade_swiglu(mine: Module, book: Module) -> Race:
    check_sigmoid(mine, book)
    x, dy = 1.5 * normal(2, 3, 4), normal(2, 3, 4, seed=1)

    def make(module: Module, dtype: Any = np.float64, drop: float = 0.0,
             kind: str = "LinearNoBias") -> Any:
        return make_swiglu(module, 4, 6, dtype, drop, kind)

    layer = make(mine)
    layer.forward(x)
    if not hasattr(layer.dropout, "mask"):
        raise Wrong("`forward` does not go through self.dropout, which comes at its end.")
    compare_layers(make, mine, book, [(x, dy)], wrong_swiglus(make(book), book, x, dy))
    others("With dropout it differs (the output goes through self.dropout, and so does dy)",
           lambda module: make(module, drop=0.5), mine, book, [(x, dy)])
    others("With linear layers that have a bias it differs",
           lambda module: make(module, kind="Linear"), mine, book, [(x, dy)])
    others("For float32 it differs", lambda module: make(module, np.float32), mine, book,
           [float32(x, dy), float32(x[0], dy[0]), float32(x[0, 0], dy[0, 0])])
    others("With gates near ±1000 it differs", make, mine, book, [(1000 * x, dy)])
    return time_backward(lambda module: make_swiglu(module, 64, 168, np.float32),
                         normal(512, 64, dtype=np.float32), normal(512, 64, dtype=np.float32))


def make_swiglu(module: Module, C: int, F: int, dtype: Any = np.float64, drop: float = 0.0,
                kind: str = "LinearNoBias", seed: int = 3) -> Any:
    """A gated layer of this width, with weights of its own for each seed."""
    gate, up, down = (
        getattr(module, kind)((normal(*shape, seed=seed + i) / shape[0] ** 0.5).astype(dtype))
        for i, shape in enumerate(((C, F), (C, F), (F, C))))
    if kind == "Linear":
        gate.bias.data[...] = normal(F, seed=seed + 3)
    dropout = module.Dropout(drop, np.random.default_rng(6))
    dropout.training = True
    return module.SwiGLU(gate, up, down, dropout)


def check_sigmoid(mine: Module, book: Module) -> None:
    x = np.append(3 * normal(11), [0.0, -30.0, 30.0]).reshape(2, 7)
    t = np.tanh(x)
    with Untouched(x=x):
        got = mine.sigmoid(x)
    check("The sigmoid", got, book.sigmoid(x), {
        "has the wrong sign of x: it goes from 0, far left, to 1": book.sigmoid(-x),
        "lacks the half within tanh": 0.5 * (1 + t),
        "is tanh itself": t,
        "is tanh of half of x; from -1 to 1 it has to be brought to 0 to 1": np.tanh(x / 2),
        "is not halved: it goes to 2": 1 + np.tanh(x / 2),
        "is SiLU: x times the sigmoid comes later": x * book.sigmoid(x)})
    for dtype in (np.float64, np.float32):
        large = np.array([-1e4, -1000, -100, 100, 1000, 1e4], dtype)
        try:
            with np.errstate(over="raise"):
                got = mine.sigmoid(large)
        except FloatingPointError:
            raise Wrong("For an x far from 0 an exponential in the sigmoid overflows, and NumPy "
                        "warns of it: take tanh, or let exp see nothing above 0.") from None
        check("The sigmoid far from 0", got, book.sigmoid(large))


def wrong_swiglus(layer: Any, book: Module, x: Array, dy: Array) -> dict[str, Mistakes]:
    """What the usual mistakes make of the output, of the gradients, and of dx."""
    gate, up, down = (part.weight.data for part in (layer.gate, layer.up, layer.down))
    g, u = x @ gate, x @ up
    s, d = book.sigmoid(g), dy @ down.T
    y = {sentence: hidden @ down for sentence, hidden in {
        "has an unbent gate: SiLU is missing": g * u,
        "has σ(g) alone as its gate; SiLU is g σ(g)": s * u,
        "is bent by GELU; here it is SiLU, g σ(g)": book.GELU().forward(g) * u,
        "is bent by ReLU; here it is SiLU, g σ(g)": np.maximum(g, 0) * u,
        "is bent by tanh; here it is SiLU, g σ(g)": g * np.tanh(g) * u,
        "has gate and up exchanged: the gate is what is bent": g * u * book.sigmoid(u),
        "has both bent: the gate alone is": g * s * u * book.sigmoid(u),
        "has the two added, where they are multiplied": g * s + u,
        "has the sign within σ wrong": g * (1 - s) * u,
        "lacks what comes from up": g * s,
        "lacks the gate": u,
        "has the gate's SiLU of what comes from up twice": g * s * u * u}.items()}
    slope = 1 + g * (1 - s)
    dg, du = d * u * s * slope, d * g * s
    wrong_g = {
        "lacks the second term of the slope: SiLU is a product, and its slope is "
        "σ (1 + g (1 - σ))": d * u * s,
        "goes past the bend as if it were a straight line": d * u,
        "lacks u: backwards a product gives each factor the other": d * s * slope,
        "lacks the factor σ of the slope": d * u * slope,
        "has only the slope of σ; SiLU is g σ(g), and has two terms": d * u * s * (1 - s),
        "lacks σ in the second term of the slope": d * u * (s + g * (1 - s)),
        "lacks g in the second term of the slope": d * u * s * (2 - s),
        "lacks 1 - σ in the second term of the slope": d * u * s * (1 + g),
        "has σ where 1 - σ belongs": d * u * s * (1 + g * s),
        "has 1 + σ where 1 - σ belongs": d * u * s * (1 + g * (1 + s)),
        "has a wrong sign in the slope": d * u * s * (1 - g * (1 - s)),
        "lacks the 1 in 1 + g (1 - σ)": d * u * s * g * (1 - s),
        "has the value of SiLU where its slope belongs": d * u * g * s,
        "has what belongs to up: the two are exchanged": du}
    wrong_u = {
        "lacks σ: up is multiplied by g σ(g)": d * g,
        "lacks g: up is multiplied by g σ(g)": d * s,
        "lacks the gate: backwards a product gives each factor the other": d,
        "has the slope of SiLU; up is multiplied by its value": d * s * slope,
        "has u in it: backwards a product gives each factor the other, and not itself":
            du * u,
        "has what belongs to the gate: the two are exchanged": dg}

    def onto(width: Array, wrong: Named) -> Mistakes:
        return {sentence: np.einsum("btc,btf->cf", width, each) for sentence, each in wrong.items()}

    return {"y": y, "gate.weight": onto(x, wrong_g), "up.weight": onto(x, wrong_u), "dx": {
        "lacks what comes back through the gate": du @ up.T,
        "lacks what comes back through up": dg @ gate.T,
        "has one of its two parts subtracted": dg @ gate.T - du @ up.T,
        "has one of its two parts subtracted, the gate's": du @ up.T - dg @ gate.T,
        "is the mean of its two parts; they are added": (dg @ gate.T + du @ up.T) / 2,
        "is the product of its two parts; they are added": (dg @ gate.T) * (du @ up.T)}}


# Muon

@grader("orthogonalize")
def grade_orthogonalize(mine: Module, book: Module) -> Race:
    shapes = {"a wide matrix": (3, 5), "a square matrix": (4, 4), "a tall matrix": (6, 3),
              "a matrix of one row": (1, 4), "a matrix of one column": (4, 1)}
    for what, shape in shapes.items():
        G = normal(*shape)
        for kind, matrix in ((" of float32", (0.1 * G).astype(np.float32)), ("", 1000 * G)):
            check_orthogonal(f"For {what}{kind}, the result", mine, book, matrix)
    for what in ("wide", "tall"):
        for kind, [G] in in_other_memory(1000 * normal(*shapes[f"a {what} matrix"])):
            check_orthogonal(f"For a {what} matrix {kind[5:] if kind[:4] == 'that' else kind}, "
                             "the result", mine, book, G)
    check_orthogonal("For a matrix of zeros, the result", mine, book, np.zeros((2, 3)))
    big = normal(192, 64, dtype=np.float32)
    return lambda module: lambda: module.orthogonalize(big)


def check_orthogonal(what: str, mine: Module, book: Module, G: Array) -> None:
    with Untouched(G=G):
        got = mine.orthogonalize(G)
    if G.any() and isinstance(got, np.ndarray) and not np.isfinite(got).all():
        raise Wrong(f"{what} runs away to infinity: is G divided by its length at first, are "
                    "a, b and c in their places, with their signs, and does a step replace X?")
    check(what, got, book.orthogonalize(G), wrong_orthogonals(G, book) if G.any() else {})
    check_owned(what, got, G=G)


Bend = Callable[[Array, Array], Array]  # from A = X Xᵀ and X, one step


def wrong_orthogonals(G: Array, book: Module) -> Mistakes:
    """What the usual mistakes make of a matrix; those that run away to infinity left out."""
    wide = G if G.shape[0] <= G.shape[1] else G.T
    a, b, c = 3.4445, -4.7750, 2.0315

    def bend(a: float, b: float, c: float) -> Bend:
        return lambda A, X: a * X + (b * A + c * A @ A) @ X

    def run(step: Bend = bend(a, b, c), steps: int = 5,
            X: Array = wide / np.linalg.norm(wide)) -> Array:
        for _ in range(steps):
            X = step(X @ X.T, X)
        return X if wide is G else X.T

    U, _, Vt = np.linalg.svd(wide.astype(float), full_matrices=False)
    found = {
        "is not divided by its length at first: singular values above 1 do not come near 1":
            run(X=wide),
        "is divided at first by its largest singular value; it is by the root of its sum of "
        "squares": run(X=wide / np.linalg.norm(wide, 2)),
        "is divided at first by its largest element; it is by the root of its sum of squares":
            run(X=wide / np.abs(wide).max()),
        "has each of its rows divided at first by its length; the whole matrix is":
            run(X=wide / np.linalg.norm(wide, axis=1, keepdims=True)),
        **{f"has {n} step{'s' * (n > 1)}, and not five": run(steps=n) for n in (4, 6, 1, 3, 10)},
        "is only divided by its length: no step is made": run(steps=0),
        "has c, b, a where a, b, c belong: a goes with X, b with X Xᵀ X, c with the last term":
            run(bend(c, b, a)),
        "lacks the term with c": run(bend(a, b, 0)),
        "has c A where c A A belongs": run(lambda A, X: a * X + (b * A + c * A) @ X),
        "has A squared element by element; A A is the matrix product":
            run(lambda A, X: a * X + (b * A + c * A * A) @ X),
        "has powers of each element; they are products of matrices":
            run(lambda A, X: a * X + b * X**3 + c * X**5),
        "is divided by its length anew in each step; it is only at first":
            run(lambda A, X: bend(a, b, c)(A, X) / np.linalg.norm(bend(a, b, c)(A, X))),
        "has Newton and Schulz' first polynomial, 1.5 X - 0.5 X Xᵀ X":
            run(bend(1.5, -0.5, 0)),
        "is exactly U Vᵀ; asked for are five steps of the polynomial":
            (U @ Vt) if wide is G else (U @ Vt).T}
    return {sentence: wrong for sentence, wrong in found.items()
            if np.isfinite(wrong).all()}


# Experts

@grader("mix-experts-backwards")
def grade_experts(mine: Module, book: Module) -> Race:
    x, dy = normal(2, 7, 4), normal(2, 7, 4, seed=1)

    def make(module: Module, dtype: Any = np.float64) -> Any:
        return make_experts(module, 4, 6, 3, dtype)

    compare_layers(make, mine, book, [(x, dy)], wrong_experts(make, book, x, dy))
    others("If some experts get no token it differs", make, mine, book,
           [(x[:1, :1], dy[:1, :1]), (x[0, :2], dy[0, :2]), (x[0, 0], dy[0, 0])])
    others("For float32 it differs", lambda module: make(module, np.float32), mine, book,
           [float32(x, dy), float32(x[0], dy[0])])
    others("With one expert only it differs", lambda module: make_experts(module, 4, 6, 1),
           mine, book, [(x, dy)])
    return time_backward(lambda module: make_experts(module, 64, 168, 4, np.float32),
                         normal(8, 64, 64, dtype=np.float32),
                         normal(8, 64, 64, dtype=np.float32))


def make_experts(module: Module, C: int, F: int, E: int, dtype: Any = np.float64) -> Any:
    """A mixture, whose experts are also its attributes, so that their gradients are found."""
    router = module.LinearNoBias(normal(C, E, seed=2, dtype=dtype))
    layer = module.MixtureOfExperts(router, [
        make_swiglu(module, C, F, dtype, seed=10 * e) for e in range(1, E + 1)])
    for e, expert in enumerate(layer.experts):
        setattr(layer, f"experts[{e}]", expert)
    return layer


def wrong_experts(make: Callable[[Module], Any], book: Module, x: Array,
                  dy: Array) -> dict[str, Mistakes]:
    """For each gradient what it is after one of the usual mistakes."""
    layer = make(book)
    layer.forward(x)
    d, y, share = dy.reshape(layer.y.shape), layer.y, layer.share
    right, *wrong_dz = wrong_scores(layer, d, x.reshape(y.shape)).items()
    results = {sentence: sent_back(make(book), x, dz, share * d) for sentence, dz in wrong_dz}
    for sentence, passed in {
            "lacks the share, by which what the expert says is multiplied": d,
            "has the share twice": share * share * d,
            "has y in it: backwards a product gives each factor the other":
                share * d * y}.items():
        results[sentence] = sent_back(make(book), x, right[1], passed)
    wrong: dict[str, Named] = {"dx": {
        "lacks what comes back through the router: what the experts return is added to it":
            sent_back(make(book), x, 0 * right[1], share * d)["dx"],
        "lacks what comes back through the experts":
            sent_back(make(book), x, right[1], 0 * d)["dx"]}}
    for sentence, gradients in results.items():
        for name, array in gradients.items():
            wrong.setdefault(name, {})[sentence] = array
    return wrong


def wrong_scores(layer: Any, d: Array, x: Array) -> Named:
    """Gradients by the router's scores; the first is right, and so never said."""
    p, y = layer.p, layer.y

    def chosen(values: Array) -> Array:
        """Zeros, but for one number in each row, at its expert."""
        new = np.zeros_like(p)
        new[np.arange(len(p)), layer.chosen] = values
        return new

    def total(a: Array) -> Array:
        return a.sum(axis=1, keepdims=True)

    def back(dp: Array) -> Array:
        return p * (dp - total(dp * p))

    dp = chosen((d * y).sum(axis=1))
    return {
        "is right": back(dp),
        "forgets the other scores: through softmax the gradient of one probability reaches "
        "all of a row": p * dp,
        "reaches only the score of the chosen expert: through softmax it reaches all of a "
        "row": back(dp) * (dp != 0),
        "goes past softmax": dp,
        "lacks the factor p of softmax": dp - total(dp * p),
        "has in softmax the plain sum of dp, not the one weighted by p": p * (dp - total(dp)),
        "has in softmax a mean of dp, not the sum weighted by p":
            p * (dp - dp.mean(axis=1, keepdims=True)),
        "has in softmax the sum over the rows, not along each": p * (dp - (dp * p).sum(axis=0)),
        "has the wrong sign within softmax": p * (dp + total(dp * p)),
        "lacks y: the gradient of the share is the sum of dy times what the expert says":
            back(chosen(d.sum(axis=1))),
        "has y without dy": back(chosen(y.sum(axis=1))),
        "has the share in it twice: y, as kept, is what the expert says, without its share":
            back(chosen((d * layer.share * y).sum(axis=1))),
        "has a mean of dy · y along C, where the sum belongs": back(dp) / x.shape[1],
        "has x where y belongs": back(chosen((d * x).sum(axis=1)))}


def sent_back(layer: Any, x: Array, dz: Array, passed: Array) -> Named:
    """All gradients, if dz goes back through the router and `passed` to the experts."""
    layer.forward(x)
    dx = layer.router.backward(dz)
    found = {"router.weight": layer.router.weight.grad}
    for e, expert in enumerate(layer.experts):
        mine = layer.chosen == e
        dx[mine] += expert.backward(passed[mine])
        for name in ("gate", "up", "down"):
            found[f"experts[{e}].{name}.weight"] = getattr(expert, name).weight.grad
    return {**found, "dx": dx.reshape(x.shape)}


# Chapter 17: four bits

@grader("quantize")
def grade_quantize(mine: Module, book: Module) -> Race:
    w = normal(6, 64)
    for bits in (4, 2, 8):
        for kind, matrix in (("", w), (" of float32", w.astype(np.float32))):
            check_quantized(f"With {bits} bits, for a matrix{kind}, the result", mine, book, matrix, bits)
    for kind, [other] in in_other_memory(w):
        check_quantized(f"For a matrix {kind}, the result", mine, book, other, 4)
    check_quantized("With blocks of 8, the result", mine, book, w, 3, 8)
    same = np.concatenate([np.full(32, 0.5), np.zeros(32), normal(64)])
    check_quantized("Where all weights of a block are equal, the result", mine, book, same, 4)
    big = normal(256, 256, dtype=np.float32)
    return lambda module: lambda: module.quantize(big, 4)


def check_quantized(what: str, mine: Module, book: Module, w: Array, bits: int,
                    block: int = 32) -> None:
    with Untouched(w=w):
        got = mine.quantize(w, bits, block)
    check(what, got, book.quantize(w, bits, block), wrong_quantized(w, bits, block, book))
    check_owned(what, got, w=w)


def wrong_quantized(w: Array, bits: int, block: int, book: Module) -> Mistakes:
    """What the usual mistakes make of the weights."""
    def nearest(rows: Array, steps: int, near: Callable[[Array], Array] = np.round,
                low: float = 0.0) -> Array:
        m = rows.min(axis=-1, keepdims=True).astype(np.float16)
        d = ((rows.max(axis=-1, keepdims=True) - m) / steps).astype(np.float16)
        d = d.astype(w.dtype)
        q = near((rows - m) / np.where(d == 0, 1, d)).clip(0, 2**bits - 1)
        return (d * q + (m if low == 0 else 0)).reshape(w.shape).astype(w.dtype)

    rows, steps = w.reshape(-1, block), 2**bits - 1
    found = {
        "has 2 to the power of bits steps between the smallest and the largest; there is one "
        "less than there are numbers": nearest(rows, steps + 1),
        "has one scale for all; each block has its own": nearest(w.reshape(1, -1), steps),
        "is rounded down; the nearest is asked for": nearest(rows, steps, np.floor),
        "is not rounded at all": nearest(rows, steps, lambda q: q),
        "lacks the smallest weight m, which is added to d q": nearest(rows, steps, low=1.0),
        "is w itself": w,
    }
    return {} if len(w) > 6 else found
