"""Graders for chapter 7: attention."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    compare_layers, float32, grader, GRADERS, in_other_memory, left_by_forward, normal, Race,
    rows_to_one, time_backward,
)
from exercises.diagnose import agree, Array, check, seen, Untouched


@grader("causal-mask")
def grade_causal_mask(mine: Module, book: Module) -> Race:
    for dtype in (np.float64, np.float32):
        for length in (4, 1, 7):
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
                "hides everything": inf,
                "hides the diagonal and the position before it, too":
                    np.triu(inf, k=-1),
                "has ones and zeros; what is added to a score must be 0 or -inf":
                    np.tril(ones),
                "has ones where -inf belongs": np.triu(ones, k=1),
                "has +inf where -inf belongs": -np.triu(inf, k=1)})
    return lambda module: lambda: module.causal_mask(64, np.float32)


@grader("split-heads")
def grade_split_heads(mine: Module, book: Module) -> Race:
    for B, T, H, D in ((2, 3, 4, 5), (3, 2, 2, 4), (1, 4, 1, 3)):
        x = np.arange(B * T * H * D, dtype=np.float64).reshape(B, T, -1)
        with Untouched(x=x):
            got = mine.split_heads(x, H)
        check("The result", got, book.split_heads(x, H), {} if H == 1 else {
            "has the right shape and the wrong numbers: it was reshaped where a transpose "
            "is meant": x.reshape(B, H, T, D),
            "has the heads' elements interleaved: each head is D neighbours":
                x.reshape(B, T, D, H).transpose(0, 3, 1, 2),
            "has the heads in the opposite order":
                x.reshape(B, T, H, D).transpose(0, 2, 1, 3)[:, ::-1],
            "is that of the first story for all": np.broadcast_to(
                x[:1].reshape(1, T, H, D).transpose(0, 2, 1, 3), (B, H, T, D))})
        for kind, [other] in in_other_memory(x.astype(np.float32)):
            with Untouched(x=other):
                check(f"For an array {kind}, the result", mine.split_heads(other, H),
                      book.split_heads(other, H))
    one = normal(2, 1, 6)
    check("For one position, the result", mine.split_heads(one, 3), book.split_heads(one, 3))
    rows = normal(8, 64, 192, dtype=np.float32)
    return lambda module: lambda: module.split_heads(rows, 4)


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


def turn(a: Array) -> Array:
    """The transpose of each head's matrix."""
    return a.transpose(0, 1, 3, 2)


SAVED = "q", "k", "v", "p", "dropped"  # what forward leaves, by its name


def saved(layer: Any, *names: str) -> list[Array]:
    for name in names or SAVED:
        if not isinstance(getattr(layer, name, None), np.ndarray):
            raise Wrong(f"self.{name} is not kept: `backward`, and who looks inside, need it.")
    return [getattr(layer, name) for name in names or SAVED]


def grade_forward(mine: Module, book: Module,
                  check_part: Callable[[Any, Any, Array], None]) -> Race:
    """Of weigh-the-positions or blend-the-values; `check_part` knows its mistakes."""
    x = normal(B, T, H * D)
    ours, right = make_attention(mine), make_attention(book)
    right.forward(x)
    check_part(ours, right, ours.forward(x))
    check_saved("", ours, right)
    check_more_of_forward(mine, book, x)
    rows = normal(8, 64, 64, dtype=np.float32)

    def race(module: Module) -> Callable[[], object]:
        layer = time_attention(module)
        return lambda: layer.forward(rows)
    return race


