"""From a wrong array to a sentence that says what is wrong with it."""
from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np

from exercises.chunks import Wrong

Array = np.ndarray
Mistakes = Mapping[str, Any]  # typical wrong results, by what is to be said of them
SEEN: list[tuple[str, Array]] = []  # all that an answer gave, for proof.py


def seen(what: str, got: Any) -> Any:
    """Enter something that an answer gave into the record."""
    SEEN.append((what, np.array(got)))
    return got


def agree(a: Any, b: Any) -> bool:
    """Are these equal, but for rounding?"""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    finite = np.abs(b[np.isfinite(b)].astype(float))
    scale = max(finite.max(initial=0.0), 1e-30)
    digits = 1e-4 if np.float32 in (a.dtype, b.dtype) else 1e-8
    return bool(np.allclose(a, b, rtol=0, atol=digits * scale, equal_nan=True))


def check(what: str, got: Any, right: Any, mistakes: Mistakes = {},
          factors: Mapping[str, float] = {}) -> None:
    """Wrong, with the likeliest reason, unless `got` is what it should be."""
    right = np.asarray(right)
    what = what[0].upper() + what[1:] if what[:4] == "the " else what
    if got is None:
        raise Wrong(f"{what} is None: is a `return` missing?")
    if right.ndim and not isinstance(got, np.ndarray):
        raise Wrong(f"{what} is a {type(got).__name__}, not an array.")
    got = np.asarray(seen(what, got))
    if got.shape != right.shape:
        raise Wrong(f"{what} has the shape {got.shape}, not {right.shape}"
                    f"{', so it is transposed' * (got.shape == right.shape[::-1])}.")
    for sentence, wrong in mistakes.items():
        if agree(got, wrong) and not agree(got, right):
            raise Wrong(f"{what} {sentence}.")
    if right.ndim and got.dtype != right.dtype:
        raise Wrong(f"{what} is {got.dtype}, not {right.dtype}: something that it was "
                    f"computed with is {got.dtype}, and that spreads.")
    if agree(got, right):
        return
    if np.isnan(got).any() and not np.isnan(right).any():
        raise Wrong(f"{what} contains NaN: something is never written, or infinite.")
    if not np.isfinite(got).all() and np.isfinite(right).all():
        raise Wrong(f"{what} contains infinity.")
    raise Wrong(f"{what} {compare(got, right, factors)}.")


def compare(got: Array, right: Array, factors: Mapping[str, float]) -> str:
    """In what respect a wrong array differs from the right one."""
    if not np.any(got):
        return "is zero"
    if not np.isfinite(right).all() or right.dtype.kind not in "fiu":
        return differences(got, right)
    if agree(got, -right):
        return "has the wrong sign"
    if got.ndim == 2 and got.shape[0] == got.shape[1] and agree(got, right.T):
        return "is transposed"
    factor = float((got * right).sum() / max((right * right).sum(), 1e-300))
    if agree(got, factor * right):
        for name, value in factors.items():
            for sign, text in ((1, ""), (-1, " and has the wrong sign")):
                if abs(factor / (sign * value) - 1) < 1e-3:
                    return f"is {value:.4g} times too large: that is {name}{text}"
                if abs(factor * sign * value - 1) < 1e-3:
                    return f"is {value:.4g} times too small: that is {name}{text}"
        return f"is {factor:.4g} times what it should be"
    return resemblance(got, right) or differences(got, right)


def resemblance(got: Array, right: Array) -> str:
    """What a wrong array has in common with the right one, or with what went in."""
    for name, array in Untouched.latest.items():
        if agree(got, array):
            return (f"is {name} itself, and so wrong in {np.sum(got != right)} of {got.size} "
                    "elements: nothing is done with it")
    offset = float((got - right).mean())
    if agree(got, right + offset):
        return f"is {offset:.4g} too large everywhere"
    if got.size > 1 and agree(got, np.full(got.shape, got.flat[0])):
        return (f"is {got.flat[0]:.4g} everywhere: is a sum or a mean taken over all axes, "
                "where one or some are meant?")
    with np.errstate(all="ignore"):
        for sentence, wrong in {
                "is one over what it should be: a division is upside down": 1 / right,
                "is the square of what it should be": right**2,
                "is the root of what it should be": np.sqrt(right),
                "is the logarithm of what it should be": np.log(right),
                "is what it should be, exponentiated": np.exp(right)}.items():
            if agree(got, wrong):
                return sentence
    if agree(np.abs(got), np.abs(right)):
        return "has wrong signs: its absolute values are right"
    if agree(np.sort(got, axis=None), np.sort(right, axis=None)):
        return "has the right numbers in the wrong places: look at the order of axes or rows"
    return of_rows(got, right)