def check_weights(ours: Any, right: Any, y: Array) -> None:
    """Of weigh-the-positions: the weights p."""
    q, k, _, p, _ = saved(right)
    scores, mask, [got] = q @ turn(k) / 3, right.mask[:T, :T], saved(ours, "p")
    check("self.p", np.zeros(np.shape(got)), np.zeros((B, H, T, T)))
    unequal = np.isfinite(got).all() and not agree(got.sum(axis=-1), p.sum(axis=-1))
    check("self.p", got, p, {
        **wrong_sums(scores + mask),
        "lacks the mask: each position sees the future": rows_to_one(scores),
        "is masked after softmax: the future still counts in the sums":
            rows_to_one(scores) * (mask == 0),
        "lacks the scale: scores are divided by √D": rows_to_one(scores * 3 + mask),
        "has scores multiplied by √D, where they are divided": rows_to_one(scores * 9 + mask),
        "has scores divided by D, and not by its root": rows_to_one(scores / 3 + mask),
        "has scores divided by D/2; the root of D is D**0.5": rows_to_one(scores * 3 / 4.5 + mask),
        "has scores doubled, where they are divided by √D": rows_to_one(scores * 6 + mask),
        "has the root of the wrong number: D is the width of a head, the last axis of q":
            rows_to_one(scores * 3 / H**0.5 + mask),
        "has scores divided by √T, not by √D": rows_to_one(scores * 3 / T**0.5 + mask),
        "has scores divided by √C, not by √D": rows_to_one(scores / H**0.5 + mask),
        "has the scale on the wrong side: p itself is divided by √D": p / 3,
        "is the scores: softmax is missing": scores + mask,
        "has the mask transposed: each position sees only the future":
            rows_to_one(scores + mask.T),
        "has queries and keys exchanged": rows_to_one(turn(scores) + mask),
        "is not exponentiated: weights are e to the score":
            (scores + mask) / (scores + mask).sum(axis=-1, keepdims=True),
        "has rows that do not sum to one": got if unequal else 0 * p}, FACTORS)


def wrong_sums(scores: Array) -> dict[str, Array]:
    """What p is if the exponentials are divided by anything but the sums of their rows."""
    wrong: dict[str, Array] = {}
    largest = scores.max(axis=-1, keepdims=True)
    for e, how in ((np.exp(scores), ""), (np.exp(scores - largest),
                                          " (from which the largest score was taken)")):
        rows, columns = e.sum(axis=-1, keepdims=True), e.sum(axis=-2, keepdims=True)
        wrong |= {
            f"is not divided by the sums of its rows{how}: each row must sum to one": e,
            f"is divided by the sums of its rows twice{how}": e / rows**2,
            f"is multiplied by the sums of its rows, not divided{how}": e * rows,
            f"is divided by the sums of its columns{how}: each row must sum to one":
                e / columns,
            f"has each row divided by the sum of a column{how}": e / turn(columns),
            f"is divided by one sum for all{how}: each row has its own": e / e.sum()}
    return wrong


def check_blend(ours: Any, right: Any, y: Array) -> None:
    """Of blend-the-values: what comes out, and that everything is kept."""
    saved(ours)
    q, k, v, p, _ = saved(right)
    check("The output", y, o_to_y(right, p @ v), {
        "has its heads joined with a reshape where a transpose is meant":
            right.project.forward((p @ v).reshape(B, T, H * D)),
        "is the plain mean of the values": o_to_y(
            right, np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape)),
        "has the values unblended": o_to_y(right, v),
        "blends the keys, not the values": o_to_y(right, p @ k),
        "blends the queries, not the values": o_to_y(right, p @ q),
        "has p transposed: the weights of position i are its row i":
            o_to_y(right, turn(p) @ v)}, FACTORS)


def check_saved(when: str, ours: Any, right: Any) -> None:
    """Is everything kept for `backward`, each under its name?"""
    known = dict(zip(SAVED, saved(right)))
    mistakes = {f"is self.{name}": array for name, array in known.items()}
    for (name, wanted), got in zip(known.items(), saved(ours)):
        check(f"{when}self.{name}", got, wanted, mistakes, FACTORS)


def o_to_y(layer: Any, o: Array) -> Array:
    """What the layer's projection makes of the heads' outputs, (B, H, T, D)."""
    return layer.project.forward(o.transpose(0, 2, 1, 3).reshape(B, T, -1))


def time_attention(module: Module) -> Any:
    none = module.Dropout(0.0, np.random.default_rng(0))
    return module.CausalSelfAttention(
        module.Linear(0.1 * normal(64, 192, dtype=np.float32)),
        module.Linear(0.1 * normal(64, 64, dtype=np.float32)),
        4, book_mask(64, np.float32), none, none)