def of_rows(got: Array, right: Array) -> str:
    """What is the same along every row, if a wrong array is right but for that."""
    if got.ndim < 2 or got.shape[-1] < 3:
        return ""
    d = got - right
    if agree(got, right + d.mean(axis=-1, keepdims=True)):
        return ("is off by one number in each row: is what is added there, or taken away, "
                "a sum or a mean over the wrong axis?")
    with np.errstate(all="ignore"):
        ratio = (got * right).sum(axis=-1, keepdims=True) / (right**2).sum(
            axis=-1, keepdims=True)
        if agree(got, right * ratio):
            return ("has in each row one factor too many: is what a row is multiplied or "
                    "divided by a sum or a mean over the wrong axis?")
    return ""


def differences(got: Array, right: Array) -> str:
    """How many elements are wrong, where they are, and the first of them."""
    wrong = ~np.isclose(got, right, rtol=1e-4, atol=1e-6)
    if not right.ndim:
        return f"is {got:.6g}, not {right:.6g}"
    if not wrong.any():
        return "is right to a few digits only"
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = ", ".join(map(str, first))
    return (f"is wrong in {int(wrong.sum())} of {wrong.size} elements"
            f"{where_wrong(wrong)}: the first is "
            f"[{place}], {got[first]:.6g} in place of {right[first]:.6g}")


def where_wrong(wrong: Array) -> str:
    """If an axis has wrong elements at some places only, which."""
    names = {1: ["place"], 2: ["row", "column"], 3: ["story", "position", "column"],
             4: ["story", "head", "position", "column"]}.get(wrong.ndim, [])
    for axis, name in enumerate(names):
        others = tuple(i for i in range(wrong.ndim) if i != axis)
        at = np.flatnonzero(wrong.any(axis=others))
        if wrong.shape[axis] > 1 and len(at) == 1:
            return f", all at {name} {at[0]}"
        if wrong.shape[axis] > 2 and len(at) == wrong.shape[axis] - 1:
            right = set(range(wrong.shape[axis])) - set(at.tolist())
            return f", none of them at {name} {right.pop()}"
    return ""


def check_gradient(what: str, parameter: Any, before: Array, right: Array,
                   mistakes: Mistakes = {}, factors: Mapping[str, float] = {}) -> None:
    """Was `right` added to the gradient, which was all ones, where it stood?"""
    got = parameter.grad
    if any(agree(got, each) for each in (right, np.where(right != 0, right, 1))) \
            and not agree(got, 1 + right):
        raise Wrong(f"{what} is overwritten: gradients are added, since a parameter can "
                    "have several.")
    if got is not before:
        raise Wrong(f"{what} is bound to a new array: add into the one that is there, "
                    "with +=, for others may hold it, too.")
    if agree(got, np.ones_like(got)) and not agree(right, 0 * right):
        raise Wrong(f"{what} gets nothing added to it.")
    check(what, got - 1, right, mistakes, factors)


class Untouched:
    """`with Untouched(dy=dy):` is Wrong if the block changes one of the arrays."""
    latest: Mapping[str, Array] = {}  # what went in last, to recognize it in what comes out

    def __init__(self, **arrays: Array) -> None:
        self.arrays = arrays
        Untouched.latest = {name: array for name, array in arrays.items()
                            if not name.startswith("self.")}
        self.before = {name: array.copy() for name, array in arrays.items()}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *rest: Any) -> None:
        for name, array in self.arrays.items():
            if not name.startswith("self."):
                seen(name, array)
            if kind is None and not np.array_equal(array, self.before[name],
                                                   equal_nan=array.dtype.kind == "f"):
                raise Wrong(f"It changes {name}, which `forward` left and which may be "
                            "wanted again." if name.startswith("self.") else
                            f"It changes its input {name}, which is not its own.")


def check_cases(function: Callable[..., Any], right: Callable[..., Any],
                cases: Mapping[str, tuple[Any, ...]]) -> None:
    """Compare two functions; each case has a sentence for who gets it wrong."""
    for sentence, arguments in cases.items():
        got, wanted = function(*arguments), right(*arguments)
        if got is None:
            raise Wrong(f"{function.__name__}{arguments} is None: is a `return` missing?")
        shown = ", ".join(map(str, arguments))
        if not agree(seen(f"{function.__name__}({shown})", got), wanted):
            raise Wrong(f"{function.__name__}({shown}) is {got:.6g}, not {wanted:.6g}: "
                        f"{sentence}.")