def check_more_of_forward(mine: Module, book: Module, x: Array) -> None:
    """The future, the cache, large scores, dropout, and float32."""
    layer = make_attention(mine)
    before, later = layer.forward(x), x.copy()
    first, kept = before.copy(), layer.p
    later[:, -1] += 1
    if not agree(seen("The outputs before another last input", layer.forward(later)[:, :-1]),
                 before[:, :-1]):
        raise Wrong("The outputs before change with the last position's input: it looks "
                    "into the future.")
    if not agree(before, first) or np.shares_memory(kept, layer.p):
        raise Wrong("A second call of `forward` overwrites what the first one made: make "
                    "new arrays each time.")
    cached = make_attention(mine)
    cache = Everything()
    try:
        parts = [cached.forward(x[:, :3], cache), cached.forward(x[:, 3:], cache)]
    except ValueError as error:
        raise Wrong("With a cache there are more keys than queries (S > T), and it fails: "
                    f"{error}.") from None
    if not agree(seen("The output with a cache", np.concatenate(parts, axis=1)), before):
        raise Wrong("With a cache it differs: the T queries are the last of the S "
                    "positions, so they need the last T rows of the mask up to S.")
    with np.errstate(all="ignore"):
        large = make_attention(mine).forward(60 * x)
    if not np.isfinite(large).all():
        raise Wrong("With large scores the exponential overflows, or all of a row's are 0: "
                    "first take away from each row the largest score that it may see.")
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
    for kind, [other] in in_other_memory(x):
        got = make_attention(mine).forward(other)
        check(f"For an x {kind}, the output", got, make_attention(book).forward(other))
    for what, part in (("one story", x[:1]), ("one position", x[:, :1]),
                       ("one story of one position", x[:1, :1]),
                       ("a story as long as the mask", np.tile(x[:1], (1, 2, 1))[:, :8])):
        layers = [make_attention(module) for module in (mine, book)]
        check(f"For {what}, the output", *(layer.forward(part) for layer in layers))
        check_saved(f"For {what}, ", *layers)
    layers = [make_attention(module, drop=0.5) for module in (mine, book)]
    got, right = (layer.forward(x) for layer in layers)
    if not agree(seen("The output with dropout", got), right):
        raise Wrong("With dropout it differs: p, whose rows sum to one, goes through "
                    "self.drop_weights.forward once, and what that returns blends the "
                    "values, whatever its rows sum to.")
    check_saved("With dropout, ", *layers)
    layers = [make_attention(module, np.float32) for module in (mine, book)]
    check("The output for float32", *(layer.forward(x.astype(np.float32))
                                      for layer in layers))
    check_saved("For float32, ", *layers)


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
    return grade_forward(mine, book, check_weights)


@grader("blend-the-values")
def grade_blend(mine: Module, book: Module) -> Race:
    return grade_forward(mine, book, check_blend)


def grade_attention_gradients(mine: Module, book: Module) -> Race:
    """What arrives at qkv.backward, part by part, and then the whole layer."""
    x, dy = normal(B, T, H * D), normal(B, T, H * D, seed=1)
    ours, right = spy_on(make_attention(mine)), spy_on(make_attention(book))
    for layer in (ours, right):
        layer.forward(x)
    with Untouched(dy=dy, **left_by_forward(ours)):
        got_dx = ours.backward(dy)
    right.backward(dy)
    if not ours.seen:
        raise Wrong("self.qkv.backward is never called, so nothing reaches x.")
    check("What is passed to self.qkv.backward", 0 * ours.seen[0], 0 * right.seen[0])
    check_gradients(ours, right, dy)
    if got_dx is None:
        raise Wrong("`backward` returns None: is a `return` missing?")
    check_dropped_gradients(mine, book, x, dy)
    compare_layers(make_attention, mine, book, [(x, dy)])
    compare_layers(lambda module: make_attention(module, np.float32), mine, book,
                   [float32(x, dy), float32(x[:, :3], dy[:, :3]), float32(x[:1, :1], dy[:1, :1])])
    return time_backward(time_attention, *(
        normal(8, 64, 64, dtype=np.float32) for _ in range(2)))


def check_gradients(ours: Any, right: Any, dy: Array) -> None:
    """Without dropout: dv, dq and dk, and what the usual mistakes make of them."""
    q, k, v, p, _ = saved(right)
    do = heads(dy @ right.project.weight.data.T)[0]
    dp = do @ turn(v)
    inner = (dp * p).sum(axis=-1, keepdims=True)
    wrong_v = {
        "has the weights untransposed: a value gets from all who looked at it": p @ do,
        "does not go back through self.project": turn(p) @ heads(dy)[0],
        "is do itself: it must be blended by the weights": do}
    da = p * (dp - inner) / 3
    wrong_a = {
        "lacks the factor 1/√D of the scores": 3 * da,
        "has the factor √D, where the scores were divided by it": 9 * da,
        "has the factor 1/√D twice": da / 3,
        **{sentence: wrong / 3 for sentence, wrong in {
            "lacks what softmax takes away: from each row of dp its mean under p": p * dp,
            "lacks the factor p of softmax": dp - inner,
            "has a plain sum of dp where the sum of dp · p belongs":
                p * (dp - dp.sum(axis=-1, keepdims=True)),
            "has a plain mean of dp where the sum of dp · p belongs":
                p * (dp - dp.mean(axis=-1, keepdims=True)),
            "has a mean of dp · p where their sum belongs": p * (dp - inner / T),
            "has the product of do and v where that of dp and p belongs":
                p * (dp - (do * v).sum(axis=-1, keepdims=True)),
            "has what softmax takes away before the factor p: both terms have it":
                p * dp - inner,
            "has the factor p of softmax twice": p * p * (dp - inner),
            "goes past softmax, as if p were the scores": dp,
            "has only the diagonal of softmax, p (1 - p): a score moves all weights of its "
            "row": p * (1 - p) * dp,
            "has the wrong sign before what softmax takes away": p * (dp + inner),
            "lacks dp: it is p times what softmax takes away": p * inner,
            "is the weights themselves: the gradient dp is not in it": p,
            "has the sum of p where that of dp · p belongs": p * (dp - 1),
            **{f"has the sum of dp · p over {which}: it goes along a row": p * (
                dp - (dp * p).sum(axis=axis, keepdims=True)) for axis, which in (
                    (0, "the stories"), (1, "the heads"), (None, "everything"))},
            "has the wrong axis in the sum of dp · p: it goes along a row":
                p * (dp - (dp * p).sum(axis=-2, keepdims=True))}.items()}}
    more = {"dq": {"has da transposed": turn(da) @ k,
                   "has the queries where the keys belong": da @ q,
                   "lacks the factor 1/√D of the scores": 3 * da @ k},
            "dk": {"has da untransposed": da @ q,
                   "has the keys where the queries belong": turn(da) @ k,
                   "lacks the factor 1/√D of the scores": 3 * turn(da) @ q}}
    check_parts("", ours, right, wrong_v, wrong_a, more)


def check_parts(when: str, ours: Any, right: Any, wrong_v: dict[str, Array],
                wrong_a: dict[str, Array], more: dict[str, dict[str, Array]] = {}) -> None:
    """Compare dv, and dq and dk, for which the mistakes are in da, or in `more`."""
    q, k = saved(right, "q", "k")
    got, wanted = heads(ours.seen[0]), heads(right.seen[0])
    check(f"{when}dv", got[2], wanted[2], wrong_v, FACTORS)
    for i, name in enumerate(("dq", "dk")):
        cases = {sentence: turn(da) @ q if i else da @ k for sentence, da in wrong_a.items()}
        check(f"{when}{name}", got[i], wanted[i], {**cases, **more.get(name, {})}, FACTORS)


def check_dropped_gradients(mine: Module, book: Module, x: Array, dy: Array) -> None:
    """The same with dropout."""
    ours, right = (spy_on(make_attention(module, drop=0.5)) for module in (mine, book))
    for layer in (ours, right):
        layer.forward(x)
        layer.backward(dy)
    _, _, v, p, dropped = saved(right)
    W = right.project.weight.data.T
    do = heads(right.drop_output.backward(dy) @ W)[0]
    dp = do @ turn(v)
    back = right.drop_weights.backward(dp)
    inner = (back * p).sum(axis=-1, keepdims=True)
    check_parts("With dropout, ", ours, right, {
        "does not go back through self.drop_output": turn(dropped) @ heads(dy @ W)[0],
        "has p where `dropped` belongs, which blended the values": turn(p) @ do}, {
        sentence: wrong / 3 for sentence, wrong in {
            "does not go back through self.drop_weights":
                p * (dp - (dp * p).sum(axis=-1, keepdims=True)),
            "goes back through self.drop_weights in the sum of dp · p alone":
                p * (dp - inner),
            "has the sum of dp · p from before dp went back through self.drop_weights":
                p * (back - (dp * p).sum(axis=-1, keepdims=True)),
            "has self.dropped where the factor p of softmax belongs":
                dropped * (back - (back * dropped).sum(axis=-1, keepdims=True)),
            "has self.dropped where the second factor p of softmax belongs":
                p * (back - (back * dropped).sum(axis=-1, keepdims=True)),
            "has self.dropped where the first factor p of softmax belongs":
                dropped * (back - inner),
            "goes back through self.drop_weights twice":
                p * (right.drop_weights.backward(back) - (
                    right.drop_weights.backward(back) * p).sum(axis=-1, keepdims=True)),
            }.items()})


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
